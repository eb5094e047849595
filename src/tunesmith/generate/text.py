"""From tokens to text while they arrive: whole characters only, and never a part of a stop text."""

from __future__ import annotations

import codecs

from tunesmith.chat.renderer import ChatRenderer


class TextStream:
    """One answer's text, growing token by token.

    Args:
        renderer: knows the tokens' bytes.
        stop: texts that end the answer; neither they nor what follows them is given out. Empty ones end nothing.
        shown_ids: special tokens that are part of the text, by their names.
        is_middle: whether the text goes on with another, so that a space before its first word counts.
    """

    def __init__(
        self,
        renderer: ChatRenderer,
        stop: tuple[str, ...],
        shown_ids: frozenset[int] = frozenset(),
        *,
        is_middle: bool = False,
    ) -> None:
        self._renderer = renderer
        self._hidden_ids = renderer.special_ids - shown_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drops_space = renderer.drops_first_space and not is_middle
        self._stop = tuple(filter(None, stop))
        self._held = ""
        self.text = ""
        self.is_stopped = False

    def add(self, token_id: int) -> str:
        """Take in a token; return the text that is now certain."""
        if token_id in self._hidden_ids:
            return ""
        added = self._renderer.token_bytes(token_id)
        if added and self._drops_space:
            added, self._drops_space = added.removeprefix(b" "), False
        self._held += self._decoder.decode(added)
        return self._give_certain(len(self._held) - self._possible_stop())

    def finish(self) -> str:
        """Return what was held back, now that no more tokens come; half a character becomes U+FFFD."""
        if self.is_stopped:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        return self._give_certain(len(self._held))

    @property
    def length(self) -> int:
        """Characters so far, those that are held back included: where the next token's text begins."""
        return len(self.text) + len(self._held)

    def _give_certain(self, count: int) -> str:
        """Give out `count` characters, or those before the stop text that is complete first."""
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            return self._give(min(found)[1])
        return self._give(count)

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
