"""JSON as RFC 8259 means it: no NaN, no doubled keys, no bottomless nesting, no broken text."""

from __future__ import annotations

import json
import math
import re
from typing import Any

#: Deeper nesting than this is refused before parsing, alike on every Python version.
MAX_DEPTH = 128
#: Longer integers than this are refused: no model reads them as a number, and printing them takes quadratic time.
MAX_DIGITS = 1_000

_DEPTH_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
_SURROGATES = re.compile(
    r"\\\\|(?:\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})|(?P<lone>\\u[dD][89a-fA-F][0-9a-fA-F]{2})"
)
_KEEP_TEXT = "Save the file as UTF-8 text, or mend this place."


class JsonFault(ValueError):
    """Why a text isn't usable JSON: message, fix, stable code, and the 1-based line and column where known.

    For `invalid_encoding` the column counts bytes, otherwise characters.
    """

    def __init__(self, message: str, *, fix: str, code: str, line: int = 1, column: int | None = None) -> None:
        """Keep the facts."""
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.code = code
        self.line = line
        self.column = column


class _Unusable:
    """Stands for a number that JSON can't hold until its key is known."""

    def __init__(self, text: str) -> None:
        self.text = text


def decode_text(raw: bytes) -> str:
    """Return `raw` as text.

    Raises:
        JsonFault: `invalid_encoding`, with the line inside `raw` and the 1-based byte in that line.
    """
    nul = raw.find(b"\0")
    if nul >= 0:
        raise _encoding_fault(raw, nul, "holds a NUL byte (is the file UTF-16, or binary?)")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _encoding_fault(raw, error.start, f"isn't UTF-8 (byte 0x{raw[error.start]:02x})") from error


def parse_json(raw: bytes) -> Any:
    """Return the JSON value that `raw` holds.

    Raises:
        JsonFault: the text isn't UTF-8 or isn't strict JSON.
    """
    text = decode_text(raw)
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _refuse_bottomless(raw)
    unusable: list[_Unusable] = []

    def keep(number: str) -> _Unusable:
        unusable.append(_Unusable(number))
        return unusable[-1]

    decoder = json.JSONDecoder(
        object_pairs_hook=_object,
        parse_constant=keep,
        parse_float=lambda number: value if math.isfinite(value := float(number)) else keep(number),
        parse_int=lambda digits: int(digits) if len(digits) <= MAX_DIGITS else keep(digits),
    )
    try:
        # Only JSON's own blanks: str.strip would also eat what JSON forbids.
        value = decoder.decode(text.strip(" \t\r\n"))
    except json.JSONDecodeError as error:
        skipped = len(text) - len(text.lstrip(" \t\r\n"))
        raise _syntax_fault(text, skipped + error.pos, error.msg) from error
    if unusable:
        raise _number_fault(value, unusable[0])
    _refuse_lone_surrogates(text)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonFault(
            f"The key {_short(key)} appears twice in one object.", fix="Keep one of the two.", code="duplicate_key"
        )
    return found


def _short(text: str) -> str:
    shown = json.dumps(text, ensure_ascii=True)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _encoding_fault(raw: bytes, offset: int, what: str) -> JsonFault:
    line = raw.count(b"\n", 0, offset) + 1
    byte = offset - (raw.rfind(b"\n", 0, offset) + 1) + 1
    return JsonFault(
        f"Byte {byte} of this line {what}.", fix=_KEEP_TEXT, code="invalid_encoding", line=line, column=byte
    )


def _syntax_fault(text: str, position: int, message: str) -> JsonFault:
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    at_end = not text[position:].strip()
    hint = " The text ends too early: was it cut off?" if at_end else ""
    return JsonFault(
        f"This isn't valid JSON: {message[0].lower()}{message[1:]} (column {column}).{hint}",
        fix="Mend this line; each row is one JSON object with double-quoted keys and texts.",
        code="invalid_json",
        line=line,
        column=column,
    )


def _refuse_bottomless(raw: bytes) -> None:
    depth = 0
    for token in _DEPTH_TOKENS.finditer(raw):
        sign = raw[token.start()]
        if sign in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise JsonFault(
                    f"Lists and objects are nested more than {MAX_DEPTH} deep.",
                    fix="Flatten the row; text that looks like JSON belongs in a string.",
                    code="too_deep",
                    line=raw.count(b"\n", 0, token.start()) + 1,
                )
        elif sign in b"]}":
            depth -= 1


def _refuse_lone_surrogates(text: str) -> None:
    for found in _SURROGATES.finditer(text):
        if found.group("lone"):
            raise _encoding_fault(
                text.encode(), len(text[: found.start()].encode()), f"starts half a character ({found.group()})"
            )


def _number_fault(value: Any, unusable: _Unusable) -> JsonFault:
    path = _path_of(value, unusable)
    text = unusable.text if len(unusable.text) <= 24 else f"a number of {len(unusable.text):,} characters"
    return JsonFault(
        f"The value of {path or 'the row'} ({text}) isn't a number that JSON can hold.",
        fix="Write a finite number, a text in quotes, or null.",
        code="invalid_number",
    )


def _path_of(value: Any, wanted: object) -> str | None:
    """Return the path of `wanted` inside `value` (`messages[2].score`), or None where it isn't inside."""
    steps: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        steps = [(f".{key}", child) for key, child in value.items()]
    elif isinstance(value, list):
        steps = [(f"[{index}]", child) for index, child in enumerate(value)]
    for step, child in steps:
        if child is wanted:
            return step.removeprefix(".")
        rest = _path_of(child, wanted)
        if rest is not None:
            return f"{step}{'' if rest.startswith('[') else '.'}{rest}".removeprefix(".")
    return None
