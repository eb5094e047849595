"""Checkpoints: everything that a run needs to go on as if nothing had happened.

A checkpoint is a folder `step-000120` that appears whole or not at all. Its manifest lists the SHA-256 of each file;
one that doesn't fit is passed over for the one before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor

from tunesmith.errors import ModelError, RunError, StorageError, storage_errors
from tunesmith.learn.passes import Passes
from tunesmith.models.weights import load_tensors, save_tensors
from tunesmith.record.atomic import new_folder, remove_folder, write_json
from tunesmith.record.hashing import sha256_file

_ADAPTER, _OPTIMISER, _STATE = "adapter_model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class LoopState:
    """Where the loop stands after `step` steps.

    `passes` says how steps are computed: a resumed run goes on in the same way, or it would round differently.
    `rows` and `tokens` count what was learnt from so far; `seconds` the time in the loop, `step_seconds` the part of
    it in training steps; `best_loss` and `best_score` are the validation's figures of `best_step`;
    `worse_validations` counts validations in a row that were not the best.
    """

    passes: Passes
    step: int = 0
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    best_step: int = 0
    best_loss: float | None = None
    best_score: float | None = None
    worse_validations: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint in memory. `optimiser` also holds the random state under `random`."""

    state: LoopState
    adapter: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: Checkpoints that were found damaged, each with what was wrong.
        self.damaged: list[str] = []

    def save(self, checkpoint: Checkpoint, *, keep: int) -> Path:
        """Write a checkpoint; keep the `keep` newest and the best, remove the others.

        The new one is whole and on the disk before an older one goes, so that there is one at any moment.

        Raises:
            StorageError: the disk is full; the earlier checkpoints are untouched.
        """
        folder = self._path(checkpoint.state.step)
        if folder.exists() and not self._is_whole(checkpoint.state.step):
            remove_folder(folder)
        if not folder.exists():
            with new_folder(folder) as part:
                save_tensors(part / _ADAPTER, checkpoint.adapter)
                save_tensors(part / _OPTIMISER, checkpoint.optimiser)
                write_json(part / _STATE, asdict(checkpoint.state))
                write_json(
                    part / "manifest.json", {name: sha256_file(part / name) for name in (_ADAPTER, _OPTIMISER, _STATE)}
                )
        self._remove_all_but(checkpoint.state, keep)
        return folder

    def _remove_all_but(self, state: LoopState, keep: int) -> None:
        """Remove what is neither among the `keep` newest nor the best.

        Checkpoints of later steps go, too: a resumed run passed over them because they are damaged.
        """
        steps = self.steps()
        kept = {*[step for step in steps if step <= state.step][-keep:], state.best_step}
        for step in steps:
            if step not in kept:
                remove_folder(self._path(step))

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, in order."""
        if not self._folder.is_dir():
            return []
        return sorted(int(path.name.removeprefix("step-")) for path in self._folder.glob("step-*"))

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint; damaged ones are noted in `damaged` and passed over.

        Where the best one is damaged, the newest takes its place until a validation finds a better one.
        """
        for step in reversed(self.steps()):
            if self._is_whole(step):
                found = self.load(step)
                if found.state.best_step == step or self._is_whole(found.state.best_step):
                    return found
                state = replace(found.state, best_step=step, best_loss=None, best_score=None, worse_validations=0)
                return replace(found, state=state)
        return None

    def check_room(self, checkpoint_bytes: int, *, keep: int) -> None:
        """Refuse a run whose checkpoints can't fit on the disk.

        Args:
            checkpoint_bytes: about how large each gets.
            keep: see `save`; while one is written, so many others are there.

        Raises:
            StorageError: they can't (`disk_full`).
        """
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self._folder).free
            there = sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file())
        needed = (keep + 1) * checkpoint_bytes
        if needed > free + there:
            raise StorageError(
                f"The checkpoints of this run need {needed / 1e6:.0f} MB; this disk has {(free + there) / 1e6:.0f} MB.",
                where=str(self._folder),
                fix="Free some space, lower limits.keep_checkpoints, or set TUNESMITH_HOME to a larger disk.",
                code="disk_full",
            )

    def load(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step.

        Raises:
            RunError: it is missing or damaged.
        """
        folder = self._path(step)
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            for name in (_ADAPTER, _OPTIMISER, _STATE):
                if sha256_file(folder / name) != manifest[name]:
                    raise ValueError(f"{name} isn't what was written")
            values = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            state = LoopState(passes=Passes(**values.pop("passes")), **values)
            return Checkpoint(state, load_tensors(folder / _ADAPTER), load_tensors(folder / _OPTIMISER))
        except (OSError, ValueError, KeyError, TypeError, ModelError) as error:
            raise RunError(
                f"This checkpoint is damaged: {error}.",
                where=str(folder),
                fix="Resume the run: it goes on from the checkpoint before.",
                code="damaged_checkpoint",
            ) from error

    def _is_whole(self, step: int) -> bool:
        """Whether a checkpoint can be loaded; if not, what is wrong stands in `damaged`."""
        try:
            self.load(step)
        except RunError as error:
            self.damaged.append(str(error))
            return False
        return True

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:06d}"
