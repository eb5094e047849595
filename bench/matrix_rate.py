"""The machine's sustained bf16 matrix rate with a model's own shapes, measured in a process of its own.

python bench/matrix_rate.py MODEL_FOLDER     prints JSON
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.models.size import model_size

#: Tokens in one product: what a pass over real rows multiplies at once.
TOKENS = (512, 1024, 2048)
_SECONDS = 0.4


@dataclass(frozen=True)
class ShapeRate:
    """Operations a second of `tokens` rows times an (inputs x outputs) matrix, the better of both directions."""

    tokens: int
    inputs: int
    outputs: int
    operations_per_second: float


def measure(
    shapes: set[tuple[int, int]], tokens: tuple[int, ...], seconds: float, device: torch.device
) -> list[ShapeRate]:
    """Multiply each shape for some seconds, as the forward pass and as the gradient of the activations do."""
    found = []
    for inputs, outputs in sorted(shapes):
        weight = torch.randn(outputs, inputs, device=device).bfloat16()
        for count in tokens:
            x = torch.randn(count, inputs, device=device).bfloat16()
            gradient = torch.randn(count, outputs, device=device).bfloat16()
            operations = 2 * count * inputs * outputs
            products = (_forward(x, weight), _backward(gradient, weight))
            best = max(operations / _seconds_each(product, seconds, device) for product in products)
            found.append(ShapeRate(count, inputs, outputs, best))
    return found


def _forward(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: torch.nn.functional.linear(x, weight)


def _backward(gradient: torch.Tensor, weight: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: gradient @ weight


def _seconds_each(product: Callable[[], torch.Tensor], seconds: float, device: torch.device) -> float:
    """Return the mean time of a product that is repeated for about `seconds`, after a warm-up of a quarter of it."""
    is_cuda = device.type == "cuda"
    for budget in (seconds / 4, seconds):
        count = 0
        started = time.perf_counter()
        while time.perf_counter() - started < budget:
            for _ in range(20 if is_cuda else 1):
                product()
                count += 1
            if is_cuda:
                torch.cuda.synchronize(device)
        taken = time.perf_counter() - started
    return taken / count


def measure_apart(folder: Path, seconds: float = _SECONDS) -> list[dict[str, Any]]:
    """Measure a model folder's shapes in a process of its own; return `ShapeRate`s as plain data."""
    command = [sys.executable, __file__, str(folder), str(seconds)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rates: list[dict[str, Any]] = json.loads(done.stdout)
    return rates


def best_rate(rates: list[dict[str, Any]]) -> float:
    """Return the highest rate of all shapes, in operations a second."""
    return max(float(rate["operations_per_second"]) for rate in rates)


def main() -> None:
    """Measure the shapes of a model's linear layers."""
    size = model_size(Path(sys.argv[1]))
    shapes = {(linear.inputs, linear.outputs) for linear in size.linears}
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else _SECONDS
    rates = measure(shapes, TOKENS, seconds, torch.device("cpu"))
    print(json.dumps([asdict(one) for one in rates]))


if __name__ == "__main__":
    main()
