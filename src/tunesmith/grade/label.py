"""Closed answer sets: is the answer the right label?"""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.grade.grader import Grade


@dataclass(frozen=True, slots=True)
class LabelGrader:
    """1 for the right label, 0 for another one or for words that are no label.

    Case and white space don't count. With `labels`, `parts["known label"]` says whether the answer is one of them.
    """

    labels: frozenset[str] = frozenset()

    def grade(self, answer: str, reference: str) -> Grade:
        """Return the grade of one answer."""
        given = normalise_label(answer)
        parts = {"known label": float(given in self.labels)} if self.labels else {}
        return Grade(float(given == normalise_label(reference)), parts)


def normalise_label(text: str) -> str:
    """Fold case (Unicode case folding), trim, and make each run of white space one space."""
    return " ".join(text.casefold().split())
