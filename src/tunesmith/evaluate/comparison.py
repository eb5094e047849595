"""Arms scored on the same rows, and the difference between two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tunesmith.data.examples import Conversation
from tunesmith.evaluate.measure import Measure
from tunesmith.evaluate.statistics import (
    Interval,
    bootstrap_interval,
    is_binary,
    label_parts,
    macro_f1,
    mean_interval,
    micro_f1,
    paired_difference,
    paired_test,
    proportion_interval,
    rows_needed,
)
from tunesmith.generate.completion import Completion
from tunesmith.grade.grader import FieldCounts, Grade
from tunesmith.grade.json_object import sum_fields
from tunesmith.grade.label import normalise_label


@dataclass(frozen=True, slots=True)
class FieldScore:
    """How well one field of the JSON answers is found, over all rows."""

    path: str
    precision: float
    recall: float
    f1: float
    wanted: int
    found: int

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "field": self.path,
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "wanted": self.wanted,
            "found": self.found,
        }


@dataclass(frozen=True, slots=True)
class Cost:
    """What one request costs: tokens and time, means and percentiles over the rows."""

    mean_prompt_tokens: float
    mean_completion_tokens: float
    mean_seconds: float
    p50_seconds: float
    p95_seconds: float

    def to_json(self) -> dict[str, float]:
        """Return plain data."""
        return {
            "mean_prompt_tokens": self.mean_prompt_tokens,
            "mean_completion_tokens": self.mean_completion_tokens,
            "mean_seconds": self.mean_seconds,
            "p50_seconds": self.p50_seconds,
            "p95_seconds": self.p95_seconds,
        }


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm's scores on the test rows.

    Attributes:
        name: the arm's short name.
        description: what it does, in a few words.
        measure: how the answers were scored.
        score: the primary score with its interval; higher is better (for perplexity it is the log-likelihood).
        secondary: further scores by name with their intervals.
        fields: for JSON, each field's score.
        row_scores: the primary score of each row, in the rows' order.
        answers: the answers' texts, in the rows' order.
        cost: tokens and seconds per request.
        cut_answers: how many answers ended only because they reached the longest length allowed.
    """

    name: str
    description: str
    measure: Measure
    score: Interval
    secondary: Mapping[str, Interval]
    fields: tuple[FieldScore, ...]
    row_scores: tuple[float, ...]
    answers: tuple[str, ...] = field(repr=False)
    cost: Cost
    cut_answers: int = 0

    @property
    def rows(self) -> int:
        """Number of test rows."""
        return len(self.row_scores)

    @property
    def score_as_read(self) -> Interval:
        """The primary score as people read it."""
        return self.measure.as_read(self.score)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without the answers' texts."""
        return {
            "name": self.name,
            "description": self.description,
            "measure": self.measure.name,
            "rows": self.rows,
            **self.score_as_read.to_json(),
            "secondary": {name: interval.to_json() for name, interval in self.secondary.items()},
            "fields": [item.to_json() for item in self.fields],
            "row_scores": list(self.row_scores),
            "cut_answers": self.cut_answers,
            **self.cost.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """Candidate minus baseline on the same rows.

    Attributes:
        baseline: the first arm's name.
        candidate: the second arm's name.
        difference: mean of the differences, in the primary score's unit (0 to 1; for perplexity nats a token).
        low: lower bound of its paired interval.
        high: upper bound of its paired interval.
        p_value: two-sided, of the hypothesis that the arms are equally good.
        method: how bounds and p-value were found.
        confidence: level of the interval.
        better: rows where the candidate scores higher.
        worse: rows where it scores lower.
        rows: number of rows.
        rows_needed: about how many rows would show a difference of this size; None when there is none.
    """

    baseline: str
    candidate: str
    difference: float
    low: float
    high: float
    p_value: float
    method: str
    confidence: float
    better: int
    worse: int
    rows: int
    rows_needed: int | None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {name: getattr(self, name) for name in self.__slots__}


def score_arm(
    name: str,
    description: str,
    rows: Sequence[Conversation],
    completions: Sequence[Completion],
    measure: Measure,
    confidence: float = 0.95,
    reference_losses: Sequence[float] | None = None,
) -> ArmResult:
    """Score one arm's answers against the rows' references.

    Args:
        name: the arm's short name.
        description: what it does, in a few words.
        rows: the test rows, with their references.
        completions: one answer for each row, in the same order.
        measure: how answers are scored.
        confidence: level of the intervals.
        reference_losses: optionally the model's mean loss (nats a token) on each row's reference.

    Raises:
        ValueError: there are no rows, or not one answer (and loss) for each.
    """
    if not rows or len(rows) != len(completions) or (reference_losses and len(reference_losses) != len(rows)):
        raise ValueError(f"{len(rows)} rows need as many answers, got {len(completions)}")
    references = [row.reference for row in rows]
    answers = tuple(completion.text for completion in completions)
    grader = measure.grader()
    grades = [grader.grade(answer, reference) for answer, reference in zip(answers, references, strict=True)]
    scores = tuple(grade.score for grade in grades)
    secondary = _secondary_scores(measure, grades, answers, references, confidence)
    if reference_losses:
        secondary["loss on the reference"] = mean_interval(reference_losses, confidence=confidence)
    return ArmResult(
        name=name,
        description=description,
        measure=measure,
        score=_share_or_mean(scores, confidence),
        secondary=secondary,
        fields=_field_scores(grades) if measure.kind == "json" else (),
        row_scores=scores,
        answers=answers,
        cost=_cost(completions),
        cut_answers=sum(completion.finish_reason == "length" for completion in completions),
    )


def compare(
    baseline: ArmResult, candidate: ArmResult, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Return how much better the candidate is than the baseline, over the same rows.

    Raises:
        ValueError: the two weren't scored on the same number of rows with the same measure.
    """
    if baseline.measure.kind != candidate.measure.kind:
        raise ValueError(f"{baseline.name} and {candidate.name} were scored with different measures")
    before, after = baseline.row_scores, candidate.row_scores
    interval = paired_difference(before, after, confidence=confidence, resamples=resamples, seed=seed)
    test = paired_test(before, after, resamples=resamples, seed=seed)
    return Difference(
        baseline=baseline.name,
        candidate=candidate.name,
        difference=interval.value,
        low=interval.low,
        high=interval.high,
        p_value=test.p_value,
        method=f"paired {interval.method} interval, {test.method}",
        confidence=confidence,
        better=sum(b > a for a, b in zip(before, after, strict=True)),
        worse=sum(b < a for a, b in zip(before, after, strict=True)),
        rows=len(before),
        rows_needed=rows_needed(before, after, confidence=confidence),
    )


def _secondary_scores(
    measure: Measure, grades: Sequence[Grade], answers: Sequence[str], references: Sequence[str], confidence: float
) -> dict[str, Interval]:
    """Return the further scores that need nothing but the texts."""
    scores = {
        name: _share_or_mean([grade.parts[name] for grade in grades], confidence)
        for name in measure.secondary
        if name in grades[0].parts
    }
    if measure.kind == "json":
        totals = [sum(grade.fields.values(), FieldCounts()) for grade in grades]
        parts = [(t.true_positives, t.false_positives, t.false_negatives) for t in totals]
        scores["field F1"] = bootstrap_interval(parts, micro_f1, confidence=confidence)
    if measure.kind == "label":
        rows = label_parts([normalise_label(a) for a in answers], [normalise_label(r) for r in references])
        scores["macro F1"] = bootstrap_interval(rows, macro_f1, confidence=confidence)
    return scores


def _share_or_mean(scores: Sequence[float], confidence: float) -> Interval:
    """Return a proportion's interval for right/wrong scores, a mean's for graded ones."""
    if is_binary(scores):
        return proportion_interval(int(sum(scores)), len(scores), confidence=confidence)
    return mean_interval(scores, confidence=confidence)


def _field_scores(grades: Sequence[Grade]) -> tuple[FieldScore, ...]:
    """Return every field's score, the most frequent in the references first."""
    totals = sum_fields(grade.fields for grade in grades)
    fields = [
        FieldScore(
            path,
            total.precision,
            total.recall,
            total.f1,
            wanted=total.true_positives + total.false_negatives,
            found=total.true_positives + total.false_positives,
        )
        for path, total in totals.items()
    ]
    return tuple(sorted(fields, key=lambda item: (-item.wanted, item.path)))


def _cost(completions: Sequence[Completion]) -> Cost:
    """Return tokens and seconds per request."""
    seconds = np.array([completion.seconds for completion in completions])
    p50, p95 = np.quantile(seconds, [0.5, 0.95])
    return Cost(
        mean_prompt_tokens=float(np.mean([completion.prompt_tokens for completion in completions])),
        mean_completion_tokens=float(np.mean([completion.completion_tokens for completion in completions])),
        mean_seconds=float(seconds.mean()),
        p50_seconds=float(p50),
        p95_seconds=float(p95),
    )
