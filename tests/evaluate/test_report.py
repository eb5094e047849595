"""The report is whole, safe whatever the rows say, and readable by programs."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tunesmith.data.examples import Conversation, Message, Place
from tunesmith.errors import StorageError
from tunesmith.evaluate.comparison import ArmResult, score_arm
from tunesmith.evaluate.curves import Curves
from tunesmith.evaluate.drawing import draw_curves
from tunesmith.evaluate.measure import Measure, choose_measure
from tunesmith.evaluate.report import Report, write_report
from tunesmith.evaluate.side_by_side import pick_rows
from tunesmith.evaluate.verdict import decide
from tunesmith.generate.completion import Completion

NASTY = '<script>alert("x")</script><img src=x onerror=alert(1)>{{ 7 * 7 }}\ud800\x07'


def arm(name: str, rows: list[Conversation], answers: list[str], measure: Measure) -> ArmResult:
    completions = [Completion(text, (1, 2, 3), "stop", prompt_tokens=40, seconds=0.1) for text in answers]
    return score_arm(name, "described", rows, completions, measure)


def report_of(rows: list[Conversation], base: list[str], tuned: list[str], measure: Measure, **more: object) -> Report:
    arms = [arm("the base", rows, base, measure), arm("the tuned model", rows, tuned, measure)]
    values = {"title": "Bookings", "created": "2026-01-02T03:04:05+00:00", **more}
    return Report(verdict=decide(arms[1], arms[:1]), arms=arms, rows=rows, **values)  # type: ignore[arg-type]


def booking_rows(count: int) -> list[Conversation]:
    return [
        Conversation(
            (
                Message("system", "Secret words."),
                Message("user", f"{i} of us"),
                Message("assistant", f'{{"people": "{i}"}}'),
            ),
            place=Place("bookings.jsonl", i + 1),
        )
        for i in range(count)
    ]


class Tags(HTMLParser):
    """Collects elements, attributes and whether every element was closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def written(tmp_path: Path, report: Report) -> tuple[dict[str, object], str]:
    data, page = write_report(tmp_path / "run", report)
    return json.loads(data.read_text(encoding="utf-8")), page.read_text(encoding="utf-8")


def test_a_whole_report(tmp_path: Path) -> None:
    rows = booking_rows(40)
    base, tuned = ["no idea"] * 40, [row.reference for row in rows[:30]] + ["{}"] * 10
    curves = Curves([(i, 2.0 / (i + 1)) for i in range(60)], [(20, 0.5), (40, 0.3)], [(i, 1e-3) for i in range(60)], 40)
    report = report_of(
        rows,
        base,
        tuned,
        choose_measure([row.reference for row in rows]),
        curves=curves,
        data={"train": 1200, "split": {"test": 40}},
        dropped=[{"place": "bookings.jsonl, line 3", "reason": "too long"}],
        plan={"base": "smollm2-135m", "memory_gb": 1.25},
        spec_yaml="base: smollm2-135m\n",
        versions={"torch": "2"},
    )
    data, page = written(tmp_path, report)
    assert data["verdict"]["kind"] == "ship"  # type: ignore[index]
    assert len(data["rows"]) == 40  # type: ignore[arg-type]
    assert data["arms"][1]["score"] == 0.75  # type: ignore[index]
    assert data["curves"]["best_step"] == 40  # type: ignore[index]
    for words in (
        "Ship it",
        "75 %",
        "bookings.jsonl, line 3",
        "too long",
        "1,200",
        "base: smollm2-135m",
        "✗ wrong",
        "✓ right",
    ):
        assert words in page
    assert "Secret words." not in page
    assert Tags(page).open == []


def test_nothing_in_a_row_can_act(tmp_path: Path) -> None:
    rows = [
        Conversation((Message("user", NASTY), Message("assistant", NASTY)), place=Place(NASTY.replace("\ud800", ""), 1))
    ] * 8
    report = report_of(
        rows,
        [NASTY] * 8,
        ["</pre>" + NASTY] * 8,
        Measure("text", NASTY),
        title=NASTY,
        data={NASTY: NASTY},
        dropped=[{"place": NASTY, "reason": NASTY}],
        plan={NASTY: [NASTY]},
        spec_yaml=NASTY,
        versions={NASTY: NASTY},
        curves=Curves([(1, 1.0)]),
    )
    data, page = written(tmp_path, report)
    tags = Tags(page)
    assert tags.open == []
    assert not {"script", "img", "iframe", "object", "link"} & {tag for tag, _ in tags.seen}
    assert not [name for _, attributes in tags.seen for name in attributes if name.startswith("on")]
    assert "{{ 7 * 7 }}" in page
    assert data["title"] == NASTY


