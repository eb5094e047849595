"""Make the demo's rows, `src/tunesmith/demo/bookings.jsonl`, from the RESTAURANTS-8K slots.

    python scripts/make_demo_data.py restaurant8k_slots_4000.jsonl

The source has one JSON object on each line: `text` (what a guest said), `slots` (what it says about the booking) and
sometimes `requested_slots` (what the restaurant had just asked for: without it a bare "6th" means nothing). The first
`SOURCE_ROWS` of them become chat rows in OpenAI's form; rows that the source holds twice stay in, as in any real data.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: After checking and splitting, these leave about 1,200 rows to learn from, 150 to validate and 200 to test.
SOURCE_ROWS = 1560
SYSTEM = "Turn the guest's message into booking details as JSON."
TARGET = Path(__file__).parent.parent / "src" / "tunesmith" / "demo" / "bookings.jsonl"

#: The slots in the order in which every answer names them (the source has no order), and how each is asked for.
_SLOTS = {
    "people": "how many people",
    "date": "which date",
    "time": "which time",
    "first_name": "which first name",
    "last_name": "which last name",
}


def chat_row(source: dict[str, Any]) -> dict[str, Any]:
    """Return one source row as a chat row: the question, if one was asked, and the guest's words; the slots as JSON."""
    asked = [_SLOTS[slot] for slot in dict.fromkeys(source.get("requested_slots") or ())]
    slots = {slot: source["slots"][slot] for slot in _SLOTS if slot in source["slots"]}
    question = f"Restaurant: {_listed(asked).capitalize()}?\n" if asked else ""
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"{question}Guest: {source['text']}"},
            {"role": "assistant", "content": json.dumps(slots, ensure_ascii=False)},
        ]
    }


def chat_rows(source: Path, count: int = SOURCE_ROWS) -> Iterator[dict[str, Any]]:
    """Yield the first `count` rows of the source as chat rows."""
    with source.open(encoding="utf-8") as lines:
        for _, line in zip(range(count), lines, strict=False):
            yield chat_row(json.loads(line))


def _listed(words: list[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def main() -> None:
    """Write the demo's rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="restaurant8k_slots_4000.jsonl")
    parser.add_argument("--output", type=Path, default=TARGET, help="where the rows are written")
    arguments = parser.parse_args()
    rows = [json.dumps(row, ensure_ascii=False) for row in chat_rows(arguments.source)]
    arguments.output.write_text("\n".join(rows) + "\n", encoding="utf-8")
    print(f"{len(rows):,} rows in {arguments.output}")


if __name__ == "__main__":
    main()
