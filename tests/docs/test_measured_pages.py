"""The scripts that write the benchmark page and the demo's picture."""

from __future__ import annotations

from pathlib import Path

from benchmark_page import write_section
from demo import Measured, section
from draw_demo import chosen_lines, draw
from machine import machine_table, usable_cores

_ARM = {
    "name": "the tuned model",
    "measure": "exact match",
    "rows": 200,
    "score": 0.84,
    "low": 0.78,
    "high": 0.88,
    "secondary": {"field F1": {"score": 0.93, "low": 0.9, "high": 0.95}},
    "mean_prompt_tokens": 61.4,
    "mean_seconds": 0.5,
}
_FIGURES = {
    "data": {"rows": 1560, "train": 1180, "validation": 150, "test": 200, "dropped": 30},
    "train": {"seconds": 200.4, "steps": 148, "tokens_per_second": 1234.5},
    "arms": [{**_ARM, "name": "the base with a careful prompt", "score": 0.1}, _ARM],
    "sentence": "The tuned model gets 84 % right: ship it.",
}


def test_sections_are_added_once_and_replaced_in_place(tmp_path: Path):
    page = tmp_path / "benchmarks.md"
    write_section("demo", "## The demo\n\nfirst", page)
    write_section("serving", "## Serving\n\nother", page)
    before = page.read_text(encoding="utf-8")
    write_section("demo", "## The demo\n\nsecond \\1", page)
    after = page.read_text(encoding="utf-8")
    assert after == before.replace("first", "second \\1")
    assert after.startswith("# Benchmarks") and after.count("<!-- measured: demo -->") == 1


def test_the_demo_section_holds_the_numbers_and_the_machine():
    text = section(Measured(312.4, 598.0, 3 * 2**30, _FIGURES))
    for words in ("312 s", "3.00 GiB", "84 % (78 to 88)", "1,234 tokens/s", "1,180, 150, 200", "make bench", "ship it"):
        assert words in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
    assert f"{usable_cores()} cores" in machine_table()


_PRINTED = "\r\n".join(
    [
        "From a file of examples", "", "\x1b[1;36m1  The data\x1b[0m", "rows", "", "\x1b[1;36m2  One row\x1b[0m",
        "\x1b[1;32mlearnt\x1b[0m read", "\x1b[1;36m3  The plan\x1b[0m", "steps", "\x1b[1;36m4  Before\x1b[0m", "asked",
        "\x1b[1;36m7  The verdict\x1b[0m", "Ship it", "\x1b[1;36m8  Use it\x1b[0m", "serve",
    ]
)  # fmt: skip


def test_the_picture_shows_the_chosen_steps_in_colour(tmp_path: Path):
    lines = chosen_lines(_PRINTED, (2, 3, 7))
    assert "rows" not in lines and "asked" not in lines and "serve" not in lines
    assert [line for line in lines if line == "[...]"] == ["[...]"]
    draw(_PRINTED, tmp_path / "demo.svg")
    svg = (tmp_path / "demo.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg") and "learnt" in svg and "Ship" in svg
