"""Whether what came from the Hub is what the Hub has: its cache names each file by the hash of its content.

A download is marked until it was looked at whole, so one that was killed between is never taken for whole.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from tunesmith.errors import ModelError

#: Names of content are SHA-256 for large files, and Git's own SHA-1 of a blob for others.
_SHA256_CHARACTERS, _GIT_CHARACTERS = 64, 40
_PIECE_BYTES = 1 << 20


def cache_folder(repository: str) -> Path:
    """Return where the Hub's cache keeps a repository."""
    return Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def unchecked_mark(repository: str, revision: str) -> Path:
    """Return the file that is there as long as a revision isn't whole, or nobody has looked whether it is."""
    return cache_folder(repository) / f"unchecked-{revision}"


def check_downloaded(folder: Path) -> None:
    """Compare the files of a snapshot with the hashes that the Hub gave for them; remove one that differs.

    Files that the cache holds as copies, as it does where there are no symbolic links, bear no hash.

    Raises:
        ModelError: one differs (`damaged_download`).
    """
    for file in sorted(folder.rglob("*")):
        content = file.resolve()
        if not file.is_symlink() or not content.is_file() or _is_named_by_hash(content):
            continue
        file.unlink()
        content.unlink()
        raise ModelError(
            f"{file.name} was damaged on its way from the Hub.",
            where=str(folder),
            fix="Try again: what came whole is kept, and this file is downloaded anew.",
            code="damaged_download",
        )


def _is_named_by_hash(file: Path) -> bool:
    """Whether a file's name is the hash of its content, or no hash at all."""
    if len(file.name) == _SHA256_CHARACTERS:
        found = hashlib.sha256()
    elif len(file.name) == _GIT_CHARACTERS:
        found = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    else:
        return True
    with file.open("rb") as content:
        while piece := content.read(_PIECE_BYTES):
            found.update(piece)
    return found.hexdigest() == file.name
