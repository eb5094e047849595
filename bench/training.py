"""Measure training against its peers on this machine's CPU; write the section of docs/benchmarks.md.

    python bench/training.py                      everything          (`make bench-training`)
    python bench/training.py --parts maths,model  some of it; the rest of the page keeps its earlier figures
    python bench/training.py --page-only          the page again from bench/results/training.json

Both sides run as processes of their own, one after the other in turns (Tunesmith, TRL, Tunesmith, TRL, ...), on the
same rows, with the same base, rank, batch and learning rate. The page is written from the results' file alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmark_page import write_section
from growth import GROWTHS
from machine import machine_table
from measured_work import Bench
from sides import SIDES, Environments
from training_page import bars, section
from tunesmith.record.atomic import write_json
from tunesmith.record.home import Home
from workloads import WORKLOADS

RESULTS = Path(__file__).parent / "results" / "training.json"


def arguments(values: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parts = [*(workload.name for workload in WORKLOADS), *GROWTHS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=Path, default=Path(__file__).parent / ".peers", help="the peers' environments")
    parser.add_argument("--parts", default=",".join(parts), help=f"what to measure, of {', '.join(parts)}")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"who takes part, of {', '.join(SIDES)}")
    parser.add_argument("--rounds", type=int, default=3, help="runs of Tunesmith and of TRL's best, in turns")
    parser.add_argument("--rows", type=int, default=64, help="rows of each workload; fewer for a quick try")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--no-page", action="store_true", help="leave the page as it is")
    asked = parser.parse_args(values)
    for name, known in (("parts", parts), ("sides", list(SIDES))):
        chosen = [word for word in getattr(asked, name).split(",") if word]
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            parser.error(f"unknown {name}: {', '.join(unknown)}; known are {', '.join(known)}")
        setattr(asked, name, chosen)
    return asked


def measure(asked: argparse.Namespace, results: dict[str, Any]) -> None:
    """Measure the parts that were asked for; results are written after each."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Home(Path(scratch) / "home")
        bench = Bench(
            environments=Environments(asked.peers.absolute()),
            home=home,
            scratch=Path(scratch),
            sides=tuple(SIDES[name] for name in asked.sides),
            rounds=asked.rounds,
            rows=asked.rows,
        )
        for part in asked.parts:
            print(f"measuring {part}", file=sys.stderr, flush=True)
            if part in GROWTHS:
                results.setdefault("growth", {})[part] = GROWTHS[part](bench)
            else:
                workload = next(one for one in WORKLOADS if one.name == part)
                results.setdefault("workloads", {})[part] = bench.workload(workload)
            results["machine"] = machine_table()
            results["measured"] = datetime.now(UTC).isoformat(timespec="seconds")
            asked.results.parent.mkdir(parents=True, exist_ok=True)
            write_json(asked.results, results)


def main() -> None:
    """Measure, write the page, and say which bars are met."""
    asked = arguments()
    results: dict[str, Any] = json.loads(asked.results.read_text(encoding="utf-8")) if asked.results.exists() else {}
    if not asked.page_only:
        measure(asked, results)
    if not results:
        raise SystemExit(f"There are no results yet in {asked.results}.")
    if not asked.no_page:
        write_section("training", section(results))
    for bar in bars(results):
        print(bar.line())


if __name__ == "__main__":
    main()
