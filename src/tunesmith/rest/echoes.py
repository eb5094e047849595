"""What `echo` repeats in front of a text, and log-probabilities of texts in the form of `/v1/completions`."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tunesmith.generate.completion import TokenLogprob
from tunesmith.generate.request import Request, Score, ScoreRequest
from tunesmith.rest.completions_wire import Prompt, TextLogprobs
from tunesmith.rest.translate import finite_logprob
from tunesmith.serve.answers import AsyncAnswers
from tunesmith.serve.opened import OpenModel
from tunesmith.serve.pool import Seat


@dataclass(frozen=True, slots=True)
class Echo:
    """What a text begins with; `tokens` are there where log-probabilities are wanted."""

    text: str = ""
    tokens: tuple[TokenLogprob, ...] = ()


def plain_echoes(opened: OpenModel, prompts: Sequence[Prompt]) -> list[Echo]:
    """Return prompts as texts."""
    return [Echo(one if isinstance(one, str) else opened.text_of(one)) for one in prompts]


async def scored_echoes(seat: Seat, echoes: Sequence[Echo], prompts: Sequence[Request], top: int) -> list[Echo]:
    """Return echoes with what the model makes of their tokens; nothing foretells the first one.

    Args:
        seat: the model.
        echoes: the prompts as texts.
        prompts: as the engine takes them.
        top: how many of the likeliest tokens to tell at each place.

    Raises:
        RequestError: too much waits already.
    """
    asked = [
        ScoreRequest(prompt.prompt_ids[:1], prompt.prompt_ids[1:], prompt.adapter, top)
        for prompt in prompts
        if len(prompt.prompt_ids) > 1
    ]
    answers = await AsyncAnswers.begin(seat.worker, asked)
    try:
        scores = iter(await answers.scores())
    finally:
        answers.close()
    return [
        Echo(echo.text, _tokens(seat.opened, prompt, next(scores) if len(prompt.prompt_ids) > 1 else Score((), ())))
        for echo, prompt in zip(echoes, prompts, strict=True)
    ]


def _tokens(opened: OpenModel, prompt: Request, score: Score) -> tuple[TokenLogprob, ...]:
    spell, spell_bytes = opened.renderer.token_text, opened.renderer.token_bytes
    tops = score.top or ((),) * len(score.logprobs)
    return tuple(
        TokenLogprob(
            one, spell(one), spell_bytes(one), logprob, tuple((i, spell(i), spell_bytes(i), p) for i, p in top)
        )
        for one, logprob, top in zip(prompt.prompt_ids, (math.nan, *score.logprobs), ((), *tops), strict=True)
    )


@dataclass(slots=True)
class LogprobsOfText:
    """Tells one text's log-probabilities as it grows; the bytes of a character may be several tokens.

    Args:
        count: how many of the likeliest tokens to tell; None: nothing is told at all.
        characters: where the next token begins.
    """

    count: int | None
    characters: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def add(self, tokens: Sequence[TokenLogprob]) -> TextLogprobs | None:
        """Return the next tokens with their log-probabilities."""
        if self.count is None:
            return None
        offsets = [self._offset(token.text_bytes) for token in tokens]
        return TextLogprobs(
            tokens=[_name(token.text, token.text_bytes) for token in tokens],
            token_logprobs=[None if math.isnan(one.logprob) else finite_logprob(one.logprob) for one in tokens],
            top_logprobs=[_likeliest(token) for token in tokens] if self.count else None,
            text_offset=offsets,
        )

    def _offset(self, spelt: bytes) -> int:
        """Return where the next token begins."""
        before = self.characters
        self.characters += len(self._decoder.decode(spelt))
        whole = _decoded(spelt)
        # What came before it may have been half a character, of which only now is known that it stays one.
        return max(0, before if whole is None else self.characters - len(whole))

    @classmethod
    def behind(cls, echo: Echo, count: int | None) -> LogprobsOfText:
        """Return one for a text that begins with an echo.

        The tokens may begin with a start of text, which isn't in the text.
        """
        spelt = b"".join(token.text_bytes for token in echo.tokens).decode(errors="replace")
        return cls(count, len(echo.text) - len(spelt))


def _likeliest(token: TokenLogprob) -> dict[str, float] | None:
    """Return the likeliest tokens at a place, with the one that is there."""
    if math.isnan(token.logprob):
        return None
    top = {_name(text, spelt): finite_logprob(logprob) for _, text, spelt, logprob in reversed(token.top)}
    return {_name(token.text, token.text_bytes): finite_logprob(token.logprob), **top}


def _name(text: str, spelt: bytes) -> str:
    r"""Return how a token is called: by its text, or, where that is no whole characters, by its bytes: `bytes:\xe2`."""
    return text if _decoded(spelt) is not None else "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelt)


def _decoded(spelt: bytes) -> str | None:
    """Return bytes as a text, None where they aren't whole characters."""
    try:
        return spelt.decode()
    except UnicodeDecodeError:
        return None
