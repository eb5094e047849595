"""Measure generation on an NVIDIA GPU against transformers; write the section of docs/benchmarks.md.

    cd bench && python -m gpu.generate                  (`make bench-generate-gpu`)
    cd bench && python -m gpu.generate --shape tiny     a tiny shape on any device: tries the script, writes no page

Every measurement is a process of its own; the two sides take turns. No weights are needed: they are random.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmark_page import spaced, table, wrapped, write_section
from decoding_limits import read_bandwidth, step_cost
from generation_page import decoded_per_second, tokens_per_second
from gpu.generation_work import SHAPES, SIDES, GenerationScale, measure_side
from gpu.work import device_for, shape_size
from machine import machine_table
from ratios import ratio, spread

RESULTS = Path(__file__).parent.parent / "results" / "gpu-generation.json"

_WHAT = """Greedy, bf16, prompts of random tokens of which no two begin alike, handed over at once; both sides run in
processes of their own and in turns, and the time runs to the last token. Decoding is counted from when all requests
have their first token; its share of the memory's speed is what a step must read (all weights, and the keys and values
of the texts so far) by what the device reads at best."""


def arguments(values: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="8b", help="how large everything is")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side, in turns")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument("--page-only", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--one", choices=tuple(SIDES), metavar="SIDE", help="one run of a side, printed as JSON")
    parser.add_argument("--bandwidth", action="store_true", help="the memory's speed alone, printed as JSON")
    return parser.parse_args(values)


def measure_all(asked: argparse.Namespace, shape: GenerationScale, device: torch.device) -> dict[str, Any]:
    """Measure the sides in turns, and the memory's speed."""
    runs: dict[str, list[dict[str, Any]]] = {}
    failures: dict[str, str] = {}
    for side in [*SIDES] * asked.rounds:
        if side in failures:
            continue
        try:
            runs.setdefault(side, []).append(_apart(asked.shape, ["--one", side]))
        except subprocess.CalledProcessError as error:
            failures[side] = f"failed with exit code {error.returncode}"
    cost = step_cost(shape_size(shape.scale))
    return {
        "shape": shape.scale.name,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "prompt_tokens": shape.prompt_tokens,
        "new_tokens": shape.new_tokens,
        "bandwidth": _apart(asked.shape, ["--bandwidth"])["bandwidth"],
        **vars(cost),
        "runs": runs,
        "failures": failures,
        "machine": machine_table(),
    }


def bandwidth_share(results: dict[str, Any], count: int, speed: float) -> float:
    """Return the share of the memory's speed at which `count` requests were decoded, `speed` tokens a second."""
    text_tokens = results["prompt_tokens"] + results["new_tokens"] / 2
    read = results["weight_bytes"] + count * text_tokens * results["cache_bytes_per_token"]
    return float(read * speed / count / results["bandwidth"])


def section(results: dict[str, Any]) -> str:
    """Return the section in Markdown."""
    head = (
        "requests at once",
        "side",
        "tokens/s",
        "Tunesmith is faster by",
        "decoding, tokens/s",
        "of the memory's speed",
    )
    rows = []
    for count in next(iter(results["runs"].values()))[0]:
        for side, runs in results["runs"].items():
            speeds = [tokens_per_second(run[count]) for run in runs]
            decoding = spread([decoded_per_second(run[count]) for run in runs])
            ours = [tokens_per_second(run[count]) for run in results["runs"].get("tunesmith", [])]
            faster = f"{ratio(ours, speeds).text(2)} x" if side != "tunesmith" and ours else ""
            share = f"{100 * bandwidth_share(results, int(count), decoding.median):.0f} %"
            rows.append((count, SIDES[side][0], spread(speeds).text(), faster, decoding.text(), share))
    facts = (
        f"{results['shape']}: prompts of {results['prompt_tokens']} tokens, answers of {results['new_tokens']}. One "
        f"{results['device']}, which reads {results['bandwidth'] / 1e9:,.0f} GB/s at best."
    )
    failures = [f"{SIDES[side][0]} {why}." for side, why in results["failures"].items()]
    parts = ["## Generation on a GPU", "", wrapped(f"{facts} {_WHAT}"), "", *table(head, rows), "", *spaced(failures)]
    return "\n".join([*parts, results["machine"], "", "Again: `make bench-generate-gpu`."])


def _apart(shape: str, what: list[str]) -> dict[str, Any]:
    """Measure in a process of its own, which ends with one line of JSON.

    Raises:
        subprocess.CalledProcessError: it failed; it has said why.
    """
    command = [sys.executable, "-m", "gpu.generate", "--shape", shape, *what]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main(values: list[str] | None = None) -> None:
    """Measure, write results and page."""
    asked = arguments(values)
    shape = SHAPES[asked.shape]
    if asked.page_only:
        write_section("generation-gpu", section(json.loads(asked.results.read_text(encoding="utf-8"))))
        return
    device = device_for(shape.scale)
    if asked.bandwidth:
        print(json.dumps({"bandwidth": read_bandwidth(1.0, shape.buffer_bytes, device)}))
    elif asked.one:
        print(json.dumps(measure_side(asked.one, shape, device)))
    else:
        results = measure_all(asked, shape, device)
        if asked.shape == "tiny":
            print(section(results))
            return
        asked.results.parent.mkdir(parents=True, exist_ok=True)
        asked.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_section("generation-gpu", section(results))


if __name__ == "__main__":
    main()
