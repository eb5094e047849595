"""Several files are one data set: doubled rows are found across them, and each gives its share of the test."""

from __future__ import annotations

import json

import pytest

from tunesmith.prepare.pipeline import prepare
from tunesmith.specs.data import DataSpec

FRUIT = ("apple", "pear", "plum", "fig", "lime", "date", "melon", "grape")


def write(path, numbers, *, alpaca=False):
    keys = ("instruction", "output") if alpaca else ("prompt", "completion")
    rows = [
        dict(zip(keys, (f"{FRUIT[n % 8]} {FRUIT[n // 8 % 8]} {n * 7919}", f"answer {n}"), strict=True)) for n in numbers
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def prepared(tmp_path):
    files = [
        write(tmp_path / "a.jsonl", range(200)),
        {"path": write(tmp_path / "b.jsonl", range(190, 240), alpaca=True), "weight": 3, "system": "Be brief."},
        write(tmp_path / "c.jsonl", range(195, 205)),
    ]
    return prepare(DataSpec.parse({"sources": files}))


def test_rows_remember_their_source(prepared):
    assert [source.recognition.format for source in prepared.sources] == [
        "prompt_completion", "alpaca", "prompt_completion",
    ]  # fmt: skip
    for row in prepared.rows:
        assert row.place.file.endswith(("a.jsonl", "b.jsonl", "c.jsonl")[row.source])
        assert (row.messages[0].role == "system") == (row.source == 1)


def test_doubled_rows_are_found_across_files(prepared):
    (duplicates,) = {row.place.file for row in prepared.dropped}
    assert duplicates.endswith("c.jsonl")  # its first five rows; b's have another system prompt
    assert prepared.dropped[0].reason.endswith("a.jsonl, line 196")


def test_near_identical_rows_of_two_files_stay_on_one_side(prepared):
    sides = {}
    for name in ("train", "validation", "test"):
        for row in getattr(prepared, name):
            sides.setdefault(row.messages[-2].content, set()).add(name)
    assert max(len(found) for found in sides.values()) == 1


def test_every_source_gives_its_share_of_the_test(prepared):
    counts = prepared.summary()["sources"]
    assert sum(source["test"] for source in counts) == len(prepared.test)
    for source in counts:
        used = source["train"] + source["validation"] + source["test"]
        assert used + source["dropped"] == source["rows"]
        assert source["test"] == pytest.approx(0.1 * used, abs=1)
    assert [source["weight"] for source in counts] == [1, 3, 1]
