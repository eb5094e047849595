"""LoRA (Hu et al. 2021, arXiv:2106.09685): `y = W x + (alpha / rank) B A x`, in PEFT's form on disk.

The adapter's two matrices are kept in float32 and cast to the base's number format at use, so that small updates are
not lost in bfloat16's eight bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedModel

from tunesmith.errors import ModelError, SpecError
from tunesmith.models.adapters.adapter import ParameterGroup
from tunesmith.models.quantised import Nf4Linear
from tunesmith.models.resolve import BaseSource
from tunesmith.models.weights import save_tensors
from tunesmith.record.atomic import write_json
from tunesmith.specs.tune import LoraSpec, QloraSpec

#: PEFT wraps a model twice before its modules' names begin.
_PEFT_PREFIX = "base_model.model."

#: Settings of PEFT's LoRA that change what it computes.
_FOREIGN = (
    "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "modules_to_save", "fan_in_fan_out", "lora_bias",
    "layers_to_transform", "layer_replication", "exclude_modules", "target_parameters", "trainable_token_indices",
)  # fmt: skip


#: What an adapter can sit on.
FrozenLinear = nn.Linear | Nf4Linear


class _AdaptedLinear(torch.autograd.Function):
    """`x W^T + b + scale (x A^T) B^T` with the gradients of x, A and B only; W is frozen, nothing else is stored.

    W is asked of the layer again for the backward pass: one in 4 bits makes it anew each time.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, linear: FrozenLinear, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        low = flat @ a.t()
        out = nn.functional.linear(flat, linear.weight, linear.bias)
        out.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(flat, a, b, low)
        ctx.linear, ctx.scale = linear, scale  # type: ignore[attr-defined]
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        flat, a, b, low = ctx.saved_tensors  # type: ignore[attr-defined]
        scale: float = ctx.scale  # type: ignore[attr-defined]
        grad = grads[0]
        grad_flat = grad.reshape(-1, grad.shape[-1])
        grad_low = grad_flat @ b
        grad_x = grad_flat @ ctx.linear.weight  # type: ignore[attr-defined]
        grad_x.addmm_(grad_low, a, alpha=scale)
        grad_a = (grad_low.t() @ flat).mul_(scale)
        grad_b = (grad_flat.t() @ low).mul_(scale)
        return grad_x.view(*grad.shape[:-1], -1), None, grad_a, grad_b, None


def _adapted_linear(x: Tensor, linear: FrozenLinear, a: Tensor, b: Tensor, scale: float) -> Tensor:
    out: Tensor = _AdaptedLinear.apply(x, linear, a, b, scale)  # type: ignore[no-untyped-call]
    return out


class LoraLinear(nn.Module):
    """A frozen linear layer with its low-rank correction.

    `lora_a` is (rank, in), drawn as PEFT draws it (Kaiming uniform with a=sqrt(5)); `lora_b` is (out, rank), zero.
    """

    def __init__(self, linear: FrozenLinear, spec: LoraSpec) -> None:
        super().__init__()
        self.linear = linear
        self.scale = spec.alpha / spec.rank
        self.dropout = nn.Dropout(spec.dropout) if spec.dropout else None
        device = linear.weight.device
        self.lora_a = nn.Parameter(torch.empty(spec.rank, linear.in_features, dtype=torch.float32, device=device))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, spec.rank, dtype=torch.float32, device=device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        a, b = self.lora_a.to(x.dtype), self.lora_b.to(x.dtype)
        if self.dropout is not None and self.training:
            out = self.linear(x) + (self.dropout(x) @ a.t()) @ b.t() * self.scale
        else:
            out = _adapted_linear(x, self.linear, a, b, self.scale)
        return cast(Tensor, out)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return `W + scale B A`, computed in float32, in W's number format, (out, in)."""
        weight = self.linear.weight
        return (weight.float() + self.scale * (self.lora_b @ self.lora_a)).to(weight.dtype)


