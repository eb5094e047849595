"""What the generator answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


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
    stop text. `seconds` is the time from the request's admission to its last token.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    seconds: float
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def completion_tokens(self) -> int:
        """Number of generated tokens, the end-of-turn token included."""
        return len(self.token_ids)
