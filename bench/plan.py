"""Compare what `tunesmith plan` says with what then happens; write the section of docs/benchmarks.md.

    python bench/plan.py

Each work load of `bench/training.py` is planned, then trained in a process of its own, without proof.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmark_page import write_section
from machine import machine_table
from tunesmith import api
from tunesmith.record.home import Home
from tunesmith.specs.tune import TuneSpec
from workloads import WORKLOADS, Workload, write_rows

MOST_MEMORY_ERROR, MOST_TIME_ERROR = 0.15, 0.25
_PASSES = 2


@dataclass(frozen=True)
class Planned:
    """What was foretold before anything ran, and what was measured, of one work load."""

    title: str
    expected_bytes: int
    measured_bytes: int
    expected_seconds: float
    measured_seconds: float

    @property
    def memory_error(self) -> float:
        """By how much the memory was foretold wrongly, as a share of the measured one."""
        return self.expected_bytes / self.measured_bytes - 1

    @property
    def time_error(self) -> float:
        """By how much the time was foretold wrongly, as a share of the measured one."""
        return self.expected_seconds / self.measured_seconds - 1


def section(found: list[Planned]) -> str:
    """Return the section in Markdown."""
    what = (
        f"`tunesmith plan`, which computes no step, against the training that followed ({_PASSES} passes over 64 rows "
        "of each kind, SmolLM2-135M). "
        f"Wanted: memory within {MOST_MEMORY_ERROR:.0%}, time within {MOST_TIME_ERROR:.0%}."
    )
    head = ["| rows | memory, expected | measured | | time, expected | measured | |", "|---|---|---|---|---|---|---|"]
    rows = [
        f"| {one.title} | {one.expected_bytes / 1e9:.2f} GB | {one.measured_bytes / 1e9:.2f} GB "
        f"| {one.memory_error:+.0%} | {one.expected_seconds:.0f} s | {one.measured_seconds:.0f} s "
        f"| {one.time_error:+.0%} |"
        for one in found
    ]
    again = "Again: `.venv/bin/python bench/plan.py`."
    return "\n".join(["## The plan against what happened", "", what, "", *head, *rows, "", machine_table(), "", again])


def measure(workload: Workload, scratch: Path) -> Planned:
    """Plan and train one work load."""
    rows = scratch / f"{workload.name}.jsonl"
    write_rows(workload.rows(), rows)
    spec = {
        "data": {"path": str(rows), "format": "chat", "validation_fraction": 0.0, "test_fraction": 0.0},
        "optimisation": {"batch_size": 8, "epochs": _PASSES, "learning_rate": 1e-3},
        "evaluation": {"compare_base": False, "forgetting_rows": 0},
    }
    home = scratch / "home"
    plan = api.plan(TuneSpec.parse(spec), home=Home(home))
    command = [sys.executable, __file__, "--tune", json.dumps(spec), str(home)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    train = json.loads(done.stdout)
    return Planned(workload.title, plan.memory_bytes, train["peak_memory_bytes"], plan.seconds, train["seconds"])


def main() -> None:
    """Measure and write the section; with `--tune`, train once and print the figures."""
    if sys.argv[1:2] == ["--tune"]:
        result = api.tune(TuneSpec.parse(json.loads(sys.argv[2])), home=Home(Path(sys.argv[3])))
        print(result.figures.train.model_dump_json())
        return
    with tempfile.TemporaryDirectory() as scratch:
        text = section([measure(workload, Path(scratch)) for workload in WORKLOADS])
    write_section("plan", text)
    print(text)


if __name__ == "__main__":
    main()
