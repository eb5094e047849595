"""Tool calls found in an answer's text, whole or while it arrives.

What is no call is given out as text as soon as that is certain; nothing of a call ever is. A call that breaks off, or
whose JSON is broken, isn't one: it stays text. So an answer never fails because of what a model wrote.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from tunesmith.chat.call_body import MORE, NO, CallBody, call_body, match_atoms
from tunesmith.chat.json_scan import skip_blank
from tunesmith.chat.tool_calls import ToolCallFormat
from tunesmith.data.examples import ToolCall

#: What Llama 3 puts between several calls, which its templates can't write.
_BARE_BETWEEN = (";",)


@dataclass(frozen=True, slots=True)
class CallPiece:
    """A piece of call `index`: its beginning, with `id` and `name`, or more of its arguments' JSON text."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Pieces:
    """What new text has brought: words, and pieces of calls."""

    text: str = ""
    calls: tuple[CallPiece, ...] = ()


def read_calls(
    form: ToolCallFormat, text: str, names: Collection[str], *, is_certain: bool = False
) -> tuple[str | None, tuple[ToolCall, ...]]:
    """Return an answer's words (None if it only calls) and its calls; arguments are the JSON text as written.

    Args:
        form: how the model writes calls.
        text: the answer's text, with the form's `shown_ids` in it.
        names: the functions on offer.
        is_certain: see `CallStream`.
    """
    stream = CallStream(form, names, is_certain=is_certain)
    parts = (stream.add(text), stream.finish())
    words = "".join(part.text for part in parts)
    calls: list[ToolCall] = []
    for piece in (piece for part in parts for piece in part.calls):
        if piece.name:
            calls.append(ToolCall(piece.id, piece.name, ""))
        calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + piece.arguments)
    return (words or None) if calls else words, tuple(calls)


class CallStream:
    """Tells the words of one answer from its calls while its text arrives.

    Args:
        form: how the model writes calls.
        names: the functions on offer; a bare call of another one is text.
        is_certain: a grammar vouches for the calls. Their arguments are then given out as they arrive, also if the
            answer is cut off among them; otherwise a call is given out when it is whole.
    """

    def __init__(self, form: ToolCallFormat, names: Collection[str], *, is_certain: bool = False) -> None:
        self._form = form
        self._names = frozenset(names)
        self._is_certain = is_certain
        self._opening = form.atoms(form.opening)
        self._between: tuple[str, ...] = _BARE_BETWEEN if form.is_bare and form.between is None else ()
        if form.between is not None and not form.is_closed_each:
            self._between = form.atoms(form.between)
        self._closing = form.atoms(form.closing)
        self._state: Literal["words", "call", "behind"] = "words"
        self._held = ""  # what isn't given out yet
        self._body = 0  # where in it the call begins, behind the opening
        self._is_start = True  # nothing but white space so far
        self._is_blank = True  # the same since the last call
        self._call: CallBody | None = None
        self._is_begun = False  # whether some of that call is given out
        self._count = 0
        self._words: list[str] = []
        self._pieces: list[CallPiece] = []

    def add(self, text: str) -> Pieces:
        """Take in text; return what is now certain."""
        self._held += text
        return self._advance(is_last=False)

    def finish(self) -> Pieces:
        """Return what was held back, now that no more text comes."""
        return self._advance(is_last=True)

    def _advance(self, *, is_last: bool) -> Pieces:
        steps = {"words": self._take_words, "call": self._take_call, "behind": self._take_end}
        while steps[self._state](is_last):
            pass
        pieces = Pieces("".join(self._words), tuple(self._pieces))
        self._words.clear()
        self._pieces.clear()
        return pieces

    # Each step returns whether another one may follow.

    def _take_words(self, is_last: bool) -> bool:
        start, end = self._find_opening()
        words = self._held[:start]
        is_blank = self._is_blank and not words.strip()
        if end is not None:
            kept = 0 if is_blank else len(words.removesuffix(self._form.glue))
            self._give(kept)
            self._enter_call(end - kept)
            return True
        if is_last:
            if self._count and self._is_blank and not self._held.strip():
                self._held = ""  # white space behind the calls
            self._give(len(self._held))
        elif not is_blank:
            glue = self._form.glue
            self._give(start - max(count for count in range(len(glue) + 1) if words.endswith(glue[:count])))
        return False

    def _enter_call(self, body: int) -> None:
        self._state, self._body, self._is_begun = "call", body, False
        self._call = call_body(self._form, self._names, body, is_certain=self._is_certain)

    def _take_call(self, is_last: bool) -> bool:
        call = self._call
        assert call is not None
        end = call.read(self._held)
        if end != NO and call.name:
            if not self._is_begun:
                self._pieces.append(CallPiece(self._count, f"call_{uuid.uuid4().hex[:24]}", call.name))
                self._is_begun = True
            if call.fresh:
                self._pieces.append(CallPiece(self._count, arguments=call.fresh))
        if end >= 0:
            self._held = self._held[end:]
            self._state = "behind"
            self._count += 1
            self._is_start, self._is_blank = False, True
            return True
        if end == MORE and not is_last:
            return False
        if self._is_begun:
            self._held = ""  # cut off among arguments that are out already
            return False
        self._give(self._body)
        self._state, self._is_start = "words", False
        return True

    def _take_end(self, is_last: bool) -> bool:
        between = self._match(0, self._between) if self._between else NO
        closing = self._match(0, self._closing)
        if MORE in (between, closing) and not is_last:
            return False
        if between >= 0:
            self._enter_call(between)
        elif closing < 0 and MORE in (between, closing):
            self._held = ""  # cut off in what closes the call
            return False
        else:
            self._state, self._held = "words", self._held[max(closing, 0) :]
        return True

    def _find_opening(self) -> tuple[int, int | None]:
        """Return where an opening begins and ends in what is held; the end is None if more must come to tell."""
        held = self._held
        if self._form.is_bare:
            return self._find_bare() if self._is_start else (len(held), None)
        first = self._opening[0]
        start = held.find(first)
        while start >= 0:
            end = self._match(start, self._opening)
            if end != NO:
                return start, None if end == MORE else end
            start = held.find(first, start + 1)
        longest = min(len(first) - 1, len(held))
        return len(held) - max(count for count in range(longest + 1) if held.endswith(first[:count])), None

    def _find_bare(self) -> tuple[int, int | None]:
        held, tag = self._held, self._form.tag
        start = skip_blank(held, 0)
        if held[start : start + 1] == "{":
            return start, start
        if tag is not None and held.startswith(tag, start):
            return start, start + len(tag)
        if tag is not None and tag.startswith(held[start:]):
            return start, None
        return len(held), None

    def _match(self, at: int, atoms: tuple[str, ...]) -> int:
        return match_atoms(self._held, at, atoms, self._form.call_id)

    def _give(self, count: int) -> None:
        """Give out the first `count` characters as words."""
        if count:
            self._words.append(self._held[:count])
            self._held = self._held[count:]
            self._is_start = self._is_blank = False
