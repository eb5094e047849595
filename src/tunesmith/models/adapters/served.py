"""Adapters beside a base that others use too: what a generator needs to let some of its rows go through one.

The base's weights stay as they are. A row of the adapter goes through `y = g (W x + B A x) + bias` in each adapted
layer, where B holds the scale already and g is 1 unless the adapter is a DoRA (arXiv:2402.09353).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.models.adapters.frozen import FrozenLinear, row_norms, weight_of, widths_of
from tunesmith.models.adapters.lora import mismatch, read_lora
from tunesmith.models.adapters.lora_layer import LoraLinear, scale_of
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
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self._tensors())

    def corrected(self, out: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output (..., out) for x (..., in), given that of the base's layer, `W x + bias`."""
        added = (x @ self.a.t()) @ self.b.t()
        if self.factors is None:
            return out + added
        plain = out if bias is None else out - bias
        tuned = self.factors * (plain + added)
        return tuned if bias is None else tuned + bias

    def to(self, dtype: torch.dtype, device: torch.device) -> LowRank:
        """Bring it to another number format and device."""
        return LowRank(*(tensor.to(device=device, dtype=dtype).contiguous() for tensor in self._tensors()))

    def _tensors(self) -> list[Tensor]:
        return [self.a, self.b] if self.factors is None else [self.a, self.b, self.factors]


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


@contextmanager
def beside(model: nn.Module, adapter: ServedAdapter) -> Iterator[None]:
    """Let everything that `model` computes in the block go through an adapter, whatever its architecture.

    For a model that computes one text at a time; the generator has quicker ways where rows of several adapters lie
    side by side.
    """
    hooks = []
    try:
        for name, layer in adapter.layers.items():
            hooks.append(model.get_submodule(name).register_forward_hook(_hook(layer)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(layer: LowRank) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def correct(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return layer.corrected(out, inputs[0], cast(Tensor | None, module.bias))

    return correct


@torch.no_grad()
def low_rank_of(layer: LoraLinear, dtype: torch.dtype) -> LowRank:
    """Return what an adapted layer in a model adds to its frozen one: what its files hold once they are read."""
    a, b = layer.learnt()
    frozen = weight_of(layer.linear)
    magnitude = None if layer.magnitude is None else layer.magnitude.detach()
    return _low_rank(a, b, layer.scale, magnitude, frozen).to(dtype, frozen.device)


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
        magnitude = weight = None
        if own.dora:
            magnitude = _taken(tensors, names["magnitude"], (width_out,), folder)
            weight = weight_of(linear) if base_weight is None else base_weight(name)
        layers[name] = _low_rank(a, b, scale_of(own), magnitude, weight).to(dtype, device)
        if not layers[name].is_finite:
            # In a batch with others it could spoil more than its own answers.
            raise ModelError(
                f"This adapter holds numbers that aren't finite ({name}).",
                where=str(folder),
                fix="Bring it back from a backup, or train it again.",
                code="broken_adapter",
            )
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


def _low_rank(a: Tensor, b: Tensor, scale: float, magnitude: Tensor | None, weight: Tensor | None) -> LowRank:
    """Fold scale and DoRA's lengths (out,) in; `weight` (out, in) is the base's, asked for by the latter alone."""
    if magnitude is None or weight is None:
        return LowRank(a, b * scale)
    norms = row_norms(weight, a.to(weight.device), b.to(weight.device), scale)
    return LowRank(a, b * scale, magnitude.to(norms) / norms)
