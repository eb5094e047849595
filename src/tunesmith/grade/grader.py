"""What a grader is, and what it says about one answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class FieldCounts:
    """How often a field was found, made up, and missed (counts over one or many answers)."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    def __add__(self, other: FieldCounts) -> FieldCounts:
        """Return the counts of both together."""
        return FieldCounts(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
        )

    @property
    def precision(self) -> float:
        """Share of the fields in the answers that are right; 1 when the answers hold no field."""
        found = self.true_positives + self.false_positives
        return self.true_positives / found if found else 1.0

    @property
    def recall(self) -> float:
        """Share of the fields in the references that were found; 1 when there are none to find."""
        wanted = self.true_positives + self.false_negatives
        return self.true_positives / wanted if wanted else 1.0

    @property
    def f1(self) -> float:
        """F1 = 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979); 1 when there was nothing to find and nothing made up."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / total if total else 1.0


@dataclass(frozen=True, slots=True)
class Grade:
    """What a grader says about one answer.

    Attributes:
        score: the answer's mark, from 0 (wrong) to 1 (right).
        parts: further marks by name, each from 0 to 1.
        fields: for JSON answers, what was found and missed by dotted field path.
    """

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    fields: Mapping[str, FieldCounts] = field(default_factory=dict)


class Grader(Protocol):
    """Scores one answer against one reference. Graders keep no state, so calls may run side by side."""

    def grade(self, answer: str, reference: str) -> Grade:
        """Return the grade of `answer`; never raises because of what an answer says."""
        ...
