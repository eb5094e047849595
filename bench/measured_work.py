"""Run the sides on one kind of rows, in turns, and return what was measured as plain data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix_rate import best_rate, measure_apart
from operations import StepWork, step_work
from peers.clock import Job
from ratios import rate
from sides import BEST_PEER, OURS, Environments, Side, SideFailure, SideRun, run_side
from trained_rows import Steps, by_length, steps_of_run, write_token_rows
from tunesmith.models.resolve import resolve_base
from tunesmith.models.size import model_size
from tunesmith.record.home import Home
from workloads import ChatRow, Workload, write_rows

BATCH_SIZE = 8
RANK = 16
LEARNING_RATE = 5e-4
MAX_TOKENS = 4096
BASE = "smollm2-135m"


@dataclass(frozen=True)
class Work:
    """What is trained on what.

    Attributes:
        name: a short word for files.
        base: an embedded name or a folder.
        rows: chat rows.
        batch_size: rows in a step.
        peer_steps: peers take only so many first steps; None for all.
    """

    name: str
    base: str
    rows: Sequence[ChatRow]
    batch_size: int = BATCH_SIZE
    peer_steps: int | None = None


@dataclass
class Bench:
    """Everything that a measurement needs: environments, Tunesmith's home, a scratch folder, sides, rounds, rows."""

    environments: Environments
    home: Home
    scratch: Path
    sides: tuple[Side, ...]
    rounds: int
    rows: int

    def base_folder(self, base: str = BASE) -> Path:
        """Return the folder of a base, converted if need be, so that no run pays for that."""
        return resolve_base(base, self.home).folder

    def workload(self, workload: Workload) -> dict[str, Any]:
        """Measure one kind of rows with all sides, and the machine's matrix rate before and after."""
        folder = self.base_folder()
        before = measure_apart(folder)
        work = Work(workload.name, BASE, workload.rows()[: self.rows])
        measured = self.in_turns(work, self.sides, self.rounds)
        after = measure_apart(folder)
        return {
            "title": workload.title,
            "least_speed_ratio": workload.least_speed_ratio,
            "has_rate_bar": workload.has_rate_bar,
            "matrix_rate": max(best_rate(before), best_rate(after)),
            "matrix_rates": before,
            **measured,
        }

    def in_turns(self, work: Work, sides: Sequence[Side], rounds: int) -> dict[str, Any]:
        """Run Tunesmith and the best peer in turns, every other side once; return all runs.

        Tunesmith's first run comes first, because its run folder says which rows are learnt in which step.
        """
        folder = self.base_folder(work.base)
        chat_file = self.scratch / f"{work.name}-chat.jsonl"
        write_rows(list(work.rows), chat_file)
        runs: dict[str, list[SideRun]] = {}
        failures: dict[str, str] = {}
        first = self._run(OURS, self._job(work, work.base, chat_file))
        runs[OURS.name] = [first]
        steps = steps_of_run(first.further["run"], self.home)
        _check_order(steps, first)
        orders = {"steps": steps, "length": by_length(steps, work.batch_size)}
        turns = [BEST_PEER] if BEST_PEER in sides else []
        turns += [OURS, *turns] * (rounds - 1)
        turns += [side for side in sides if side not in (OURS, BEST_PEER)]
        for side in turns:
            if side.name in failures:
                continue
            rows = chat_file
            if side.order != "chat":
                rows = self.scratch / f"{work.name}-{side.order}.jsonl"
                write_token_rows(orders[side.order][: work.peer_steps], rows)
            base = work.base if side is OURS else str(folder)
            try:
                runs.setdefault(side.name, []).append(self._run(side, self._job(work, base, rows)))
            except SideFailure as failure:
                if side is OURS:
                    raise
                print(f"{side.name} {failure}", file=sys.stderr, flush=True)
                failures[side.name] = str(failure).splitlines()[0]
                runs.pop(side.name, None)
        size = model_size(folder)
        work_of = {name: [step_work(step, size, RANK) for step in order] for name, order in orders.items()}
        work_of["chat"] = work_of["steps"]
        order_of = {side.name: side.order for side in (OURS, *sides)}
        return {
            "rows": sum(len(step) for step in steps),
            "work": {name: [step.to_json() for step in work_of[name]] for name in ("steps", "length")},
            "runs": {name: [_figures(run, work_of[order_of[name]]) for run in found] for name, found in runs.items()},
            "failures": failures,
        }

    def _job(self, work: Work, base: str, rows: Path) -> Job:
        return Job(
            model=base,
            rows=str(rows),
            result="",
            work="",
            batch_size=work.batch_size,
            rank=RANK,
            learning_rate=LEARNING_RATE,
            max_tokens=MAX_TOKENS,
        )

    def _run(self, side: Side, job: Job) -> SideRun:
        print(f"  {side.name}", end=" ", file=sys.stderr, flush=True)
        run = run_side(side, job, self.environments, self.home.root)
        print(
            f"{sum(run.step_seconds):.1f} s, {run.peak_memory_bytes / 2**30:.2f} GiB, last loss {run.losses[-1]:.4f}",
            file=sys.stderr,
            flush=True,
        )
        return run


def _figures(run: SideRun, work: Sequence[StepWork]) -> dict[str, Any]:
    """Return one run as plain data, with its speeds over all steps but the first."""
    work = work[: len(run.step_seconds)]
    return {
        "tokens_per_second": rate([step.row_tokens for step in work], run.step_seconds),
        "operations_per_second": rate([step.operations for step in work], run.step_seconds),
        "peak_memory_bytes": run.peak_memory_bytes,
        "startup_seconds": run.startup_seconds,
        "losses": run.losses,
        "step_seconds": run.step_seconds,
        "versions": run.versions,
    }


def _check_order(steps: Steps, run: SideRun) -> None:
    """Make sure that the steps are those of the run: the run counted each step's tokens.

    Raises:
        RuntimeError: they aren't.
    """
    counted = run.further["step_tokens"]
    expected = [sum(len(row.token_ids) for row in step) for step in steps]
    if counted != expected:
        raise RuntimeError(f"Tunesmith's steps hold {counted} tokens; its run folder says {expected}.")
