"""The end of a run: the model is registered, the report written, the figures added up."""

from __future__ import annotations

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunesmith.data.examples import Conversation, Example
from tunesmith.evaluate.comparison import ArmResult
from tunesmith.evaluate.curves import Curves
from tunesmith.evaluate.report import Report, write_report
from tunesmith.evaluate.verdict import Verdict
from tunesmith.models.adapters.adapter import Adapter
from tunesmith.models.versions import Candidate, ModelVersion, register
from tunesmith.record.hashing import sha256_json
from tunesmith.record.home import Home
from tunesmith.runs.folder import RunFolder
from tunesmith.runs.pinned_data import PinnedData
from tunesmith.runs.result import RunResult
from tunesmith.runs.workshop import Base
from tunesmith.specs.results import DataCounts, EvaluationFigures, Score, TrainFigures, TuneFigures
from tunesmith.specs.tune import FullSpec, TuneSpec
from tunesmith.train.loop import Outcome
from tunesmith.train.plan import Plan

_LIBRARIES = ("tunesmith", "torch", "transformers", "tokenizers", "safetensors")
_NOT_PROVED = Verdict(
    "not_enough_evidence",
    "Nothing was locked away for a test, so nothing is proved.",
    ("Set data.test_fraction, or give data.test_path.",),
)


@dataclass(frozen=True)
class Finished:
    """All that a run leaves behind when its training and its proof are done."""

    folder: RunFolder
    spec: TuneSpec
    data: PinnedData
    test_rows: Sequence[Conversation]
    base: Base
    plan: Plan
    adapter: Adapter
    outcome: Outcome
    arms: Sequence[ArmResult]
    verdict: Verdict | None
    peak_memory_bytes: int
    metrics: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()


def finish(run: Finished, home: Home) -> RunResult:
    """Register the model and write the report.

    Raises:
        StorageError: the disk is full; nothing half-written is listed.
    """
    verdict = run.verdict or _NOT_PROVED
    summary = {
        "data": _data_counts(run.data).model_dump(),
        "train": _train_figures(run).model_dump(),
        "evaluation": evaluation.model_dump() if (evaluation := _evaluation(run.arms)) else None,
        "verdict": {"kind": verdict.kind, "sentence": verdict.sentence},
        "system": _usual_system_prompt(run.data.train),
    }
    version = _register(run, summary, home)
    figures = TuneFigures(
        model=version.name,
        run=str(run.folder.path),
        data=_data_counts(run.data),
        train=_train_figures(run),
        evaluation=_evaluation(run.arms),
        verdict=verdict.kind,
        sentence=verdict.sentence,
    )
    write_report(run.folder.path, _report(run, verdict, version))
    return RunResult(figures, verdict, version, run.folder.path, run.arms, run.test_rows)


def _register(run: Finished, summary: Mapping[str, Any], home: Home) -> ModelVersion:
    weights = Weights(run.folder, run.spec, run.data, run.base, run.adapter)
    return register_weights(weights, summary, home)


@dataclass(frozen=True)
class Weights:
    """Weights of a run as they are now, with where they come from."""

    folder: RunFolder
    spec: TuneSpec
    data: PinnedData
    base: Base
    adapter: Adapter


def register_checkpoint(weights: Weights, step: int, home: Home) -> ModelVersion:
    """Register the weights after a step, so that they can be asked beside the run's result.

    Raises:
        StorageError: the disk is full; nothing half-written is listed.
    """
    data = weights.data
    summary = {"data": _data_counts(data).model_dump(), "system": _usual_system_prompt(data.train)}
    return register_weights(weights, summary, home, checkpoint_step=step)


def register_weights(
    weights: Weights, summary: Mapping[str, Any], home: Home, *, checkpoint_step: int | None = None
) -> ModelVersion:
    """Register weights: those of a step, or a run's result.

    Raises:
        StorageError: the disk is full; nothing half-written is listed.
    """
    loaded = weights.base.loaded
    source = loaded.source
    candidate = Candidate(
        base=source.name,
        base_sha256=source.sha256,
        base_short_name=source.short_name,
        run=weights.folder.id,
        label=weights.spec.name,
        spec_sha256=sha256_json(weights.spec.model_dump(mode="json")),
        data_sha256=str(weights.data.report["content_hash"]),
        template_sha256=weights.base.renderer.template_hash,
        summary=summary,
        kind="model" if isinstance(weights.spec.adapter, FullSpec) else "adapter",
        quantisation=loaded.quantisation.to_json() if loaded.quantisation else None,
        organization=weights.folder.view().organization,
        checkpoint_step=checkpoint_step,
    )

    def fill(folder: Path) -> None:
        weights.adapter.save(folder, source)

    return register(candidate, fill, weights.base.renderer.template, home)


def _usual_system_prompt(rows: Sequence[Example]) -> str | None:
    """Return the system prompt of at least half of the rows, if there is one: in use, the model wants it again."""
    starts = (row.messages[0] for row in rows if isinstance(row, Conversation))
    first = Counter(start.content for start in starts if start.role == "system")
    prompt, count = first.most_common(1)[0] if first else (None, 0)
    return prompt if 2 * count >= len(rows) else None


def _data_counts(data: PinnedData) -> DataCounts:
    return DataCounts(
        rows=data.report["rows"],
        train=len(data.train),
        validation=len(data.validation),
        test=len(data.test),
        dropped=data.report["dropped"],
    )


def _train_figures(run: Finished) -> TrainFigures:
    state = run.outcome.state
    return TrainFigures(
        rows=state.rows,
        tokens=state.tokens,
        seconds=round(state.seconds, 3),
        tokens_per_second=round(state.tokens / max(state.step_seconds, 1e-9), 1),
        peak_memory_bytes=run.peak_memory_bytes,
        steps=state.step,
        loss=run.outcome.last_loss,
        validation_loss=state.best_loss,
        best_step=state.best_step,
    )


def _evaluation(arms: Sequence[ArmResult]) -> EvaluationFigures | None:
    if not arms:
        return None
    # The arms end with the base on the rows' own prompt (where it was measured) and the tuned model.
    base = arms[-2] if len(arms) > 1 else None
    return EvaluationFigures(
        measure=arms[-1].measure.name,
        rows=arms[-1].rows,
        base=_score(base) if base else None,
        tuned=_score(arms[-1]),
    )


def _score(arm: ArmResult) -> Score:
    score = arm.score_as_read
    return Score(score=score.value, low=score.low, high=score.high)


def _report(run: Finished, verdict: Verdict, version: ModelVersion) -> Report:
    def curve(name: str) -> list[tuple[int, float]]:
        return [(row["step"], row[name]) for row in run.metrics if row.get(name) is not None]

    dropped = [
        {"place": f"{row['file']}, {unit} {row[unit]}", "reason": row["reason"]}
        for row in run.data.report["dropped_rows"]
        for unit in ("line", "row")
        if unit in row
    ]
    return Report(
        title=version.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        verdict=verdict,
        arms=run.arms,
        rows=run.test_rows,
        confidence=run.spec.evaluation.confidence,
        curves=Curves(
            train_loss=curve("loss"),
            validation_loss=curve("validation_loss"),
            learning_rate=curve("learning_rate"),
            best_step=run.outcome.state.best_step,
        ),
        data={
            key: run.data.report[key] for key in ("format", "reason", "rows", "train", "validation", "test", "dropped")
        }
        | {"findings": [finding["message"] for finding in run.data.report["findings"]]},
        dropped=dropped,
        notes=run.notes,
        plan=run.plan.to_json(),
        spec_yaml=run.spec.to_yaml(),
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
    )
