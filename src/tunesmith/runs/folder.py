"""A run on disk: `runs/<id>/` with its spec, its rows, events, metrics, checkpoints and report."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from tunesmith.errors import RunError
from tunesmith.record.atomic import write_json
from tunesmith.record.home import Home
from tunesmith.specs.tune import TuneSpec

State = Literal["running", "interrupted", "succeeded", "failed"]


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as lists show it.

    `organization` is there if it runs for a job. `model` and `sentence` are there once it has succeeded, `error` and
    its stable word `code` once it has failed.
    """

    id: str
    folder: Path
    state: State
    created: str
    base: str
    data: str
    name: str | None = None
    organization: str | None = None
    model: str | None = None
    sentence: str | None = None
    error: str | None = None
    code: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "folder": str(self.folder)}


@dataclass(frozen=True, slots=True)
class JobOrder:
    """The job that a run works for, and the organisation in its models' names."""

    job_id: str
    organization: str


class RunFolder:
    """The files of one run. `status.json` is written whole at each change of state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec_file = path / "spec.yaml"
        self.events_file = path / "events.jsonl"
        self.metrics_file = path / "metrics.jsonl"
        self.row_losses_file = path / "row_losses.jsonl"
        self.checkpoints = path / "checkpoints"
        self.data = path / "data"
        self._status_file = path / "status.json"

    @classmethod
    def create(cls, spec: TuneSpec, home: Home, order: JobOrder | None = None) -> RunFolder:
        """Make the folder of a new run, called as its job if it runs for one.

        Raises:
            StorageError: it can't be written.
        """
        now = datetime.now(UTC)
        first = spec.data.files[0].path
        label = spec.name or re.sub(r"[^a-z0-9]+", "-", Path(first).name.split(".")[0].lower()).strip("-")
        name = order.job_id if order else f"{now:%Y%m%d-%H%M%S}-{(label or 'data')[:40]}-{secrets.token_hex(2)}"
        run = cls(home.runs / name)
        run.path.mkdir(parents=True)
        run._write(
            RunView(
                run.path.name,
                run.path,
                "running",
                now.isoformat(timespec="seconds"),
                spec.base,
                spec.data.where,
                organization=order.organization if order else None,
            )
        )
        spec.write_yaml(run.spec_file)
        return run

    @classmethod
    def find(cls, name: str, home: Home) -> RunFolder:
        """Return the run with this id, or the only one whose id begins so, or the run at this path.

        Raises:
            RunError: there is none, or more than one.
        """
        here = Path(name)
        if (here / "status.json").is_file():
            return cls(here)
        ids = [view.id for view in list_runs(home)]
        matching = [run_id for run_id in ids if run_id == name] or [run_id for run_id in ids if run_id.startswith(name)]
        if len(matching) == 1:
            return cls(home.runs / matching[0])
        known = ", ".join(ids[:5]) or "none yet"
        raise RunError(
            f"{len(matching)} runs are called {name!r}." if matching else f"There is no run called {name!r}.",
            fix=f"The newest runs: {known}. `tunesmith runs list` shows all.",
            code="ambiguous_run" if matching else "run_not_found",
        )

    @property
    def id(self) -> str:
        """The run's id: its folder's name."""
        return self.path.name

    def view(self) -> RunView:
        """Return the run's state.

        Raises:
            RunError: the status file can't be read.
        """
        try:
            values = json.loads(self._status_file.read_text(encoding="utf-8"))
            return RunView(**{**values, "folder": self.path})
        except (OSError, ValueError, TypeError) as error:
            raise RunError(
                f"This run's status can't be read: {error}.", where=str(self._status_file), code="damaged_run"
            ) from error

    def update(self, **changes: Any) -> None:
        """Change the state and what goes with it, durably."""
        self._write(replace(self.view(), **changes))

    def spec(self) -> TuneSpec:
        """Return the resolved spec.

        Raises:
            SpecError: the file can't be read.
        """
        return TuneSpec.from_yaml(self.spec_file)

    def _write(self, view: RunView) -> None:
        write_json(self._status_file, view.to_json())


def list_runs(home: Home) -> list[RunView]:
    """Return the runs, the newest first. Folders whose status can't be read are left out."""
    views = []
    for status in home.runs.glob("*/status.json"):
        try:
            views.append(RunFolder(status.parent).view())
        except RunError:
            continue
    return sorted(views, key=lambda view: (view.created, view.id), reverse=True)
