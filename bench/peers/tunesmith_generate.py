"""Tunesmith's side: the model is opened as the server opens it, and its engine's steps are taken by hand.

Settings of the job: `rank` (of random adapters for the names that the waves use), `lookahead_rows`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from clock import peak_memory_bytes
from waves import BatchClock, GenerateJob, Results, Wave

from tunesmith.generate.decoder import Decoder
from tunesmith.generate.request import Delta, Request
from tunesmith.models.adapters.served import LowRank, ServedAdapter
from tunesmith.models.size import model_size
from tunesmith.record.home import Home
from tunesmith.serve.answering import EngineLimits, open_model
from tunesmith.specs.generation import SamplingSpec


def main() -> None:
    """Answer all waves and write the result."""
    job = GenerateJob.from_arguments()
    guesses = {name: value for name, value in job.settings.items() if name == "lookahead_rows"}
    limits = EngineLimits(max_batch=job.most_at_once, **guesses)
    engine = open_model(job.model, Home.from_environment(), dtype="bfloat16", limits=limits).engine
    names = sorted({name for wave in job.waves for name in wave.adapters if name is not None})
    for seed, name in enumerate(names):
        engine.add_adapter(name, _random_adapter(Path(job.model), job.settings["rank"], seed))
    results = Results(job)
    for wave in job.waves:
        results.add(wave, [_answer(engine, wave, batch) for batch in wave.batches])
    results.write(("tunesmith", "torch", "transformers"), peak_memory_bytes())


def _answer(engine: Decoder, wave: Wave, prompts: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """Answer one batch of prompts."""
    sampling = SamplingSpec(max_completion_tokens=wave.new_tokens, ignore_eos=True)
    clock = BatchClock(len(prompts))
    index_of = {
        engine.add(Request(prompt, sampling, wave.adapters[index % len(wave.adapters)])): index
        for index, prompt in enumerate(prompts)
    }
    tokens = 0
    while engine.has_work:
        for delta in engine.step():
            assert isinstance(delta, Delta)
            clock.arrived(index_of[delta.request_id])
            if delta.completion is not None:
                tokens += delta.completion.completion_tokens
    figures: dict[str, Any] = clock.figures(tokens)
    return figures


def _random_adapter(folder: Path, rank: int, seed: int) -> ServedAdapter:
    """Return an adapter of all linear layers with random matrices: its speed is that of a trained one."""
    random = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (0.01 * torch.randn(rows, columns, generator=random)).bfloat16()

    return ServedAdapter(
        {
            linear.name: LowRank(matrix(rank, linear.inputs), matrix(linear.outputs, rank))
            for linear in model_size(folder).linears
        }
    )


if __name__ == "__main__":
    main()
