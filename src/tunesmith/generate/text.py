"""From tokens to text while they arrive: whole characters only, and never a part of a stop text."""

from __future__ import annotations

from typing import Any

from tokenizers.decoders import DecodeStream


class TextStream:
    """One answer's text, growing token by token.

    Args:
        tokenizer: a transformers tokenizer (fast).
        stop: texts that end the answer; neither they nor what follows them is given out.
    """

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._decode = DecodeStream(ids=[], skip_special_tokens=True)
        self._stop = stop
        self._held = ""
        self.text = ""
        self.is_stopped = False

    def add(self, token_id: int) -> str:
        """Take in a token; return the text that is now certain."""
        self._held += self._decode.step(self._backend, token_id) or ""
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            return self._give(min(found))
        return self._give(len(self._held) - self._possible_stop())

    def finish(self) -> str:
        """Return what was held back, now that no more tokens come."""
        return "" if self.is_stopped else self._give(len(self._held))

    def _give(self, count: int) -> str:
        given, self._held = self._held[:count], self._held[count:]
        self.text += given
        return given

    def _possible_stop(self) -> int:
        """Return how many characters at the end could be the beginning of a stop text."""
        longest = max(map(len, self._stop), default=1) - 1
        for count in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-count:]) for stop in self._stop):
                return count
        return 0
