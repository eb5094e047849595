"""The GPU benchmark with a tiny shape on the CPU: both sides learn the same, and without a GPU it says so."""

from __future__ import annotations

import pytest
import torch

from gpu.page import section, target_line
from gpu.sides import SIDES
from gpu.training import arguments, main, matrix_rate, speeds
from gpu.work import FULL, ROWS, TINY, make_steps, padded_passes, shape_size

CPU = torch.device("cpu")


@pytest.mark.parametrize("adapter", ["lora", "qlora"])
@pytest.mark.parametrize("rows", ROWS)
def test_both_sides_learn_the_same_from_the_same_weights(adapter: str, rows: str):
    ours, theirs = (side(TINY, adapter, rows, CPU) for side in SIDES.values())
    assert len(ours.step_seconds) == TINY.steps
    assert ours.losses == pytest.approx(theirs.losses, rel=2e-3)


def test_the_full_shape_is_llama_3_1_8b():
    size = shape_size(FULL)
    assert size.parameters == 8_030_261_248 and size.linear_parameters == 6_979_321_856


def test_rows_fill_the_steps_and_passes_their_padding():
    for rows in ROWS:
        for step in make_steps(FULL, rows)[:2]:
            assert sum(len(row.token_ids) for row in step) == FULL.step_tokens
            parts = padded_passes(step, FULL.pass_tokens)
            assert sorted(map(id, step)) == sorted(id(row) for part in parts for row in part)
            assert all(len(part) * max(len(row.token_ids) for row in part) <= FULL.pass_tokens for part in parts)
    assert all(len(row.token_ids) == 4096 for row in make_steps(FULL, "packed")[0])
    assert make_steps(TINY, "mixed") == make_steps(TINY, "mixed")


def test_the_page_comes_from_the_results_alone():
    figures = SIDES["peft"](TINY, "lora", "packed", CPU)
    run = speeds(figures, TINY, "packed")
    ours = {**run, "tokens_per_second": 2 * run["tokens_per_second"], "operations_per_second": 6e11}
    results = {
        "shape": TINY.name,
        "device": "card",
        "matrix_rate": 1e12,
        "cases": [{"name": "lora, packed", "runs": {"tunesmith": [ours], "peft": [run]}, "failures": {}}],
        "machine": "| machine | |",
    }
    assert "| 2.00 x |" in section(results) and "60 %" in section(results)
    assert target_line(results).endswith("met.")
    results["cases"][0]["failures"]["peft"] = "failed with exit code 1"
    assert "transformers + PEFT, SDPA on lora, packed: failed with exit code 1" in section(results)


def test_without_a_gpu_it_says_what_it_needs():
    assert matrix_rate(TINY, CPU) > 0
    assert arguments(["--tiny"]).tiny
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="needs an NVIDIA GPU"):
            main([])
