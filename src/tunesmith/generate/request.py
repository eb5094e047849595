"""What the generator is asked for, and what it says while it works."""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.generate.completion import Completion, TokenLogprob
from tunesmith.specs.generation import SamplingSpec


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to one prompt; `sampling.n` answers are that many requests, see `expand`."""

    prompt_ids: tuple[int, ...]
    sampling: SamplingSpec

    def expand(self) -> list[Request]:
        """Return one request for each of the `n` answers; a given seed is counted up."""
        seed = self.sampling.seed
        return [
            Request(
                self.prompt_ids,
                self.sampling.model_copy(update={"n": 1, "seed": None if seed is None else seed + i}),
            )
            for i in range(self.sampling.n)
        ]


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to request `request_id`: new text, its tokens, and at the end the whole completion.

    Text comes late where it could still become a stop text, or where a character isn't complete.
    """

    request_id: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None
