"""Show where the time of a training step goes, and so what limits it; write its section of docs/benchmarks.md.

    python bench/anatomy.py

One step of the maths rows (the work load of `bench/training.py`), forward and backward, under PyTorch's profiler.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmark_page import write_section
from machine import machine_table
from matrix_rate import best_rate, measure_apart
from tunesmith.chat.renderer import ChatRenderer, Rendered
from tunesmith.data.prompts import as_conversation
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import TokenTree, build_tree
from tunesmith.models.adapters.lora import add_lora
from tunesmith.models.load import load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.native.calls import Kernels, ProductArguments, kernels
from tunesmith.record.home import Home
from tunesmith.specs.tune import LoraSpec
from workloads import WORKLOADS

_ROWS_OF_A_STEP, _REPEATS = 8, 5
#: A product with an inner or outer size of at most this is one with an adapter's narrow matrices.
_NARROW = 64

#: The kernels that a training step calls.
_KERNELS = (
    *("product", "sum_outer", "norm", "norm_backward", "rotate", "gate", "gate_backward", "attend_tree", "pull_tree"),
    "cross_entropy",
)

_WHAT = """One optimiser step of 8 maths rows, LoRA of rank 16 on all linear layers of SmolLM2-135M, bf16, forward and
backward. "Rate" is floating-point operations by time."""


def operations(key: str, shapes: Sequence[Sequence[int]]) -> int:
    """Return the floating-point operations of one call of a matrix product; 0 for anything else."""
    match key:
        case "aten::mm":
            (m, k), (_, n) = shapes[:2]
        case "aten::addmm" | "aten::addmm_":
            (m, k), (_, n) = shapes[1:3]
        case "aten::bmm":
            (b, m, k), (_, _, n) = shapes[:2]
            return 2 * b * m * k * n
        case "aten::baddbmm":
            (b, m, k), (_, _, n) = shapes[1:3]
            return 2 * b * m * k * n
        case _:
            return 0
    return 2 * m * k * n


def kind(key: str, shapes: Sequence[Sequence[int]], vocabulary: int) -> str:
    """Return the line of the table that an operation belongs to."""
    if key in ("aten::bmm", "aten::baddbmm"):
        return "attention"
    if operations(key, shapes):
        sizes = [size for shape in shapes if len(shape) == 2 for size in shape]
        if vocabulary in sizes:
            return "products with the vocabulary"
        return "products with the adapters" if min(sizes) <= _NARROW else "products with the layers' weights"
    moving = ("copy", "index", "cat", "gather", "scatter", "empty", "view", "slice", "as_strided", "transpose", "fill")
    if any(word in key for word in moving):
        return "moving and number formats"
    if "softmax" in key:
        return "attention"
    return "element by element" if key.startswith("aten::") else "the layers' own bookkeeping"


def kernel_kind(name: str, sizes: Sequence[int], vocabulary: int) -> str:
    """Return the line of the table that a call of a kernel in C belongs to, by its name and a product's sizes."""
    if name in ("product", "sum_outer"):
        if vocabulary in sizes:
            return "products with the vocabulary"
        return "products with the adapters" if min(sizes) <= _NARROW else "products with the layers' weights"
    return "attention" if "tree" in name else "element by element"


