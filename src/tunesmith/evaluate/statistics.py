"""Intervals and tests: how sure a score, or a difference of two scores, can be.

Binary scores (right or wrong) get closed forms and exact tests; graded scores get the bootstrap and a permutation test.
Everything random is seeded, so a report can be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

RESAMPLES = 10_000
#: Resampled rows held in memory at once (times 8 bytes).
_ROWS_AT_ONCE = 2_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with the bounds that hold it at the stated confidence, and how they were found."""

    value: float
    low: float
    high: float
    confidence: float
    method: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "score": self.value,
            "low": self.low,
            "high": self.high,
            "confidence": self.confidence,
            "method": self.method,
        }


def proportion_interval(successes: int, rows: int, *, confidence: float = 0.95) -> Interval:
    """Return the share `successes / rows` with its Wilson score interval.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Raises:
        ValueError: there are no rows, or more successes than rows.
    """
    bounds = stats.binomtest(successes, rows).proportion_ci(confidence, method="wilson")
    return Interval(successes / rows, float(bounds.low), float(bounds.high), confidence, "Wilson")


def bootstrap_interval(
    rows: ArrayLike,
    statistic: Callable[[Floats], Floats],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a statistic of all rows with its percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    Args:
        rows: what each row adds to the sums, shape (rows, parts).
        statistic: sums of the parts divided by the number of rows, shape (resamples, parts), to values (resamples,).
            Means, micro F1 and macro F1 are all of this kind, which is why no loop over resamples is needed.
        confidence: level of the interval.
        resamples: number of bootstrap samples.
        seed: seed of the resampling.

    Raises:
        ValueError: there are no rows.
    """
    parts = np.asarray(rows, dtype=np.float64)
    count = len(parts)
    if count == 0:
        raise ValueError("a statistic needs at least one row")
    value = float(statistic(parts.mean(axis=0, keepdims=True))[0])
    rng = np.random.default_rng(seed)
    step = max(1, _ROWS_AT_ONCE // count)
    drawn = []
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        picks = rng.integers(0, count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(picks.ravel(), minlength=size * count).reshape(size, count)
        drawn.append(statistic(times @ parts / count))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(drawn), [tail, 1.0 - tail])
    return Interval(value, float(low), float(high), confidence, "bootstrap")


def mean_interval(
    values: Sequence[float], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return the mean of one value a row with its bootstrap interval."""
    column = np.asarray(values, dtype=np.float64)[:, None]
    return bootstrap_interval(column, lambda sums: sums[:, 0], confidence=confidence, resamples=resamples, seed=seed)


def micro_f1(sums: Floats) -> Floats:
    """Return F1 of summed true positives, false positives and false negatives, shape (..., 3); 1 where all are 0."""
    hits, inventions, misses = sums[:, 0], sums[:, 1], sums[:, 2]
    total = 2 * hits + inventions + misses
    f1: Floats = np.divide(2 * hits, total, out=np.ones_like(total), where=total > 0)
    return f1


def macro_f1(sums: Floats) -> Floats:
    """Return the mean over labels of each label's F1 (Opitz & Burst 2019, arXiv:1911.03347, "averaged F1").

    Args:
        sums: by label, hits, times in the references, times in the answers: shape (resamples, 3 * labels). Labels that
            no reference of a sample has don't count. An answer that is no label is a miss for the reference's label.
    """
    hits, wanted, given = np.split(sums, 3, axis=1)
    f1 = np.divide(2 * hits, wanted + given, out=np.zeros_like(hits), where=wanted + given > 0)
    present = wanted > 0
    labels = present.sum(axis=1)
    mean: Floats = np.divide((f1 * present).sum(axis=1), labels, out=np.zeros(len(sums)), where=labels > 0)
    return mean


def label_parts(answers: Sequence[str], references: Sequence[str]) -> Floats:
    """Return what each row adds to `macro_f1`'s sums, shape (rows, 3 * labels), for the labels of the references."""
    labels = {label: i for i, label in enumerate(sorted(set(references)))}
    parts = np.zeros((len(references), 3 * len(labels)))
    for row, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        parts[row, labels[reference]] = answer == reference
        parts[row, len(labels) + labels[reference]] = 1
        if answer in labels:
            parts[row, 2 * len(labels) + labels[answer]] = 1
    return parts


def is_binary(*scores: Sequence[float]) -> bool:
    """Whether every score is 0 or 1."""
    return all(value in (0.0, 1.0) for values in scores for value in values)


def paired_difference(
    baseline: Sequence[float],
    candidate: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return the mean of candidate minus baseline over the same rows, with its paired interval.

    Binary scores: Agresti & Min 2005, "Simple improved confidence intervals for comparing matched proportions": Wald's
    interval after adding 1/2 to each cell of the 2 x 2 table. Unlike the bootstrap it stays honest when few rows differ
    (with none it doesn't shrink to a point). Graded scores: the paired percentile bootstrap.

    Raises:
        ValueError: the two don't have the same, positive number of rows.
    """
    differences = _differences(baseline, candidate)
    if not is_binary(baseline, candidate):
        return mean_interval(list(differences), confidence=confidence, resamples=resamples, seed=seed)
    rows = len(differences) + 2.0
    wins, losses = float((differences > 0).sum()) + 0.5, float((differences < 0).sum()) + 0.5
    centre = (wins - losses) / rows
    spread = math.sqrt(wins + losses - (wins - losses) ** 2 / rows) / rows
    reach = float(stats.norm.ppf(0.5 + confidence / 2)) * spread
    value = float(differences.mean())
    low, high = max(-1.0, min(value, centre - reach)), min(1.0, max(value, centre + reach))
    return Interval(value, low, high, confidence, "Agresti-Min")


@dataclass(frozen=True, slots=True)
class Test:
    """A two-sided test that two arms are equally good."""

    __test__ = False  # pytest takes classes of this name for tests

    p_value: float
    method: str


def paired_test(
    baseline: Sequence[float], candidate: Sequence[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> Test:
    """Test that the two arms' scores of the same rows don't differ.

    Binary scores: McNemar's test (McNemar 1947) in its exact form, binomial over the rows where the arms differ. Graded
    scores: the sign-flip permutation test of the mean difference (Fisher 1935), exact for few rows.

    Raises:
        ValueError: the two don't have the same, positive number of rows.
    """
    differences = _differences(baseline, candidate)
    moved = differences[differences != 0]
    binary = is_binary(baseline, candidate)
    method = "exact McNemar test" if binary else "sign-flip permutation test"
    if len(moved) < 2:  # one row that moved could as well have moved the other way
        return Test(1.0, method)
    if binary:
        return Test(float(stats.binomtest(int((moved > 0).sum()), len(moved)).pvalue), method)
    result = stats.permutation_test(
        (moved,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        n_resamples=resamples,
        vectorized=True,
        batch=max(1, _ROWS_AT_ONCE // len(moved)),
        rng=np.random.default_rng(seed),
    )
    return Test(float(result.pvalue), method)


def rows_needed(
    baseline: Sequence[float], candidate: Sequence[float], *, confidence: float = 0.95, power: float = 0.8
) -> int | None:
    """Estimate how many test rows would show the difference seen here, if it is real; None when no difference was seen.

    n = ((z(1 - alpha / 2) + z(power)) * s / d)^2 for paired rows (Lachin 1981), d and s the mean and standard deviation
    of the differences by row.
    """
    differences = _differences(baseline, candidate)
    mean = float(differences.mean())
    if mean == 0.0:
        return None
    deviation = max(float(differences.std()), abs(mean))
    reach = float(stats.norm.ppf(0.5 + confidence / 2) + stats.norm.ppf(power))
    return math.ceil((reach * deviation / mean) ** 2)


def _differences(baseline: Sequence[float], candidate: Sequence[float]) -> Floats:
    """Return candidate minus baseline, row by row."""
    if len(baseline) != len(candidate) or not len(baseline):
        raise ValueError(f"paired scores need the same rows, got {len(baseline)} and {len(candidate)}")
    return np.asarray(candidate, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
