"""Show what rounding does to the first steps of training; write its section of docs/benchmarks.md.

    python bench/exactness.py

The same steps three times, each in a process of its own: in float32, in bfloat16 as Tunesmith computes it here, and in
bfloat16 through PyTorch's operations alone (`TUNESMITH_NATIVE=0`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from benchmark_page import table, wrapped, write_section
from machine import machine_table
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.prompts import as_conversation
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import build_tree
from tunesmith.models.adapters.lora import add_lora
from tunesmith.models.load import DtypeName, load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.record.home import Home
from tunesmith.specs.tune import LoraSpec
from workloads import WORKLOADS

_STEPS, _ROWS_OF_A_STEP, _LEARNING_RATE = 5, 8, 5e-4
#: Title, number format, and what `TUNESMITH_NATIVE` says.
_WAYS = (
    ("float32", "float32", "1"),
    ("bfloat16", "bfloat16", "1"),
    ("bfloat16, PyTorch's operations alone", "bfloat16", "0"),
)

_WHAT = f"""The loss of each of the first {_STEPS} optimiser steps of the maths rows ({_ROWS_OF_A_STEP} rows a step,
LoRA of rank 16 on all linear layers of SmolLM2-135M, AdamW at {_LEARNING_RATE:g}), before the step is taken."""
_WHY = """What an adapter has learnt after a few steps is smaller than bfloat16's distance between neighbouring numbers
around a layer's result. PyTorch's operations round that result, then add the adapter's part and round again, which
loses most of it; the kernels add both before they round."""


def losses(home: Home, dtype: DtypeName) -> list[float]:
    """Take the steps; return their losses, in nats a learnt token."""
    loaded = load_base(resolve_base("smollm2-135m", home), dtype)
    renderer = ChatRenderer(loaded.tokenizer)
    rows = [as_conversation(row["messages"]) for row in WORKLOADS[0].rows()]
    torch.manual_seed(0)
    add_lora(loaded.model, LoraSpec())
    model = TreeModel.of(loaded.model).with_copied_weights(True)
    loaded.model.train()
    trained = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=_LEARNING_RATE, weight_decay=0.0)
    found = []
    for start in range(0, _STEPS * _ROWS_OF_A_STEP, _ROWS_OF_A_STEP):
        part = rows[start : start + _ROWS_OF_A_STEP]
        tree = build_tree([sequence for row in part for sequence in renderer.for_training(row)])
        loss = model.loss(tree)[0] / len(tree.target_ids)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        found.append(float(loss))
    return found


def section(found: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Return the section in Markdown, given each way's title and losses; the first way is the reference."""
    steps = zip(*(values for _, values in found), strict=True)
    rows = [(str(number), *(f"{loss:.3f}" for loss in step)) for number, step in enumerate(steps, 1)]
    reference = found[0][1]
    apart = [
        f"{title} is at most {100 * max(abs(a / b - 1) for a, b in zip(values, reference, strict=True)):.1f} % away"
        for title, values in found[1:]
    ]
    sentence = f"From float32, {'; '.join(apart)}. {_WHY}"
    head = ["## Small steps in bfloat16", "", wrapped(_WHAT), ""]
    again = "Again: `.venv/bin/python bench/exactness.py`."
    lines = table(("step", *(title for title, _ in found)), rows)
    return "\n".join([*head, *lines, "", wrapped(sentence), "", machine_table(), "", again])


def _apart(home: Home, dtype: str, native: str) -> list[float]:
    command = [sys.executable, str(Path(__file__)), str(home.root), dtype]
    environment = {**os.environ, "TUNESMITH_NATIVE": native}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    values: list[float] = json.loads(output)
    return values


def main() -> None:
    """Measure and write the section; with two arguments (a home, a number format), one way of it, as JSON."""
    if sys.argv[1:]:
        print(json.dumps(losses(Home(Path(sys.argv[1])), cast(DtypeName, sys.argv[2]))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        home = Home(Path(scratch) / "home")
        text = section([(title, _apart(home, dtype, native)) for title, dtype, native in _WAYS])
    write_section("exactness", text)
    print(text)


if __name__ == "__main__":
    main()
