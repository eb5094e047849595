"""Where everything is kept: `TUNESMITH_HOME`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import StorageError, storage_errors
from tunesmith.record.atomic import new_part


@dataclass(frozen=True, slots=True)
class Home:
    """The folder that holds runs, models and converted bases; its parts are created when first asked for."""

    root: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Home:
        """Return the folder that `TUNESMITH_HOME` names, or `~/.tunesmith`. Nothing is created yet.

        Args:
            environment: the variables to look in; the process's own by default.
        """
        named = (os.environ if environment is None else environment).get("TUNESMITH_HOME", "").strip()
        return cls(Path(named or "~/.tunesmith").expanduser().absolute())

    @property
    def runs(self) -> Path:
        """The folder with one folder for each run.

        Raises:
            StorageError: it can't be created.
        """
        return self._folder("runs")

    @property
    def models(self) -> Path:
        """The folder with one folder for each registered model version.

        Raises:
            StorageError: it can't be created.
        """
        return self._folder("models")

    @property
    def bases(self) -> Path:
        """The cache of bases that were converted from another format; everything in it can be made again.

        Raises:
            StorageError: it can't be created.
        """
        return self._folder("bases")

    @property
    def jobs(self) -> Path:
        """The folder with what workers keep of each job: its files, its locks, the logs of its attempts.

        Raises:
            StorageError: it can't be created.
        """
        return self._folder("jobs")

    def check_writable(self) -> None:
        """Write and remove a small file, so that a long run doesn't find out at its end.

        Raises:
            StorageError: the folder can't be created or written, or the disk is full.
        """
        folder = self._folder("")
        probe = new_part(folder / "writable")
        with storage_errors(folder):
            try:
                # Not an empty file: a full disk still makes empty ones.
                probe.write_bytes(b"\0" * 4096)
            finally:
                probe.unlink(missing_ok=True)

    def _folder(self, name: str) -> Path:
        """Create and return the part called `name` of the home."""
        folder = self.root / name
        try:
            with storage_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise StorageError(
                "A file stands where Tunesmith's folder should be.",
                where=str(folder),
                fix="Move the file away, or set TUNESMITH_HOME to another folder.",
                code="not_a_folder",
            ) from error
        return folder
