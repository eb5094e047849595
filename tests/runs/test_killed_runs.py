"""Whole runs in processes that are killed, and runs that fail: what the run folder says, what is published."""

import json
import random
import shutil
import signal
import time

import pytest
import torch

from killed_training import Processes, start_or_resume
from small_disk import small_disk  # noqa: F401  (a fixture)
from tiny_models import save_tiny_model
from tunesmith import api
from tunesmith.errors import RunError, StorageError
from tunesmith.learn.step import TreeModel
from tunesmith.record.home import Home
from tunesmith.record.observer import Observer
from tunesmith.record.parquet import read_parquet
from tunesmith.specs.tune import TuneSpec


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """Some 170 steps with dropout: after one of the first 43, no kill is too late. Nothing is proved at the end."""
    folder = tmp_path_factory.mktemp("spec")
    base = save_tiny_model("smollm2", folder / "tiny-smollm2")
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n} " * (n % 5 + 1)}]}
        for n in range(60)
    ]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    settings = {
        "base": str(base),
        "data": {"path": str(folder / "rows.jsonl"), "test_fraction": 0},
        "adapter": {"rank": 4, "dropout": 0.1},
        "optimisation": {"epochs": 12, "batch_size": 4, "validate_every_steps": 5, "patience": 0},
        "limits": {"keep_checkpoints": 1},
    }
    spec = TuneSpec.parse(settings)
    spec.write_yaml(folder / "spec.yaml")
    return spec, folder / "spec.yaml"


def weights(home):
    """The bytes of the only model, as it was published."""
    (model,) = api.list_models(home)
    return (model.folder / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def processes():
    return Processes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, spec, processes):
    root = tmp_path_factory.mktemp("undisturbed")
    assert processes.run(start_or_resume, root, spec[1]) == 0
    return weights(Home(root))


def reached(home, step, delay_seconds):
    """A `kill_when` that says yes some time after a step's figures are on record."""

    def is_reached():
        for file in home.runs.glob("*/metrics.jsonl"):
            if f'"step": {step},' in (text := file.read_text(encoding="utf-8")) or f'"step":{step},' in text:
                time.sleep(delay_seconds)
                return True
        return False

    return is_reached


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_f01_a_killed_run_ends_as_if_nothing_had_happened(tmp_path, spec, processes, undisturbed, seed):
    """kill -9 after three steps and some milliseconds, all drawn by chance; the seed stands in the test's name."""
    chance = random.Random(seed)
    home = Home(tmp_path)
    for step in sorted(chance.sample(range(1, 44), 3)):
        dead = reached(home, step, chance.uniform(0, 0.04))
        code = processes.run(start_or_resume, tmp_path, spec[1], kill_when=dead)
        assert code == -signal.SIGKILL, f"seed {seed}, step {step}"
    assert processes.run(start_or_resume, tmp_path, spec[1]) == 0
    (run,) = api.list_runs(home)
    assert run.state == "succeeded"
    assert weights(home) == undisturbed
    rows = read_parquet(run.folder / "metrics.parquet")
    steps = [row["step"] for row in rows if row["loss"] is not None]
    assert steps == list(range(1, len(steps) + 1))
    assert not list((run.folder / "checkpoints").glob(".*"))


def test_f21_a_diverged_run_publishes_nothing(tmp_path, spec, monkeypatch):
    home = Home(tmp_path)
    compute, passes = TreeModel.loss, []

    def broken(self, tree, **settings):
        total, losses = compute(self, tree, **settings)
        passes.append(torch.is_grad_enabled())
        return (total * float("nan"), losses * float("nan")) if sum(passes) > 9 else (total, losses)

    monkeypatch.setattr(TreeModel, "loss", broken)
    with pytest.raises(RunError):
        api.tune(spec[0], home=home)
    (run,) = api.list_runs(home)
    assert (run.state, run.code) == ("failed", "non_finite_loss")
    assert not api.list_models(home)
    kept = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert kept[-1] == "step-000005"


class Filling(Observer):
    """Takes nearly all that is left of a disk after some steps."""

    def __init__(self, disk, file):
        self._disk, self._file = disk, file

    def step(self, report):
        if report.step == 7:
            self._file.write_bytes(b"0" * (shutil.disk_usage(self._disk).free - 40_000))


def test_f13_a_run_on_a_full_disk_fails_with_its_code_and_goes_on_later(small_disk, spec):  # noqa: F811
    home, filler = Home(small_disk / "home"), small_disk / "filler"
    with pytest.raises(StorageError):
        api.tune(spec[0], home=home, observer=Filling(small_disk, filler))
    (run,) = api.list_runs(home)
    assert (run.state, run.code) == ("failed", "disk_full")
    filler.unlink()
    api.resume(run.id, home=home)
    assert [view.state for view in api.list_runs(home)] == ["succeeded"]
    assert len(api.list_models(home)) == 1
