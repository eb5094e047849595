"""Workers that a server starts: one that ends is replaced, as soon as the system has room for another."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from tunesmith.errors import SpecError
from tunesmith.runs import worker_process
from tunesmith.runs.devices import devices_here
from tunesmith.runs.worker_process import WorkerProcess, WorkerSettings, run_worker, worker_processes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def test_a_worker_that_cannot_be_replaced_at_once_is_replaced_later(tmp_path, monkeypatch, caplog):
    numbers = tmp_path / "numbers"
    program = tmp_path / "worker"
    program.write_text(f"#!/bin/sh\necho $$ >> {numbers}\nexec sleep 600\n")
    program.chmod(0o700)
    monkeypatch.setattr(worker_process, "_REPLACE_SECONDS", 0.05)
    monkeypatch.setattr(sys, "executable", str(program))

    def wait(is_so):
        give_up = time.monotonic() + 120
        while not is_so():
            assert time.monotonic() < give_up, caplog.text
            time.sleep(0.02)

    def started():
        return numbers.read_text().split() if numbers.exists() else []

    with worker_processes(1):
        wait(lambda: len(started()) == 1)
        program.rename(tmp_path / "away")
        os.kill(int(started()[0]), signal.SIGKILL)
        wait(lambda: "no worker can be started now" in caplog.text)
        (tmp_path / "away").rename(program)
        wait(lambda: len(started()) == 2)


def test_a_worker_that_could_not_be_started_leaves_no_pipe_open(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    before = sorted(os.listdir("/dev/fd"))  # noqa: PTH208
    with pytest.raises(FileNotFoundError):
        WorkerProcess()
    assert sorted(os.listdir("/dev/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize("name", ["gpu0", "cuda", "cuda:", "CPU", "", "cpu:", "cuda:../0", "cuda:0,1"])
def test_what_is_no_device_is_refused(name, home):
    with pytest.raises(SpecError) as refused:
        run_worker(WorkerSettings(devices=("cpu", name)), home)
    assert refused.value.code == "unknown_device"


@pytest.mark.parametrize("name", ["cuda:99", "cuda:-1", "cuda:GPU-00000000-0000-0000-0000-000000000000"])
def test_a_gpu_that_is_not_there_is_refused(name, home):
    with pytest.raises(SpecError) as refused:
        run_worker(WorkerSettings(devices=("cpu", name)), home)
    assert refused.value.code == "unknown_device" and f"'{name}'" in refused.value.message
    assert "cpu" in refused.value.fix


def test_the_devices_that_are_there_are_listed(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5, 7,-1")
    assert devices_here() == ("cuda:3", "cuda:5", "cuda:7")
    assert devices_here(2) == ("cuda:3", "cuda:5")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert devices_here(2) == ("cuda:0", "cuda:1") and devices_here(0) == ("cpu",)
