"""What all sides of the benchmark do alike: read a job, time steps, note the peak of memory, write a result."""

from __future__ import annotations

import importlib.metadata
import json
import re
import resource
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """What one side is asked to train, the same for all sides.

    Attributes:
        model: folder of the base (Hugging Face's form).
        rows: JSON lines. For Tunesmith chat rows; for peers token rows in the order of training: `input_ids` and
            `labels` (-100 where nothing is learnt), so that all sides learn the same tokens.
        result: the file that the side writes.
        work: an empty folder for whatever the side leaves behind.
        batch_size: rows in a step.
        rank: of the LoRA on all linear layers; its alpha is twice the rank.
        learning_rate: of the first step; it falls in a line to zero, without warm-up.
        max_tokens: no row is longer.
        seed: of the fresh adapter.
        settings: further settings that only this side knows.
    """

    model: str
    rows: str
    result: str
    work: str
    batch_size: int
    rank: int
    learning_rate: float
    max_tokens: int
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_arguments(cls) -> Job:
        """Read the job whose file the command line names."""
        values = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        return cls(**{one.name: values[one.name] for one in fields(cls)})

    def token_rows(self) -> list[dict[str, list[int]]]:
        """Return a peer's rows."""
        return [json.loads(line) for line in Path(self.rows).read_text(encoding="utf-8").splitlines()]


class StepClock:
    """Times optimiser steps from the end of the one before, so that making a batch counts too."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._first_step_at: float | None = None
        self._before = 0.0
        self._steps: list[dict[str, float]] = []
        self._peak_memory_bytes = 0

    @property
    def has_begun(self) -> bool:
        """Whether the first step has begun."""
        return self._first_step_at is not None

    def begin(self, seconds_ago: float = 0.0) -> None:
        """Note that the first step begins now, or began some seconds ago."""
        self._before = time.perf_counter() - seconds_ago
        self._first_step_at = time.time() - seconds_ago

    def step_done(self, loss: float | None = None) -> None:
        """Note that a step has ended; `loss` in nats a learnt token."""
        now = time.perf_counter()
        self._steps.append({"seconds": now - self._before} | ({} if loss is None else {"loss": loss}))
        self._before = now
        self._peak_memory_bytes = peak_memory_bytes()

    def set_losses(self, losses: list[float]) -> None:
        """Give the steps' losses afterwards, for sides that tell them late."""
        for step, loss in zip(self._steps, losses, strict=True):
            step["loss"] = loss

    def write(self, packages: tuple[str, ...], **further: Any) -> None:
        """Write the result, with the versions of some packages."""
        versions = {name: importlib.metadata.version(name) for name in packages}
        result = {
            "first_step_at": self._first_step_at,
            "steps": self._steps,
            "peak_memory_bytes": self._peak_memory_bytes,
            "versions": versions,
            **further,
        }
        Path(self._job.result).write_text(json.dumps(result), encoding="utf-8")


def peak_memory_bytes() -> int:
    """Return the highest resident memory of this process so far.

    On Linux from the kernel's high-water mark, since `getrusage` there also counts the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        mark = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"), re.MULTILINE)
        if mark is not None:
            return int(mark[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
