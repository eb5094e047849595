"""The measure fits the data."""

from __future__ import annotations

import json

import pytest

from tunesmith.demo.prompts import ROWS
from tunesmith.evaluate.measure import choose_measure

BOOKINGS = ['{"people": "5 adults", "date": "August 23rd"}', "{}", '{"time": "7 pm"}', '{"first_name": "Ann"}'] * 10


def test_json_answers() -> None:
    measure = choose_measure(BOOKINGS)
    assert (measure.kind, measure.name, measure.secondary) == ("json", "exact match", ("valid JSON", "field F1"))
    assert measure.reason.startswith("All answers are JSON")


def test_a_few_broken_answers_dont_change_json_but_many_do() -> None:
    assert choose_measure([*BOOKINGS, "sorry", "sorry"]).kind == "json"
    assert choose_measure(BOOKINGS + ["sorry"] * 5).kind != "json"


def test_label_answers() -> None:
    intents = [f"intent_{i}" for i in range(77)]
    measure = choose_measure(intents * 7)
    assert (measure.kind, measure.name, measure.secondary) == ("label", "accuracy", ("macro F1",))
    assert measure.labels == tuple(sorted(intents))
    assert "77 different" in measure.reason
    assert choose_measure(["Yes", "no", "yes", "NO "]).labels == ("no", "yes")


@pytest.mark.parametrize(
    "answers",
    [
        [f"She sold {i} clips. The answer is {i}." for i in range(50)],
        [str(i) for i in range(50)],
        ["a label is never as long as this whole sentence is"] * 50,
        ["only one"],
        [],
    ],
)
def test_text_answers(answers: list[str]) -> None:
    assert choose_measure(answers).kind == "text"


def test_what_was_asked_for_counts() -> None:
    assert choose_measure(BOOKINGS, "text").kind == "text"
    assert choose_measure(["yes", "no"], "label").labels == ("no", "yes")
    assert choose_measure(["yes", "no"], "json").grade("yes", "no").parts == {"valid JSON": 0.0}


@pytest.mark.parametrize("kind", ["json", "label", "text"])
def test_each_measure_grades_right_above_wrong(kind: str) -> None:
    measure = choose_measure(['{"a": 1}', '{"a": 2}'], kind)
    assert measure.grade('{"a": 1}', '{"a": 1}').score == 1.0
    assert measure.grade("nothing of it", '{"a": 1}').score < 0.5
    assert json.loads(json.dumps(measure.to_json()))["name"] == measure.name


def test_the_bundled_rows_are_json() -> None:
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()[:500]]
    assert choose_measure([row["messages"][-1]["content"] for row in rows]).kind == "json"
