"""transformers' side: `generate` on a batch that is padded on the left, in bf16.

Settings of the job: `attention` (its name for the implementation).
"""

from __future__ import annotations

from typing import Any

import torch
from clock import peak_memory_bytes
from token_watch import TokenWatch
from transformers import AutoModelForCausalLM
from waves import BatchClock, GenerateJob, Results, Wave


def main() -> None:
    """Answer all waves and write the result."""
    job = GenerateJob.from_arguments()
    model = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=torch.bfloat16, attn_implementation=job.settings["attention"]
    ).eval()
    # Without an end, answers are as long as was asked for.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    results = Results(job)
    for wave in job.waves:
        results.add(wave, [_answer(model, wave, batch) for batch in wave.batches])
    results.write(("transformers", "torch"), peak_memory_bytes())


@torch.inference_mode()
def _answer(model: Any, wave: Wave, prompts: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """Answer one batch of prompts."""
    clock = BatchClock(len(prompts))
    width = max(map(len, prompts))
    ids = torch.tensor([(0,) * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([(0,) * (width - len(prompt)) + (1,) * len(prompt) for prompt in prompts])
    output = model.generate(
        ids, attention_mask=mask, max_new_tokens=wave.new_tokens, do_sample=False, streamer=TokenWatch(clock.arrived)
    )
    figures: dict[str, Any] = clock.figures(output[:, width:].numel())
    return figures


if __name__ == "__main__":
    main()
