"""Measure generation against its peers on this machine's CPU; write the section of docs/benchmarks.md.

    python bench/generate.py                          everything          (`make bench-generate`)
    python bench/generate.py --parts throughput,load  some of it; the rest of the page keeps its earlier figures
    python bench/generate.py --page-only              the page again from bench/results/generation.json

All sides run as processes of their own, one after the other in turns, on the same base in bf16, the same prompts as
the same tokens, and answers of the same length. The page is written from the results' file alone.
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
from generation_page import bars, section
from generation_sides import SIDES
from generation_work import AT_ONCE, BASE, PARTS, TURN_PARTS, GenerationBench
from machine import machine_table
from sides import Environments
from tunesmith.models.resolve import resolve_base
from tunesmith.record.atomic import write_json
from tunesmith.record.home import Home

RESULTS = Path(__file__).parent / "results" / "generation.json"


def arguments(values: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=Path, default=Path(__file__).parent / ".peers", help="the peers' environments")
    parser.add_argument("--base", default=BASE, help="an embedded base or a folder")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"what to measure, of {', '.join(PARTS)}")
    parser.add_argument("--sides", default=",".join(SIDES), help=f"who takes part, of {', '.join(SIDES)}")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side, in turns")
    parser.add_argument(
        "--requests", type=int, default=AT_ONCE[-1], help="most requests at once; fewer for a quick try"
    )
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--no-page", action="store_true", help="leave the page as it is")
    asked = parser.parse_args(values)
    for name, known in (("parts", PARTS), ("sides", tuple(SIDES))):
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
        bench = GenerationBench(
            folder=resolve_base(asked.base, home).folder,
            home=home,
            environments=Environments(asked.peers.absolute()),
            sides=tuple(SIDES[name] for name in asked.sides),
            rounds=asked.rounds,
            most_at_once=asked.requests,
            new_tokens=asked.tokens,
        )
        turns = [part for part in TURN_PARTS if part in asked.parts]
        if turns:
            print(f"measuring {' and '.join(turns)}", file=sys.stderr, flush=True)
            _keep(asked.results, results, bench.in_turns(turns))
        for name, part in (("load", bench.load), ("adapters", bench.adapters), ("limits", bench.limits)):
            if name in asked.parts:
                print(f"measuring {name}", file=sys.stderr, flush=True)
                _keep(asked.results, results, {name: part()})


def _keep(file: Path, results: dict[str, Any], parts: dict[str, Any]) -> None:
    """Put measured parts into the results and write them."""
    results.update(parts, machine=machine_table(), measured=datetime.now(UTC).isoformat(timespec="seconds"))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, results)


def main(values: list[str] | None = None) -> None:
    """Measure, write the page, and say which bars are met."""
    asked = arguments(values)
    results: dict[str, Any] = json.loads(asked.results.read_text(encoding="utf-8")) if asked.results.exists() else {}
    if not asked.page_only:
        measure(asked, results)
    if not results:
        raise SystemExit(f"There are no results yet in {asked.results}.")
    if not asked.no_page:
        write_section("generation", section(results))
    for bar in bars(results):
        print(bar.line())


if __name__ == "__main__":
    main()
