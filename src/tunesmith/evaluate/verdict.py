"""The verdict: is the tuned model worth using? One word, one sentence, and the reasons.

The rule, with d = tuned minus the best untuned arm on the same rows, its paired interval, and its paired test:

1. nothing untuned was measured:                          not enough evidence
2. interval wholly above 0, test agrees, and d may be at
   least one point:                                       ship
3. interval wholly below 0 and test agrees:               don't ship
4. an untuned arm scores 95 % or more, or the interval
   says that tuning gains less than one point:            tuning isn't needed
5. anything else:                                         not enough evidence, with the rows it would take

For perplexity d is in nats a token: one point is about one per cent of perplexity, and rule 4's 95 % never holds.

"The test agrees" when its p-value is below 1 - confidence. Interval and test must both speak, because with a handful of
rows either alone can be hasty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunesmith.evaluate.comparison import ArmResult, Difference, compare
from tunesmith.evaluate.measure import perplexity

VerdictKind = Literal["ship", "dont_ship", "not_enough_evidence", "tuning_not_needed"]

#: An untuned arm this good leaves tuning little to add.
GOOD_ENOUGH = 0.95
#: A gain below one point isn't worth a model of one's own.
SMALL_GAIN = 0.01

_MANY_ROWS = 1_000_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the scores say.

    Attributes:
        kind: `ship`, `dont_ship`, `not_enough_evidence` or `tuning_not_needed`.
        sentence: one plain sentence with the numbers.
        reasons: the findings behind it, one sentence each.
        difference: tuned minus best untuned arm; None when nothing untuned was measured.
    """

    kind: VerdictKind
    sentence: str
    reasons: tuple[str, ...]
    difference: Difference | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "kind": self.kind,
            "sentence": self.sentence,
            "reasons": list(self.reasons),
            "difference": self.difference.to_json() if self.difference else None,
        }


def decide(tuned: ArmResult, untuned: Sequence[ArmResult], *, confidence: float = 0.95, seed: int = 0) -> Verdict:
    """Return the verdict on a tuned model by the rule of this module.

    Args:
        tuned: the tuned model's result.
        untuned: results of everything that needs no tuning, on the same rows.
        confidence: level of the paired interval; the test uses 1 - confidence.
        seed: seed of the bootstrap and the permutation test.
    """
    if not untuned:
        return Verdict(
            "not_enough_evidence",
            f"The tuned model {_achieves(tuned)}, but nothing untuned was measured to compare it with.",
            ("Measure the base model too (`evaluation.compare_base`) to know what tuning adds.",),
        )
    best = max(untuned, key=lambda arm: arm.score.value)
    difference = compare(best, tuned, confidence=confidence, seed=seed)
    kind = _kind(best, difference)
    facts = f"The tuned model {_achieves(tuned)}, against {_short_score(best)} for {best.name}"
    endings = {
        "ship": "ship it",
        "dont_ship": f"don't ship it, {best.name} is better",
        "tuning_not_needed": f"tuning isn't needed, use {best.name}",
        "not_enough_evidence": _evidence_wanted(difference),
    }
    explain = _perplexity_reason if tuned.measure.kind == "perplexity" else _difference_reason
    reasons = (explain(difference), *_cautions(tuned, best, kind))
    return Verdict(kind, f"{facts}: {endings[kind]}.", reasons, difference)


def show_score(value: float, arm: ArmResult) -> str:
    """Return a primary score as people read it.

    `86 %` for shares of rows, `45.1` for graded scores (times 100), `23.4` for perplexities.
    """
    if arm.measure.kind == "perplexity":
        return f"{perplexity(-value):.1f}"
    if not arm.measure.is_binary:
        return f"{100 * value:.1f}"
    # 199 of 200 aren't 100 %, and 1 of 300 isn't 0 %.
    digits = 1 if (value < 0.005 and value > 0.0) or 0.995 <= value < 1.0 else 0
    return f"{100 * value:.{digits}f} %"


def _kind(best: ArmResult, difference: Difference) -> VerdictKind:
    """Apply the rule."""
    sure = difference.p_value < 1.0 - difference.confidence
    if difference.low > 0 and sure and difference.high >= SMALL_GAIN:
        return "ship"
    if difference.high < 0 and sure:
        return "dont_ship"
    if best.score.value >= GOOD_ENOUGH or difference.high < SMALL_GAIN:
        return "tuning_not_needed"
    return "not_enough_evidence"


