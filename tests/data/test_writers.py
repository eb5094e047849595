"""What is written reads back as the same conversations."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.convert import Converter
from tunesmith.data.examples import Conversation, Message, ToolCall
from tunesmith.data.readers import read_rows
from tunesmith.data.recognise import recognise
from tunesmith.data.writers import write_jsonl
from tunesmith.errors import StorageError

WORDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(
    lambda text: "\0" not in text and text.strip()
)
NAMES = st.none() | WORDS


@st.composite
def exchanges(draw):
    """A question, perhaps tool calls with their replies, an answer."""
    ids = draw(st.lists(WORDS, max_size=2, unique=True))
    turns = [Message("user", draw(WORDS), draw(NAMES))]
    if ids:
        arguments = json.dumps(draw(st.dictionaries(WORDS, WORDS | st.integers(), max_size=2)))
        calls = tuple(ToolCall(call_id, draw(WORDS), arguments) for call_id in ids)
        turns.append(Message("assistant", draw(st.none() | WORDS), tool_calls=calls))
        turns += [
            Message("tool", draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"))), tool_call_id=i)
            for i in ids
        ]
    return [*turns, Message("assistant", draw(WORDS), draw(NAMES), weight=draw(st.sampled_from([None, 1])))]


CONVERSATIONS = st.builds(
    lambda start, parts, tools: Conversation((*start, *(turn for part in parts for turn in part)), tuple(tools)),
    st.lists(st.builds(Message, st.sampled_from(["system", "developer"]), WORDS), max_size=1),
    st.lists(exchanges(), min_size=1, max_size=3),
    st.lists(st.builds(lambda name: {"type": "function", "function": {"name": name}}, WORDS), max_size=2),
)


def read_back(path):
    rows = list(read_rows(path))
    converter = Converter(recognise(rows, file=str(path)))
    return [converter.convert(row) for row in rows]


@given(st.lists(CONVERSATIONS, min_size=1, max_size=4))
def test_reading_what_was_written_gives_equal_conversations(tmp_path_factory, conversations):
    path = tmp_path_factory.mktemp("written") / "train.jsonl"
    assert write_jsonl(path, conversations) == len(conversations)
    assert read_back(path) == conversations
    assert [entry.name for entry in path.parent.iterdir()] == ["train.jsonl"]


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path):
    def rows():
        yield Conversation((Message("user", "a"), Message("assistant", "b")))
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError) as caught:
        write_jsonl(tmp_path / "train.jsonl", rows())
    assert caught.value.code == "disk_full"
    assert list(tmp_path.iterdir()) == []
