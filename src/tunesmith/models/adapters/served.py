"""Adapters beside a base that others use too: what a generator needs to let some of its rows go through one.

The base's weights stay as they are. A row of the adapter goes through `y = g (W x + B A x) + bias` in each adapted
layer, where B holds the scale already and g is 1 unless the adapter is a DoRA (arXiv:2402.09353).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.models.adapters.frozen import FrozenLinear, row_norms, weight_of, widths_of
from tunesmith.models.adapters.lora import mismatch, read_lora
from tunesmith.models.adapters.lora_layer import scale_of
from tunesmith.models.adapters.peft_form import tensor_names

#: Code of the error for an adapter that changes more than the products of linear layers: fold it in instead.
NOT_BESIDE = "adapter_not_beside"


@dataclass(frozen=True, eq=False)
class LowRank:
    """What an adapter adds to one linear layer: `y = g (W x + b a x) + bias`.

    Attributes:
        a: (rank, in).
        b: (out, rank), times the adapter's scale.
        factors: g (out,), DoRA's lengths of the rows by those of `W + b a`; None: 1.
    """

    a: Tensor
    b: Tensor
    factors: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.nbytes for tensor in (self.a, self.b, self.factors) if tensor is not None)


@dataclass(frozen=True, eq=False)
class ServedAdapter:
    """An adapter in memory, ready to be used beside others on one base.

    Attributes:
        layers: by the adapted layers' dotted names in the base, in the base's number format. Layers of one adapter
            may have ranks of their own.
    """

    layers: Mapping[str, LowRank]

    @property
    def bytes(self) -> int:
        """Memory of all tensors."""
        return sum(layer.bytes for layer in self.layers.values())


@torch.no_grad()
def read_served(
    folder: Path,
    model: PreTrainedModel,
    dtype: torch.dtype,
    device: torch.device,
    base_weight: Callable[[str], Tensor] | None = None,
) -> ServedAdapter:
    """Read the adapter in `folder` (PEFT's files) without touching the base.

    Everything is computed in float32 before it is brought to the base's number format.

    Args:
        folder: adapter_config.json and adapter_model.safetensors.
        model: the base, for its layers' names and shapes.
        dtype: the base's number format.
        device: where the adapter will lie.
        base_weight: gives a layer's weight (out, in) by its name, for a base that no longer keeps its weights in its
            layers; only DoRA asks for it.

    Raises:
        ModelError: the files are missing or broken (`code="broken_adapter"`) or of another base
            (`"adapter_mismatch"`), or the adapter changes more than linear layers (`NOT_BESIDE`).
    """
    spec, specs, tensors = read_lora(folder, model)
    if spec.modules_to_save:
        raise ModelError(
            f"This adapter replaces whole modules ({', '.join(spec.modules_to_save)}), so it can't share its base.",
            where=str(folder),
            fix="Fold it into a copy of the base.",
            code=NOT_BESIDE,
        )
    layers: dict[str, LowRank] = {}
    for name, own in specs.items():
        linear = cast(FrozenLinear, model.get_submodule(name))
        names = tensor_names(name)
        width_in, width_out = widths_of(linear)
        a = _taken(tensors, names["lora_a"], (own.rank, width_in), folder)
        b = _taken(tensors, names["lora_b"], (width_out, own.rank), folder)
        factors, scale = None, scale_of(own)
        if own.dora:
            magnitude = _taken(tensors, names["magnitude"], (width_out,), folder)
            weight = weight_of(linear) if base_weight is None else base_weight(name)
            norms = row_norms(weight, a.to(weight.device), b.to(weight.device), scale)
            factors = magnitude.to(norms) / norms
        layers[name] = _placed(LowRank(a, b * scale, factors), dtype, device, folder)
    if tensors:
        raise mismatch(f"The adapter has {min(tensors)}, which doesn't fit this base.", str(folder))
    return ServedAdapter(layers)


def _taken(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], folder: Path) -> Tensor:
    """Take a tensor out of `tensors`, in float32.

    Raises:
        ModelError: there is none of this shape.
    """
    tensor = tensors.pop(name, None)
    if tensor is None or tensor.shape != shape:
        raise mismatch(f"The adapter's tensors don't fit this base; the first that differs is {name}.", str(folder))
    return tensor.to(torch.float32)


def _placed(layer: LowRank, dtype: torch.dtype, device: torch.device, folder: Path) -> LowRank:
    """Bring an adapted layer to the base's number format and device.

    Raises:
        ModelError: a number isn't finite there. In a batch with others it could spoil more than its own answers.
    """
    placed = [
        None if tensor is None else tensor.to(device=device, dtype=dtype).contiguous()
        for tensor in (layer.a, layer.b, layer.factors)
    ]
    if not all(tensor is None or bool(torch.isfinite(tensor).all()) for tensor in placed):
        raise ModelError(
            "This adapter holds numbers that aren't finite.",
            where=str(folder),
            fix="Bring it back from a backup, or train it again.",
            code="broken_adapter",
        )
    a, b, factors = placed
    assert a is not None and b is not None
    return LowRank(a, b, factors)
