"""From a file to checked, split rows: everything dropped is listed, everything refused has a place and a fix."""

import json

import pytest

from tunesmith.errors import DataError
from tunesmith.prepare.lengths import RowLength, limit_lengths
from tunesmith.prepare.pipeline import prepare
from tunesmith.prepare.report import data_report
from tunesmith.specs.tune import DataSpec

WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "koi", "lynx"]


def chat(line, answer=None, **more):
    prompt = f"{WORDS[line % 12]} {WORDS[line // 12 % 12]} number {line}"
    reply = {"role": "assistant", "content": answer or f"It is {line}"}
    return {"messages": [{"role": "user", "content": prompt}, reply], **more}


def saved(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def accounted(prepared):
    return len(prepared.rows) + len(prepared.dropped) + prepared.left_out


def refused(**settings):
    with pytest.raises(DataError) as caught:
        prepare(DataSpec(**settings))
    return caught.value


def codes(prepared):
    return {finding.code for finding in prepared.findings}


def test_a_clean_file(tmp_path):
    prepared = prepare(DataSpec(path=saved(tmp_path, [chat(i) for i in range(60)])))
    summary = prepared.summary()
    assert (summary["rows"], summary["train"], summary["validation"], summary["test"]) == (60, 48, 6, 6)
    assert (summary["dropped"], summary["findings"]) == (0, [])
    assert json.loads(json.dumps(summary)) == summary


def test_the_hash_depends_on_content_and_not_on_order(tmp_path):
    rows = [chat(i) for i in range(40)]
    first = prepare(DataSpec(path=saved(tmp_path, rows)))
    turned = prepare(DataSpec(path=saved(tmp_path, rows[::-1], "turned.jsonl")))
    other = prepare(DataSpec(path=saved(tmp_path, [*rows[:-1], chat(99)], "other.jsonl")))
    assert first.content_hash == turned.content_hash != other.content_hash
    assert (first.train, first.validation, first.test) == (turned.train, turned.validation, turned.test)


def test_broken_rows_are_gathered_into_one_error(tmp_path):
    broken = ['{"messages": ', "[1]", {"messages": [{"role": "x", "content": "y"}]}, {"prompt": "a", "completion": "b"}]
    path = saved(tmp_path, [*[chat(i) for i in range(20)], *broken])
    error = refused(path=path)
    assert error.where == f"{path}, line 21"
    assert error.code == "invalid_json"
    assert "4 problems in 4 rows" in error.message
    assert [problem.split(": ")[0].rpartition(" ")[2] for problem in error.problems] == ["22", "23", "24"]
    assert "--drop-bad-rows" in error.fix
    assert error.exit_code == 2


def test_at_most_twenty_problems_are_listed(tmp_path):
    path = saved(tmp_path, [*[chat(i) for i in range(30)], *["{"] * 25])
    error = refused(path=path)
    assert len(error.problems) == 20
    assert error.problems[-1] == "... and 5 more (25 problems in 25 rows)."


def test_broken_rows_can_be_dropped_and_are_listed(tmp_path):
    bad = {"messages": [{"role": "x", "content": "y"}, {"content": "z"}]}
    path = saved(tmp_path, [*[chat(i) for i in range(20)], bad, "{"])
    prepared = prepare(DataSpec(path=path, on_problem="drop"))
    assert [(row.place.line, row.code) for row in prepared.dropped] == [(21, "unknown_role"), (22, "invalid_json")]
    assert "; messages[1]: has no role" in prepared.dropped[0].reason
    assert accounted(prepared) == prepared.rows_read == 22


def test_duplicates_are_dropped_and_contradictions_kept_together(tmp_path):
    rows = [chat(i) for i in range(30)]
    path = saved(tmp_path, [*rows, rows[3], {**rows[4], "id": 7}, chat(5, "Something else")])
    prepared = prepare(DataSpec(path=path))
    assert [(row.place.line, row.reason) for row in prepared.duplicates] == [
        (31, "is exactly the same as line 4"),
        (32, "is exactly the same as line 5"),
    ]
    finding = next(finding for finding in prepared.findings if finding.code == "conflicting_answers")
    assert [place.line for place in finding.places] == [6, 33]
    sides = [
        {row.place.line for row in side} & {6, 33} for side in (prepared.train, prepared.validation, prepared.test)
    ]
    assert sorted(map(len, sides)) == [0, 0, 2]
    assert accounted(prepared) == 33


@pytest.mark.parametrize("count", [1, 9])
def test_too_few_rows(tmp_path, count):
    error = refused(path=saved(tmp_path, [chat(i) for i in range(count)]))
    assert error.code == "too_few_examples"
    assert error.message.startswith(f"{count} usable row")


def test_too_few_rows_after_dropping_says_what_was_dropped(tmp_path):
    error = refused(path=saved(tmp_path, [*[chat(i) for i in range(9)], *["{"] * 5]), on_problem="drop")
    assert error.code == "too_few_examples"
    assert "(5 were dropped)" in error.message
    assert len(error.problems) == 5


def test_only_broken_rows(tmp_path):
    assert refused(path=saved(tmp_path, ["{"] * 3)).code == "invalid_json"
    assert refused(path=saved(tmp_path, ["{"] * 3), on_problem="drop").code == "too_few_examples"


def test_mapped_columns_system_and_unused_columns(tmp_path):
    rows = [{"q": f"{WORDS[i % 12]} {i}", "a": {"n": i}, "id": i} for i in range(60)]
    spec = DataSpec(path=saved(tmp_path, rows), mapping={"input": "q", "output": "a"}, system="Be brief.")
    prepared = prepare(spec)
    assert {row.messages[0].content for row in prepared.rows} == {"Be brief."}
    assert prepared.test[0].reference.startswith('{"n": ')
    assert codes(prepared) == {"unused_columns"}


def test_findings_that_spoil_a_training(tmp_path):
    rows = [chat(i, "yes" if i % 3 else " no") for i in range(30)]
    rows[0]["messages"].append({"role": "user", "content": "And?"})
    rows[1]["messages"][1]["thinking"] = "hm"
    found = codes(prepare(DataSpec(path=saved(tmp_path, rows))))
    expected = {"few_rows", "dominant_answer", "ends_without_answer", "unused_message_keys", "blanks_around_answers"}
    assert expected <= found


def test_files_of_their_own_for_validation_and_test(tmp_path):
    path = saved(tmp_path, [chat(i) for i in range(60)])
    test = saved(tmp_path, [chat(i) for i in range(55, 70)], "test.jsonl")
    validation = saved(tmp_path, [chat(i) for i in range(80, 90)], "validation.jsonl")
    prepared = prepare(DataSpec(path=path, test_path=test, validation_path=validation))
    assert {row.place.file for row in prepared.test} == {test}
    assert (len(prepared.train), len(prepared.validation), len(prepared.test)) == (55, 10, 15)
    assert prepared.summary()["dropped_by_code"] == {"near_test_row": 5}
    assert accounted(prepared) == 85


def test_problems_of_the_test_file_are_found_too(tmp_path):
    path = saved(tmp_path, [chat(i) for i in range(20)])
    test = saved(tmp_path, [chat(30), "{"], "test.jsonl")
    assert refused(path=path, test_path=test).where == f"{test}, line 2"


def measure(row):
    """One token a character of the answer; the prompt is free."""
    tokens = len(row.reference)
    return RowLength(tokens, 0 if row.reference.startswith("#") else min(tokens, 50))


def long_data(tmp_path):
    answers = ["x" * 80 if i < 20 else "#" * 80 if i < 25 else "#" if i == 25 else None for i in range(100)]
    return prepare(DataSpec(path=saved(tmp_path, [chat(i, answer) for i, answer in enumerate(answers)])))


def test_long_rows_are_dropped_and_listed(tmp_path):
    limited = limit_lengths(long_data(tmp_path), measure, 50, "drop")
    assert limited.summary()["dropped_by_code"] == {"too_long": 25, "nothing_to_learn": 1}
    assert {"too_long", "nothing_to_learn"} <= codes(limited)
    assert accounted(limited) == 100
    assert [row.place.line for row in limited.dropped] == list(range(1, 27))


def test_long_rows_are_cut_except_in_the_test(tmp_path):
    prepared = long_data(tmp_path)
    long_tests = sum(measure(row).tokens > 50 for row in prepared.test)
    assert long_tests > 0
    limited = limit_lengths(prepared, measure, 50, "cut")
    cut = next(finding for finding in limited.findings if finding.code == "cut")
    assert all(measure(row).tokens <= 50 for row in limited.test)
    assert sum(row.code == "too_long" for row in limited.dropped) == long_tests
    assert cut.count == sum(measure(row).tokens > 50 for row in limited.rows) > 0
    assert all(measure(row).learnt_tokens_within_limit for row in limited.rows)
    assert accounted(limited) == 100


def test_long_rows_can_be_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        limit_lengths(long_data(tmp_path), measure, 50, "error")
    assert caught.value.code == "row_too_long"
    assert caught.value.where.endswith("rows.jsonl, line 1")
    assert len(caught.value.problems) == 19


def test_when_hardly_a_row_is_short_enough(tmp_path):
    with pytest.raises(DataError) as caught:
        limit_lengths(long_data(tmp_path), measure, 3, "drop")
    assert caught.value.code == "too_few_examples"


def test_nothing_changes_when_all_rows_fit(tmp_path):
    prepared = prepare(DataSpec(path=saved(tmp_path, [chat(i) for i in range(30)])))
    assert limit_lengths(prepared, measure, 50, "error") == prepared


def test_the_report_is_plain_data(tmp_path):
    rows = [chat(i, "yes" if i % 3 else "no", id=i) for i in range(60)]
    report = data_report(prepare(DataSpec(path=saved(tmp_path, [*rows, rows[0]]))))
    assert json.loads(json.dumps(report)) == report
    assert report["answers"]["top"][0] == {"text": "yes", "rows": 40, "share": 40 / 60}
    assert report["turns"]["messages_by_role"] == {"user": 60, "assistant": 60}
    assert report["words"]["prompt"]["median"] == 4
    assert report["dropped_rows"][0]["line"] == 61
    assert report["unused_columns"] == ["id"]
