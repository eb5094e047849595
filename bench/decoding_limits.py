"""What generation can reach on this machine: the rates of memory and of matrix products, and a step's products alone.

python bench/decoding_limits.py MODEL_FOLDER 1,64 [SECONDS]     prints JSON
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from matrix_rate import measure
from tunesmith.generate.products import product_of
from tunesmith.models.size import ModelSize, model_size
from tunesmith.native.memory import zeros

_DTYPE = torch.bfloat16
_SECONDS = 2.0
#: Far more than the processor's caches hold.
_BUFFER_BYTES = 1 << 29
#: As many rows as the best rate of matrix products needs.
_MATRIX_ROWS = 1024


@dataclass(frozen=True)
class StepCost:
    """What one decoding step must read and compute, attention's own products left out.

    Attributes:
        weight_bytes: of all weights that are multiplied with.
        operations_per_token: floating-point operations of those products, for one request's token.
        operations_per_prompt_token: the same without the vocabulary, which only a prompt's last token meets.
        cache_bytes_per_token: keys and values that one token of a request's text keeps, and each step reads.
    """

    weight_bytes: int
    operations_per_token: int
    operations_per_prompt_token: int
    cache_bytes_per_token: int


def step_cost(size: ModelSize) -> StepCost:
    """Return the cost of a step in bf16."""
    weights = size.linear_parameters + size.vocabulary * size.hidden
    return StepCost(
        weights * _DTYPE.itemsize, 2 * weights, 2 * size.linear_parameters, size.cache_bytes_per_token(_DTYPE)
    )


def read_bandwidth(seconds: float, buffer_bytes: int = _BUFFER_BYTES, device: torch.device | None = None) -> float:
    """Return how many bytes a second the device (the CPU by default) reads, the best of several ways."""
    count = buffer_bytes // 4
    # On the CPU in large pages, as weights are: through small ones, memory is read more slowly.
    is_cpu = device is None or device.type == "cpu"
    numbers = zeros((count,), torch.float32).fill_(1) if is_cpu else torch.ones(count, device=device)
    words = numbers.view(torch.int64)
    matrix, vector = numbers.view(64, -1), torch.ones(numbers.numel() // 64, device=device)
    target = torch.empty_like(numbers)
    ways: tuple[tuple[Callable[[], object], int], ...] = (
        (numbers.sum, buffer_bytes),
        (words.max, buffer_bytes),
        (lambda: matrix @ vector, buffer_bytes),
        (lambda: target.copy_(numbers), 2 * buffer_bytes),
    )
    return max(moved / _seconds_each(way, seconds / len(ways), device) for way, moved in ways)


def step_products(size: ModelSize, rows: int, seconds: float, *, pack: bool) -> float:
    """Return the seconds of all products of one step of so many rows, as the engine has them or as PyTorch does.

    Each layer has weights of its own, so that no cache holds them from one step to the next.
    """
    shapes = [(linear.inputs, linear.outputs) for linear in size.linears] + [(size.hidden, size.vocabulary)]
    products = [product_of(torch.randn(outputs, inputs).to(_DTYPE), None, pack=pack) for inputs, outputs in shapes]
    inputs = {width: torch.randn(rows, width).to(_DTYPE) for width, _ in shapes}

    def step() -> None:
        for (width, _), product in zip(shapes, products, strict=True):
            product(inputs[width])

    with torch.inference_mode():
        return _seconds_each(step, seconds)


def measure_limits(folder: Path, rows: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """Return everything as plain data; products by "packed" or "plain" and the number of rows."""
    size = model_size(folder)
    cost = step_cost(size)
    shapes = {(linear.inputs, linear.outputs) for linear in size.linears}
    rates = measure(shapes, (_MATRIX_ROWS,), seconds / 10, torch.device("cpu"))
    return {
        **vars(cost),
        "bandwidth": read_bandwidth(seconds),
        "operations_per_second": max(rate.operations_per_second for rate in rates),
        "step_seconds": {
            name: {str(count): step_products(size, count, seconds, pack=pack) for count in rows}
            for name, pack in (("packed", True), ("plain", False))
        },
    }


def measure_limits_apart(folder: Path, rows: list[int], seconds: float = _SECONDS) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, str(folder), ",".join(map(str, rows)), str(seconds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _seconds_each(work: Callable[[], object], seconds: float, device: torch.device | None = None) -> float:
    """Return the best time of work that is repeated for about `seconds`, at least three times."""
    is_cuda = device is not None and device.type == "cuda"
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < ends:
        started = time.perf_counter()
        work()
        if is_cuda:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Measure for the model and rows that the command line names."""
    rows = tuple(int(word) for word in sys.argv[2].split(","))
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else _SECONDS
    print(json.dumps(measure_limits(Path(sys.argv[1]), rows, seconds)))


if __name__ == "__main__":
    main()
