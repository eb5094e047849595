"""The report of a run: `report.json` for programs and `report.html` for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data.examples import Conversation
from tunesmith.errors import storage_errors
from tunesmith.evaluate.comparison import ArmResult
from tunesmith.evaluate.curves import Curves
from tunesmith.evaluate.page import render_page
from tunesmith.evaluate.side_by_side import pick_rows, show_rows
from tunesmith.evaluate.verdict import Verdict
from tunesmith.record.atomic import write_bytes

#: Changes when `report.json` changes in a way that a reader must know of.
FORMAT = "tunesmith-report-1"


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report tells.

    Attributes:
        title: what was tuned, in a few words.
        created: when, as an ISO 8601 time with its zone.
        verdict: what the scores say.
        arms: every arm's result, untuned ones first, the tuned model last.
        rows: the test rows, in the order in which the arms answered them.
        confidence: level of the intervals.
        curves: how training went.
        notes: what people should know about the training, whole sentences.
        data: facts about the data and its split, by name (numbers, words, or nested mappings).
        dropped: rows that were left out or cut, one mapping each (`place`, `reason`).
        plan: model, method, memory, hardware, time, by name.
        spec_yaml: the resolved spec.
        versions: versions of the libraries, by name.
        shown_rows: how many test rows stand side by side in the page.
    """

    title: str
    created: str
    verdict: Verdict
    arms: Sequence[ArmResult]
    rows: Sequence[Conversation]
    confidence: float = 0.95
    curves: Curves | None = None
    notes: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    dropped: Sequence[Mapping[str, str]] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)
    spec_yaml: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    shown_rows: int = 12

    def to_json(self) -> dict[str, Any]:
        """Return plain data: everything, with every test row and every arm's answer."""
        return {
            "format": FORMAT,
            "title": self.title,
            "created": self.created,
            "verdict": self.verdict.to_json(),
            "measure": self.arms[-1].measure.to_json() if self.arms else None,
            "confidence": self.confidence,
            "arms": [arm.to_json() for arm in self.arms],
            "rows": [row.to_json() for row in show_rows(self.rows, self.arms, range(len(self.rows)))],
            "curves": self.curves.to_json() if self.curves else None,
            "notes": list(self.notes),
            "data": dict(self.data),
            "dropped": [dict(row) for row in self.dropped],
            "plan": dict(self.plan),
            "spec": self.spec_yaml,
            "versions": dict(self.versions),
        }


def write_report(folder: Path, report: Report) -> tuple[Path, Path]:
    """Write `report.json` and `report.html` into `folder`, each whole or not at all, and return their paths.

    Raises:
        StorageError: the folder can't be written or the disk is full.
        ValueError: an arm doesn't have one answer for each row.
    """
    if any(arm.rows != len(report.rows) for arm in report.arms):
        raise ValueError("every arm of a report needs one answer for each row")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    page = render_page(report.to_json(), _shown(report), report.curves)
    paths = folder / "report.json", folder / "report.html"
    # What a model wrote may hold half a surrogate pair, which UTF-8 can't: JSON has an escape for it, HTML a "?".
    text = json.dumps(_finite(report.to_json()), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    write_bytes(paths[0], text.encode("utf-8", "backslashreplace"))
    write_bytes(paths[1], page.encode("utf-8", "replace"))
    return paths


def _shown(report: Report) -> list[dict[str, Any]]:
    """Return the rows that stand side by side, as plain data."""
    if not report.arms:
        return []
    candidate, untuned = report.arms[-1], report.arms[:-1]
    best = max(untuned, key=lambda arm: arm.score.value) if untuned else None
    picks = pick_rows(candidate, best, count=report.shown_rows)
    return [row.to_json() for row in show_rows(report.rows, report.arms, picks)]


def _finite(value: Any) -> Any:
    """Replace numbers that JSON can't hold by None, at any depth."""
    if isinstance(value, float):
        return value if -float("inf") < value < float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
