"""The work that the training benchmark measures: 64 real rows of each of four kinds, and rows of a wished length."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ChatRow = dict[str, list[dict[str, str]]]

_DATA = Path(__file__).parent / "data"

#: What the rows of the extraction all begin with: about 180 tokens that say what is wanted.
EXTRACTION_PROMPT = """\
You turn what guests write to a restaurant into booking details as JSON.

Answer with one JSON object and nothing else. It has at most these fields, in this order; every value is copied word
for word from the message:
- "people": how many people the booking is for, such as "4" or "2 adults and 1 child".
- "date": the day of the booking, such as "tomorrow" or "14 July".
- "time": the time of the booking, such as "8pm".
- "first_name": the first name of the person who books.
- "last_name": the last name of the person who books.

Leave out every field that the message says nothing about; never guess. If the guest changes a booking, give the new
details. If there are no details, answer {}."""

#: Tokens that long rows leave for what a base's template puts before the first turn.
_HEAD_TOKENS = 48

_SLOTS = ("people", "date", "time", "first_name", "last_name")


@dataclass(frozen=True)
class Workload:
    """One kind of rows.

    Attributes:
        name: a short word for files and options.
        title: what the page calls it.
        file: under `bench/data`.
        chat_row: makes a chat row of a source row.
        least_speed_ratio: at least so many times the best peer's tokens a second.
        has_rate_bar: whether the share of the matrix rate has a bar here.
    """

    name: str
    title: str
    file: str
    chat_row: Callable[[Row], ChatRow]
    least_speed_ratio: float
    has_rate_bar: bool = False

    def rows(self) -> list[ChatRow]:
        """Return the chat rows."""
        lines = (_DATA / self.file).read_text(encoding="utf-8").splitlines()
        return [self.chat_row(json.loads(line)) for line in lines]


def _messages(user: str, assistant: str, system: str | None = None) -> ChatRow:
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*first, {"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


def _maths(row: Row) -> ChatRow:
    return _messages(row["question"], row["answer"])


def _extraction(row: Row) -> ChatRow:
    slots = {slot: row["slots"][slot] for slot in _SLOTS if slot in row["slots"]}
    return _messages(row["text"], json.dumps(slots, ensure_ascii=False), EXTRACTION_PROMPT)


def _instruction(row: Row) -> ChatRow:
    return _messages("\n\n".join(part for part in (row["instruction"], row["input"]) if part), row["output"])


def _medicine(row: Row) -> ChatRow:
    return _messages(f"{row['context']}\n\n{row['question']}", f"{row['final_decision']}. {row['long_answer']}")


WORKLOADS = (
    Workload("maths", "Maths, medium replies (GSM8K)", "gsm8k_64.jsonl", _maths, 4.0, has_rate_bar=True),
    Workload("extraction", "JSON extraction, one system prompt", "restaurant8k_64.jsonl", _extraction, 10.0),
    Workload("instructions", "Instructions, no system prompt", "self_instruct_64.jsonl", _instruction, 4.0),
    Workload("medicine", "Medical questions, no system prompt", "pubmedqa_64.jsonl", _medicine, 4.0),
)


def write_rows(rows: list[ChatRow], path: Path) -> None:
    """Write chat rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def long_rows(tokens: int, count: int, count_tokens: Callable[[str], int]) -> list[ChatRow]:
    """Return `count` different chat rows of about `tokens` tokens each, half of them learnt.

    They are conversations of several turns, made of the maths rows from a different place on each time, and with a
    different stride: rows that are too much alike would be dropped.

    Args:
        tokens: the wished length of a row.
        count: how many rows.
        count_tokens: counts a text's tokens; a turn's own marks are counted as five, and `_HEAD_TOKENS` are left for
            what a base's template writes before the first turn.
    """
    turns = [row["messages"] for row in WORKLOADS[0].rows()]
    sizes = [sum(count_tokens(message["content"]) + 5 for message in turn) for turn in turns]
    rows: list[ChatRow] = []
    for number in range(count):
        messages: list[dict[str, str]] = []
        room, place = tokens - _HEAD_TOKENS, 7 * number
        while room >= min(sizes):
            if sizes[place % len(turns)] <= room:
                messages += turns[place % len(turns)]
                room -= sizes[place % len(turns)]
            place += 2 * number + 1
        rows.append({"messages": messages})
    return rows
