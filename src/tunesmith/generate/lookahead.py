"""Guesses of an answer's next tokens, taken from the text itself (prompt look-up; Saxena 2023).

Answers repeat their prompts and themselves: names, quotations, code, the rows of a table. What followed the last few
tokens where they stood before is guessed to follow again. A guess costs nothing but its row in the step, and no guess
changes an answer: each is held against the token that is chosen (see `generate.engine`).
"""

from __future__ import annotations

from collections.abc import Sequence

#: Tokens that must have stood in the text before, the most first.
_ENDING_TOKENS = (4, 3, 2)
#: Tokens of a text that are looked through at most, the last ones; each takes about half a kilobyte.
_MOST_INDEXED = 1 << 15
#: Guesses in one step, at first and at most.
_FIRST_GUESSES, _MOST_GUESSES = 4, 15
#: Tokens without guesses after a run of refused ones, at first and at most. A refused guess costs little (see
#: `generate.engine.LOOKAHEAD_ROWS`), so it is soon tried again.
_FIRST_PAUSE, _MOST_PAUSE = 4, 32


class EndingIndex:
    """Where in a growing text its short stretches of tokens stood last.

    Args:
        tokens: the text; it may grow at its end, and is looked at when something is asked.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._begin = self._next = max(0, len(tokens) - _MOST_INDEXED)
        #: Of each length, what followed a stretch: the place behind it.
        self._behind: dict[int, dict[tuple[int, ...], int]] = {length: {} for length in _ENDING_TOKENS}

    def continuation(self, most: int) -> list[int]:
        """Return up to `most` tokens that followed the longest known ending where it stood last; none: an empty list.

        Where that is so near that the text itself ends first, it goes on as if it were periodic.
        """
        self._catch_up()
        tokens = self._tokens
        for length in _ENDING_TOKENS:
            behind = self._behind[length].get(tuple(tokens[-length:]))
            if behind is not None:
                found = list(tokens[behind : behind + most])
                period = len(tokens) - behind
                for place in range(len(found), most):
                    found.append(found[place - period])
                return found
        return []

    def _catch_up(self) -> None:
        """Note the stretches that end before the last token: what follows them is known."""
        tokens = self._tokens
        for behind in range(self._next, len(tokens)):
            for length in _ENDING_TOKENS:
                if behind - length >= self._begin:
                    self._behind[length][tuple(tokens[behind - length : behind])] = behind
        self._next = len(tokens)


class Lookahead:
    """Guesses for one text; fewer after refused ones, more after good ones.

    Args:
        tokens: the text; it may grow at its end.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._index: EndingIndex | None = None  # most texts never need one: they are computed among many
        self._width = _FIRST_GUESSES
        self._pause = _FIRST_PAUSE
        self._resumes_at = 0

    def guesses(self, most: int) -> list[int]:
        """Return up to `most` tokens that may come next; often none."""
        most = min(most, self._width)
        if most <= 0 or len(self._tokens) < self._resumes_at:
            return []
        if self._index is None:
            self._index = EndingIndex(self._tokens)
        return self._index.continuation(most)

    def learn(self, guessed: int, accepted: int) -> None:
        """Note how many of the last guesses were right."""
        if accepted == guessed:
            self._width = min(2 * self._width, _MOST_GUESSES)
        if accepted:
            self._pause = _FIRST_PAUSE
        elif self._width > 1:
            self._width //= 2
        else:
            self._resumes_at = len(self._tokens) + self._pause
            self._pause = min(2 * self._pause, _MOST_PAUSE)
