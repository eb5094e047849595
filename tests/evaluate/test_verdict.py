"""Arms are scored on the same rows, compared in pairs, and judged by the rule."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from tunesmith.data.examples import Conversation, Message
from tunesmith.evaluate.comparison import ArmResult, compare, score_arm
from tunesmith.evaluate.measure import Measure, choose_measure
from tunesmith.evaluate.verdict import decide
from tunesmith.generate.completion import Completion

LABEL = Measure("label", "", ("no", "yes"))


def rows_of(references: Sequence[str]) -> list[Conversation]:
    return [Conversation((Message("user", "?"), Message("assistant", reference))) for reference in references]


def completions_of(answers: Sequence[str], seconds: float = 0.5) -> list[Completion]:
    return [
        Completion(answer, tuple(range(len(answer) + 1)), "stop", prompt_tokens=10 + i, seconds=seconds)
        for i, answer in enumerate(answers)
    ]


def labelled(name: str, right: int, rows: int = 200, *, from_end: bool = False) -> ArmResult:
    """An arm with `right` right answers among `rows`, at the start or at the end."""
    answers = ["yes"] * right + ["no"] * (rows - right)
    return score_arm(name, "", rows_of(["yes"] * rows), completions_of(answers[::-1] if from_end else answers), LABEL)


def test_json_arm_scores() -> None:
    references = ['{"people": "2", "time": "7 pm"}', "{}", '{"people": "3"}', '{"people": "4"}']
    answers = ['{"time": "7 pm", "people": "2"}', "{}", '{"people": "5"}', "four people"]
    arm = score_arm("tuned", "d", rows_of(references), completions_of(answers), choose_measure(references))
    assert arm.row_scores == (1.0, 1.0, 0.0, 0.0)
    assert arm.score.value == 0.5
    assert arm.secondary["valid JSON"].value == 0.75
    assert arm.secondary["field F1"].value == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert [(field.path, field.wanted, field.found) for field in arm.fields] == [("people", 3, 2), ("time", 1, 1)]
    assert arm.fields[0].f1 == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))
    assert arm.cost.mean_prompt_tokens == 11.5
    assert arm.cost.p95_seconds == 0.5
    plain = json.loads(json.dumps(arm.to_json()))
    assert (plain["score"], plain["rows"], plain["measure"]) == (0.5, 4, "exact match")


def test_label_and_text_arms_have_their_further_scores() -> None:
    label = score_arm("a", "", rows_of(["yes", "no"]), completions_of([" YES", "no"]), LABEL)
    assert label.score.value == label.secondary["macro F1"].value == 1.0
    text = score_arm(
        "a", "", rows_of(["one two"]), completions_of(["one three"]), Measure("text", ""), reference_losses=[1.5]
    )
    assert set(text.secondary) == {"ROUGE-L", "exact match", "loss on the reference"}
    assert text.secondary["loss on the reference"].value == 1.5


def test_rows_and_answers_must_match() -> None:
    with pytest.raises(ValueError, match="as many answers"):
        score_arm("a", "", rows_of(["yes"]), [], LABEL)
    with pytest.raises(ValueError, match="different measures"):
        compare(
            labelled("a", 1, 2), score_arm("b", "", rows_of(["x"] * 2), completions_of(["x"] * 2), Measure("text", ""))
        )


def test_ship() -> None:
    verdict = decide(labelled("tuned", 172), [labelled("the base", 4), labelled("the base with its best prompt", 24)])
    assert verdict.kind == "ship"
    assert verdict.sentence == (
        "The tuned model gets 86 % of 200 unseen rows right (81 to 90 %), "
        "against 12 % for the base with its best prompt: ship it."
    )
    assert verdict.difference is not None
    assert verdict.difference.better == 148
    assert json.loads(json.dumps(verdict.to_json()))["difference"]["worse"] == 0


@pytest.mark.parametrize(
    ("tuned", "untuned", "rows", "kind"),
    [
        (172, 24, 200, "ship"),
        (60, 120, 200, "dont_ship"),
        (150, 199, 200, "dont_ship"),
        (194, 193, 200, "tuning_not_needed"),
        (198, 190, 200, "ship"),
        (100, 100, 2000, "tuning_not_needed"),
        (105, 103, 200, "not_enough_evidence"),
        (3, 0, 3, "not_enough_evidence"),
        (2, 1, 3, "not_enough_evidence"),
        (30, 5, 200, "ship"),
    ],
)
def test_the_rule(tuned: int, untuned: int, rows: int, kind: str) -> None:
    assert decide(labelled("tuned", tuned, rows), [labelled("the base", untuned, rows)]).kind == kind


def test_more_rows_are_asked_for_when_evidence_is_thin() -> None:
    verdict = decide(labelled("tuned", 105), [labelled("the base", 100, from_end=True)])
    assert verdict.kind == "not_enough_evidence"
    assert verdict.difference is not None
    assert verdict.difference.rows_needed is not None
    assert "test rows to tell." in verdict.sentence


def test_equal_arms_ask_for_nothing() -> None:
    verdict = decide(labelled("tuned", 10, 20), [labelled("the base", 10, 20)])
    assert verdict.sentence.endswith("not enough evidence of any difference.")


def test_better_but_bad_is_said() -> None:
    reasons = decide(labelled("tuned", 60), [labelled("the base", 2)]).reasons
    assert any("wrong more often than right" in reason for reason in reasons)


def test_nearly_all_is_not_all() -> None:
    assert "99.5 % of 200" in decide(labelled("tuned", 199), [labelled("the base", 1)]).sentence
    assert "against 0 %" in decide(labelled("tuned", 200), [labelled("the base", 0)]).sentence


def test_nothing_to_compare_with() -> None:
    verdict = decide(labelled("tuned", 190), [])
    assert (verdict.kind, verdict.difference) == ("not_enough_evidence", None)


def test_text_verdicts_speak_of_points() -> None:
    references = [f"the answer to question {i} is {i * 7} apples" for i in range(40)]
    measure = Measure("text", "")
    good = score_arm("tuned", "", rows_of(references), completions_of([r[:-7] for r in references]), measure)
    poor = score_arm("the base", "", rows_of(references), completions_of(["I don't know"] * 40), measure)
    verdict = decide(good, [poor])
    assert verdict.kind == "ship"
    assert "chrF on 40 unseen rows" in verdict.sentence
