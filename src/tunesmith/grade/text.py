"""Free text: how much of the reference an answer has."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu import sentence_chrf

from tunesmith.grade.grader import Grade

#: Words in any script; scripts written without spaces count by character.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class _AnyScript(Tokenizer):  # type: ignore[misc]  # rouge-score has no types
    """Words of any script; rouge-score's own tokenizer drops everything but a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        """Return the case-folded words."""
        return _WORDS.findall(text.casefold())


@dataclass(frozen=True, slots=True)
class TextGrader:
    """chrF as the score; `parts` holds `ROUGE-L` and `exact match`. All from 0 to 1."""

    _rouge: RougeScorer = field(
        default_factory=lambda: RougeScorer(["rougeL"], tokenizer=_AnyScript()), repr=False, compare=False
    )

    def grade(self, answer: str, reference: str) -> Grade:
        """Return the grade of one answer."""
        parts = {
            "ROUGE-L": rouge_l(answer, reference, scorer=self._rouge),
            "exact match": float(answer.strip() == reference.strip()),
        }
        return Grade(chrf(answer, reference), parts)


def chrf(answer: str, reference: str) -> float:
    """Return chrF, the F-score (beta 2) of character n-grams up to 6, from 0 to 1.

    Popović 2015, "chrF: character n-gram F-score for automatic MT evaluation" (W15-3049), by sacrebleu (its 0 to 100
    divided by 100). Two empty texts are equal, so they score 1.
    """
    if answer.strip() == reference.strip():
        return 1.0
    return float(sentence_chrf(answer, [reference]).score) / 100.0


def rouge_l(answer: str, reference: str, *, scorer: RougeScorer | None = None) -> float:
    """Return ROUGE-L's F-measure: the longest common subsequence of words, from 0 to 1.

    Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries" (W04-1013), by rouge-score, with words of any
    script. Two equal texts score 1, also when they hold no word.
    """
    if answer.strip() == reference.strip():
        return 1.0
    scorer = scorer or RougeScorer(["rougeL"], tokenizer=_AnyScript())
    return float(scorer.score(reference, answer)["rougeL"].fmeasure)
