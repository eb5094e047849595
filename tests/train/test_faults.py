"""Faults that training must survive, by their number in the project's catalogue of faults."""

import random
import shutil
import signal

import pytest
import torch

from killed_training import Processes, train
from small_disk import small_disk  # noqa: F401  (a fixture)
from training_bench import Bench, same, stop_after
from tunesmith.errors import RunError, StorageError
from tunesmith.learn.passes import Passes
from tunesmith.learn.step import TreeModel
from tunesmith.models.weights import load_tensors
from tunesmith.record.atomic import new_folder
from tunesmith.record.observer import Observer
from tunesmith.train.checkpoints import Checkpoint, CheckpointStore, LoopState

SETTINGS = {
    "dropout": 0.2,
    "part_tokens": 60,
    "limits": {"keep_checkpoints": 1},
    "optimisation": {"validate_every_steps": 2},
}


@pytest.fixture(scope="module")
def processes():
    return Processes()


@pytest.fixture
def tiny(tiny_folder):
    return tiny_folder("smollm2")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_folder, processes):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert processes.run(train, folder, tiny_folder("smollm2"), **SETTINGS) == 0
    return load_tensors(folder / "weights.safetensors")


def only_whole(folder):
    """Return the steps that have a checkpoint; each must be whole."""
    store = CheckpointStore(folder / "checkpoints")
    for step in store.steps():
        store.load(step)
    return store.steps()


def go_on(processes, folder, tiny, undisturbed):
    """Resume; the result is that of a run that was never disturbed, and nothing half-written is left."""
    assert processes.run(train, folder, tiny, **SETTINGS) == 0
    assert same(load_tensors(folder / "weights.safetensors"), undisturbed)
    assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("point", "count"), [("temp write", 6), ("fsync", 45), ("rename", 5), ("delete", 2)])
def test_f17_a_crash_at_any_point_leaves_whole_checkpoints(tmp_path, tiny, processes, undisturbed, point, count, when):
    crash = (point, when, count)
    assert processes.run(train, tmp_path, tiny, crash=crash, **SETTINGS) == -signal.SIGKILL
    assert only_whole(tmp_path)
    go_on(processes, tmp_path, tiny, undisturbed)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_f18_there_is_always_a_whole_checkpoint(tmp_path, tiny, processes, undisturbed, seed):
    """Only one is kept; each attempt dies at another moment of writing the new one or removing the old one."""
    chance = random.Random(seed)
    for attempt in range(3):
        crash = (chance.choice(["rename", "delete"]), chance.choice(["before", "after"]), chance.randint(2, 3))
        code = processes.run(train, tmp_path, tiny, crash=crash, **SETTINGS)
        assert code in (0, -signal.SIGKILL), f"seed {seed}, attempt {attempt}, {crash}"
        assert only_whole(tmp_path), f"seed {seed}, attempt {attempt}, {crash}"
    go_on(processes, tmp_path, tiny, undisturbed)


def test_f18_a_save_in_progress_is_not_swept_away(tmp_path, tiny, processes):
    with new_folder(tmp_path / "checkpoints" / "step-000099") as part:
        assert processes.run(train, tmp_path, tiny, **SETTINGS) == 0
        assert part.is_dir()


class AtStep(Observer):
    """Does something after a step, once."""

    def __init__(self, step, act):
        self._step, self._act = step, act

    def step(self, report):
        if report.step == self._step:
            self._act()


def test_f13_a_full_disk_keeps_the_last_checkpoint(small_disk, tmp_path, tiny):  # noqa: F811
    filler = small_disk / "filler"
    settings = {**SETTINGS, "adapter": {"rank": 24}}
    whole = Bench(tmp_path, tiny, **settings)
    whole.loop().run()

    def fill():
        filler.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 100_000))

    bench = Bench(small_disk, tiny, observer=AtStep(5, fill), **settings)
    with pytest.raises(StorageError) as caught:
        bench.loop().run()
    assert caught.value.code == "disk_full"
    assert only_whole(small_disk)[-1] == 4
    assert not list((small_disk / "checkpoints").glob(".*"))
    filler.unlink()
    again = Bench(small_disk, tiny, **settings)
    loop = again.loop()
    loop.resume(again.checkpoints.newest())
    loop.run()
    assert same(again.weights(), whole.weights())


