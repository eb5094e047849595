"""JSON objects in a text that is still arriving: where they end, and their members as they are written."""

from __future__ import annotations

import json
import re

_BLANK = re.compile(r"[ \t\r\n]*")
_SIGN = re.compile(r'["{}\[\]]')
_IN_TEXT = re.compile(r'["\\]')


def skip_blank(text: str, at: int) -> int:
    """Return the place of the first character from `at` on that isn't JSON's white space."""
    found = _BLANK.match(text, at)
    return at if found is None else found.end()


class ObjectScan:
    """Looks for the end of an object that begins at `start`; each character is looked at once.

    Brackets are counted, nothing is checked.
    """

    def __init__(self, start: int) -> None:
        self._at = start
        self._depth = 0
        self._in_text = False
        self._end: int | None = None

    def run(self, text: str) -> int | None:
        """Return the place behind the object's end, None if `text`, which may only have grown, doesn't hold it."""
        while self._end is None:
            sign = (_IN_TEXT if self._in_text else _SIGN).search(text, self._at)
            if sign is None:
                self._at = len(text)
                return None
            if sign[0] == "\\":
                if sign.end() == len(text):  # what it escapes comes later
                    self._at = sign.start()
                    return None
                self._at = sign.end() + 1
                continue
            self._at = sign.end()
            if sign[0] == '"':
                self._in_text = not self._in_text
            else:
                self._depth += 1 if sign[0] in "{[" else -1
                if self._depth <= 0:
                    self._end = self._at
        return self._end


def members(text: str) -> dict[str, str]:
    """Return the members of the object that `text` is, each value as it is written.

    Raises:
        ValueError: the text isn't one JSON object.
    """
    decoder = json.JSONDecoder()
    found: dict[str, str] = {}
    at = skip_blank(text, 1)
    is_more = text[:1] == "{" and text[at : at + 1] != "}"
    while is_more:
        key, at = decoder.raw_decode(text, at)
        at = skip_blank(text, at)
        if not isinstance(key, str) or text[at : at + 1] != ":":
            raise ValueError(f"no member at character {at}")
        start = skip_blank(text, at + 1)
        _, end = decoder.raw_decode(text, start)
        found[key] = text[start:end]
        at = skip_blank(text, end)
        is_more = text[at : at + 1] == ","
        if is_more:
            at = skip_blank(text, at + 1)
    if text[at:] != "}":
        raise ValueError(f"no end at character {at}")
    return found
