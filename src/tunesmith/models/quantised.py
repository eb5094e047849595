"""Weights in 4 bits, optimiser states in 8: what `bitsandbytes` computes, wrapped here and nowhere else.

A frozen linear layer keeps its weights as NF4 (Dettmers et al. 2023, arXiv:2305.14314): sixteen levels, the quantiles
of a normal distribution, times one factor for each block of 64 weights. Double quantisation keeps the factors in 8
bits. The weights are brought back for each product, forward and backward, and are never kept.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import PreTrainedModel

from tunesmith.errors import ModelError

#: Weights that share one factor.
BLOCK_SIZE = 64
#: Blocks that are quantised at once: about 17 bytes a weight are needed for that, whatever the layer's size.
_BLOCKS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Nf4:
    """How the linear layers of a base are kept in 4 bits.

    The same base under the same settings gives the same weights, so an adapter is served on those it was trained on.

    Attributes:
        double_quantisation: the blocks' factors are quantised too.
        dtype: number format of the weights that are quantised; `auto`: the one that the base is loaded in.
    """

    double_quantisation: bool
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"

    def to_json(self) -> dict[str, Any]:
        """Return plain data, for a model's manifest."""
        return {"format": "nf4", "block_size": BLOCK_SIZE, "double": self.double_quantisation, "dtype": self.dtype}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> Nf4:
        """Read what `to_json` gave.

        Raises:
            ModelError: this release keeps weights in another way.
        """
        found = cls(bool(value.get("double")), value.get("dtype", "auto"))
        if found.to_json() != dict(value):
            raise ModelError(
                "This model was trained on a base that was quantised in a way that isn't known here.",
                where=where,
                fix="Use the release of Tunesmith that it was trained with.",
                code="unknown_quantisation",
            )
        return found


