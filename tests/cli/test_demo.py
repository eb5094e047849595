"""The demo: its rows, its prompts, and its whole path with a tiny base."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tiny_models import save_tiny_model
from tunesmith.demo import prompts
from tunesmith.prepare.pipeline import prepare
from tunesmith.specs.tune import TuneSpec

FIELDS = ("people", "date", "time", "first_name", "last_name")


@pytest.fixture(scope="module")
def prepared():
    return prepare(TuneSpec.parse(prompts.settings()).data)


def test_the_rows_are_split_as_the_demo_says(prepared):
    assert 1150 <= len(prepared.train) <= 1250
    assert (len(prepared.validation), len(prepared.test)) == (150, 200)
    # Real data has doubles; the check finds them.
    assert prepared.duplicates


def test_no_row_is_on_two_sides(prepared):
    sides = [{row.messages[1].content for row in side} for side in (prepared.train, prepared.validation, prepared.test)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])


def test_every_answer_is_booking_details_in_one_order(prepared):
    for row in prepared.rows:
        assert [message.role for message in row.messages] == ["system", "user", "assistant"]
        details = json.loads(row.reference)
        assert list(details) == [name for name in FIELDS if name in details]
        assert all(isinstance(value, str) and value for value in details.values())


def test_what_was_asked_is_part_of_the_question():
    text = prompts.ROWS.read_text(encoding="utf-8")
    assert text.count("Restaurant: Which date?") > 50 and text.count("Restaurant: How many people?") > 50


def test_the_prompts_example_is_no_row():
    text = prompts.ROWS.read_text(encoding="utf-8")
    assert "Maria Rossi" not in text and "Ana Moreno" not in text


def test_the_credit_is_beside_the_rows():
    credit = (prompts.ROWS.parent / "README.md").read_text(encoding="utf-8")
    assert all(words in credit for words in ("RESTAURANTS-8K", "PolyAI", "CC-BY-4.0", "What was changed", "Coope"))


@pytest.mark.slow
def test_the_whole_path_in_order(home, tmp_path):
    # The careful prompt is long for a tokenizer of 400 pieces.
    base = save_tiny_model("smollm2", tmp_path / "tiny", context_tokens=8192)
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith", "demo", "--base", str(base), "--epochs", "0.05", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [
        "1  The data",
        "2  One row",
        "3  The plan",
        "4  Before",
        "5  Training",
        "6  After",
        "7  The verdict",
        "8  Use",
    ]
    places = [done.stderr.index(heading) for heading in told]
    assert places == sorted(places)
    figures = json.loads(done.stdout)
    assert list(figures) == ["model", "run", "data", "train", "arms", "verdict", "sentence", "seconds"]
    assert [arm["rows"] for arm in figures["arms"]] == [200, 200, 200]
    code = done.stderr[done.stderr.index("from openai import OpenAI") :].split("\n\n")[0]
    assert len(code.splitlines()) == 5 and figures["model"] in code
    compile(code, "lines", "exec")