def test_f13_a_run_whose_checkpoints_cannot_fit_is_refused(small_disk, tiny):  # noqa: F811
    bench = Bench(small_disk, tiny, **{**SETTINGS, "adapter": {"rank": 60}})
    with pytest.raises(StorageError) as caught:
        bench.loop().run()
    assert caught.value.code == "disk_full"
    assert "need" in str(caught.value)
    assert not bench.checkpoints.steps()
    assert not list(bench.metrics.rows())


def test_f16_a_rotten_checkpoint_is_neither_kept_nor_in_the_way(tmp_path, tiny):
    """What a resumed run writes before and at the rotten one's step stays, and the rotten one goes."""
    three = {**SETTINGS, "limits": {"keep_checkpoints": 3}}
    whole = Bench(tmp_path / "a", tiny, **three)
    whole.loop().run()
    first = Bench(tmp_path / "b", tiny, **three)
    first.loop(stop_after(10)).run()
    assert {8, 10} < set(first.checkpoints.steps())
    (tmp_path / "b" / "checkpoints" / "step-000010" / "optimizer.safetensors").write_bytes(b"rotten")
    for stop, newest in ((1, 9), (1, 10), (99, 11)):
        bench = Bench(tmp_path / "b", tiny, **SETTINGS)
        loop = bench.loop(stop_after(stop))
        loop.resume(bench.checkpoints.newest())
        loop.run()
        assert only_whole(tmp_path / "b")[-1] == newest
    assert same(bench.weights(), whole.weights())


def test_f16_a_rotten_checkpoint_of_the_same_step_is_written_anew(tmp_path, tiny):
    first = Bench(
        tmp_path,
        tiny,
        **SETTINGS,
    )
    first.loop(stop_after(3)).run()
    (tmp_path / "checkpoints" / "step-000003" / "state.json").write_bytes(b"rotten")
    kept = Checkpoint(LoopState(Passes(60), step=3), first.weights(), {"random": torch.get_rng_state()})
    first.checkpoints.save(kept, keep=1)
    assert first.checkpoints.load(3).state.step == 3


def test_f16_a_rotten_best_checkpoint_gives_way_to_the_newest(tmp_path, tiny):
    """The rate is so high that the best weights are early ones."""
    high = {"learning_rate": 0.9, "schedule": "constant", "validate_every_steps": 2}
    bench = Bench(tmp_path, tiny, optimisation=high)
    best = bench.loop(stop_after(9)).run().state.best_step
    assert best < 8
    (tmp_path / "checkpoints" / f"step-{best:06d}" / "state.json").write_bytes(b"rotten")
    found = bench.checkpoints.newest()
    assert (found.state.step, found.state.best_step, found.state.best_loss) == (9, 9, None)
    assert len(bench.checkpoints.damaged) == 1


def poison_gradient(bench):
    next(iter(bench.adapter.layers.values())).lora_b.register_hook(lambda gradient: gradient * float("nan"))


def poison_loss(bench):
    def not_a_number(module, inputs, output):
        output.last_hidden_state = output.last_hidden_state * float("nan")
        return output

    bench.loaded.model.get_decoder().register_forward_hook(not_a_number)


@pytest.mark.parametrize("poison", [poison_gradient, poison_loss])
def test_f21_a_number_that_is_not_finite_ends_the_run_before_it_is_learnt(tmp_path, tiny, poison):
    bench = Bench(tmp_path, tiny, **SETTINGS)
    good = {}

    def begin():
        good.update(bench.weights())
        poison(bench)

    bench.observer = AtStep(5, begin)
    with pytest.raises(RunError) as caught:
        bench.loop().run()
    assert caught.value.code == "non_finite_loss"
    assert "step 6" in str(caught.value)
    assert same(good, bench.weights())
    newest = bench.checkpoints.newest()
    assert newest.state.step == 4
    assert all(tensor.isfinite().all() for tensor in newest.adapter.values())


