"""vLLM's side: its offline `LLM`, whose engine's steps are taken by hand, as `LLM.generate` takes them."""

from __future__ import annotations

from importlib.metadata import packages_distributions
from typing import Any

from clock import peak_memory_bytes
from vllm.sampling_params import RequestOutputKind
from waves import BatchClock, GenerateJob, Results, Wave

from vllm import LLM, SamplingParams


def main() -> None:
    """Answer all waves and write the result."""
    job = GenerateJob.from_arguments()
    llm = LLM(
        model=job.model,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=job.most_at_once,
        seed=0,
    )
    results = Results(job)
    for number, wave in enumerate(job.waves):
        batches = enumerate(wave.batches)
        results.add(wave, [_answer(llm.llm_engine, wave, batch, f"{number}-{at}") for at, batch in batches])
    # Its builds have names of their own.
    results.write((packages_distributions()["vllm"][0], "torch", "transformers"), peak_memory_bytes())


def _answer(engine: Any, wave: Wave, prompts: tuple[tuple[int, ...], ...], name: str) -> dict[str, Any]:
    """Answer one batch of prompts."""
    params = SamplingParams(
        temperature=0.0, max_tokens=wave.new_tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    clock = BatchClock(len(prompts))
    for index, prompt in enumerate(prompts):
        engine.add_request(f"{name}-{index}", {"prompt_token_ids": list(prompt)}, params.clone())
    tokens = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            count = len(output.outputs[0].token_ids)
            tokens += count
            if count:
                clock.arrived(int(output.request_id.split("-")[2]), count)
    figures: dict[str, Any] = clock.figures(tokens)
    return figures


if __name__ == "__main__":
    main()