def test_json_answers_with_strange_field_names_are_escaped(tmp_path: Path) -> None:
    reference = json.dumps({"<b>x</b>": 1})
    rows = [Conversation((Message("user", "?"), Message("assistant", reference)))] * 4
    _, page = written(tmp_path, report_of(rows, ["{}"] * 4, [reference] * 4, choose_measure([reference] * 4)))
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    rows = booking_rows(6)
    report = report_of(rows, ["{}"] * 6, ["{}"] * 6, Measure("text", ""), curves=Curves([(1, 2.0), (2, 1.0)]))
    _, page = written(tmp_path, report)
    loads = [
        value for _, attributes in Tags(page).seen for name, value in attributes.items() if name in ("src", "href")
    ]
    assert loads == []
    assert not re.search(r"url\((?!#)|@import", page)


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    rows = booking_rows(3)
    report = report_of(
        rows,
        ["a"] * 3,
        ["b"] * 3,
        Measure("text", ""),
        data={"loss": math.nan},
        curves=Curves([(1, math.inf), (2, 1.0)]),
    )
    data, _ = written(tmp_path, report)
    assert data["data"] == {"loss": None}
    assert data["curves"]["train_loss"] == [[1, None], [2, 1.0]]  # type: ignore[index]


def test_one_row_and_one_arm_are_enough(tmp_path: Path) -> None:
    rows = booking_rows(1)
    only = arm("the tuned model", rows, ["{}"], Measure("json", ""))
    data, page = written(tmp_path, Report("t", "now", decide(only, []), [only], rows))
    assert data["verdict"]["kind"] == "not_enough_evidence"  # type: ignore[index]
    assert "1 unseen row" in page


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder that refuses everybody")
def test_a_folder_that_cannot_be_is_said() -> None:
    rows = booking_rows(2)
    with pytest.raises(StorageError):
        write_report(Path("/sys/report"), report_of(rows, ["{}"] * 2, ["{}"] * 2, Measure("json", "")))


def test_every_arm_answers_every_row(tmp_path: Path) -> None:
    rows = booking_rows(2)
    report = report_of(rows, ["{}"] * 2, ["{}"] * 2, Measure("json", ""))
    with pytest.raises(ValueError, match="one answer for each row"):
        write_report(tmp_path, Report("t", "now", report.verdict, report.arms, rows[:1]))


def test_proof_needs_no_torch() -> None:
    check = "import tunesmith.evaluate.report, tunesmith.evaluate.arms, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_curves_take_the_page_colours_and_repeat() -> None:
    curves = Curves([(i, 1.0 / i) for i in range(1, 80)], [(40, 0.1)], best_step=40)
    drawing = draw_curves(curves)
    assert drawing is not None and drawing == draw_curves(curves)
    assert drawing.startswith("<svg role=")
    assert "var(--series-1)" in drawing and "currentColor" in drawing
    assert draw_curves(Curves([(1, math.nan)])) is None


def test_picked_rows_tell_the_whole_story() -> None:
    rows = [Conversation((Message("user", "?"), Message("assistant", "yes")))] * 40
    base = arm("base", rows, ["yes"] * 4 + ["no"] * 36, Measure("label", ""))
    tuned = arm("tuned", rows, ["no"] * 2 + ["yes"] * 30 + ["no"] * 8, Measure("label", ""))
    picks = pick_rows(tuned, base, count=8)
    assert picks == sorted(set(picks)) and len(picks) == 8
    kinds = {(tuned.row_scores[i], base.row_scores[i]) for i in picks}
    assert kinds == {(1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (1.0, 1.0)}
    assert pick_rows(tuned, base, count=100) == list(range(40))
    assert pick_rows(tuned, None, count=2) == pick_rows(tuned, None, count=2)


def test_graded_rows_are_picked_from_worst_to_best() -> None:
    texts = [f"word {i}" for i in range(30)]
    rows = [Conversation((Message("user", "?"), Message("assistant", text))) for text in texts]
    tuned = arm("tuned", rows, [text[: 1 + i % 7] for i, text in enumerate(texts)], Measure("text", ""))
    scores = [tuned.row_scores[i] for i in pick_rows(tuned, count=5)]
    assert min(scores) == min(tuned.row_scores) and max(scores) == max(tuned.row_scores)
