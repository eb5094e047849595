"""Whole runs on bases that can't share text or whose experts get no adapter: they work, and their events say so."""

import json

import pytest
import torch

from lone_models import lone_model
from tiny_models import tiny_tokenizer
from tunesmith import api
from tunesmith.models.quiet import quiet_libraries
from tunesmith.record.observer import Observer
from tunesmith.specs.tune import TuneSpec


def base_of(kind: str, tiny_folder, folder):
    """A base's folder: a tiny model of a known family, or one that computes a text at a time."""
    if kind not in ("mamba", "gpt_oss"):
        return tiny_folder(kind)
    tokenizer = tiny_tokenizer("qwen2")
    with quiet_libraries():
        lone_model(kind, vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "warnings"),
    [
        ("gpt2", set()),
        ("qwen3_moe", {"no_adapter_on_experts"}),
        ("mamba", {"one_row_at_a_time"}),
        ("gpt_oss", {"one_row_at_a_time", "no_adapter_on_experts"}),
    ],
)
def test_a_run_to_its_end_and_an_answer(kind, warnings, home, tiny_folder, tmp_path):
    rows = [{"prompt": f"{word} {number}", "completion": f"{number} {word}"} for number in range(8) for word in "abc"]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    spec = TuneSpec.parse(
        {
            "base": str(base_of(kind, tiny_folder, tmp_path / "base")),
            "data": {"path": str(data)},
            "adapter": {"rank": 2},
            "optimisation": {"epochs": 1, "batch_size": 8},
            "evaluation": {"max_output_tokens": 4},
            "limits": {"dtype": "float32"},
        }
    )
    events = []
    watcher = Observer()
    watcher.event = events.append
    with quiet_libraries():
        result = api.tune(spec, home=home, observer=watcher)
        answer = api.open_model(result.figures.model, home=home).generate("a 3", max_completion_tokens=4)
    told = {event.type: event for event in events if event.type in ("one_row_at_a_time", "no_adapter_on_experts")}
    assert set(told) == warnings
    kinds = [event.type for event in events]
    # Before anything is measured or trained.
    assert all(kinds.index(warning) < kinds.index("evaluation") for warning in warnings)
    if "no_adapter_on_experts" in warnings:
        assert all(".experts" in name for name in told["no_adapter_on_experts"].data["modules"])
    assert torch.isfinite(torch.tensor(result.figures.train.loss))
    assert answer.completion_tokens <= 4
