"""The loop on a tiny random Llama: exact accumulation, exact resume, honest ends."""

import json

import pytest
import torch

from training_bench import Bench, stop_after
from tunesmith.errors import RunError


@pytest.fixture
def tiny(tiny_folder):
    return tiny_folder("smollm2")


@pytest.mark.parametrize("stop", [1, 4, 6, 9])
def test_a_resumed_run_is_bit_equal_to_an_undisturbed_one(tmp_path, tiny, stop):
    whole = Bench(tmp_path / "a", tiny, dropout=0.2, part_tokens=60)
    assert not whole.loop().run().is_interrupted
    first = Bench(tmp_path / "b", tiny, dropout=0.2, part_tokens=60)
    assert first.loop(stop_after(stop)).run().is_interrupted
    torch.manual_seed(999)
    second = Bench(tmp_path / "b", tiny, dropout=0.2, part_tokens=60)
    loop = second.loop()
    loop.resume(second.checkpoints.newest())
    outcome = loop.run()
    assert outcome.state.step == outcome.steps == 11
    for name, tensor in whole.adapter.tensors().items():
        assert torch.equal(tensor, second.adapter.tensors()[name]), name


def test_parts_of_a_step_add_up_to_the_whole(tmp_path, tiny):
    """Float32: moments divide by tiny gradients, so steps agree to 1e-3 relative, the loss to 1e-5."""
    runs = [Bench(tmp_path / str(tokens), tiny, part_tokens=tokens) for tokens in (4096, 30)]
    losses = [bench.loop().run().last_loss for bench in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_only_the_adapter_moves_and_all_of_it(tmp_path, tiny):
    bench = Bench(tmp_path, tiny)
    before = {name: tensor.clone() for name, tensor in bench.loaded.model.state_dict().items()}
    loop = bench.loop()
    start = {name: tensor.clone() for name, tensor in bench.adapter.tensors().items()}
    outcome = loop.run()
    losses = [row["validation_loss"] for row in bench.metrics.rows() if "validation_loss" in row]
    assert outcome.state.best_loss < losses[0]
    for name, tensor in bench.loaded.model.state_dict().items():
        original = before.get(name.replace(".linear.", "."))
        if original is not None:
            assert torch.equal(tensor, original), name
    for name, tensor in bench.adapter.tensors().items():
        assert not torch.equal(tensor, start[name]), name


def test_the_best_checkpoint_is_kept_and_the_newest(tmp_path, tiny):
    bench = Bench(tmp_path, tiny, optimisation={"learning_rate": 0.9, "schedule": "constant"})
    outcome = bench.loop().run()
    losses = {e.data["step"]: e.data["validation_loss"] for e in bench.events.events() if e.type == "validation"}
    assert outcome.state.best_step == min(losses, key=losses.get)
    assert outcome.state.best_step in bench.checkpoints.steps()
    assert bench.checkpoints.steps()[-1] == outcome.steps


def test_training_ends_early_when_validation_gets_worse(tmp_path, tiny):
    bench = Bench(
        tmp_path,
        tiny,
        optimisation={"learning_rate": 1.0, "schedule": "constant", "patience": 2, "validate_every_steps": 1},
    )
    outcome = bench.loop().run()
    assert outcome.stopped_early
    assert outcome.state.step < outcome.steps


def test_a_diverging_run_says_so(tmp_path, tiny):
    bench = Bench(tmp_path, tiny)
    loop = bench.loop()
    with torch.no_grad():
        next(iter(bench.adapter.layers.values())).lora_b.fill_(float("nan"))
    with pytest.raises(RunError) as caught:
        loop._step([0, 1])
    assert caught.value.code == "non_finite_loss"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["truncate", "delete", "flip"])
def test_a_rotten_checkpoint_is_passed_over(tmp_path, tiny, name, how):
    bench = Bench(tmp_path, tiny, optimisation={"epochs": 1})
    bench.loop().run()
    newest = bench.checkpoints.steps()[-1]
    file = tmp_path / "checkpoints" / f"step-{newest:06d}" / name
    content = file.read_bytes()
    if how == "delete":
        file.unlink()
    elif how == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    found = bench.checkpoints.newest()
    assert found.state.step < newest
    assert len(bench.checkpoints.damaged) == 1
    assert str(newest) in bench.checkpoints.damaged[0]


def test_metrics_hold_every_step(tmp_path, tiny):
    bench = Bench(tmp_path, tiny)
    bench.loop().run()
    rows = [row for row in bench.metrics.rows() if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 12))
    assert all(row["tokens_per_second"] > 0 and row["learning_rate"] > 0 for row in rows)
    json.dumps(rows)
