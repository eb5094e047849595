"""Labels are compared without regard to case and space; texts by chrF and ROUGE-L."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_chrf

from tunesmith.grade.label import LabelGrader, normalise_label
from tunesmith.grade.text import TextGrader, chrf, rouge_l


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("card_arrival", 1.0),
        ("  Card_Arrival\n", 1.0),
        ("card_arrival.", 0.0),
        ("The label is card_arrival", 0.0),
        ("", 0.0),
    ],
)
def test_labels(answer: str, score: float) -> None:
    assert LabelGrader().grade(answer, "card_arrival").score == score


def test_known_labels_are_told_apart_from_other_words() -> None:
    grader = LabelGrader(frozenset({"yes", "not sure"}))
    assert grader.grade("Not  Sure", "yes").parts == {"known label": 1.0}
    assert grader.grade("perhaps", "yes").parts == {"known label": 0.0}


@given(st.text())
def test_normalising_twice_changes_nothing_for_ascii(text: str) -> None:
    plain = normalise_label(text.encode("ascii", "ignore").decode())
    assert normalise_label(plain) == plain


def test_text_agrees_with_the_libraries() -> None:
    answer, reference = "She sold 48 / 2 = 24 clips in May.", "Natalia sold 48/2 = 24 clips in May"
    assert chrf(answer, reference) == pytest.approx(sentence_chrf(answer, [reference]).score / 100)
    assert rouge_l(answer, reference) == pytest.approx(
        RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    )


@pytest.mark.parametrize(
    ("answer", "reference"), [("Я живу в Киеве", "я живу в Москве"), ("今天天气很好", "今天天气不好")]
)
def test_other_scripts_have_words_too(answer: str, reference: str) -> None:
    assert 0.5 < rouge_l(answer, reference) < 1.0


def test_exact_match_ignores_outer_space_only() -> None:
    assert TextGrader().grade(" yes\n", "yes").parts["exact match"] == 1.0
    assert TextGrader().grade("Yes", "yes").parts["exact match"] == 0.0
    assert TextGrader().grade("", "yes").score == 0.0
    assert TextGrader().grade("", "").score == 1.0


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_scores_stay_between_none_and_all(answer: str, reference: str) -> None:
    grade = TextGrader().grade(answer, reference)
    assert 0.0 <= grade.score <= 1.0
    assert 0.0 <= grade.parts["ROUGE-L"] <= 1.0
    assert TextGrader().grade(reference, reference).score == 1.0
