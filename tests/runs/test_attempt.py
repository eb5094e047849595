"""How attempts end that couldn't go on."""

from __future__ import annotations

import sys

import pytest
import torch

from tunesmith.runs import attempt
from tunesmith.runs.exit_codes import CRASHED, OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OUT_OF_MEMORY),
        (RuntimeError("a fault"), CRASHED),
        (ValueError("a fault"), CRASHED),
    ],
)
def test_an_attempt_tells_when_memory_ran_out(error, code, home, monkeypatch):
    def fail(_):
        raise error

    monkeypatch.setattr(attempt.Attempt, "work", fail)
    monkeypatch.setattr(sys, "argv", ["attempt", "--job", "ftjob-1", "--fence", "1"])
    assert attempt.main() == code
