"""Tiny random models whose layers can't compute several texts side by side."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.models.quiet import quiet_libraries

_SHAPE = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.2,
}  # fmt: skip
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}

#: Why they can't, by architecture, with what it needs beside `_SHAPE`.
LONE = {
    "mamba": ("linear_attention", {"state_size": 4}),
    "mamba2": ("linear_attention", {"state_size": 4, "num_heads": 4, "n_groups": 1, "chunk_size": 4}),
    "jamba": (
        "linear_attention",
        {"mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    ),
    "lfm2": ("conv", {"full_attn_idxs": [1]}),
    "qwen3_next": (
        "linear_attention",
        {
            "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"], **_EXPERTS,
        },
    ),
    "gpt_oss": ("attention sinks", {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 16}),
    "gptj": ("an attention of its own", {"rotary_dim": 4}),
    "nemotron": ("layers that don't pass a layout on", {}),
}  # fmt: skip


def lone_model(kind: str, **settings: Any) -> Any:
    """A random model of that architecture in float32, in evaluation mode."""
    config = AutoConfig.for_model(kind, **{**_SHAPE, **LONE.get(kind, ("", {}))[1], **settings})
    torch.manual_seed(0)
    with quiet_libraries():
        model = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(weight)
    return model