def _achieves(arm: ArmResult) -> str:
    """Say what an arm reaches, with rows and interval."""
    low, high = (f"{100 * bound:.{0 if arm.measure.is_binary else 1}f}" for bound in (arm.score.low, arm.score.high))
    rows = f"{arm.rows:,} unseen row" + ("s" if arm.rows != 1 else "")
    match arm.measure.kind:
        case "json":
            return f"gets {show_score(arm.score.value, arm)} of {rows} exactly right ({low} to {high} %)"
        case "label":
            return f"gets {show_score(arm.score.value, arm)} of {rows} right ({low} to {high} %)"
        case "text":
            return f"scores {show_score(arm.score.value, arm)} {arm.measure.name} on {rows} ({low} to {high})"
        case "perplexity":
            read = arm.score_as_read
            passages = f"{arm.rows:,} unseen passage" + ("s" if arm.rows != 1 else "")
            return f"has a perplexity of {read.value:.1f} on {passages} ({read.low:.1f} to {read.high:.1f})"


def _short_score(arm: ArmResult) -> str:
    """Return an arm's score alone."""
    return show_score(arm.score.value, arm)


def _evidence_wanted(difference: Difference) -> str:
    """Say how many rows it would take."""
    if difference.rows_needed is None:
        return "not enough evidence of any difference"
    if difference.rows_needed > _MANY_ROWS:
        return f"not enough evidence, and more than {_MANY_ROWS:,} test rows would be needed to tell"
    rows = _round_up(max(difference.rows_needed, difference.rows + 1))
    return f"not enough evidence yet, it would take about {rows:,} test rows to tell"


def _round_up(rows: int) -> int:
    """Round an estimate up to two digits, because more would pretend to precision."""
    step = int(10 ** max(1, len(str(rows)) - 2))
    return -(-rows // step) * step


def _difference_reason(difference: Difference) -> str:
    """Say the paired difference with its bounds and its test."""
    low, high, mean = (100 * value for value in (difference.low, difference.high, difference.difference))
    is_better = f"{abs(mean):.1f} points {'better' if mean > 0 else 'worse'} than" if mean else "exactly as good as"
    return (
        f"On the same rows, the tuned model is {is_better} {difference.baseline} "
        f"({100 * difference.confidence:.0f} % interval {low:+.1f} to {high:+.1f}, p = {_show_p(difference.p_value)}; "
        f"{difference.better:,} rows better, {difference.worse:,} worse)."
    )


def _perplexity_reason(difference: Difference) -> str:
    """Say the paired difference as a change of perplexity."""
    mean, low, high = (100 * math.expm1(-value) for value in (difference.difference, difference.high, difference.low))
    changed = f"{abs(mean):.1f} % {'lower' if mean < 0 else 'higher'} than that of" if mean else "exactly that of"
    return (
        f"On the same passages, the tuned model's perplexity is {changed} {difference.baseline} "
        f"({100 * difference.confidence:.0f} % interval {low:+.1f} to {high:+.1f} %, "
        f"p = {_show_p(difference.p_value)}; {difference.better:,} passages better, {difference.worse:,} worse)."
    )


def _show_p(value: float) -> str:
    """Return a p-value with two digits, or a bound when it is tiny."""
    return "0.0001 or less" if value <= 0.0001 else f"{value:.2g}"


def _cautions(tuned: ArmResult, best: ArmResult, kind: VerdictKind) -> list[str]:
    """Return what a careful reader should know besides."""
    found = []
    if kind == "ship" and tuned.measure.is_binary and tuned.score.value < 0.5:
        found.append(
            "Better isn't good yet: the tuned model is wrong more often than right. Read the rows that it has wrong."
        )
    if kind == "tuning_not_needed" and best.score.value >= GOOD_ENOUGH:
        found.append(f"{best.name} already reaches {_short_score(best)} without any tuning.")
    if tuned.cut_answers:
        found.append(
            f"{tuned.cut_answers:,} of its answers ended only because they reached the longest length allowed."
        )
    return found
