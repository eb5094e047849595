"""The form of the rows is recognised, with a reason; what isn't known gets a command to try."""

import pytest

from tunesmith.data.examples import Place
from tunesmith.data.recognise import recognise
from tunesmith.data.rows import Row
from tunesmith.errors import DataError

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SAID = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]


def rows(*values):
    return [Row(Place("f.jsonl", line), value) for line, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ({"messages": TURNS}, "chat"),
        ({"messages": TURNS, "prompt": "a", "completion": "b"}, "chat"),
        ({"messages": SAID}, "sharegpt"),
        ({"conversations": SAID}, "sharegpt"),
        ({"conversation": TURNS}, "sharegpt"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt_completion"),
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"instruction": "a", "input": "", "output": "b", "system": "s"}, "alpaca"),
    ],
)
def test_forms(values, form):
    found = recognise(rows(values, values, values), file="f.jsonl")
    assert found.format == form
    assert found.reason.startswith("every one of the first 3 rows has")
    assert found.columns == tuple(values)


def test_the_reason_counts_the_rows_that_fit():
    found = recognise(rows({"messages": TURNS}, {"messages": TURNS}, {"text": "x"}), file="f")
    assert found.reason == "2 of the first 3 rows have `messages`, a list of {role, content}"


@pytest.mark.parametrize(
    ("columns", "command"),
    [
        (("question", "answer"), "--map input=question --map output=answer"),
        (("text", "label"), "--map input=text --map output=label"),
        (("text", "category"), "--map input=text --map output=category"),
        (("input", "output"), "--map input=input --map output=output"),
        (("id", "Question", "SQL"), "--map input=Question --map output=SQL"),
        (("text", "frobs"), "--map input=text --map output=frobs"),
        (("Customer text", "label"), "--map 'input=Customer text' --map output=label"),
        (("prompt", "chosen", "rejected"), "--map input=prompt --map output=chosen"),
        (("x", "y", "z"), "--map input=COLUMN --map output=COLUMN"),
    ],
)
def test_unknown_columns_get_a_command(columns, command):
    with pytest.raises(DataError) as caught:
        recognise(rows(dict.fromkeys(columns, "v")), file="my file.csv")
    assert caught.value.code == "unrecognised_format"
    assert caught.value.fix.endswith(f"tunesmith tune 'my file.csv' {command}")
    assert all(f"`{column}`" in caught.value.message for column in columns)


def test_a_mapping_decides_and_tells_what_is_unused():
    found = recognise(rows({"q": "a", "a": "b", "id": 1}), file="f", mapping={"input": "q", "output": "a"})
    assert (found.format, found.unused_columns) == ("columns", ("id",))


@pytest.mark.parametrize(
    ("mapping", "says", "fix"),
    [
        ({"input": "question"}, "the output", "--map output=answer"),
        ({"output": "answer"}, "the input", "--map input=question"),
        ({"input": "qestion", "output": "answer"}, "`question`, `answer`", "--map input=question"),
        ({"input": "question", "output": "answer", "system": "zzz"}, "'zzz'", "--map"),
    ],
)
def test_a_wrong_mapping_is_refused(mapping, says, fix):
    with pytest.raises(DataError) as caught:
        recognise(rows({"question": "a", "answer": "b"}), file="f", mapping=mapping)
    assert caught.value.code == "bad_mapping"
    assert says in caught.value.message
    assert fix in caught.value.fix


def test_a_mapping_with_another_form_is_refused():
    with pytest.raises(DataError, match="contradict"):
        recognise(rows({"q": "a", "a": "b"}), file="f", format="chat", mapping={"input": "q", "output": "a"})
