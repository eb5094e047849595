"""Bases with random weights and a wished shape, for measuring speed alone: no download, nothing is learnt well."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tunesmith.models.quiet import quiet_libraries

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@dataclass(frozen=True)
class Shape:
    """A Llama's shape; heads are 64 wide."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int = 49_152

    def config(self, context_tokens: int = 8192) -> LlamaConfig:
        """Return the config, with embeddings tied to the projection."""
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            head_dim=64,
            vocab_size=self.vocabulary,
            max_position_embeddings=context_tokens,
            tie_word_embeddings=True,
            rms_norm_eps=1e-5,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )


#: SmolLM2-135M's own shape, about 0.5 billion weights, and Llama 3.2 1B's shape.
SHAPES = {
    "135M": Shape(576, 1536, 30, 9, 3),
    "0.5B": Shape(1024, 4096, 28, 16, 8),
    "1B": Shape(2048, 8192, 16, 32, 8),
}


def make_base(shape: Shape, tokenizer_folder: Path, folder: Path) -> Path:
    """Write a base of this shape in bf16, with another base's tokenizer; return its folder.

    The tokenizer may know fewer tokens than the vocabulary has rows.
    """
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    with quiet_libraries():
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=torch.bfloat16)
        model.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        if (tokenizer_folder / name).exists():
            shutil.copy(tokenizer_folder / name, folder / name)
    return folder
