"""Files and folders that are there whole or not at all, also after a crash or on a full disk.

Everything is written beside its final name (`.<name>.<host>-<process>-<random>.part`), forced to the disk, then
renamed. What a killed process leaves behind is recognised by that name and removed by `sweep`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import StorageError, storage_errors

_PART = re.compile(r"^\..+\.(?P<host>[0-9a-f]{8})-(?P<process>\d+)-[0-9a-f]{8}\.part$")
_WEEK_SECONDS = 7 * 24 * 3600.0


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; it is on the disk when this returns.

    Raises:
        StorageError: the disk is full or the folder can't be written; an older file of this name is untouched.
    """
    part = new_part(path)
    with storage_errors(path):
        try:
            with part.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        finally:
            _remove(part)


def write_text(path: Path, content: str) -> None:
    """Write a UTF-8 file as `write_bytes` does.

    Raises:
        StorageError: see `write_bytes`.
    """
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON as `write_bytes` does.

    Raises:
        StorageError: see `write_bytes`.
        ValueError: a number is infinite or not a number; JSON has no word for it.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def new_folder(
    path: Path,
    *,
    if_exists: Literal["error", "keep"] = "error",
    rename_to: Callable[[], Path] | None = None,
) -> Iterator[Path]:
    """Yield an empty folder to fill; it gets its final name only when the block ends well.

    All its files are forced to the disk first. If the block fails, nothing remains.

    Args:
        path: the final name.
        if_exists: what to do when a folder of that name is there already, or another process finishes first:
            `error`, or `keep` theirs and drop ours (for content that is the same whoever writes it).
        rename_to: gives the final name after the block, in the same parent, where it depends on the content.

    Raises:
        StorageError: the disk is full, the place can't be written, or (`error`) the folder exists.
    """
    part = new_part(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        part.mkdir()
        try:
            yield part
            _sync_tree(part)
            final = path if rename_to is None else rename_to()
            try:
                part.rename(final)
            except OSError as error:
                if not final.is_dir():
                    raise
                if if_exists == "error":
                    raise StorageError(
                        "This folder exists already.",
                        where=str(final),
                        fix="Delete it or choose another name.",
                        code="already_exists",
                    ) from error
            sync_folder(path.parent)
        finally:
            _remove(part)


def remove_folder(path: Path) -> None:
    """Delete a folder so that nobody ever sees half of it: it loses its name first.

    Raises:
        StorageError: the place can't be written.
    """
    part = new_part(path)
    with storage_errors(path):
        path.rename(part)
        sync_folder(path.parent)
        shutil.rmtree(part)


def new_part(path: Path) -> Path:
    """Return a name beside `path` for what isn't whole yet; `sweep` recognises it. Nothing is created."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part")


def sweep(folder: Path, *, older_than_seconds: float = _WEEK_SECONDS) -> list[Path]:
    """Remove what killed processes left half-written in `folder`, and return its names.

    A part is stale when its process on this machine is gone. For parts of other machines (a shared folder) and of
    process numbers that are in use again, age decides.
    """
    stale = []
    for path in folder.glob(".*.part"):
        # Someone else may remove it at the same moment.
        with suppress(FileNotFoundError):
            if is_left_over(path.name, time.time() - path.stat().st_mtime, older_than_seconds):
                _remove(path)
                stale.append(path)
    return stale


def is_left_over(name: str, age_seconds: float, older_than_seconds: float) -> bool:
    """Whether a name is that of a part whose process is gone; see `sweep`."""
    match = _PART.match(name)
    if match is None:
        return False
    is_dead = match["host"] == _host() and not _is_alive(int(match["process"]))
    return is_dead or age_seconds > older_than_seconds


def sync_folder(folder: Path) -> None:
    """Force the names in `folder` to the disk; without it a rename may be lost in a power cut."""
    if os.name == "nt":  # Windows can't open folders, and its renames are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(folder: Path) -> None:
    """Force every file and folder below `folder` to the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            # Windows forces only what is open for writing; elsewhere a read-only file must do.
            with path.open("rb+" if os.name == "nt" else "rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def _remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _host() -> str:
    """Return eight hexadecimal digits that stand for this machine."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    if os.name == "nt":  # there, asking would end it; age decides
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
