"""A run's own copy of its rows, so that resuming doesn't depend on the user's file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.chat_rows import RowCheck, read_chat
from tunesmith.data.examples import Conversation
from tunesmith.data.problems import RowProblem
from tunesmith.data.readers import read_rows
from tunesmith.data.writers import write_chat_jsonl
from tunesmith.errors import RunError
from tunesmith.prepare.prepared import PreparedData
from tunesmith.prepare.report import data_report
from tunesmith.record.atomic import write_json

_SIDES = ("train", "validation", "test")


@dataclass(frozen=True)
class PinnedData:
    """The rows of a run and the report on where they came from (see `prepare.report.data_report`)."""

    train: tuple[Conversation, ...]
    validation: tuple[Conversation, ...]
    test: tuple[Conversation, ...]
    report: dict[str, Any]


def pin(prepared: PreparedData, folder: Path) -> PinnedData:
    """Write the split rows and their report into `folder`.

    Raises:
        StorageError: the disk is full.
    """
    folder.mkdir(exist_ok=True)
    sides: dict[str, Sequence[Conversation]] = {side: getattr(prepared, side) for side in _SIDES}
    for side, rows in sides.items():
        write_chat_jsonl(folder / f"{side}.jsonl", rows)
    report = data_report(prepared)
    write_json(folder / "report.json", report)
    return PinnedData(prepared.train, prepared.validation, prepared.test, report)


def load_pinned(folder: Path) -> PinnedData:
    """Return what `pin` wrote.

    Raises:
        RunError: the files are missing or were changed.
    """
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        sides = {side: _rows(folder / f"{side}.jsonl") for side in _SIDES}
    except (OSError, ValueError) as error:
        raise RunError(
            f"The run's copy of its data can't be read: {error}.",
            where=str(folder),
            fix="Start a new run with `tunesmith tune`.",
            code="damaged_run",
        ) from error
    return PinnedData(**sides, report=report)


def _rows(path: Path) -> tuple[Conversation, ...]:
    """Read one side.

    Raises:
        ValueError: a row isn't what was written.
    """
    if path.stat().st_size == 0:
        return ()
    rows = []
    for row in read_rows(path):
        if isinstance(row, RowProblem):
            raise ValueError(f"{path.name}: {row.message}")
        check = RowCheck(row.place)
        conversation = read_chat(row.values, check)
        if conversation is None:
            raise ValueError(f"{path.name}: {check.problems[0].message}")
        rows.append(conversation)
    return tuple(rows)
