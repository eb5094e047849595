"""The training benchmark's arithmetic, its rows, its bars and its page; nothing is timed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from measured_work import Work
from operations import count_operations, step_work
from peers.clock import Job, StepClock
from random_bases import SHAPES, Shape, make_base
from ratios import final_loss, rate, ratio, spread
from sides import OURS, SAME_STEPS_PEER, SIDES, Environments, Side, SideFailure, read_result, run_side
from tiny_models import save_tiny_model
from trained_rows import by_length, steps_of_run, write_token_rows
from training import arguments
from training_page import bars, loss_difference, section
from tunesmith.chat.renderer import Rendered
from tunesmith.models.size import model_size
from tunesmith.record.home import Home
from workloads import WORKLOADS, long_rows, write_rows

JOB = Job(model="m", rows="r", result="", work="", batch_size=4, rank=2, learning_rate=1e-3, max_tokens=512)


def row(*tokens: int, learnt: int = 1) -> Rendered:
    return Rendered(tokens, (False,) * (len(tokens) - learnt) + (True,) * learnt)


def test_ratios_are_of_neighbours_and_rates_leave_the_first_step_out():
    assert ratio([10, 30], [5, 10]) == spread([2, 3]) and spread([2, 3]).median == 2.5
    assert ratio([10, 30, 40], [5]).high == 2
    assert rate([100, 10, 20], [50, 1, 2]) == 10
    assert final_loss([9, 9, 9, 9, 9, 9, 1, 3]) == 2 and final_loss([5.0]) == 5
    assert spread([412.0]).text(1, "s") == "412.0 s" and spread([1, 2, 4]).text() == "2 (1 to 4)"


def test_operations_count_what_is_computed_once(tmp_path: Path):
    size = model_size(save_tiny_model("llama", tmp_path / "base"))
    per_token = 4 * size.linear_parameters + 6 * size.lora_parameters(4)
    assert count_operations(size, 4, 10, 3) == 10 * per_token + 3 * 4 * size.vocabulary * size.hidden
    shared = tuple(range(1, 17))
    work = step_work([row(*shared, 50, 51), row(*shared, 60, 61, 62)], size, 4)
    assert (work.row_tokens, work.longest_tokens, work.tree_tokens, work.targets) == (37, 19, 21, 2)
    assert work.operations == count_operations(size, 4, 21, 2)


def test_every_workload_is_64_different_rows_and_the_shared_prompt_is_about_180_tokens():
    for workload in WORKLOADS:
        rows = workload.rows()
        assert len({json.dumps(one) for one in rows}) == 64
        assert all(one["messages"][-1]["role"] == "assistant" and one["messages"][-1]["content"] for one in rows)
    extraction = next(one for one in WORKLOADS if one.name == "extraction").rows()
    assert len({one["messages"][0]["content"] for one in extraction}) == 1
    assert all(json.loads(one["messages"][-1]["content"]) for one in extraction)


def test_long_rows_come_close_to_the_wished_length_and_differ():
    rows = long_rows(512, 5, lambda text: len(text) // 4)
    lengths = [sum(len(message["content"]) // 4 + 5 for message in one["messages"]) for one in rows]
    assert all(400 < length <= 512 for length in lengths)
    assert len({json.dumps(one) for one in rows}) == 5


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 8))
def test_rows_by_length_are_the_same_rows_with_the_least_padding(lengths: list[int], batch_size: int):
    rows = [row(*range(length)) for length in lengths]
    grouped = by_length([rows], batch_size)
    assert sorted(len(one.token_ids) for step in grouped for one in step) == sorted(lengths)
    assert all(len(step) == batch_size for step in grouped[:-1])
    padding = sum(max(len(one.token_ids) for one in step) * len(step) for step in grouped)
    ordered = sorted(lengths)
    assert padding == sum(
        max(ordered[i : i + batch_size]) * len(ordered[i : i + batch_size]) for i in range(0, len(ordered), batch_size)
    )


def test_peers_get_the_tokens_and_what_is_learnt_of_them(tmp_path: Path):
    write_token_rows([[row(1, 2, 3, learnt=2)], [row(4, 5)]], tmp_path / "rows.jsonl")
    job = Job(**{**vars(JOB), "rows": str(tmp_path / "rows.jsonl")})
    assert job.token_rows() == [
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        {"input_ids": [4, 5], "labels": [-100, 5]},
    ]


def test_the_clock_counts_from_step_to_step(tmp_path: Path):
    clock = StepClock(Job(**{**vars(JOB), "result": str(tmp_path / "result.json")}))
    before = time.time()
    clock.begin(seconds_ago=300)
    clock.step_done(2.0)
    clock.step_done()
    clock.set_losses([2.0, 1.5])
    clock.write(("torch",), run="abc")
    run = read_result(json.loads((tmp_path / "result.json").read_text(encoding="utf-8")), before - 1300)
    assert run.losses == [2.0, 1.5] and run.further == {"run": "abc"} and set(run.versions) == {"torch"}
    assert run.step_seconds[0] >= 300 and 999 < run.startup_seconds < 1200 and run.peak_memory_bytes > 1 << 20


def test_a_peer_that_fails_says_why_without_this_machines_paths(tmp_path: Path):
    broken = Side("broken", "Broken", "no_such_script.py", None, "length")
    with pytest.raises(SideFailure, match="can't open file") as caught:
        run_side(broken, JOB, Environments(tmp_path), tmp_path)
    first = str(caught.value).splitlines()[0]
    assert first.startswith("failed: python") and "'no_such_script.py'" in first and "/" not in first


def test_tunesmiths_side_trains_through_the_product_and_its_steps_are_known(tmp_path: Path):
    base = save_tiny_model("smollm2", tmp_path / "base")
    chat = tmp_path / "rows.jsonl"
    work = Work("maths", str(base), WORKLOADS[0].rows()[:12])
    write_rows(list(work.rows), chat)
    job = Job(**{**vars(JOB), "model": str(base), "rows": str(chat), "settings": {"max_tokens": 1024}})
    home = Home(tmp_path / "home")
    run = run_side(OURS, job, Environments(tmp_path), home.root)
    steps = steps_of_run(run.further["run"], home)
    assert [len(step) for step in steps] == [4, 4, 4]
    assert run.further["step_tokens"] == [sum(len(one.token_ids) for one in step) for step in steps]
    assert len(run.losses) == 3 and all(seconds > 0 for seconds in run.step_seconds)


def test_random_bases_have_the_wished_shape(tmp_path: Path):
    tokenizer = save_tiny_model("smollm2", tmp_path / "tiny")
    size = model_size(make_base(Shape(128, 256, 2, 2, 1, vocabulary=2000), tokenizer, tmp_path / "random"))
    assert (size.hidden, size.layers, size.vocabulary, size.key_value_width) == (128, 2, 2000, 64)
    assert SHAPES["1B"].hidden == 2048


def _run(speed: float, memory_gib: float, losses: list[float]) -> dict:
    return {
        "tokens_per_second": speed,
        "operations_per_second": speed * 1e9,
        "peak_memory_bytes": memory_gib * 2**30,
        "startup_seconds": 7.5,
        "losses": losses,
        "step_seconds": [1.0] * len(losses),
        "versions": {"torch": "2.13.0"},
    }


def _results() -> dict:
    load = {
        "title": "Maths",
        "least_speed_ratio": 4.0,
        "has_rate_bar": True,
        "matrix_rate": 1e12,
        "rows": 64,
        "work": {"steps": [{"row_tokens": 1000, "tree_tokens": 800, "targets": 400}], "length": []},
        "runs": {
            "tunesmith": [_run(600, 2, [2, 2, 2, 1.0]), _run(660, 2, [2, 2, 2, 1.0])],
            "trl_best": [_run(100, 8, [2, 2, 2, 1.3]), _run(200, 8, [2, 2, 2, 1.3])],
            "trl_default": [_run(80, 5, [2, 2, 2, 1.03])],
        },
        "failures": {"llamafactory": "can't be installed: no matching distribution"},
    }
    growth = [
        {"at": "256 tokens a row", "runs": {"tunesmith": [_run(500, 3, [1])], "trl_best": [_run(90, 9, [1])]}},
        {"at": "512 tokens a row", "runs": {"tunesmith": [_run(450, 4, [1])]}, "failures": {"trl_best": "failed: x"}},
    ]
    return {"workloads": {"maths": load}, "growth": {"context": growth}, "machine": "| machine | |\n|---|---|"}


def test_losses_are_compared_with_exact_ones_where_there_are_any():
    results = _results()
    results["workloads"]["maths"]["runs"]["trl_float32"] = [_run(900, 9, [2, 2, 2, 1.01])]
    found = {bar.what.partition(": ")[2]: bar for bar in bars(results)}
    assert found["final losses of the same steps, against TRL in float32"].is_met
    assert found["speed against TRL"].reached == "4.7 (3.3 to 6.0) x", "speeds in float32 don't count"


def test_bars_are_met_or_missed_by_the_figures():
    results = _results()
    found = {bar.what.partition(": ")[2]: bar for bar in bars(results)}
    assert {what: bar.is_met for what, bar in found.items()} == {
        "speed against TRL": True,
        "memory against TRL": True,
        "final losses of the same steps, against TRL as it comes": False,
        "share of the matrix rate": True,
        "start-up": True,
    }
    assert found["speed against TRL"].reached == "4.7 (3.3 to 6.0) x"
    results["workloads"]["maths"]["runs"]["trl_default"][0]["tokens_per_second"] = 300
    assert bars(results)[0].reached == "2.0 x" and not bars(results)[0].is_met, "the fastest peer counts"
    assert loss_difference(results["workloads"]["maths"], SAME_STEPS_PEER) == pytest.approx(0.03 / 1.03)
    results["workloads"]["maths"]["matrix_rate"] = 2e12
    assert "32 % (bar: at least 60 %): missed" in "\n".join(bar.line() for bar in bars(results))


def test_the_page_holds_figures_failures_and_only_what_was_measured():
    text = section(_results())
    for words in ("630 (600 to 660)", "4.7 (3.3 to 6.0) x", "LLaMA-Factory, rows by length can't be installed",
                  "| 512 tokens a row | 450 | 4.00 | failed: x |", "1,000 tokens", "missed", "5.6 x"):  # fmt: skip
        assert words in text
    assert "Larger models" not in text
    assert all(line.endswith("|") for line in text.splitlines() if line.startswith("|"))
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]):
    assert arguments(["--parts", "maths,model"]).parts == ["maths", "model"]
    assert arguments([]).sides == list(SIDES)
    with pytest.raises(SystemExit):
        arguments(["--parts", "poetry"])
    assert "unknown parts: poetry" in capsys.readouterr().err
