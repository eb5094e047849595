"""Names of files as callers send them: shown and sent back, never used as a path."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote

from tunesmith.errors import RequestError

_MAX_CHARACTERS = 255


def clean_filename(name: str) -> str:
    """Return a name that is safe to show: without folders and invisible characters, of at most 255 characters.

    Raises:
        RequestError: nothing is left of it.
    """
    base = re.split(r"[/\\]", name)[-1]
    # Controls, and what turns the direction of writing so that a name looks like another one.
    shown = "".join(c for c in base if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")).strip()
    if shown.strip(". ") == "":
        raise RequestError("The file's name is empty.", fix="Give it one.", code="invalid_filename", param="file")
    if len(shown) <= _MAX_CHARACTERS:
        return shown
    stem, dot, ending = shown.rpartition(".")
    if not stem or len(ending) > 20:
        return shown[:_MAX_CHARACTERS]
    return stem[: _MAX_CHARACTERS - len(dot + ending)] + dot + ending


def attachment(filename: str) -> str:
    """Return the header `Content-Disposition` that makes browsers save a file under its name, never show it."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in filename)
    header = f'attachment; filename="{plain}"'
    return header if plain == filename else f"{header}; filename*=UTF-8''{quote(filename, safe='')}"
