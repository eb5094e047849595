"""Put loads on a real server and keep what was measured; write docs/reliability.md's numbers with `make docs`.

cd bench && python -m load                   all rows, about twenty minutes     (`make load`)
cd bench && python -m load L01 L03           some of them; the others keep their earlier numbers
cd bench && python -m load --quick L02       a short try, whose numbers aren't kept
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from load import burst, followers, lists, mixture, overload, uploads, validation
from load.bars import RESULTS, Load, keep

_MIB = 1 << 20

ROWS: dict[str, Callable[[], Load]] = {
    "L01": lists.measure,
    "L02": mixture.measure,
    "L03": uploads.measure,
    "L04": uploads.measure_parts,
    "L05": validation.measure,
    "L06": burst.measure,
    "L07": followers.measure,
    "L10": overload.measure,
    "L11": overload.measure_beside_training,
}
QUICK: dict[str, Callable[[], Load]] = {
    "L01": lambda: lists.measure(files=500, jobs=500, events=5_000, clients=4, seconds=3),
    "L02": lambda: mixture.measure(clients=4, seconds=3),
    "L03": lambda: uploads.measure(16 * _MIB),
    "L04": lambda: uploads.measure_parts(130 * _MIB),
    "L05": lambda: validation.measure(lines=20_000),
    "L06": lambda: burst.measure(count=10, workers=2, singles=5),
    "L07": lambda: followers.measure(followers=5, seconds=4),
    "L10": lambda: overload.measure(seconds=10),
    "L11": lambda: overload.measure_beside_training(seconds=10),
}


def main(values: list[str] | None = None) -> int:
    """Measure what the command line names; return 3 if something doesn't hold."""
    parser = argparse.ArgumentParser(prog="python -m load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"rows of the catalogue, of {', '.join(ROWS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small loads; nothing is kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of results")
    asked = parser.parse_args(values)
    unknown = sorted(set(asked.rows) - ROWS.keys())
    if unknown:
        parser.error(f"unknown rows: {', '.join(unknown)}")
    is_held = True
    for row in asked.rows or ROWS:
        print(f"{row} ...", file=sys.stderr, flush=True)
        load = (QUICK if asked.quick else ROWS)[row]()
        print(f"{row}: {load.work}")
        for bar in load.bars:
            print(f"  {'held    ' if bar.is_held else 'NOT HELD'}  {bar.what}: {bar.measured} ({bar.bar})", flush=True)
            is_held &= bar.is_held
        if not asked.quick:
            keep(load, asked.results)
    return 0 if is_held else 3


if __name__ == "__main__":
    sys.exit(main())
