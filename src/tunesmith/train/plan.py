"""What a run will take, before it runs: steps, memory, time."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tunesmith.learn.passes import Passes
from tunesmith.models.size import ModelSize
from tunesmith.specs.tune import FullSpec, TuneSpec
from tunesmith.train.costs import Costs
from tunesmith.train.loop import TrainingData
from tunesmith.train.memory import memory_limit_bytes
from tunesmith.train.planner import Planner
from tunesmith.train.rehearsal import Rehearsal
from tunesmith.train.settings import numbers


@dataclass(frozen=True, slots=True)
class Plan:
    """What will run and about what it takes.

    `tokens` counts one pass over the training rows; `learning_rate` is `find` where the run looks for it first;
    `tokens_per_pass`, `recomputed_layers` and `copied_weights` say how steps are computed, so that they fit (see
    `Passes`); `memory_bytes` is the expected peak of the process, `memory_parts` what it consists of; `seconds` the
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
    learning_rate: float | str
    max_tokens: int
    tokens_per_pass: int
    recomputed_layers: int
    copied_weights: bool
    memory_bytes: int
    memory_parts: dict[str, int]
    seconds: float

    def corrected(self, measured: Rehearsal) -> Plan:
        """Return the plan with what the rehearsal measured in place of what was expected."""
        return replace(
            self,
            tokens_per_pass=measured.passes.tokens_per_pass,
            recomputed_layers=measured.passes.recomputed_layers,
            copied_weights=measured.passes.copied_weights,
            memory_bytes=measured.memory_bytes,
            seconds=measured.seconds,
        )

    @property
    def passes(self) -> Passes:
        """How steps are computed, but for the loss's chunk: where memory is that short, it is found anew."""
        return Passes(self.tokens_per_pass, self.recomputed_layers, copied_weights=self.copied_weights)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def make_plan(spec: TuneSpec, size: ModelSize, data: TrainingData, device: torch.device) -> Plan:
    """Return the plan of a resolved spec. No step is computed.

    The time comes from the arithmetic and this machine's rate of matrix products, measured here for a fifth of a
    second; the memory from the formula in `costs.py`.

    Raises:
        RunError: it can't fit into the memory (`out_of_memory`).
    """
    batch_size, epochs, every = numbers(spec)
    assert not isinstance(spec.limits.max_tokens, str)
    schedule = data.steps(batch_size, epochs, spec.seed)
    costs = Costs(size, spec, device)
    planner = Planner(costs, data.learnt, data.validation, schedule, every)
    passes = planner.fitting(costs.first_passes(), memory_limit_bytes(spec.limits.memory_bytes, device))
    memory = planner.memory(passes)
    rate = costs.matrix_share(passes) * _matrix_rate(size, costs.dtype, device)
    return Plan(
        base=spec.base,
        method=spec.method.kind,
        adapter=spec.adapter.kind
        if isinstance(spec.adapter, FullSpec)
        else f"{spec.adapter.kind}, rank {spec.adapter.rank}",
        parameters=size.parameters,
        trained_parameters=costs.trained_parameters,
        dtype=str(costs.dtype).removeprefix("torch."),
        device=str(device),
        rows=len(data.train),
        tokens=sum(len(sequence.token_ids) for row in data.train for sequence in row),
        epochs=epochs,
        batch_size=batch_size,
        steps=len(schedule),
        learning_rate=spec.optimisation.learning_rate,
        max_tokens=spec.limits.max_tokens,
        tokens_per_pass=passes.tokens_per_pass,
        recomputed_layers=passes.recomputed_layers,
        copied_weights=passes.copied_weights,
        memory_bytes=memory.total,
        memory_parts=asdict(memory),
        seconds=planner.seconds(passes, rate),
    )


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
