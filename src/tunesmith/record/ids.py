"""Ids of what the record holds: a prefix that tells the kind, then letters and digits that nobody can guess."""

from __future__ import annotations

import hashlib
import secrets
import string

_ALPHABET = string.digits + string.ascii_letters
_LENGTH = 24


def new_id(prefix: str) -> str:
    """Return an id that was never given before: `new_id("file-")`."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))


def id_from(prefix: str, seed: str) -> str:
    """Return the id that belongs to a seed: the same for the same seed, and no easier to guess than the seed."""
    number = int.from_bytes(hashlib.sha256(f"{prefix}\0{seed}".encode()).digest())
    letters = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[digit])
    return prefix + "".join(letters)