@dataclass(frozen=True)
class LoraAdapter:
    """The adapted layers of one model, by their module's name."""

    model: PreTrainedModel
    layers: Mapping[str, LoraLinear]
    spec: LoraSpec

    def parameter_groups(self) -> list[ParameterGroup]:
        """See `Adapter`."""
        return [
            ParameterGroup(
                [p for name in sorted(self.layers) for p in (self.layers[name].lora_a, self.layers[name].lora_b)]
            )
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Return the adapter's tensors under PEFT's names."""
        named = {}
        for name, layer in sorted(self.layers.items()):
            named[f"{_PEFT_PREFIX}{name}.lora_A.weight"] = layer.lora_a.detach()
            named[f"{_PEFT_PREFIX}{name}.lora_B.weight"] = layer.lora_b.detach()
        return named

    @torch.no_grad()
    def load_tensors(self, tensors: Mapping[str, Tensor], *, where: str) -> None:
        """Take over tensors under PEFT's names.

        Raises:
            ModelError: names or shapes differ from this adapter's.
        """
        own = self.tensors()
        wrong = sorted(own.keys() ^ tensors.keys()) or sorted(
            name for name in own if own[name].shape != tensors[name].shape
        )
        if wrong:
            raise _mismatch(f"The adapter's tensors don't fit this base; the first that differs is {wrong[0]}.", where)
        for name, tensor in own.items():
            tensor.copy_(tensors[name])

    def save(self, folder: Path, base: BaseSource) -> None:
        """See `Adapter`; the files are PEFT's."""
        save_tensors(folder / "adapter_model.safetensors", self.tensors())
        write_json(folder / "adapter_config.json", self.peft_config(base.name))

    @torch.no_grad()
    def merge(self) -> None:
        """See `Adapter`."""
        for name, layer in self.layers.items():
            merged = layer.merged_weight()
            plain = layer.linear if isinstance(layer.linear, nn.Linear) else layer.linear.plain()
            plain.weight.copy_(merged)
            self.model.set_submodule(name, plain)

    def settle(self) -> None:
        """See `Adapter`; on a base in 4 bits the adapter stays apart, as folding it in would unpack the weights."""
        if not isinstance(self.spec, QloraSpec):
            self.merge()

    def peft_config(self, base: str) -> dict[str, Any]:
        """Return `adapter_config.json` as PEFT reads it."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.spec.rank,
            "lora_alpha": self.spec.alpha,
            "lora_dropout": self.spec.dropout,
            "target_modules": sorted({name.rsplit(".", 1)[-1] for name in self.layers}),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        }


def add_lora(model: PreTrainedModel, spec: LoraSpec) -> LoraAdapter:
    """Put a fresh adapter on `model`'s linear layers, in place; the base's weights are frozen.

    Raises:
        SpecError: `target_modules` names a layer that the model doesn't have.
        ModelError: the model has no linear layers.
    """
    model.requires_grad_(False)
    output = model.get_output_embeddings()
    linears = {name: module for name, module in model.named_modules() if type(module) in (nn.Linear, Nf4Linear)}
    linears = {name: module for name, module in linears.items() if module is not output}
    if spec.target_modules != "all-linear":
        known = {name.rsplit(".", 1)[-1] for name in linears}
        unknown = sorted(set(spec.target_modules) - known)
        if unknown:
            raise SpecError(
                f"This base has no linear layer named {unknown[0]!r}.",
                fix=f"Choose from {', '.join(sorted(known))}, or all-linear.",
                param="adapter.target_modules",
                code="unknown_module",
            )
        linears = {name: module for name, module in linears.items() if name.rsplit(".", 1)[-1] in spec.target_modules}
    if not linears:
        raise ModelError(
            f"The architecture {model.config.model_type!r} has no linear layers that an adapter could sit on.",
            fix="Choose a base of the Llama, Qwen, Mistral, Gemma or Phi families.",
            code="unsupported_architecture",
        )
    layers = {}
    for name, linear in linears.items():
        layer = LoraLinear(linear, spec).train(linear.training)
        model.set_submodule(name, layer)
        layers[name] = layer
    return LoraAdapter(model, layers, spec)


def load_lora(model: PreTrainedModel, folder: Path) -> LoraAdapter:
    """Put the adapter in `folder` (PEFT's files) on `model`, in place.

    Raises:
        ModelError: the files are missing or broken, of another kind, or don't fit the base.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        spec = _spec_of(config)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"This adapter can't be read: {error}",
            where=str(folder),
            fix="An adapter folder holds adapter_config.json and adapter_model.safetensors in PEFT's form.",
            code="broken_adapter",
        ) from error
    try:
        adapter = add_lora(model, spec)
    except SpecError as error:
        raise _mismatch(error.message, str(folder)) from error
    adapter.load_tensors(tensors, where=str(folder))
    return adapter


def _spec_of(config: Mapping[str, Any]) -> LoraSpec:
    """Return the settings in a PEFT configuration.

    Raises:
        ValueError: it asks for what this file doesn't compute; ignoring that would give wrong answers silently.
    """
    if config.get("peft_type") != "LORA":
        raise ValueError(f"its kind is {config.get('peft_type')!r}, not LORA")
    foreign = [name for name in _FOREIGN if config.get(name)]
    if config.get("bias", "none") != "none":
        foreign.append("bias")
    if foreign:
        raise ValueError(f"it uses {', '.join(foreign)}, which Tunesmith doesn't support")
    targets = config["target_modules"]
    if isinstance(targets, str) and targets != "all-linear":
        raise ValueError("its target_modules is a pattern; Tunesmith reads a list of names")
    return LoraSpec(
        rank=config["r"],
        alpha=config["lora_alpha"],
        dropout=config.get("lora_dropout", 0.0),
        target_modules=targets if isinstance(targets, str) else tuple(targets),
    )


def _mismatch(message: str, where: str) -> ModelError:
    return ModelError(
        message, where=where, fix="Use the base that the adapter was trained on.", code="adapter_mismatch"
    )
