"""How large a model is, from its config alone: nothing is loaded, no weight exists."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tunesmith.errors import ModelError
from tunesmith.models.quiet import quiet_libraries


@dataclass(frozen=True, slots=True)
class LinearSize:
    """One linear layer: its dotted name in the model, its inputs and outputs."""

    name: str
    inputs: int
    outputs: int

    @property
    def parameters(self) -> int:
        """Weights, without a bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Counts of a decoder.

    Attributes:
        parameters: all of them; tied embeddings count once.
        layers: decoder layers.
        layer_parameters: of one layer, the largest where they differ.
        linears: every linear layer but the output layer.
        vocabulary: rows of the embedding table.
        hidden: width of the residual stream.
        attention_heads: query heads of one layer; 0 without attention.
        query_width: elements that one token has in one layer's queries.
        key_value_width: elements that one token adds to one layer's keys (and as many to its values).
        context_tokens: positions that the config allows, or None if it doesn't say.
        active_expert_parameters: of mixtures of experts, the weights of the experts that one token goes through.
        bends_scores: whether attention's scores are bent under a cap (Gemma 2).
    """

    parameters: int
    layers: int
    layer_parameters: int
    linears: tuple[LinearSize, ...]
    vocabulary: int
    hidden: int
    attention_heads: int
    query_width: int
    key_value_width: int
    context_tokens: int | None
    active_expert_parameters: int = 0
    bends_scores: bool = False

    @property
    def linear_parameters(self) -> int:
        """Weights in the linear layers: a forward pass costs two floating-point operations for each, at each token."""
        return sum(linear.parameters for linear in self.linears)

    def weight_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of all weights in a number format."""
        return self.parameters * dtype.itemsize

    def cache_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes that keys and values of one token take over all layers while answers are generated."""
        return 2 * self.layers * self.key_value_width * dtype.itemsize

    def lora_parameters(self, rank: int) -> int:
        """Trained parameters of a LoRA of this rank on every linear layer."""
        return sum(rank * (linear.inputs + linear.outputs) for linear in self.linears)


def model_size(folder: Path) -> ModelSize:
    """Return the size of the model in a folder.

    Raises:
        ModelError: its config names no decoder that transformers knows.
    """
    try:
        with quiet_libraries(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"This model's architecture isn't known: {str(error).strip().splitlines()[0]}",
            where=str(folder),
            fix="Check that it is a text-generating decoder that the installed transformers release supports.",
            code="unsupported_model",
        ) from error
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None) or 0  # state-space models have none
    head_width = getattr(text, "head_dim", None) or text.hidden_size // max(1, heads)
    per_layer = [
        sum(parameter.numel() for parameter in layer.parameters())
        for modules in model.modules()
        if isinstance(modules, nn.ModuleList) and len(modules) == text.num_hidden_layers
        for layer in modules
    ]
    output = model.get_output_embeddings()
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=text.num_hidden_layers,
        layer_parameters=max(per_layer, default=0),
        linears=tuple(
            LinearSize(name, *_inputs_and_outputs(module))
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and module is not output
        ),
        vocabulary=model.get_input_embeddings().num_embeddings,
        hidden=text.hidden_size,
        attention_heads=heads,
        query_width=heads * head_width,
        key_value_width=(getattr(text, "num_key_value_heads", None) or heads) * head_width,
        context_tokens=getattr(text, "max_position_embeddings", None),
        active_expert_parameters=_active_expert_parameters(model, getattr(text, "num_experts_per_tok", None)),
        bends_scores=getattr(text, "attn_logit_softcapping", None) is not None,
    )


def _inputs_and_outputs(linear: nn.Linear | Conv1D) -> tuple[int, int]:
    """Return a linear layer's width in and out; GPT-2's keep their weights transposed."""
    outputs, inputs = linear.weight.shape if isinstance(linear, nn.Linear) else linear.weight.t().shape
    return inputs, outputs


def _active_expert_parameters(model: nn.Module, experts_per_token: int | None) -> int:
    """Return how many weights of experts, which transformers stacks to (experts, ..., ...), one token goes through."""
    stacks = [weight for _, weight in expert_stacks(model)]
    return sum(weight.numel() * min(experts_per_token or len(weight), len(weight)) // len(weight) for weight in stacks)


def expert_stacks(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the weights of experts by name: stacks of matrices (experts, ..., ...) instead of linear layers."""
    return [
        (f"{name}.{leaf}", weight)
        for name, module in model.named_modules()
        if not isinstance(module, nn.modules.conv._ConvNd)
        for leaf, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3
    ]