def _tell_of_kernels(found: Kernels) -> None:
    """Let the profiler see the kernels' calls: `kernel:<name>:<operations>:<sizes>`."""

    def named(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def told(*values: Any, **others: Any) -> Any:
            label = f"kernel:{name}:0:"
            if isinstance(values[0], ProductArguments):
                one = values[0]
                # A narrow product that goes on where the wide one ends counts with it.
                count = 2 * one.rows * one.outputs * (one.depth + one.further_depth)
                label = f"kernel:{name}:{count}:{one.depth},{one.outputs}"
            elif name == "sum_outer":
                (rows, width), columns = values[0].shape, values[1].shape[1]
                label = f"kernel:{name}:{2 * rows * width * columns}:{width},{columns}"
            with record_function(label):
                return call(*values, **others)

        return told

    for name in _KERNELS:
        setattr(found, name, named(name, getattr(found, name)))


def section(step_seconds: float, row_tokens: int, lines: dict[str, tuple[float, int]], rate: float) -> str:
    """Return the section in Markdown.

    Args:
        step_seconds: of a step without the profiler.
        row_tokens: the step's tokens, shared or not.
        lines: microseconds under the profiler and operations, by kind.
        rate: the machine's matrix rate, in operations a second.
    """
    total = sum(microseconds for microseconds, _ in lines.values())
    done = sum(count for _, count in lines.values())
    rows = []
    for name, (microseconds, count) in sorted(lines.items(), key=lambda item: -item[1][0]):
        reached = f"{count / microseconds / 1e3:,.0f} GFLOP/s" if count else ""
        rows.append(f"| {name} | {100 * microseconds / total:.0f} % | {reached} |")
    floor = done / rate
    wide = sum(
        us for name, (us, _) in lines.items() if name.startswith("products with the ") and "adapters" not in name
    )
    only_wide = step_seconds * wide / total
    sentence = (
        f"The step takes {step_seconds:.2f} s ({row_tokens / step_seconds:,.0f} tokens/s). Its {done / 1e9:,.0f} GFLOP "
        f"of matrix products would take {floor:.2f} s at the machine's best rate of {rate / 1e9:,.0f} GFLOP/s "
        f"({row_tokens / floor:,.0f} tokens/s). The wide products alone take {only_wide:.2f} s: with everything else "
        f"for nothing, {row_tokens / only_wide:,.0f} tokens/s would be the limit."
    )
    head = ["## Anatomy of a step", "", _WHAT, "", "| what | time | rate |", "|---|---|---|"]
    again = "Again: `.venv/bin/python bench/anatomy.py`."
    return "\n".join([*head, *rows, "", sentence, "", machine_table(), "", again])


def measure(home: Home) -> tuple[float, int, dict[str, tuple[float, int]], float]:
    """Measure a step; return what `section` takes."""
    source = resolve_base("smollm2-135m", home)
    rate = best_rate(measure_apart(source.folder))
    loaded = load_base(source, "bfloat16")
    renderer = ChatRenderer(loaded.tokenizer)
    rows = [as_conversation(row["messages"]) for row in WORKLOADS[0].rows()]
    sequences: list[Rendered] = [sequence for row in rows for sequence in renderer.for_training(row)]
    torch.manual_seed(0)
    add_lora(loaded.model, LoraSpec())
    model = TreeModel.of(loaded.model).with_copied_weights(True)
    loaded.model.train()
    steps = [build_tree(sequences[i : i + _ROWS_OF_A_STEP]) for i in range(0, len(sequences), _ROWS_OF_A_STEP)]
    # The step whose size is in the middle stands for all.
    tree = sorted(steps, key=lambda step: step.row_tokens)[len(steps) // 2]
    compute = _computing(model, tree)
    compute()
    seconds = [_seconds(compute) for _ in range(_REPEATS)]
    found = kernels()
    if found is not None:
        _tell_of_kernels(found)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiled:
        compute()
    lines: dict[str, tuple[float, int]] = {}
    vocabulary = len(model.projection.weight)
    for event in profiled.key_averages(group_by_input_shape=True):
        if event.key.startswith("kernel:"):
            _, kernel, done, sizes = event.key.split(":")
            each = int(done)
            name = kernel_kind(kernel, [int(size) for size in sizes.split(",") if size], vocabulary)
        else:
            shapes: Any = event.input_shapes
            each = operations(event.key, shapes)
            name = kind(event.key, shapes, vocabulary)
        microseconds, count = lines.get(name, (0.0, 0))
        lines[name] = (microseconds + event.self_cpu_time_total, count + event.count * each)
    return statistics.median(seconds), tree.row_tokens, lines, rate


def _computing(model: TreeModel, tree: TokenTree) -> Callable[[], None]:
    def compute() -> None:
        model.loss(tree)[0].backward()  # type: ignore[no-untyped-call]

    return compute


def _seconds(compute: Callable[[], None]) -> float:
    started = time.perf_counter()
    compute()
    return time.perf_counter() - started


def main() -> None:
    """Measure and write the section."""
    with tempfile.TemporaryDirectory() as scratch:
        text = section(*measure(Home(Path(scratch) / "home")))
    write_section("anatomy", text)
    print(text)


if __name__ == "__main__":
    main()
