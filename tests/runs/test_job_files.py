"""Files of jobs by each method, as they are looked at before the job is queued: the contract's V5 to V9, V24, V25.

Files for `supervised` are tried through a server in `tests/conformance/test_jobs_run.py`.
"""

from __future__ import annotations

import json

import pytest

from job_api import chat
from job_examples import CALL, DONE, PREFERENCE, SAID, TOOL
from tunesmith.errors import DataError
from tunesmith.runs import job_validation
from tunesmith.runs.job_validation import JobFile, check_file

ASKED = {"role": "user", "content": "q"}
TASK = {"messages": [ASKED], "answer": 144, "unit": "none"}


@pytest.fixture
def check(tmp_path):
    """Looks at a file of rows."""

    def check(rows, method, param="training_file"):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return check_file(JobFile("file-x", path, param), method)

    return check


def refused(check, *arguments):
    with pytest.raises(DataError) as error:
        check(*arguments)
    return error.value


def test_preferences_are_taken(check):
    called = {"messages": [ASKED, {"role": "assistant", "tool_calls": [CALL]}, DONE, ASKED], "tools": [TOOL]}
    rows = [PREFERENCE] * 9 + [{**PREFERENCE, "input": {**called, "parallel_tool_calls": True}}]
    found = check(rows, "dpo")
    assert (found.examples, found.notes) == (10, ())


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://a.example/x.png"}}]}
#: A preference that isn't right, the code, and what is said about it.
PREFERENCES = {
    "V7 no input": ({"preferred_output": [SAID], "non_preferred_output": [SAID]}, None, "is missing key 'input'"),
    "V7 one output": (
        {"input": {"messages": [ASKED]}, "preferred_output": [SAID]},
        None,
        "is missing key 'non_preferred_output'",
    ),
    "V8 an extra key": ({**PREFERENCE, "weight": 1}, "invalid_file_format", 'contains an extra "weight".'),
    "V8 an extra key of the input": (
        {**PREFERENCE, "input": {"messages": [ASKED], "mood": 1}},
        "invalid_file_format",
        ', input: contains an extra "mood".',
    ),
    "V9 an input that is none": ({**PREFERENCE, "input": [ASKED]}, None, "input: isn't an object"),
    "V9 no messages": ({**PREFERENCE, "input": {"messages": []}}, None, "input.messages: is empty"),
    "V17 a call without an answer": (
        {**PREFERENCE, "input": {"messages": [{"role": "assistant", "tool_calls": [CALL]}, ASKED], "tools": [TOOL]}},
        None,
        "input.messages[1]",
    ),
    "V19 no boolean": (
        {**PREFERENCE, "input": {"messages": [ASKED], "parallel_tool_calls": 1}},
        None,
        "input.parallel_tool_calls",
    ),
    "V24 an image": ({**PREFERENCE, "input": {"messages": [IMAGE]}}, None, "input.messages[0].content[0]"),
    "V24 no list": ({**PREFERENCE, "preferred_output": SAID}, None, "preferred_output: must be a list of one message"),
    "V24 two messages": (
        {**PREFERENCE, "non_preferred_output": [SAID, SAID]},
        None,
        "non_preferred_output: must be a list of one message",
    ),
    "V24 another role": ({**PREFERENCE, "preferred_output": [ASKED]}, None, "preferred_output[0].role"),
    "V24 no words": (
        {**PREFERENCE, "preferred_output": [{"role": "assistant", "tool_calls": [CALL]}]},
        None,
        "preferred_output[0]: must be a text",
    ),
    "V24 empty": ({**PREFERENCE, "preferred_output": [{**SAID, "content": ""}]}, None, "preferred_output[0].content"),
}


@pytest.mark.parametrize("kind", PREFERENCES)
def test_preferences_that_are_none(check, kind):
    row, code, words = PREFERENCES[kind]
    error = refused(check, [PREFERENCE, row, *[PREFERENCE] * 10], "dpo")
    assert (error.code, error.param) == (code or "invalid_training_file", "training_file")
    assert "Example 2 (line 2)" in error.message and words in error.message


def test_item_30_a_chat_file_for_dpo(check):
    error = refused(check, [chat("q", "a")] * 12, "dpo")
    assert error.message == (
        "Input file file-x is in the fine-tune-chat format, but the specified fine-tuning job is not using "
        "'supervised' as the training method (provided method=dpo)."
    )


def test_tasks_are_taken_with_any_field(check):
    assert check([TASK] * 10, "reinforcement").examples == 10
    for row, words in (
        ({"answer": 144}, "is missing key 'messages'"),
        ({"messages": [{**ASKED, "mood": 1}]}, 'messages[0]: contains an extra "mood".'),
        ({"messages": []}, "messages: is empty"),
    ):
        assert words in refused(check, [TASK, row, *[TASK] * 10], "reinforcement").message


@pytest.mark.parametrize("param", ["training_file", "validation_file"])
def test_v25_tasks_are_counted(check, monkeypatch, param):
    """At most 50,000 to train on and 1,000 to validate on; here with smaller numbers."""
    assert job_validation._MOST_GRADED == {"training_file": 50_000, "validation_file": 1_000}
    monkeypatch.setitem(job_validation._MOST_GRADED, param, 12)
    assert check([TASK] * 12, "reinforcement", param).examples == 12
    error = refused(check, [TASK] * 13, "reinforcement", param)
    assert (error.code, error.param) == ("invalid_n_examples", param)
    assert "has 13 example(s), but must have at most 12" in error.message
    assert check([chat("q", "a")] * 13, "supervised", param).examples == 13
