"""What the GPU benchmark trains: a Llama's shape with random weights, and rows of random tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tunesmith.chat.renderer import Rendered
from tunesmith.models.size import ModelSize, model_size

AdapterName = Literal["lora", "qlora"]
RowsName = Literal["packed", "mixed"]

ADAPTERS: tuple[AdapterName, ...] = ("lora", "qlora")
ROWS: tuple[RowsName, ...] = ("packed", "mixed")


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        name: what the page calls it.
        config: the model.
        row_tokens: of a packed row, and the longest mixed row.
        step_tokens: of all rows of a step, about.
        pass_tokens: of one forward pass of transformers + PEFT, padding included.
        steps: the first is left out of the figures.
        rate_tokens: rows of the products that measure the matrix rate.
    """

    name: str
    config: dict[str, Any]
    row_tokens: int
    step_tokens: int
    pass_tokens: int
    steps: int
    rate_tokens: tuple[int, ...]


FULL = Scale(
    name="Llama 3.1 8B's shape, random weights",
    config={
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
    },
    row_tokens=4096,
    step_tokens=16_384,
    pass_tokens=4096,
    steps=6,
    rate_tokens=(4096, 8192),
)
TINY = Scale(
    name="A tiny shape that only tries the script out",
    config={
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    },
    row_tokens=48,
    step_tokens=192,
    pass_tokens=96,
    steps=3,
    rate_tokens=(64,),
)


def device_for(scale: Scale) -> torch.device:
    """Return where to measure.

    Raises:
        SystemExit: there is no GPU, and the shape isn't the tiny one.
    """
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if scale is TINY:
        return torch.device("cpu")
    raise SystemExit(
        "This benchmark needs an NVIDIA GPU with about 80 GB, and PyTorch sees none here. "
        "With the tiny shape it tries itself out on any machine."
    )


def make_model(scale: Scale, device: torch.device, attention: str | None = None) -> Any:
    """Return the model with the same random weights for every side, frozen, in bf16."""
    torch.manual_seed(0)
    config = LlamaConfig(**scale.config)
    asked = {} if attention is None else {"attn_implementation": attention}
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, **asked)
    model.requires_grad_(False)
    return model


def shape_size(scale: Scale) -> ModelSize:
    """Return the shape's counts."""
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(**scale.config)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)
        return model_size(Path(folder))


def make_steps(scale: Scale, rows: RowsName, seed: int = 0) -> list[list[Rendered]]:
    """Return each step's rows of random tokens.

    Packed rows are full and all of their tokens are learnt. Mixed rows' lengths spread like those of chats
    (log-normal), and the last third of each is learnt. No two rows begin alike, so nothing is shared.
    """
    random = np.random.default_rng(seed)
    vocabulary = int(scale.config["vocab_size"])
    steps = []
    for _ in range(scale.steps):
        step: list[Rendered] = []
        while (left := scale.step_tokens - sum(len(row.token_ids) for row in step)) > 0:
            step.append(_row(random, rows, min(scale.row_tokens, left), scale, vocabulary))
        steps.append(step)
    return steps


def _row(random: np.random.Generator, rows: RowsName, most: int, scale: Scale, vocabulary: int) -> Rendered:
    if rows == "packed":
        length, unlearnt = most, 1
    else:
        length = int(np.clip(random.lognormal(np.log(scale.row_tokens / 10), 1.0), 8, most))
        unlearnt = max(1, 2 * length // 3)
    ids = random.integers(0, vocabulary, length).tolist()
    return Rendered(tuple(ids), (False,) * unlearnt + (True,) * (length - unlearnt))


def padded_passes(step: Sequence[Rendered], pass_tokens: int) -> list[list[Rendered]]:
    """Cut a step into passes of like length, each of at most `pass_tokens` tokens with its padding."""
    parts: list[list[Rendered]] = []
    for row in sorted(step, key=lambda row: -len(row.token_ids)):  # a pass is as wide as its first row
        if not parts or len(parts[-1][0].token_ids) * (len(parts[-1]) + 1) > pass_tokens:
            parts.append([])
        parts[-1].append(row)
    return parts
