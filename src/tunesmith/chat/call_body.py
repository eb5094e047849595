"""One tool call in a text that is still arriving: its name, and its arguments as they are written."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Protocol

from tunesmith.chat.json_scan import ObjectScan, members, skip_blank
from tunesmith.chat.tool_calls import ToolCallFormat
from tunesmith.data.strict_json import JsonFault, parse_json

#: What is said of a text that ends too early to tell, and of one that is something else.
MORE, NO = -1, -2

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_ID = re.compile(r"[A-Za-z0-9_-]*")
_FIRST_KEY = re.compile(r'\{\s*(?:"((?:[^"\\]|\\.)*)"|[^\s"])')
#: Keys that models write for the arguments, whatever their template says.
_ARGUMENTS_KEYS = ("arguments", "parameters")
_OTHER_KEYS = ("id", "type")


def match_atoms(text: str, at: int, atoms: tuple[str, ...], call_id: str) -> int:
    """Return the place behind `atoms`, with any white space before each of them; or `MORE`, or `NO`."""
    for atom in atoms:
        at = skip_blank(text, at)
        if atom == call_id:
            found = _ID.match(text, at)
            at = at if found is None else found.end()
            continue
        there = text[at : at + len(atom)]
        if there != atom:
            return MORE if at + len(there) == len(text) and atom.startswith(there) else NO
        at += len(atom)
    return at


class CallBody(Protocol):
    """A call while it is read. `read` again whenever its text has grown.

    Attributes:
        name: the function's name; empty until this is certain to be a call.
        fresh: the arguments' text that the last `read` brought.
    """

    name: str
    fresh: str

    def read(self, text: str) -> int:
        """Return the place behind the call, or `MORE`, or `NO` if it isn't one."""


def call_body(form: ToolCallFormat, names: Collection[str], start: int, *, is_certain: bool) -> CallBody:
    """Return a reader of the call that begins at `start`.

    Args:
        form: how the model writes calls.
        names: the functions on offer.
        start: where in the text.
        is_certain: give arguments out before the call is whole.
    """
    if form.name_key is None:
        return _NamedBody(form, start, is_certain)
    return _ObjectBody(form, frozenset(names), start, is_certain)


class _Arguments:
    """Arguments that are given out as they arrive."""

    def __init__(self, start: int) -> None:
        self._scan = ObjectScan(start)
        self._sent = start

    def take(self, text: str) -> tuple[str, int]:
        """Return what is new of them, and the place behind their end or `MORE`."""
        end = self._scan.run(text)
        until = len(text) if end is None else end
        fresh, self._sent = text[self._sent : until], until
        return fresh, MORE if end is None else end


class _ObjectBody:
    """A call that is one JSON object."""

    def __init__(self, form: ToolCallFormat, names: frozenset[str], start: int, is_certain: bool) -> None:
        self.name = ""
        self.fresh = ""
        self._form = form
        self._names = names
        self._start = start
        self._head = re.compile(_exactly(form.lead, form) + r'((?:[^"\\]|\\.)+)' + _exactly(form.middle, form))
        self._is_certain = is_certain
        self._scan: ObjectScan | None = None
        self._arguments: _Arguments | None = None

    def read(self, text: str) -> int:
        self.fresh = ""
        at = skip_blank(text, self._start)
        if text[at : at + 1] != "{":
            return MORE if at == len(text) else NO
        self._scan = self._scan or ObjectScan(at)
        end = self._scan.run(text)
        if self._is_certain and self._arguments is None and (head := self._head.match(text, at)) is not None:
            self.name, self._arguments = json.loads(f'"{head[1]}"'), _Arguments(head.end())
        if self._arguments is not None:
            self.fresh, _ = self._arguments.take(text)
            return MORE if end is None else end
        if end is None:
            return MORE if self._may_be_call(text, at) else NO
        return end if self._take_whole(text[at:end]) else NO

    def _may_be_call(self, text: str, at: int) -> bool:
        """Whether an object that begins like this can still be a call: an answer in JSON isn't held back for long."""
        found = _FIRST_KEY.match(text, at)
        keys = (self._form.name_key, self._form.arguments_key, *_ARGUMENTS_KEYS, *_OTHER_KEYS)
        if found is None or (found[1] == self._form.name_key and not self._form.is_bare):
            return True
        if found[1] not in keys:
            return False
        head = self._head.match(text, at)
        return head is None or json.loads(f'"{head[1]}"') in self._names

    def _take_whole(self, text: str) -> bool:
        try:
            found = members(text)
            name = json.loads(found.get(self._form.name_key or "", "null"))
        except ValueError:
            return False
        keys = (self._form.arguments_key or "", *_ARGUMENTS_KEYS)
        arguments = next((found[key] for key in keys if key in found), "")
        if not isinstance(name, str) or not name or (self._form.is_bare and name not in self._names):
            return False
        if not _is_object(arguments):
            return False
        self.name, self.fresh = name, arguments
        return True


class _NamedBody:
    """A call that is a name and, behind it, its arguments."""

    def __init__(self, form: ToolCallFormat, start: int, is_certain: bool) -> None:
        self.name = ""
        self.fresh = ""
        self._middle = form.atoms(form.middle)
        self._call_id = form.call_id
        self._start = start
        self._is_certain = is_certain
        self._arguments: _Arguments | None = None
        self._found_name = ""
        self._whole = ""

    def read(self, text: str) -> int:
        self.fresh = ""
        if self._arguments is None:
            at = self._find_arguments(text)
            if at < 0:
                return at
            self._arguments = _Arguments(at)
        fresh, end = self._arguments.take(text)
        if self._is_certain:
            self.name, self.fresh = self._found_name, fresh
            return end
        self._whole += fresh
        if end == MORE:
            return MORE
        if not _is_object(self._whole):
            return NO
        self.name, self.fresh = self._found_name, self._whole
        return end

    def _find_arguments(self, text: str) -> int:
        """Return where the arguments begin, or `MORE`, or `NO`."""
        at = skip_blank(text, self._start)
        found = _NAME.match(text, at)
        if found is None or found.end() == len(text):
            return MORE if found is not None or at == len(text) else NO
        self._found_name = found[0]
        end = match_atoms(text, found.end(), self._middle, self._call_id)
        if end < 0:
            return end
        end = skip_blank(text, end)
        return end if text[end : end + 1] == "{" else MORE if end == len(text) else NO


def _exactly(written: str, form: ToolCallFormat) -> str:
    """Return an expression for what the template writes, with any id in it."""
    return "".join(_ID.pattern if piece == form.call_id else re.escape(piece) for piece in form.pieces(written))


def _is_object(text: str) -> bool:
    """Whether `text` is an object that the same conversation can hold when it goes on."""
    try:
        return isinstance(parse_json(text.encode()), dict)
    except (JsonFault, UnicodeEncodeError):
        return False
