"""LoRA adapters that vLLM reads and computes itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunesmith.errors import ModelError
from tunesmith.generate.vllm.server import lora_rank
from tunesmith.models.adapters.peft_form import tensor_names
from tunesmith.models.adapters.served import ServedAdapter
from tunesmith.models.adapters.targets import last_part
from tunesmith.models.size import LinearSize
from tunesmith.models.weights import save_tensors

#: Layers at a model's ends, as architectures call them; the server is told to adapt those between.
_ENDS = {"lm_head", "embed_out", "embed_tokens", "wte"}
_FIX = "Use the backend torch for this model."


@dataclass(frozen=True, eq=False)
class AdapterFiles(ServedAdapter):
    """An adapter as its files: this process holds none of its layers.

    Attributes:
        folder: adapter_config.json and adapter_model.safetensors, as PEFT writes them.
        rank: the largest of its layers' ranks.
    """

    folder: Path
    rank: int


def adapter_files(folder: Path) -> AdapterFiles:
    """Return the adapter in a folder, for vLLM.

    Raises:
        ModelError: see `adapter_rank`.
    """
    return AdapterFiles({}, folder, adapter_rank(folder))


def adapter_rank(folder: Path) -> int:
    """Return the largest rank of an adapter in PEFT's form.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.

    Raises:
        ModelError: the configuration can't be read (`code="broken_adapter"`), or vLLM computes no such adapter
            (`"unsupported_adapter"`).
    """
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_bytes())
        rank = max(int(config["r"]), *map(int, (config.get("rank_pattern") or {0: 0}).values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            "The adapter's configuration can't be read.",
            where=str(folder / "adapter_config.json"),
            fix="Bring it back from a backup, or train the model again.",
            code="broken_adapter",
        ) from error
    for is_so, words in (
        (config.get("use_dora"), "is a DoRA"),
        (config.get("modules_to_save"), "replaces whole modules"),
        (config.get("lora_bias"), "has biases of its own"),
        (_ENDS & set(config.get("target_modules") or ()), "changes the embeddings or the output layer"),
    ):
        if is_so:
            raise ModelError(
                f"This adapter {words}, and such adapters aren't computed by vLLM here.",
                where=str(folder),
                fix=_FIX,
                code="unsupported_adapter",
            )
    try:
        lora_rank(rank)
    except ModelError as error:
        raise ModelError(error.message, where=str(folder), fix=_FIX, code=error.code) from error
    return rank


def write_nothing(folder: Path, linear: LinearSize) -> None:
    """Write an adapter of rank 1 that changes nothing, into a new folder.

    Args:
        folder: where to.
        linear: a layer of the base.
    """
    folder.mkdir()
    names = tensor_names(linear.name)
    tensors = {names["lora_a"]: torch.zeros(1, linear.inputs), names["lora_b"]: torch.zeros(linear.outputs, 1)}
    save_tensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 1,
        "lora_alpha": 1,
        "bias": "none",
        "target_modules": [last_part(linear.name)],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
