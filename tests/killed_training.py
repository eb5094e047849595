"""Training in processes of its own that can be killed at any moment, as a power cut or `kill -9` would end them.

    processes = Processes()                      # imports everything once; each process is then a quick fork
    code = processes.run(train, folder, base, crash=("rename", "before", 3))
    assert code == -signal.SIGKILL

Functions that run there are named by module, so they live here.
"""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import shutil
import signal
import time
from pathlib import Path

import torch

from training_bench import Bench
from tunesmith import api
from tunesmith.models.weights import save_tensors
from tunesmith.record.home import Home
from tunesmith.specs.tune import TuneSpec
from tunesmith.train import checkpoints

#: Where a process can be told to die: the function that is about to do its work, or has just done it.
POINTS = {
    "temp write": (checkpoints, "save_tensors"),
    "fsync": (os, "fsync"),
    "rename": (pathlib.Path, "rename"),
    "delete": (shutil, "rmtree"),
}


class Processes:
    """Starts processes by forking one that has imported this module and has computed nothing yet."""

    def __init__(self):
        places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(place for place in places if place)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["killed_training"])

    def run(self, function, *arguments, kill_when=lambda: False, **settings):
        """Run to the end, or kill -9 the process when `kill_when()` says so; return its exit code (-9 if killed)."""
        process = self._context.Process(target=_alone, args=(function, arguments, settings))
        process.start()
        while process.exitcode is None:
            if kill_when():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
            process.join(0.003)
        return process.exitcode


def _alone(function, arguments, settings):
    torch.set_num_threads(1)
    function(*arguments, **settings)


def train(folder, base, *, crash=None, **settings):
    """Train a `Bench`, from its newest checkpoint if there is one; leave the weights in `weights.safetensors`."""
    if crash is not None:
        die_at(*crash)
    bench = Bench(folder, base, **settings)
    loop = bench.loop()
    newest = bench.checkpoints.newest()
    assert not bench.checkpoints.damaged
    if newest is not None:
        bench.metrics.truncate_after(newest.state.step)
        bench.row_losses.truncate_after(newest.state.step)
        loop.resume(newest)
    loop.run()
    save_tensors(folder / "weights.safetensors", bench.weights())


def start_or_resume(root, spec_file):
    """Work on a home's only run, or start it."""
    home = Home(root)
    runs = api.list_runs(home)
    if runs:
        api.resume(runs[0].id, home=home)
    else:
        api.tune(TuneSpec.from_yaml(spec_file), home=home)


def die_at(point, when, count):
    """Make this process kill itself before or after the `count`-th call of what `point` names."""
    owner, name = POINTS[point]
    original = getattr(owner, name)
    calls = 0

    def counted(*arguments, **settings):
        nonlocal calls
        calls += 1
        if (when, calls) == ("before", count):
            _die()
        result = original(*arguments, **settings)
        if (when, calls) == ("after", count):
            _die()
        return result

    setattr(owner, name, counted)


def _die():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
