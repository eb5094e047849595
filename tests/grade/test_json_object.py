"""JSON answers are read strictly, compared by value, and counted field by field."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.grade.grader import FieldCounts
from tunesmith.grade.json_object import MAX_DEPTH, JsonGrader, count_fields, parse_json, sum_fields

GRADER = JsonGrader()

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=5), json_values, max_size=4)


@pytest.mark.parametrize(
    "answer",
    [
        '{"people": "5 adults"}',
        '  {"people": "5 adults"}\n',
        '```json\n{"people": "5 adults"}\n```',
        '```\n{"people": "5 adults"}```',
        '```JSON \n{"people":\n"5 adults"}\n```\n',
        '{"people": "5 \\u0061dults"}',
    ],
)
def test_allowed_forms(answer: str) -> None:
    assert GRADER.grade(answer, '{"people": "5 adults"}').score == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "5 adults",
        'Here you are: {"people": "5 adults"}',
        '{"people": "5 adults"} Enjoy!',
        '{"people": "5 adults"}{"people": "5 adults"}',
        "{'people': '5 adults'}",
        '{"people": "5 adults"',
        '{"people": "5 adults", "people": "5 adults"}',
        '{"people": NaN}',
        '{"people": 1e99999999999999999999999}',
        '"5 adults"',
        "5",
        "null",
        "[" * 100_000,
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "```json",
        "```json\n```",
    ],
)
def test_refused_forms_miss_every_field(answer: str) -> None:
    grade = GRADER.grade(answer, '{"people": "5 adults"}')
    assert parse_json(answer) is None
    assert (grade.score, grade.parts["valid JSON"]) == (0.0, 0.0)
    assert grade.fields == {"people": FieldCounts(0, 0, 1)}


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', True),
        ('{"a": 1}', '{"a": 1.0}', True),
        ('{"a": 1.10}', '{"a": 11e-1}', True),
        ('{"a": 0.1}', '{"a": 0.10000000000000000001}', False),
        ('{"a": 1}', '{"a": true}', False),
        ('{"a": 1}', '{"a": "1"}', False),
        ('{"a": null}', "{}", False),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', False),
        ('{"a": "x"}', '{"a": "x "}', False),
        ('{"a.b": 1}', '{"a": {"b": 1}}', False),
        ("{}", "[]", False),
        ("{}", " { } ", True),
    ],
)
def test_equality_is_by_value(left: str, right: str, equal: bool) -> None:
    assert GRADER.grade(left, right).score == float(equal)
    assert GRADER.grade(right, left).score == float(equal)


def test_fields_are_counted_by_dotted_path() -> None:
    found = parse_json('{"when": {"day": "6th", "time": "7 pm"}, "extra": 1, "items": [{"name": "b"}, {"name": "a"}]}')
    wanted = parse_json('{"when": {"day": "6th", "time": "8 pm"}, "items": [{"name": "a"}, {"name": "c"}]}')
    assert count_fields(found, wanted) == {
        "extra": FieldCounts(0, 1, 0),
        "items[].name": FieldCounts(1, 1, 1),
        "when.day": FieldCounts(1, 0, 0),
        "when.time": FieldCounts(0, 1, 1),
    }


def test_empty_objects_agree_and_leave_no_field() -> None:
    grade = GRADER.grade("{}", "{}")
    assert (grade.score, dict(grade.fields)) == (1.0, {})
    assert FieldCounts().f1 == 1.0
    assert GRADER.grade('{"people": "2"}', "{}").fields == {"people": FieldCounts(0, 1, 0)}


def test_sums_give_micro_f1() -> None:
    rows = [GRADER.grade('{"a": 1, "b": 2}', '{"a": 1, "b": 3}').fields, GRADER.grade("{}", '{"a": 1}').fields]
    total = sum_fields(iter(rows))
    assert total == {"a": FieldCounts(1, 0, 1), "b": FieldCounts(0, 1, 1)}
    assert total["a"].f1 == pytest.approx(2 / 3)
    assert (total["a"] + total["b"]).f1 == pytest.approx(2 * 1 / (2 * 1 + 1 + 2))


def test_a_reference_that_is_no_json_is_compared_as_text() -> None:
    assert GRADER.grade(" sorry ", "sorry").score == 1.0
    assert GRADER.grade("{}", "sorry").score == 0.0


@given(objects)
def test_an_object_equals_itself_however_it_is_written(value: dict[str, object]) -> None:
    reversed_keys = json.dumps(dict(reversed(value.items())), indent=2, ensure_ascii=False)
    grade = GRADER.grade(reversed_keys, json.dumps(value))
    assert grade.score == 1.0
    assert all(counts.f1 == 1.0 for counts in grade.fields.values())


@given(objects, objects)
def test_score_is_one_only_without_misses(left: dict[str, object], right: dict[str, object]) -> None:
    grade = GRADER.grade(json.dumps(left), json.dumps(right))
    mirrored = GRADER.grade(json.dumps(right), json.dumps(left))
    assert grade.score == mirrored.score
    for path, counts in grade.fields.items():
        other = mirrored.fields[path]
        assert (counts.true_positives, counts.false_positives, counts.false_negatives) == (
            other.true_positives,
            other.false_negatives,
            other.false_positives,
        )
    if grade.score == 1.0:
        assert all(c.false_positives == c.false_negatives == 0 for c in grade.fields.values())


@given(st.text())
def test_no_answer_makes_the_grader_raise(answer: str) -> None:
    assert GRADER.grade(answer, '{"a": 1}').score in (0.0, 1.0)
