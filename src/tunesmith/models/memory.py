"""How much memory is free on a device."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def free_bytes(device: torch.device) -> int:
    """Return what can still be taken on `device`; of the main memory, within the limits of the control group."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return _free_main_memory()


def status_bytes(name: str) -> int | None:
    """Return a line of this process's status (`VmRSS`, `VmHWM`) in bytes, or None where there is none."""
    return _field_bytes(_STATUS, name)


def _free_main_memory() -> int:
    """Return what can still be taken: by the machine, the control group and the process's own limit."""
    rooms = [_machine_free_bytes(), *_group_rooms()]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        rooms.append(limit - (status_bytes("VmSize") or 0))
    return max(0, min(rooms))


def _machine_free_bytes() -> int:
    return _field_bytes(Path("/proc/meminfo"), "MemAvailable") or (
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    )


def _group_rooms() -> list[int]:
    """Return the room in the control groups that this process can see (version 2, version 1)."""
    places = (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    rooms = []
    for folder, limit_name, used_name, cache_name in places:
        try:
            limit = (folder / limit_name).read_text(encoding="ascii").strip()
            used = int((folder / used_name).read_text(encoding="ascii"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdigit():  # "max": no limit
            rooms.append(int(limit) - used + int(stat.get(cache_name, 0)))
    return rooms


def _field_bytes(file: Path, name: str) -> int | None:
    """Return a line `name: 123 kB` of a file of /proc, in bytes, or None where there is none."""
    try:
        lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
