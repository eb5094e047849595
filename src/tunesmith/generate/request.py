"""What the generator is asked for, and what it says while it works."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tunesmith.generate.completion import Completion, TokenLogprob
from tunesmith.specs.generation import SamplingSpec


@dataclass(frozen=True, slots=True)
class Request:
    """One answer to one prompt; `sampling.n` answers are that many requests, see `expand`.

    `adapter` names one that the decoder was given; None: the model as it was loaded. `shown_ids` are special tokens
    that stay in the answer's text: marks of tool calls. `is_middle` says that the answer goes on with the prompt's
    text, so that a space before its first word counts.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingSpec
    adapter: str | None = None
    shown_ids: frozenset[int] = frozenset()
    is_middle: bool = False

    def expand(self) -> list[Request]:
        """Return one request for each of the `n` answers; a given seed is counted up."""
        seed = self.sampling.seed
        return [
            replace(
                self,
                sampling=self.sampling.model_copy(update={"n": 1, "seed": None if seed is None else seed + i}),
            )
            for i in range(self.sampling.n)
        ]


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """How likely `continuation_ids` are after `prompt_ids`, which hold at least one token.

    `top` asks for so many of the likeliest tokens at each place.
    """

    prompt_ids: tuple[int, ...]
    continuation_ids: tuple[int, ...]
    adapter: str | None = None
    top: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """The natural log-probability of each token of a continuation, and whether it is the likeliest at its place.

    `top` holds the likeliest tokens at each place with theirs, as many as were asked for; the likeliest comes first.
    """

    logprobs: tuple[float, ...]
    is_likeliest: tuple[bool, ...]
    top: tuple[tuple[tuple[int, float], ...], ...] = ()

    @property
    def total(self) -> float:
        """Log-probability of the whole continuation."""
        return sum(self.logprobs)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to request `request_id`: new text, its tokens, and at the end the whole completion.

    Text comes late where it could still become a stop text, or where a character isn't complete.
    """

    request_id: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None


@dataclass(frozen=True, slots=True)
class ScoreDone:
    """Score request `request_id` is finished."""

    request_id: int
    score: Score