class Nf4Linear(nn.Module):
    """A frozen linear layer with its weights in 4 bits.

    `weight` is what a plain layer would have, (out, in), made anew each time that it is asked for.
    """

    def __init__(self, linear: nn.Linear, *, double_quantisation: bool, device: torch.device | None = None) -> None:
        """Quantise a layer's weights on `device` (where they lie by default).

        Raises:
            ModelError: `bitsandbytes` isn't installed.
        """
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().to(device)
        # One block a row: where blocks cross rows, bitsandbytes 0.50 brings some back with a neighbour's factor (CPU).
        blocks = nn.functional.pad(weight.flatten(), (0, -weight.numel() % BLOCK_SIZE)).view(-1, BLOCK_SIZE)
        packed, self._state = _quantised(blocks, double_quantisation)
        self._dtype = weight.dtype
        self.register_buffer("packed", packed, persistent=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(device), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The weights in the layer's number format, (out, in)."""
        blocks: Tensor = _functional().dequantize_4bit(self.packed, self._state).to(self._dtype)
        size = self.out_features * self.in_features
        return blocks.flatten()[:size].view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return cast(Tensor, _FrozenProduct.apply(x, self))  # type: ignore[no-untyped-call]

    def plain(self) -> nn.Linear:
        """Return a plain layer of these weights."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(self.weight, requires_grad=False)
        plain.bias = self.bias
        return plain.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Nf4Linear:
        """Follow `to`, `cuda`, `float`: the factors move with the weights, but keep their own number format."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._state.to(self.packed.device)
        self._dtype = fn(torch.empty(0, dtype=self._dtype)).dtype
        return self


def _quantised(blocks: Tensor, double_quantisation: bool) -> tuple[Tensor, Any]:
    """Return the codes, two in a byte, and `bitsandbytes`' state of weights (N, 64); a part of them at a time."""
    functional = _functional()
    parts = [
        functional.quantize_4bit(part, blocksize=BLOCK_SIZE, quant_type="nf4")
        for part in torch.split(blocks, _BLOCKS_AT_ONCE)
    ]
    state = parts[0][1]
    state.absmax, state.shape = torch.cat([part.absmax for _, part in parts]), blocks.shape
    if double_quantisation:
        # As quantize_4bit does with all factors at once.
        state.offset = state.absmax.mean()
        state.absmax, state.state2 = functional.quantize_blockwise(state.absmax - state.offset, blocksize=256)
        state.nested = True
    return torch.cat([codes for codes, _ in parts]), state


class _FrozenProduct(torch.autograd.Function):
    """`x W^T + b`; W is made for each of the two products and let go."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer  # type: ignore[attr-defined]
        return nn.functional.linear(x, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] @ ctx.layer.weight, None  # type: ignore[attr-defined]


def quantise_linears(
    model: PreTrainedModel, *, double_quantisation: bool, device: torch.device | None = None
) -> list[str]:
    """Quantise a model's linear layers but the output layer, in place, one after the other; return their names.

    Each layer's old weights are let go before the next layer is touched.

    Args:
        model: it may lie elsewhere than `device`; what isn't quantised stays where it is.
        double_quantisation: quantise the blocks' factors too.
        device: where the quantised layers will lie; where they are by default.

    Raises:
        ModelError: `bitsandbytes` isn't installed.
    """
    output = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear and module is not output]
    for name in names:
        linear = cast(nn.Linear, model.get_submodule(name))
        quantised = Nf4Linear(linear, double_quantisation=double_quantisation, device=device)
        model.set_submodule(name, quantised.train(linear.training))
    return names


def new_moments_8bit(weight: Tensor) -> dict[str, Tensor]:
    """Return AdamW's two running means of a tensor, zero, in 8 bits: codes, and a factor for each 256 of them.

    Raises:
        ModelError: `bitsandbytes` isn't installed.
    """
    blocks = -(-weight.numel() // 256)
    codes = {f"{name}_codes": torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device) for name in _MEANS}
    factors = {f"{name}_factors": torch.zeros(blocks, dtype=torch.float32, device=weight.device) for name in _MEANS}
    _functional()
    return {**codes, **factors}


def adamw_8bit(
    weight: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    *,
    step: int,
    rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """Take one AdamW step in place, with running means in 8 bits (Dettmers et al. 2022, arXiv:2110.02861).

    Args:
        weight: float32.
        gradient: float32, of the same shape.
        state: what `new_moments_8bit` gave, changed in place.
        step: the step's number, from 1.
        rate: the learning rate.
        betas: decay of the two running means.
        weight_decay: decoupled.
    """
    first, second = _MEANS
    signed, unsigned = _code_maps(weight.device)
    _functional().optimizer_update_8bit_blockwise(
        "adam",
        gradient,
        weight,
        state[f"{first}_codes"],
        state[f"{second}_codes"],
        *betas,
        0.0,
        0.0,
        1e-8,
        step,
        rate,
        signed,
        unsigned,
        state[f"{first}_factors"],
        state[f"{second}_factors"],
        weight_decay=weight_decay,
    )


_MEANS = ("exp_avg", "exp_avg_sq")


@functools.cache
def _code_maps(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the 256 values that codes stand for: of signed numbers and of positive ones."""
    functional = _functional()
    return functional.create_dynamic_map(signed=True).to(device), functional.create_dynamic_map(signed=False).to(device)


@functools.cache
def _functional() -> Any:
    """Return `bitsandbytes.functional`.

    Raises:
        ModelError: it isn't installed.
    """
    # It warns that an optional faster kernel, which isn't used here, is absent.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        import bitsandbytes  # noqa: PLC0415 (optional, and slow to import)
    except ImportError as error:
        raise ModelError(
            "Weights in 4 bits and optimiser states in 8 need the package bitsandbytes, which isn't installed.",
            fix="Install it: pip install 'tunesmith[quantised]'. Or use adapter.kind=lora and optimiser=adamw.",
            code="missing_package",
        ) from error
    return bitsandbytes.functional
