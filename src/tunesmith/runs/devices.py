"""Devices for runs: each is held by one run at a time, whoever's workers share the machine.

A device is held by a lock on a file. The attempt inherits it, so that it is free only once the last process that could
use the device has ended.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tunesmith.errors import SpecError
from tunesmith.record.home import Home

if sys.platform != "win32":
    import fcntl

_GPUS = Path("/proc/driver/nvidia/gpus")
#: GPUs also go by their long names: `cuda:GPU-5a7f...`. Several `cpu:0`, `cpu:1` share the processor.
_NAME = re.compile(r"cpu(:[\w.-]+)?|cuda:[\w.-]+")
#: Asked in a process of its own: CUDA reads its variables once, and whoever has asked it must not fork.
_COUNT_GPUS = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"


class HeldDevice:
    """A device that nobody else holds until `release`, and until all who inherited `descriptor` have ended."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor

    @property
    def environment(self) -> dict[str, str]:
        """Variables that show a process this device and no other."""
        return _environment(self.name)

    def release(self) -> None:
        """Let it go."""
        os.close(self.descriptor)


def check_device_names(names: Sequence[str]) -> None:
    """Refuse names that mean no device of this machine: an attempt would quietly train on the processor.

    Where GPUs are named, this asks PyTorch for them, which takes some seconds.

    Raises:
        SpecError: there is one (`unknown_device`).
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise SpecError(
                f"There is no device called '{name[:100]}'.",
                where="--device",
                fix="Write cpu, or cuda: and a GPU's number, such as cuda:0.",
                code="unknown_device",
                param="device",
            )
    gpus = [name for name in dict.fromkeys(names) if name.startswith("cuda:")]
    with ThreadPoolExecutor() as threads:
        counts = list(threads.map(lambda name: _count_gpus(_environment(name)), gpus))
    missing = next((name for name, count in zip(gpus, counts, strict=True) if count == 0), None)
    if missing is not None:
        here = [name for name in devices_here(_count_gpus({})) if name != "cpu"]
        listed = ", ".join(["cpu", *here])
        raise SpecError(
            f"There is no GPU '{missing[:100]}' that PyTorch can use.",
            where="--device",
            fix=f"Choose among what is here: {listed}."
            if here
            else "PyTorch sees no GPU here: choose cpu, or install the driver and a PyTorch with CUDA.",
            code="unknown_device",
            param="device",
        )


def devices_here(count: int | None = None) -> tuple[str, ...]:
    """Return the names of this machine's devices: its GPUs, or `cpu`; what `CUDA_VISIBLE_DEVICES` hides isn't there.

    Args:
        count: how many GPUs PyTorch sees; None: as many as the driver tells of.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")][:count]
    else:
        if count is None:
            count = len(list(_GPUS.iterdir())) if _GPUS.is_dir() else 0
        names = [str(number) for number in range(count)]
    return tuple(f"cuda:{name}" for name in names) or ("cpu",)


def hold(name: str, home: Home) -> HeldDevice | None:
    """Hold a device, or return None where somebody has it.

    A GPU is held against all of this machine; the processor only against workers of the same home, as the system shares
    it out well enough.

    Raises:
        StorageError: the home can't be written.
    """
    # /tmp is the same for all, and a lock there is nobody's secret.
    shared = Path(tempfile.gettempdir()) if name.startswith("cuda") else home.jobs
    path = shared / f"tunesmith-device-{name.replace(':', '-')}.lock"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
    return HeldDevice(name, descriptor)


def _environment(name: str) -> dict[str, str]:
    """Return the variables that show a process a device and no other."""
    kind, _, number = name.partition(":")
    return {"CUDA_VISIBLE_DEVICES": number if kind == "cuda" else ""}


def _count_gpus(environment: Mapping[str, str]) -> int:
    """Return how many GPUs PyTorch sees in an environment."""
    command = [sys.executable, "-c", _COUNT_GPUS]
    told = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True)
    return int(told.stdout)
