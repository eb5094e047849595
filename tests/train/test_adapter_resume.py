"""Adapters with every setting at once go through the loop: they learn, stop and go on bit for bit."""

from __future__ import annotations

import pytest
import torch

from training_bench import Bench, same, stop_after
from tunesmith.specs.tune import LoraSpec

_SETTINGS = {
    "everything": {
        "rank_stabilised": True, "dora": True, "initialisation": "pissa", "b_rate_ratio": 4.0, "dropout": 0.2,
        "modules_to_save": ("embed_tokens", "norm"),
    },
    "head": {"modules_to_save": ("lm_head",), "target_modules": ("q_proj",)},
}  # fmt: skip


class AdapterBench(Bench):
    def __init__(self, folder, tiny, settings, **others):
        super().__init__(folder, tiny, part_tokens=60, **others)
        self.spec = self.spec.model_copy(update={"adapter": LoraSpec(rank=4, **settings)})


@pytest.mark.parametrize(("name", "dtype"), [("everything", "float32"), ("head", "bfloat16")])
def test_a_resumed_run_is_bit_equal_to_an_undisturbed_one(tmp_path, tiny_folder, name, dtype):
    tiny = tiny_folder("smollm2")
    whole = AdapterBench(tmp_path / "a", tiny, _SETTINGS[name], dtype=dtype)
    loop = whole.loop()
    start = whole.weights()
    assert not loop.run().is_interrupted
    losses = [row["validation_loss"] for row in whole.steps()[0] if "validation_loss" in row]
    assert min(losses[1:]) < losses[0]
    moved = {key for key, tensor in whole.weights().items() if not torch.equal(tensor, start[key])}
    assert moved == {key for key in start if ".initial_" not in key}

    first = AdapterBench(tmp_path / "b", tiny, _SETTINGS[name], dtype=dtype)
    assert first.loop(stop_after(5)).run().is_interrupted
    torch.manual_seed(999)
    second = AdapterBench(tmp_path / "b", tiny, _SETTINGS[name], dtype=dtype)
    loop = second.loop()
    loop.resume(second.checkpoints.newest())
    loop.run()
    assert same(whole.weights(), second.weights())
