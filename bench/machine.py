"""What a benchmark ran on: processor, memory, system, library versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

import psutil

_LIBRARIES = ("tunesmith", "torch", "transformers", "tokenizers", "numpy")


def machine_table() -> str:
    """Return a Markdown table of the machine and the libraries, with today's date."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    rows = [
        ("date", datetime.now(UTC).date().isoformat()),
        ("processor", f"{processor()}, {usable_cores()} cores in use"),
        ("memory", f"{psutil.virtual_memory().total / 2**30:.0f} GiB"),
        ("system", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("libraries", versions),
    ]
    return "\n".join(["| machine | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def usable_cores() -> int:
    """Return how many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name."""
    details = Path("/proc/cpuinfo")
    if details.exists():
        name = re.search(r"^model name\s*:\s*(.+)$", details.read_text(encoding="utf-8"), re.MULTILINE)
        if name is not None:
            return name[1].strip()
    return platform.processor() or platform.machine()
