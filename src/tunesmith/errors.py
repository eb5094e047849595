"""The error tree. Every message says what is wrong, where, and how to fix it.

    TunesmithError            exit code 1: an internal fault
    ├── UserError             exit code 2: the user's input
    │   ├── SpecError         a setting that can't be
    │   ├── DataError         a row, a file, a data set
    │   ├── ModelError        a base, an adapter, a model version
    │   ├── RunError          a run that can't be resumed, found or started
    │   │   └── RunInterrupted    exit code 130: stopped by the user, can be resumed
    │   ├── RequestError      a request to the server or the generator
    │   ├── AnsweringInterrupted  exit code 130: a file of prompts is answered in part, can be continued
    │   └── StorageError      a disk that is full, a folder that can't be written
    └── GateError             exit code 3: a gate said no

Doors (`cli`, `rest`) show the same facts in their own form; no other code formats errors.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class TunesmithError(Exception):
    """Something went wrong, told in words that help.

    Args:
        message: what is wrong, a whole sentence.
        where: the place: a file and line, a field's path, a model's name.
        fix: what to do about it.
        code: a stable word for programs (`invalid_encoding`, `disk_full`).
        param: the field of a request or spec that is to blame, dotted.
        problems: further problems of the same input, one line each.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        fix: str | None = None,
        code: str | None = None,
        param: str | None = None,
        problems: tuple[str, ...] = (),
    ) -> None:
        """Keep the facts; `str(error)` is the message with its place."""
        super().__init__(message)
        self.message = message
        self.where = where
        self.fix = fix
        self.code = code
        self.param = param
        self.problems = problems

    def __str__(self) -> str:
        """Return place and message in one line."""
        return f"{self.where}: {self.message}" if self.where else self.message


class UserError(TunesmithError):
    """The user's input is to blame; it can be mended."""

    exit_code = 2


class SpecError(UserError):
    """A setting is unknown, out of its limits, or contradicts another."""


class DataError(UserError):
    """A file, a row or a data set can't be used as it is."""


class ModelError(UserError):
    """A base, an adapter or a model version can't be found or used."""


class RunError(UserError):
    """A run can't be found, started or resumed."""


class RunInterrupted(RunError):
    """The user stopped a run; `run` continues where it was."""

    exit_code = 130

    def __init__(self, run: str, step: int) -> None:
        """Tell where it stopped and how to go on."""
        super().__init__(
            f"Stopped after step {step}.",
            where=run,
            fix=f"Continue with: tunesmith tune --resume {run}",
            code="interrupted",
        )
        self.run = run
        self.step = step


class RequestError(UserError):
    """A request for answers can't be met as it was written."""


class AnsweringInterrupted(UserError):
    """The user stopped while a file of prompts was answered; the same command goes on where it was."""

    exit_code = 130

    def __init__(self, target: str, done: int, total: int) -> None:
        """Tell how far it came and how to go on."""
        super().__init__(
            f"Stopped after {done:,} of {total:,} answers.",
            where=target,
            fix="Run the same command again to go on from there.",
            code="interrupted",
        )


class StorageError(UserError):
    """A file can't be written: the disk is full or the folder refuses."""


class GateError(TunesmithError):
    """A gate that the user set said no."""

    exit_code = 3


#: What a person can mend, by the operating system's error number: code, message, fix.
_DISK_FULL = (
    "disk_full",
    "The disk is full.",
    "Free some space, or set TUNESMITH_HOME to a folder on a larger disk, and run the command again.",
)
_REFUSED = (
    "not_writable",
    "This folder can't be written.",
    "Check its permissions, or set TUNESMITH_HOME to a folder of your own.",
)
_MISSING = (
    "no_such_folder",
    "There is no such folder to write to.",
    "Create the folder, or choose another place.",
)
_TOO_MANY_OPEN = (
    "busy",
    "No more files can be opened at the moment.",
    "Try again in a moment; if it stays so, raise the limit of open files (ulimit -n).",
)
_MENDABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _DISK_FULL),
    **dict.fromkeys((errno.EPERM, errno.EACCES, errno.EROFS), _REFUSED),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR), _MISSING),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _TOO_MANY_OPEN),
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a `StorageError`.

    Raises:
        StorageError: the disk is full (`code="disk_full"`), the folder can't be written or isn't there, or too many
            files are open (`busy`).
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        code, message, fix = _MENDABLE[error.errno]
        raise StorageError(message, where=str(path), fix=fix, code=code) from error
