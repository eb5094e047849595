"""What a run says and measures survives crashes, full disks and being resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from small_disk import small_disk  # noqa: F401
from tunesmith.errors import StorageError
from tunesmith.record.events import EventLog, read_events
from tunesmith.record.hashing import canonical_json, sha256_file, sha256_json
from tunesmith.record.lines import JsonLines
from tunesmith.record.metrics import MetricsLog

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
rows = st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=6)


@given(rows)
def test_rows_come_back_as_they_were(tmp_path_factory, written):
    lines = JsonLines(tmp_path_factory.mktemp("lines") / "rows.jsonl")
    for row in written:
        lines.append(row, durable=False)
    lines.close()
    assert list(lines.rows()) == written


@given(rows.filter(bool), st.data())
def test_a_file_cut_anywhere_keeps_its_whole_lines(tmp_path_factory, written, data):
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    with JsonLines(path) as lines:
        for row in written:
            lines.append(row, durable=False)
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    whole = written[: content[:cut].count(b"\n")]
    assert list(JsonLines(path).rows()) == whole
    with JsonLines(path) as lines:
        lines.append({"after": True}, durable=False)
    assert list(JsonLines(path).rows()) == [*whole, {"after": True}]


def test_a_torn_line_longer_than_one_look_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 200_000)
    with JsonLines(path) as lines:
        lines.append({"c": 2})
    assert list(JsonLines(path).rows()) == [{"a": 1}, {"c": 2}]


def test_an_edited_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"b": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        list(JsonLines(path).rows())


def test_events_reach_the_file_before_the_listener(tmp_path):
    path = tmp_path / "run" / "events.jsonl"
    heard = []
    log = EventLog(path, lambda event: heard.append((event, list(read_events(path)))))
    log.add("run_started", "The run starts.", base="smollm2-135m")
    log.add("validation", "Loss 1.5.", level="warning", step=3, loss=1.5)
    assert [kept[-1] for event, kept in heard] == [event for event, _ in heard]
    first, second = log.events()
    assert datetime.fromisoformat(first.time).utcoffset().total_seconds() == 0
    assert (first.level, first.type, first.message, first.data) == (
        "info",
        "run_started",
        "The run starts.",
        {"base": "smollm2-135m"},
    )
    assert (second.level, second.data) == ("warning", {"step": 3, "loss": 1.5})


def test_a_resumed_run_neither_doubles_nor_loses_events(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    log.add("run_started", "Start.")
    for step in range(1, 6):
        log.add("validation", "Measured.", step=step)
    log.add("interrupted", "Stopped by Ctrl-C.")
    assert log.truncate_after(3) == 2
    log.add("resumed", "Continue.")
    for step in range(4, 6):
        log.add("validation", "Measured.", step=step)
    events = list(log.events())
    assert [event.data["step"] for event in events if event.type == "validation"] == [1, 2, 3, 4, 5]
    assert [event.type for event in events if "step" not in event.data] == ["run_started", "interrupted", "resumed"]


def test_metrics_of_a_resumed_run(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for step in range(1, 5):
            log.add(step, loss=1.0 / step)
        log.sync()
        assert log.truncate_after(2) == 2
        log.add(3, loss=float("inf"), validation_loss=0.5)
        assert [row["step"] for row in log.rows()] == [1, 2, 3]
        assert list(log.rows())[-1] == {"step": 3, "loss": None, "validation_loss": 0.5}


def test_metrics_as_parquet_and_back(tmp_path):
    from tunesmith.record.parquet import read_parquet, write_parquet

    written = [{"step": 1, "loss": 2}, {"step": 2, "loss": 1.5, "kind": "best"}, {"step": 3, "loss": None}]
    write_parquet(written, tmp_path / "metrics.parquet")
    assert read_parquet(tmp_path / "metrics.parquet") == [
        {"step": 1, "loss": 2.0, "kind": None},
        {"step": 2, "loss": 1.5, "kind": "best"},
        {"step": 3, "loss": None, "kind": None},
    ]
    write_parquet([], tmp_path / "empty.parquet")
    assert read_parquet(tmp_path / "empty.parquet") == []


def test_full_disk_ends_the_file_with_a_whole_row(small_disk):  # noqa: F811
    path = small_disk / "events.jsonl"
    log = EventLog(path)
    with pytest.raises(StorageError) as full:
        for step in range(1_000):
            log.add("note", "x" * 5_000, step=step)
    assert full.value.code == "disk_full"
    assert path.read_bytes().endswith(b"\n")
    steps = [event.data["step"] for event in read_events(path)]
    assert steps == list(range(len(steps))) and len(steps) > 100


def test_canonical_json_ignores_order_only():
    assert canonical_json({"b": 1, "a": [1.5, "é"]}) == '{"a":[1.5,"é"],"b":1}'.encode()
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 2, "b": 1})


def test_file_hash(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_record_imports_nothing_heavy():
    script = (
        "import sys, json, tunesmith.record.home, tunesmith.record.events, tunesmith.record.metrics,"
        " tunesmith.record.atomic, tunesmith.models.versions\n"
        "print(json.dumps([m for m in ('torch', 'transformers', 'pyarrow', 'numpy') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []
