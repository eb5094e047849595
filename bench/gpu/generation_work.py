"""What the GPU benchmark of generation measures: random prompts on random weights, by Tunesmith and transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gpu.work import FULL, TINY, Scale, make_model
from peers.token_watch import TokenWatch
from peers.waves import BatchClock
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.choice import decoder_for
from tunesmith.generate.request import Delta, Request
from tunesmith.models.load import LoadedModel
from tunesmith.models.resolve import BaseSource
from tunesmith.specs.generation import SamplingSpec

Prompt = tuple[int, ...]
#: Answers prompts, so many tokens each; returns the figures of `peers.waves.BatchClock`.
Answer = Callable[[Sequence[Prompt], int], dict[str, Any]]


@dataclass(frozen=True)
class GenerationScale:
    """How large everything is.

    Attributes:
        scale: the model.
        at_once: numbers of requests.
        prompt_tokens: of each prompt.
        new_tokens: of each answer.
        buffer_bytes: read to measure the memory's speed.
    """

    scale: Scale
    at_once: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    buffer_bytes: int


SHAPES = {
    "8b": GenerationScale(FULL, (1, 8, 32, 64, 128), 256, 128, 1 << 32),
    "tiny": GenerationScale(TINY, (1, 3), 12, 6, 1 << 20),
}


def make_prompts(shape: GenerationScale, count: int, seed: int) -> list[Prompt]:
    """Return prompts of random tokens; no two begin alike, so nothing is shared."""
    random = torch.Generator().manual_seed(seed)
    vocabulary = int(shape.scale.config["vocab_size"])
    ids = torch.randint(0, vocabulary, (count, shape.prompt_tokens), generator=random)
    return [tuple(row) for row in ids.tolist()]


def plain_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of so many tokens, single bytes and made-up words; its texts mean nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"word{number}" for number in range(vocabulary - len(alphabet)))]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def tunesmith(shape: GenerationScale, device: torch.device) -> Answer:
    """Open the model as the server does."""
    model = make_model(shape.scale, device).eval()
    loaded = LoadedModel(
        model=model,
        tokenizer=plain_tokenizer(int(shape.scale.config["vocab_size"])),
        source=BaseSource("random", Path("random"), "folder", "0" * 64, "random"),
        dtype=torch.bfloat16,
        device=device,
        context_tokens=int(shape.scale.config["max_position_embeddings"]),
        end_of_turn_ids=(),
        family="llama",
    )
    decoder = decoder_for(loaded, ChatRenderer(loaded.tokenizer), max_batch=shape.at_once[-1], owned=True)

    def answer(prompts: Sequence[Prompt], new_tokens: int) -> dict[str, Any]:
        sampling = SamplingSpec(max_completion_tokens=new_tokens, ignore_eos=True)
        clock = BatchClock(len(prompts))
        index_of = {decoder.add(Request(prompt, sampling)): index for index, prompt in enumerate(prompts)}
        tokens = 0
        while decoder.has_work:
            for delta in decoder.step():
                assert isinstance(delta, Delta)
                clock.arrived(index_of[delta.request_id])
                tokens += 0 if delta.completion is None else delta.completion.completion_tokens
        return clock.figures(tokens)

    return answer


def transformers(shape: GenerationScale, device: torch.device) -> Answer:
    """Use `generate` with SDPA; all prompts are equally long, so nothing is padded."""
    model = make_model(shape.scale, device, "sdpa").eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    @torch.inference_mode()
    def answer(prompts: Sequence[Prompt], new_tokens: int) -> dict[str, Any]:
        clock = BatchClock(len(prompts))
        ids = torch.tensor(prompts, device=device)
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            streamer=TokenWatch(clock.arrived),
        )
        return clock.figures(output[:, ids.shape[1] :].numel())

    return answer


#: By the word for the command line and the page's name for it.
SIDES: dict[str, tuple[str, Callable[[GenerationScale, torch.device], Answer]]] = {
    "tunesmith": ("Tunesmith", tunesmith),
    "transformers": ("transformers, SDPA", transformers),
}


def measure_side(name: str, shape: GenerationScale, device: torch.device) -> dict[str, dict[str, Any]]:
    """Return one side's figures by the number of requests at once; a few tokens of other prompts warm up before."""
    _, make = SIDES[name]
    answer = make(shape, device)
    found = {}
    for number, count in enumerate(shape.at_once):
        answer(make_prompts(shape, count, 2 * number), 4)
        found[str(count)] = answer(make_prompts(shape, count, 2 * number + 1), shape.new_tokens)
    return found
