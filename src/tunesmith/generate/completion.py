"""What the generator answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tunesmith.errors import TunesmithError

#: `stop`: the model ended its turn, or a stop text came; `length`: the most tokens were generated, or the context is
#: full; `cancelled`: nobody wanted more; `error`: the answer can't go on, the completion's `error` says why.
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer with its natural log-probability, and the likeliest alternatives at its position."""

    token_id: int
    text: str
    text_bytes: bytes
    logprob: float
    top: tuple[tuple[int, str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished answer.

    `token_ids` holds the generated tokens with the end-of-turn token, `text` the words without it and without a
    stop text. `seconds` is the time from the request's admission to its last token. `logprobs` are those of the tokens
    whose text is given out: neither the end-of-turn token's nor a stop text's.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    seconds: float
    logprobs: tuple[TokenLogprob, ...] = ()
    error: TunesmithError | None = None

    @property
    def completion_tokens(self) -> int:
        """Number of generated tokens, the end-of-turn token included."""
        return len(self.token_ids)
