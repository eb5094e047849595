"""The plan meets the machine: the longest step is tried out, passes shrink until they fit, and nothing else changes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training_bench import Bench, same
from tunesmith.errors import RunError
from tunesmith.learn.passes import Passes
from tunesmith.learn.step import TreeModel
from tunesmith.models.adapters.lora_layer import LoraLinear
from tunesmith.native.calls import kernels
from tunesmith.train import loop as loop_module
from tunesmith.train.memory import PeakMemory, give_freed_memory_back, is_out_of_memory, keep_freed_memory, room_bytes
from tunesmith.train.stepping import Stepper

CPU = torch.device("cpu")


@pytest.fixture
def tiny(tiny_folder):
    return tiny_folder("smollm2")


@pytest.fixture
def scarce(monkeypatch):
    """No plan leaves enough memory to do without a rehearsal."""
    monkeypatch.setattr(loop_module, "_COMFORTABLE_SHARE", 0.0)


def test_trying_the_longest_step_out_changes_nothing(tmp_path, tiny, scarce):
    runs = []
    for name in ("plain", "rehearsed"):
        bench = Bench(tmp_path / name, tiny, dropout=0.2, part_tokens=100)
        loop = bench.loop()
        if name == "rehearsed":
            before, random = bench.weights(), torch.get_rng_state()
            loop.rehearse(bench.size, PeakMemory(CPU))
            assert loop.measured.passes == Passes(100)
            assert loop.measured.attempts == 1
            assert same(before, bench.weights())
            assert torch.equal(random, torch.get_rng_state())
            assert all(p.grad is None for p in bench.loaded.model.parameters())
        loop.run()
        runs.append((bench.steps(), bench.weights()))
    assert runs[0][0] == runs[1][0]
    assert same(runs[0][1], runs[1][1])


@pytest.mark.parametrize("is_rehearsed", [True, False])
def test_the_event_tells_expected_and_measured(tmp_path, tiny, monkeypatch, is_rehearsed):
    """Where memory is scarce, before training; where it is plentiful, from an early step."""
    monkeypatch.setattr(loop_module, "_COMFORTABLE_SHARE", 0.0 if is_rehearsed else 1.0)
    bench = Bench(tmp_path, tiny)
    loop = bench.loop()
    loop.rehearse(bench.size, PeakMemory(CPU))
    assert (loop.measured is not None) == is_rehearsed
    loop.run()
    found = loop.measured
    assert found.attempts == int(is_rehearsed)
    (event,) = [event for event in bench.events.events() if event.type == "plan_measured"]
    assert event.data["memory_bytes"] == found.memory_bytes > 100e6
    assert event.data["predicted_memory_bytes"] == found.predicted_memory_bytes
    assert event.data["passes"]["tokens_per_pass"] == 4096
    assert 0 < found.seconds < 60


def test_what_cannot_fit_is_refused_before_training(tmp_path, tiny):
    bench = Bench(tmp_path, tiny, limits={"memory_bytes": 10 << 20})
    with pytest.raises(RunError) as caught:
        bench.loop().rehearse(bench.size, PeakMemory(CPU))
    assert caught.value.code == "out_of_memory"
    assert "0.0 GB" in str(caught.value)
    assert not bench.checkpoints.steps()


@pytest.mark.parametrize("family", ["smollm2", "gemma3", "qwen3"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_layers_give_the_same_bits(tmp_path, tiny_folder, family, dropout):
    gradients = []
    for layers in (0, 1, 2):
        bench = Bench(tmp_path / str(layers), tiny_folder(family), dropout=dropout, part_tokens=64)
        loop = bench.loop()
        bench.loaded.model.train()
        with torch.no_grad():
            for name, tensor in bench.adapter.tensors().items():
                if "lora_B" in name:
                    tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
        torch.manual_seed(5)
        loop._stepper.use(Passes(64, recomputed_layers=layers))
        loop._stepper.gradients([s for row in loop._data.train[:6] for s in row], "step 1")
        gradients.append(
            {name: p.grad.clone() for name, p in bench.loaded.model.named_parameters() if p.grad is not None}
        )
    assert gradients[0]
    assert same(gradients[0], gradients[1])
    assert same(gradients[0], gradients[2])


def test_recomputed_layers_keep_less(tmp_path, tiny):
    kept = []
    for layers in (0, 1, 2):
        bench = Bench(tmp_path / str(layers), tiny)
        loop = bench.loop()
        bench.loaded.model.train()
        loop._stepper.use(Passes(4096, recomputed_layers=layers))
        held = {}

        def keep(tensor, held=held):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loop._stepper.gradients([s for row in loop._data.train for s in row], "step 1")
        kept.append(sum(held.values()))
    assert kept[0] > kept[1] > kept[2]


def test_passes_get_smaller_to_the_end():
    passes, seen = Passes(2048), []
    while (lower := passes.lower(6, "cpu")) is not None:
        seen.append(lower)
        passes = lower
    assert len(set(seen)) == len(seen) < 20
    assert seen[:2] == [Passes(1024), Passes(512)]
    assert passes == Passes(64, recomputed_layers=6, loss_chunk_tokens=64)


def test_copies_of_weights_are_given_up_before_passes_get_tiny():
    passes, seen = Passes(512, copied_weights=True), []
    while (lower := passes.lower(6, "cpu")) is not None:
        seen.append(lower)
        passes = lower
    twice = [one.recomputed_layers for one in seen if one.tokens_per_pass == 512]
    assert [one.copied_weights for one in seen] == [True] * 4 + [False] * 7
    assert twice == [0, 2, 4, 6, 0, 2, 4, 6]
    assert passes == Passes(64, recomputed_layers=6, loss_chunk_tokens=64)


@pytest.mark.skipif(kernels() is None, reason="no C compiler, or a processor without AVX512-BF16")
def test_copies_of_weights_come_and_go_with_the_passes(tmp_path, tiny):
    """Bfloat16: with and without them losses differ by rounding alone. What another one wanted meanwhile is undone."""
    bench = Bench(tmp_path, tiny, dtype="bfloat16")
    loop = bench.loop()
    loop.rehearse(bench.size, PeakMemory(CPU))
    layers = [one for one in bench.loaded.model.modules() if isinstance(one, LoraLinear)]
    rows = [sequence for row in loop._data.train[:5] for sequence in row]
    first = loop._stepper.passes
    assert first.copied_weights and all(one.panels is not None for one in layers)
    losses = []
    for passes in (first, replace(first, copied_weights=False), first):
        loop._stepper.use(passes)
        losses.append(loop._stepper.gradients(rows, "step 1").loss)
        loop._stepper.forget_gradients()
        assert all((one.panels is not None) == passes.copied_weights for one in layers)
    assert losses[0] == losses[2] == pytest.approx(losses[1], rel=0.01)
    other = Stepper(TreeModel.of(bench.loaded.model), (), Passes(4096), lambda *_: None)
    other.mean_loss(rows, lambda done: None)
    assert all(one.panels is None for one in layers)
    assert loop._stepper.gradients(rows, "step 1").loss == losses[0]
    assert all(one.panels is not None for one in layers)
    loop._stepper.forget_gradients()
    assert loop.run().state.passes == first
    assert all(one.panels is None for one in layers)  # the proof has their memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_errors_of_memory_are_known(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes don't fit"))


def test_an_allocation_that_is_too_large_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_the_peak_is_of_the_stretch():
    """200 MB are seen while they are held, in their stretch and in the highest of all, and not in the next."""
    keep_freed_memory()  # as training does: what is free goes back only when that is asked for
    peak = PeakMemory(CPU)
    peak.restart()
    before = peak.bytes()
    block = torch.ones(50_000_000)
    assert peak.bytes() - before > 150e6
    del block
    give_freed_memory_back()
    peak.restart()
    assert peak.highest() - before > 150e6
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pytest.skip("this system keeps no mark of its own for a stretch")
    assert peak.bytes() - before < 100e6


def test_there_is_room():
    assert 100e6 < room_bytes(CPU) < 100e12
