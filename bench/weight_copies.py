"""Measure what copies of frozen weights gain and take as models grow; write their section of docs/benchmarks.md.

    python bench/weight_copies.py

For each shape one process's model takes the same step in turns: the kernels have copies to multiply with, or haven't.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import torch

from benchmark_page import table, wrapped, write_section
from machine import machine_table
from random_bases import SHAPES, make_base
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.prompts import as_conversation
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import TokenTree, build_tree
from tunesmith.models.adapters.lora import add_lora
from tunesmith.models.load import load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.models.size import model_size
from tunesmith.record.home import Home
from tunesmith.specs.tune import LoraSpec, TuneSpec
from tunesmith.train.costs import Costs
from workloads import WORKLOADS

_ROWS_OF_A_STEP, _ROUNDS = 8, 3

_WHAT = f"""One step of {_ROWS_OF_A_STEP} maths rows forward and backward, LoRA of rank 16 on all linear layers,
bfloat16, Llama shapes with random weights; the medians of {_ROUNDS} rounds in turns. `tunesmith plan` says
(`copied_weights`, `memory_parts`) whether a run has the copies: it does, where the memory allows."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What was measured of one shape: seconds of a step without copies and with them, and the copies' bytes."""

    shape: str
    without_seconds: float
    with_seconds: float
    copied_bytes: int


def section(found: Sequence[Gain]) -> str:
    """Return the page's section."""
    rows = [
        (
            one.shape,
            f"{one.without_seconds:.2f} s",
            f"{one.with_seconds:.2f} s",
            f"{100 * (1 - one.with_seconds / one.without_seconds):.0f} %",
            f"{one.copied_bytes / 2**30:.2f} GiB",
        )
        for one in found
    ]
    lines = table(("model", "without copies", "with copies", "less time", "memory of the copies"), rows)
    head = ["## Copies of frozen weights", "", wrapped(_WHAT), ""]
    again = "Again: `.venv/bin/python bench/weight_copies.py`."
    return "\n".join([*head, *lines, "", machine_table(), "", again])


def measure(shape: str, folder: Path, home: Home) -> Gain:
    """Measure a base's step in both ways."""
    loaded = load_base(resolve_base(str(folder), home), "bfloat16")
    renderer = ChatRenderer(loaded.tokenizer)
    rows = [as_conversation(row["messages"]) for row in WORKLOADS[0].rows()[:_ROWS_OF_A_STEP]]
    tree = build_tree([sequence for row in rows for sequence in renderer.for_training(row)])
    torch.manual_seed(0)
    add_lora(loaded.model, LoraSpec())
    model = TreeModel.of(loaded.model)
    loaded.model.train()
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for number in range(_ROUNDS + 1):
        for wanted, found in seconds.items():
            model = model.with_copied_weights(wanted)
            gc.collect()
            _step_seconds(model, tree)  # memory is taken, caches are filled
            if number:
                found.append(_step_seconds(model, tree))
    spec = TuneSpec.parse({"base": str(folder), "data": {"path": "rows"}, "limits": {"dtype": "bfloat16"}})
    copied_bytes = Costs(model_size(folder), spec, torch.device("cpu")).copied_bytes
    return Gain(shape, statistics.median(seconds[False]), statistics.median(seconds[True]), copied_bytes)


def _step_seconds(model: TreeModel, tree: TokenTree) -> float:
    began = time.perf_counter()
    model.loss(tree)[0].backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - began


def main() -> None:
    """Measure and write the section."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        home = Home(Path(scratch) / "home")
        tokenizer = resolve_base("smollm2-135m", home).folder
        for name, shape in SHAPES.items():
            folder = make_base(shape, tokenizer, Path(scratch) / "base")
            found.append(measure(name, folder, home))
            rmtree(folder)
            print(found[-1], flush=True)
    text = section(found)
    write_section("copies", text)
    print(text)


if __name__ == "__main__":
    main()
