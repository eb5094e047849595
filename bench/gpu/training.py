"""Measure LoRA and QLoRA on an NVIDIA GPU against transformers + PEFT; write the section of docs/benchmarks.md.

    cd bench && python -m gpu.training              (`make bench-gpu`)
    cd bench && python -m gpu.training --tiny       a tiny shape on any device: tries the script, writes no page

Every measurement is a process of its own; the two sides take turns. No weights are needed: they are random.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmark_page import write_section
from gpu.page import section, target_line
from gpu.sides import RANK, SIDES, Figures
from gpu.work import ADAPTERS, FULL, ROWS, TINY, AdapterName, RowsName, Scale, device_for, make_steps, shape_size
from machine import machine_table
from matrix_rate import best_rate, measure
from operations import step_work
from ratios import rate

RESULTS = Path(__file__).parent.parent / "results" / "gpu-training.json"


def arguments(values: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny shape on any device")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side, in turns")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--one", nargs=3, metavar=("SIDE", "ADAPTER", "ROWS"), help="one measurement, printed as JSON")
    parser.add_argument("--rate", action="store_true", help="the matrix rate alone, printed as JSON")
    return parser.parse_args(values)


def matrix_rate(scale: Scale, device: torch.device) -> float:
    """Return the device's sustained bf16 rate with the shape's own products, in operations a second."""
    shapes = {(linear.inputs, linear.outputs) for linear in shape_size(scale).linears}
    seconds = 0.02 if scale is TINY else 0.5
    return best_rate([asdict(one) for one in measure(shapes, scale.rate_tokens, seconds, device)])


def speeds(figures: Figures, scale: Scale, rows: RowsName) -> dict[str, Any]:
    """Return a run as plain data, with its speeds over all steps but the first."""
    size = shape_size(scale)
    work = [step_work(step, size, RANK) for step in make_steps(scale, rows)]
    return {
        **asdict(figures),
        "tokens_per_second": rate([step.row_tokens for step in work], figures.step_seconds),
        "operations_per_second": rate([step.operations for step in work], figures.step_seconds),
    }


def measure_all(asked: argparse.Namespace, scale: Scale, device: torch.device) -> dict[str, Any]:
    """Measure every adapter on every kind of rows, the sides in turns."""
    cases = [_case(asked, scale, adapter, rows) for adapter in ADAPTERS for rows in ROWS]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {
        "shape": scale.name,
        "device": name,
        "matrix_rate": _apart(asked.tiny, ["--rate"])["matrix_rate"],
        "cases": cases,
        "machine": machine_table(),
    }


def _case(asked: argparse.Namespace, scale: Scale, adapter: AdapterName, rows: RowsName) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {}
    failures: dict[str, str] = {}
    for side in [*SIDES] * asked.rounds:
        if side in failures:
            continue
        try:
            figures = Figures(**_apart(asked.tiny, ["--one", side, adapter, rows]))
        except subprocess.CalledProcessError as error:
            failures[side] = f"failed with exit code {error.returncode}"
            continue
        run = speeds(figures, scale, rows)
        print(f"{adapter}, {rows}, {side}: {run['tokens_per_second']:,.0f} tokens/s", file=sys.stderr, flush=True)
        runs.setdefault(side, []).append(run)
    return {"name": f"{adapter}, {rows}", "runs": runs, "failures": failures}


def _apart(is_tiny: bool, what: list[str]) -> dict[str, Any]:
    """Measure in a process of its own, which ends with one line of JSON.

    Raises:
        subprocess.CalledProcessError: it failed; it has said why.
    """
    command = [sys.executable, "-m", "gpu.training", *(["--tiny"] if is_tiny else []), *what]
    folder = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main(values: list[str] | None = None) -> None:
    """Measure, write results and page, and say whether the target is met."""
    asked = arguments(values)
    scale = TINY if asked.tiny else FULL
    if asked.page_only:
        results = json.loads(asked.results.read_text(encoding="utf-8"))
        write_section("training-gpu", section(results))
        return
    device = device_for(scale)
    if asked.rate:
        print(json.dumps({"matrix_rate": matrix_rate(scale, device)}))
    elif asked.one:
        side, adapter, rows = asked.one
        print(json.dumps(asdict(SIDES[side](scale, adapter, rows, device))))
    else:
        results = measure_all(asked, scale, device)
        if asked.tiny:
            print(section(results))
            return
        asked.results.parent.mkdir(parents=True, exist_ok=True)
        asked.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_section("training-gpu", section(results))
        print(target_line(results))


if __name__ == "__main__":
    main()
