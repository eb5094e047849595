"""The GPU section of docs/benchmarks.md, from the results alone."""

from __future__ import annotations

import textwrap
from typing import Any

from ratios import ratio, spread

TITLES = {"tunesmith": "Tunesmith", "peft": "transformers + PEFT, SDPA"}
LEAST_RATE_SHARE = 0.5

_WHAT = """\
LoRA and QLoRA of rank 16 on all linear layers, bf16. Packed rows have 4,096 tokens, all learnt; mixed rows are 64 to
4,096 tokens long, a third of them learnt; about 16,384 tokens in each step. Both sides train the same rows from the
same random weights, in processes of their own and in turns. transformers + PEFT runs without gradient checkpointing,
on rows of like length together, 4,096 tokens in a pass. Memory is what the steps allocated at most on the device;
the first step is left out of the speeds."""


def share(case: dict[str, Any], side: str, rate: float) -> float:
    """Return the median share of the matrix rate that a side reached."""
    return spread([run["operations_per_second"] / rate for run in case["runs"][side]]).median


def target_line(results: dict[str, Any]) -> str:
    """Return whether LoRA on packed rows reaches its target, as a sentence."""
    case = next((case for case in results["cases"] if case["name"] == "lora, packed"), None)
    if case is None or "tunesmith" not in case["runs"]:
        return "LoRA on packed rows wasn't measured."
    reached = share(case, "tunesmith", results["matrix_rate"])
    word = "met" if reached >= LEAST_RATE_SHARE else "missed"
    return (
        f"LoRA on packed rows reaches {100 * reached:.0f} % of the measured matrix rate "
        f"(target: {100 * LEAST_RATE_SHARE:.0f} %): {word}."
    )


def section(results: dict[str, Any]) -> str:
    """Return the section in Markdown."""
    rate = results["matrix_rate"]
    head = ("rows", "side", "tokens/s", "Tunesmith is faster by", "memory, GiB", "share of the matrix rate", "loss")
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    failures = []
    for case in results["cases"]:
        for side, runs in case["runs"].items():
            ours = case["runs"].get("tunesmith", [])
            speeds = [run["tokens_per_second"] for run in runs]
            faster = ""
            if side != "tunesmith" and ours:
                faster = f"{ratio([run['tokens_per_second'] for run in ours], speeds).text(2)} x"
            cells = (
                case["name"],
                TITLES[side],
                spread(speeds).text(),
                faster,
                spread([run["peak_memory_bytes"] / 2**30 for run in runs]).text(1),
                f"{100 * share(case, side, rate):.0f} %",
                f"{spread([run['losses'][-1] for run in runs]).median:.3f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
        failures += [f"{TITLES[side]} on {case['name']}: {why}" for side, why in case["failures"].items()]
    return "\n".join(
        [
            "## Training on a GPU",
            "",
            textwrap.fill(f"{results['shape']}. {_WHAT}", 120, break_on_hyphens=False),
            "",
            f"One {results['device']}; its measured bf16 matrix rate: {rate / 1e12:,.1f} TFLOP/s.",
            "",
            target_line(results),
            "",
            *lines,
            "",
            *(line for failure in failures for line in (failure, "")),
            results["machine"],
            "",
            "Again: `make bench-gpu`.",
        ]
    )
