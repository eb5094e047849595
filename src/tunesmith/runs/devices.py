"""Devices for runs: each is held by one run at a time, whoever's workers share the machine.

A device is held by a lock on a file. The attempt inherits it, so that it is free only once the last process that could
use the device has ended.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tunesmith.errors import SpecError
from tunesmith.record.home import Home

if sys.platform != "win32":
    import fcntl

_GPUS = Path("/proc/driver/nvidia/gpus")
#: GPUs also go by their long names: `cuda:GPU-5a7f...`. Several `cpu:0`, `cpu:1` share the processor.
_NAME = re.compile(r"cpu(:[\w.-]+)?|cuda:[\w.-]+")


class HeldDevice:
    """A device that nobody else holds until `release`, and until all who inherited `descriptor` have ended."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name = name
        self.descriptor = descriptor

    @property
    def environment(self) -> dict[str, str]:
        """Variables that show a process this device and no other."""
        kind, _, number = self.name.partition(":")
        return {"CUDA_VISIBLE_DEVICES": number if kind == "cuda" else ""}

    def release(self) -> None:
        """Let it go."""
        os.close(self.descriptor)


def check_device_names(names: Sequence[str]) -> None:
    """Refuse names that mean no device: an attempt would quietly train on the processor.

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


def devices_here() -> tuple[str, ...]:
    """Return the names of this machine's devices: its GPUs, or `cpu`; what `CUDA_VISIBLE_DEVICES` hides isn't there."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    else:
        names = [str(number) for number in range(len(list(_GPUS.iterdir())))] if _GPUS.is_dir() else []
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
