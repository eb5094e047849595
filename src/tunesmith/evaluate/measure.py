"""Which score fits the data: exact JSON, accuracy over labels, closeness of texts, or perplexity of documents."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tunesmith.evaluate.statistics import Interval
from tunesmith.grade.grader import Grade, Grader
from tunesmith.grade.json_object import JsonGrader, parse_json
from tunesmith.grade.label import LabelGrader, normalise_label

MeasureKind = Literal["json", "label", "text", "perplexity"]

#: Share of the answers that must read as JSON for the `json` measure.
JSON_SHARE = 0.95
#: A label has at most this many words, and there are at most this many labels.
LABEL_WORDS = 8
LABEL_COUNT = 100

#: exp of more than this is no number any more.
_MOST_NATS = 709.0

_PRIMARY = {"json": "exact match", "label": "accuracy", "text": "chrF", "perplexity": "perplexity"}
_SECONDARY = {
    "json": ("valid JSON", "field F1"),
    "label": ("macro F1",),
    "text": ("ROUGE-L", "exact match", "loss on the reference"),
    "perplexity": ("bits per byte",),
}


@dataclass(frozen=True, slots=True)
class Measure:
    """How answers are scored.

    Attributes:
        kind: `json`, `label`, `text`, or for documents `perplexity`.
        reason: why this one, a whole sentence.
        labels: for `label`, the known labels, normalised and sorted.
    """

    kind: MeasureKind
    reason: str
    labels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The primary score's name: `exact match`, `accuracy`, `chrF` or `perplexity`."""
        return _PRIMARY[self.kind]

    @property
    def secondary(self) -> tuple[str, ...]:
        """The names of the further scores."""
        return _SECONDARY[self.kind]

    @property
    def is_binary(self) -> bool:
        """Whether each row is simply right or wrong."""
        return self.kind in ("json", "label")

    def as_read(self, score: Interval) -> Interval:
        """Return a primary score as people read it: log-likelihoods as perplexities, others as they are."""
        if self.kind != "perplexity":
            return score
        value, low, high = (perplexity(-bound) for bound in (score.value, score.high, score.low))
        return replace(score, value=value, low=low, high=high)

    def grader(self) -> Grader:
        """Return the grader that scores one answer.

        Raises:
            ValueError: for `perplexity`, where there are no answers.
        """
        match self.kind:
            case "json":
                return JsonGrader()
            case "label":
                return LabelGrader(frozenset(self.labels))
            case "text":
                from tunesmith.grade.text import TextGrader  # noqa: PLC0415 (its libraries take a second)

                return TextGrader()
            case "perplexity":
                raise ValueError("perplexity comes from losses; there are no answers to grade")

    def grade(self, answer: str, reference: str) -> Grade:
        """Score one answer; `Grade.score` is the primary score of the row."""
        return self.grader().grade(answer, reference)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"kind": self.kind, "name": self.name, "reason": self.reason, "labels": list(self.labels)}


def perplexity(nats_per_token: float) -> float:
    """Return exp of a mean loss: among how many equally likely tokens a model is torn; infinite beyond all numbers."""
    return math.exp(nats_per_token) if nats_per_token < _MOST_NATS else math.inf


def choose_measure(answers: Sequence[str], asked: Literal["auto", "json", "label", "text"] = "auto") -> Measure:
    """Choose how to score from the answers that the training rows hold.

    `json` when at least 95 % of them read as JSON objects or arrays; `label` when they are few different short answers
    (at most max(2, min(100, rows / 5)) of at most 8 words, most of them seen more than once); else `text`.

    Args:
        answers: the reference answers of the training rows.
        asked: a measure by name, or `auto`.
    """
    labels = Counter(normalise_label(answer) for answer in answers)
    if asked != "auto":
        return Measure(asked, "You asked for it.", tuple(sorted(labels)) if asked == "label" else ())
    if not answers:
        return Measure("text", "There are no answers to judge from, so answers are compared as free text.")
    readable = sum(parse_json(answer) is not None for answer in answers)
    if readable >= JSON_SHARE * len(answers):
        share = "All" if readable == len(answers) else f"{readable:,} of {len(answers):,}"
        return Measure("json", f"{share} answers are JSON, so objects are compared by value and field by field.")
    if _is_closed_set(labels, len(answers)):
        reason = f"The {len(answers):,} answers are {len(labels)} different short ones, so each is right or wrong."
        return Measure("label", reason, tuple(sorted(labels)))
    return Measure(
        "text",
        f"{len(labels):,} of {len(answers):,} answers are different, and they aren't JSON, "
        "so they are compared as free text.",
    )


def _is_closed_set(labels: Counter[str], rows: int) -> bool:
    """Whether the answers look like labels rather than sentences."""
    few = len(labels) <= max(2, min(LABEL_COUNT, rows / 5))
    short = all(len(label.split()) <= LABEL_WORDS for label in labels)
    repeated = sum(times > 1 for times in labels.values()) > len(labels) / 2
    return few and short and repeated