def test_f21_weights_that_are_not_finite_are_never_kept(tmp_path, tiny):
    bench = Bench(tmp_path, tiny, **SETTINGS)

    def spoil():
        next(iter(bench.adapter.layers.values())).lora_a.data[0, 0] = float("inf")

    bench.observer = AtStep(5, spoil)  # no validation stands between this step and the checkpoint of a stop
    with pytest.raises(RunError) as caught:
        bench.loop(stop_after(5)).run()
    assert caught.value.code == "non_finite_loss"
    assert only_whole(tmp_path)[-1] == 4


def test_f22_stopped_at_any_step_the_same_rows_cost_the_same(tmp_path, tiny):
    """Steps 5 to 11 are in epochs 2 and 3; dropout, several passes in a step, shared beginnings."""
    whole = Bench(tmp_path / "whole", tiny, **SETTINGS)
    whole.loop().run()
    for stop in (1, 4, 6, 7, 10):
        folder = tmp_path / str(stop)
        first = Bench(folder, tiny, **SETTINGS)
        first.loop(stop_after(stop)).run()
        torch.manual_seed(999)
        second = Bench(folder, tiny, **SETTINGS)
        loop = second.loop()
        loop.resume(second.checkpoints.newest())
        assert loop.run().state.step == 11
        assert second.steps() == whole.steps(), stop
        assert same(second.weights(), whole.weights()), stop


def run_short_of_memory(monkeypatch, fits):
    """Let losses with gradients fail as torch does when memory runs out, except where `fits(recomputed, tokens)`."""
    compute = TreeModel.loss

    def short(self, tree, **settings):
        recomputed = sum(layer.gradient_checkpointing for layer in self.model.model.layers)
        if torch.is_grad_enabled() and not fits(recomputed, len(tree.token_ids)):
            torch.rand(3)  # random numbers that the failed pass has drawn
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return compute(self, tree, **settings)

    monkeypatch.setattr(TreeModel, "loss", short)


def test_f20_memory_that_runs_out_changes_the_passes_and_nothing_else(tmp_path, tiny, monkeypatch):
    """The run is bit-equal to one that computed this way from its start."""
    settings = {"dropout": 0.2, "part_tokens": 100}
    frugal = Bench(tmp_path / "a", tiny, **settings)
    loop = frugal.loop()
    loop._stepper.use(Passes(100, recomputed_layers=2, loss_chunk_tokens=64))
    loop.run()
    run_short_of_memory(monkeypatch, lambda recomputed, tokens: recomputed == 2)
    bench = Bench(tmp_path / "b", tiny, **settings)
    outcome = bench.loop().run()
    assert outcome.state.passes == Passes(100, recomputed_layers=2, loss_chunk_tokens=64)
    replanned = [event for event in bench.events.events() if event.type == "replanned"]
    assert [event.data["new"]["recomputed_layers"] for event in replanned] == [0, 1, 2]
    assert all(event.data["step"] == 1 for event in replanned)
    assert bench.steps() == frugal.steps()
    assert same(bench.weights(), frugal.weights())


def test_f20_with_nothing_to_lower_the_run_fails_with_its_step_and_peak(tmp_path, tiny, monkeypatch):
    bench = Bench(tmp_path, tiny, observer=AtStep(5, lambda: run_short_of_memory(monkeypatch, lambda *_: False)))
    with pytest.raises(RunError) as caught:
        bench.loop().run()
    assert caught.value.code == "out_of_memory"
    assert "step 6" in str(caught.value)
    assert "GB" in str(caught.value)
    assert bench.checkpoints.newest().state.step == 4
    monkeypatch.undo()
    again = Bench(tmp_path, tiny)
    loop = again.loop()
    loop.resume(again.checkpoints.newest())
    assert loop.run().state.step == 11
