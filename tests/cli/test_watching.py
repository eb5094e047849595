"""Progress: bars where the terminal can redraw, plain lines where it can't."""

from __future__ import annotations

import io

from rich.console import Console

from tunesmith.cli.bars import LiveBars, PlainLines
from tunesmith.cli.screen import Screen, printable
from tunesmith.cli.watch import Watcher
from tunesmith.record.observer import StepReport


def step(number: int, steps: int = 4) -> StepReport:
    return StepReport(number, steps, 1.5 / number, 1e-3, 100 * number, 812.0, float(steps - number))


def test_a_bar_shows_work_its_note_and_asides():
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    bars = LiveBars(console)
    for done in range(1, 5):
        bars.move("training", done, 4, f"loss {1 / done:.2f}")
        if done == 2:
            bars.move("validating", 1, 2, is_aside=True)
            bars.move("validating", 2, 2, is_aside=True)
    bars.move("asking", 3, 3)
    bars.stop()
    last = console.file.getvalue().rsplit("training", 1)[-1]
    assert "4/4" in last and "loss 0.25" in last and "validating" not in last and "3/3" in last


def test_plain_lines_are_few_and_without_control_codes():
    console = Console(file=io.StringIO(), width=100)
    bars = PlainLines(console)
    for done in range(1, 1001):
        bars.move("asking the base", done, 1000)
        bars.move("validating", 1, 1, is_aside=True)
    assert console.file.getvalue() == "asking the base 1,000/1,000\n"


def test_each_part_of_a_run_begins_once():
    begun: list[str] = []
    with Watcher(Screen(quiet=True), on_section=begun.append) as watcher:
        watcher.progress("asking the base", 1, 2)
        watcher.progress("asking the base", 2, 2)
        for number in range(1, 5):
            watcher.step(step(number))
            watcher.progress("validating", 1, 1)
        watcher.progress("asking the tuned model", 1, 1)
    assert begun == ["untuned", "training", "tuned"]


def test_printable_text_keeps_line_ends_and_letters():
    assert printable("Grüße\n\t🙂 \x1b[31m\x07\x9b") == "Grüße\n\t🙂 �[31m��"
