"""Content hashes: the same content has the same name, everywhere and always."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def sha256_bytes(content: bytes) -> str:
    """Return the SHA-256 of `content` in lower-case hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file in lower-case hexadecimal; it is read in pieces, never whole."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the one JSON form of a value: keys sorted, no spaces, UTF-8.

    Raises:
        TypeError: the value isn't plain JSON.
        ValueError: a number is infinite or not a number.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8")


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of the value's canonical JSON.

    Raises:
        TypeError: the value isn't plain JSON.
        ValueError: a number is infinite or not a number.
    """
    return sha256_bytes(canonical_json(value))
