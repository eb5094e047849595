"""What a run will take, before it runs: steps, memory, time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tunesmith.models.size import ModelSize
from tunesmith.specs.tune import FullSpec, TuneSpec
from tunesmith.train.packing import microbatches
from tunesmith.train.settings import numbers, step_count
from tunesmith.train.sft import Row

#: Share of the measured matrix rate that the loop reaches (measured on rows of 50 to 400 tokens).
_EFFICIENCY = 0.5
#: Python, torch and transformers themselves.
_PROCESS_BYTES = 600 << 20
#: Rows of logits that exist at once, in float32, with their gradient.
_LOGIT_ROWS = 512


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run and about what it takes.

    `tokens` counts one pass over the training rows; `memory_bytes` is the expected peak of the process, `seconds` the
    expected time of training, validation included.
    """

    base: str
    method: str
    adapter: str
    parameters: int
    trained_parameters: int
    dtype: str
    device: str
    rows: int
    tokens: int
    epochs: float
    batch_size: int
    steps: int
    learning_rate: float
    max_tokens: int
    memory_bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def make_plan(
    spec: TuneSpec, size: ModelSize, train: Sequence[Row], validation: Sequence[Row], device: torch.device
) -> Plan:
    """Return the plan of a resolved spec.

    The time comes from the arithmetic of the linear layers and this machine's rate of matrix products, measured here
    for a fifth of a second.
    """
    batch_size, epochs, every = numbers(spec)
    steps = step_count(len(train), batch_size, epochs)
    tokens = sum(len(sequence.token_ids) for row in train for sequence in row)
    learnt = sum(sequence.learnt_tokens for row in train for sequence in row)
    held_out = sum(len(sequence.token_ids) for row in validation for sequence in row)
    dtype = torch.float32 if spec.limits.dtype == "float32" else torch.bfloat16
    # Forward and the gradient of the activations, two operations a weight each; frozen weights need no third pass.
    operations = epochs * (4 * size.linear_parameters * tokens + 4 * size.vocabulary * size.hidden * learnt)
    operations += (steps // every + 1) * 2 * size.linear_parameters * held_out
    assert not isinstance(spec.limits.tokens_per_microbatch, str)
    largest = max(
        (
            sum(len(sequence.token_ids) for sequence in part)
            for start in range(0, len(train), batch_size)
            for part in microbatches(
                [sequence for row in train[start : start + batch_size] for sequence in row],
                spec.limits.tokens_per_microbatch,
            )
        ),
        default=0,
    )
    trained = size.parameters if isinstance(spec.adapter, FullSpec) else size.lora_parameters(spec.adapter.rank)
    assert not isinstance(spec.optimisation.learning_rate, str)
    assert not isinstance(spec.limits.max_tokens, str)
    return Plan(
        base=spec.base,
        method=spec.method.kind,
        adapter=spec.adapter.kind
        if isinstance(spec.adapter, FullSpec)
        else f"{spec.adapter.kind}, rank {spec.adapter.rank}",
        parameters=size.parameters,
        trained_parameters=trained,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        rows=len(train),
        tokens=tokens,
        epochs=epochs,
        batch_size=batch_size,
        steps=steps,
        learning_rate=spec.optimisation.learning_rate,
        max_tokens=spec.limits.max_tokens,
        memory_bytes=_memory_bytes(size, trained, largest, dtype),
        seconds=operations / (_EFFICIENCY * _matrix_rate(size, dtype, device)),
    )


def _memory_bytes(size: ModelSize, trained: int, tokens: int, dtype: torch.dtype) -> int:
    """Add up weights, adapter with gradient and two running means in float32, activations, logits."""
    inputs = sum(linear.inputs + linear.outputs for linear in size.linears)
    # Each linear layer's input and output, and about as much again around them (norms, positions, products of gates).
    activations = tokens * (2 * inputs * dtype.itemsize + 8 * size.hidden * size.layers * 4)
    logits = _LOGIT_ROWS * size.vocabulary * 4 * 2
    return _PROCESS_BYTES + size.weight_bytes(dtype) + 16 * trained + activations + logits


def _matrix_rate(size: ModelSize, dtype: torch.dtype, device: torch.device) -> float:
    """Return this machine's rate of matrix products of the model's kind, in operations a second."""
    widest = max(size.linears, key=lambda linear: linear.parameters)
    x = torch.randn(512, widest.inputs, dtype=dtype, device=device)
    weight = torch.randn(widest.outputs, widest.inputs, dtype=dtype, device=device)
    count, seconds = 0, 0.0
    torch.nn.functional.linear(x, weight)
    while seconds < 0.2:
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds += time.perf_counter() - started
        count += 1
    return 2 * 512 * widest.parameters * count / seconds
