"""A run's own copy of its rows, so that resuming doesn't depend on the user's file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunesmith.data.chat_rows import RowCheck, read_chat
from tunesmith.data.examples import Conversation, Document, Example
from tunesmith.data.problems import RowProblem
from tunesmith.data.readers import read_rows
from tunesmith.data.rows import Row
from tunesmith.data.writers import write_jsonl
from tunesmith.errors import RunError
from tunesmith.prepare.prepared import PreparedData
from tunesmith.prepare.report import data_report
from tunesmith.record.atomic import write_json

_SOURCES = "sources.json"
_SIDES = ("train", "validation", "test")
#: General rows, where there are some: those learnt along, and those on which what the base could do is measured.
_REPLAY = ("replay", "general")


@dataclass(frozen=True)
class PinnedData:
    """The rows of a run and the report on where they came from (see `prepare.report.data_report`).

    The rows are all conversations or all documents. `replay` are general rows that are learnt along, `general` such
    rows that never are.
    """

    train: tuple[Any, ...]
    validation: tuple[Any, ...]
    test: tuple[Any, ...]
    report: dict[str, Any]
    replay: tuple[Conversation, ...] = ()
    general: tuple[Conversation, ...] = ()


def pin(prepared: PreparedData[Any], folder: Path) -> PinnedData:
    """Write the split rows and their report into `folder`.

    Raises:
        StorageError: the disk is full.
    """
    folder.mkdir(exist_ok=True)
    sides: dict[str, Sequence[Example]] = {side: getattr(prepared, side) for side in _SIDES}
    for side, rows in sides.items():
        write_jsonl(folder / f"{side}.jsonl", rows)
    # A file of its own: rows are written as they are read everywhere, and their form has no word for it.
    write_json(folder / _SOURCES, {side: [row.source for row in rows] for side, rows in sides.items()})
    report = data_report(prepared)
    write_json(folder / "report.json", report)
    general = (prepared.replay.rows, prepared.replay.held_out) if prepared.replay else ((), ())
    for name, rows in zip(_REPLAY, general, strict=True):
        if prepared.replay:
            write_jsonl(folder / f"{name}.jsonl", rows)
    return PinnedData(prepared.train, prepared.validation, prepared.test, report, *general)


def load_pinned(folder: Path) -> PinnedData:
    """Return what `pin` wrote.

    Raises:
        RunError: the files are missing or were changed.
    """
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        sources = json.loads((folder / _SOURCES).read_text(encoding="utf-8"))
        sides = {side: _rows(folder / f"{side}.jsonl", sources[side]) for side in _SIDES}
        general = [_general(folder / f"{name}.jsonl") for name in _REPLAY] if report["replay"] else []
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"The run's copy of its data can't be read: {error}.",
            where=str(folder),
            fix="Start a new run with `tunesmith tune`.",
            code="damaged_run",
        ) from error
    return PinnedData(sides["train"], sides["validation"], sides["test"], report, *general)


def _general(path: Path) -> tuple[Conversation, ...]:
    """Read general rows.

    Raises:
        ValueError: a row isn't what was written.
    """
    if path.stat().st_size == 0:
        return ()
    rows = [_row(row, 0) for row in read_rows(path)]
    return tuple(row for row in rows if isinstance(row, Conversation))


def _rows(path: Path, sources: Sequence[int]) -> tuple[Example, ...]:
    """Read one side; `sources` are the numbers of its rows' sources.

    Raises:
        ValueError: a row isn't what was written.
    """
    if path.stat().st_size == 0:
        return ()
    return tuple(_row(row, source) for row, source in zip(read_rows(path), sources, strict=True))


def _row(row: Row | RowProblem, source: int) -> Example:
    if isinstance(row, RowProblem):
        raise ValueError(str(row))
    if "text" in row.values:
        return Document(row.values["text"], row.values.get("continues", False), row.place, source)
    check = RowCheck(row.place)
    conversation = read_chat(row.values, check)
    if conversation is None:
        raise ValueError(str(check.problems[0]))
    return replace(conversation, source=source)
