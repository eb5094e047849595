"""What is in the data, as plain values that the terminal, a page or a program can show."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tunesmith.data.examples import Conversation, Document, Place
from tunesmith.prepare.fingerprint import answer_text
from tunesmith.prepare.prepared import PreparedData

_TOP_ANSWERS = 10
_DROPPED_LISTED = 100


def data_report(prepared: PreparedData[Any]) -> dict[str, Any]:
    """Return the report on a data set, JSON-able.

    The summary's keys (`PreparedData.summary`), and: `columns`, `unused_columns`; `turns` (rows by number of messages,
    messages by role, rows with tools); `words` (`prompt` and `answer`: least, median, 95th percentile, most);
    `answers` (`distinct`, and the most frequent as `top`: text, rows, share); `findings` with their places;
    `dropped_rows` (the first 100: place, code, reason). Of documents, instead of turns and answers: `words`
    (`document`), and `characters` by side.
    """
    return {
        **prepared.summary(),
        "columns": list(prepared.recognition.columns),
        "unused_columns": list(prepared.recognition.unused_columns),
        **(_texts(prepared) if prepared.recognition.format == "documents" else _conversations(prepared.rows)),
        "findings": [
            {
                "code": finding.code,
                "message": finding.message,
                "count": finding.count,
                "places": [_place(place) for place in finding.places],
            }
            for finding in prepared.findings
        ],
        "dropped_rows": [
            {**_place(row.place), "code": row.code, "reason": row.reason} for row in prepared.dropped[:_DROPPED_LISTED]
        ],
    }


def _conversations(rows: Sequence[Conversation]) -> dict[str, Any]:
    return {
        "turns": _turns(rows),
        "words": {
            "prompt": _spread([_prompt_words(row) for row in rows]),
            "answer": _spread([len(answer_text(row).split()) for row in rows]),
        },
        "answers": _answers(rows),
    }


def _texts(prepared: PreparedData[Any]) -> dict[str, Any]:
    sides: dict[str, Sequence[Document]] = {side: getattr(prepared, side) for side in ("train", "validation", "test")}
    return {
        "words": {"document": _spread([len(row.text.split()) for row in prepared.rows])},
        "characters": {side: sum(len(row.text) for row in rows) for side, rows in sides.items()},
    }


def _place(place: Place) -> dict[str, Any]:
    return {"file": place.file, place.unit: place.line}


def _prompt_words(row: Conversation) -> int:
    return sum(len((message.content or "").split()) for message in row.prompt.messages)


def _turns(rows: Sequence[Conversation]) -> dict[str, Any]:
    roles = Counter(message.role for row in rows for message in row.messages)
    lengths = Counter(len(row.messages) for row in rows)
    return {
        "messages_by_role": dict(roles.most_common()),
        "rows_by_messages": {str(length): lengths[length] for length in sorted(lengths)},
        "rows_with_tools": sum(1 for row in rows if row.tools or any(m.tool_calls for m in row.messages)),
        "learnt_turns": sum(message.is_learnt for row in rows for message in row.messages),
        "unlearnt_assistant_turns": sum(m.role == "assistant" and m.weight == 0 for row in rows for m in row.messages),
    }


def _spread(values: Sequence[int]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "least": ordered[0],
        "median": statistics.median(ordered),
        "p95": ordered[round(0.95 * (len(ordered) - 1))],
        "most": ordered[-1],
    }


def _answers(rows: Sequence[Conversation]) -> dict[str, Any]:
    answers = Counter(answer_text(row) for row in rows)
    return {
        "distinct": len(answers),
        "top": [
            {"text": text, "rows": count, "share": count / len(rows)}
            for text, count in answers.most_common(_TOP_ANSWERS)
        ],
    }
