"""Rotation of queries and keys by their positions (Su et al. 2021, arXiv:2104.09864) in one pass instead of ten.

Every architecture of transformers that rotates calls a function `apply_rotary_pos_emb` of its own file. A layer that
takes the kernel gets its own `forward` with another function under that name; nobody else's changes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from tunesmith.native.calls import LANES, Kernels, kernels, kernels_for

_NAME = "apply_rotary_pos_emb"
#: Turns queries and keys (B, heads, T, D) by cosines and sines (B, T, D).
Rotate = Callable[..., tuple[Tensor, Tensor]]


def use_rotation(module: nn.Module) -> bool:
    """Let an attention layer rotate through the kernel in C where that can be; return whether it does now.

    The layer's function is known by its result on random numbers; what computes anything else is left alone.
    """
    forward = type(module).forward
    if "forward" in vars(module) or not isinstance(forward, FunctionType) or _NAME not in forward.__code__.co_names:
        return False
    original = forward.__globals__[_NAME]
    found = kernels()
    if found is None or not _rotates_halves(original, found):
        return False

    def rotate(
        query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor, *others: int, **named: int
    ) -> tuple[Tensor, Tensor]:
        if others or named or not all(_fits(x, cosines, sines) for x in (query, key)):
            return original(query, key, cosines, sines, *others, **named)  # type: ignore[no-any-return]
        return _turned(query, cosines[0], sines[0]), _turned(key, cosines[0], sines[0])

    own = FunctionType(
        forward.__code__, {**forward.__globals__, _NAME: rotate}, None, forward.__defaults__, forward.__closure__
    )
    own.__kwdefaults__ = forward.__kwdefaults__
    module.forward = MethodType(own, module)
    return True


def _fits(x: Tensor, cosines: Tensor, sines: Tensor) -> bool:
    """Whether the kernel can turn x (B, heads, T, D)."""
    batch, _, tokens, size = x.shape
    return (
        kernels_for(x) is not None
        and size % (2 * LANES) == 0
        and batch == 1
        and all(
            one.shape == (1, tokens, size) and one.dtype == x.dtype and one.is_contiguous() for one in (cosines, sines)
        )
    )


def _turned(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    out: Tensor = _Rotation.apply(x[0].transpose(0, 1), cosines, sines)  # type: ignore[no-untyped-call]
    return out.transpose(0, 1)[None]


class _Rotation(torch.autograd.Function):
    """Turns x (T, heads, D)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        return _kernels(x).rotate(x.contiguous(), cosines, sines)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        cosines, sines = ctx.saved_tensors  # type: ignore[attr-defined]
        return _kernels(grads[0]).rotate(grads[0].contiguous(), cosines, sines, goes_back=True), None, None


def _kernels(x: Tensor) -> Kernels:
    found = kernels_for(x)
    assert found is not None
    return found


@torch.no_grad()
def _rotates_halves(function: Rotate, found: Kernels) -> bool:
    """Whether a function's result on random numbers is the kernel's, but for its own rounding."""
    generator = torch.Generator().manual_seed(0)
    heads, tokens, size = 2, 3, 2 * LANES
    x, cosines, sines = (
        torch.randn(*shape, generator=generator).bfloat16() for shape in ((heads, tokens, size), *[(tokens, size)] * 2)
    )
    try:
        query, key = function(x[None], 2 * x[None], cosines[None], sines[None])
    except (TypeError, ValueError, RuntimeError):
        return False
    expected = found.rotate(x.transpose(0, 1).contiguous(), cosines, sines).transpose(0, 1)[None]
    tolerance = 4 * torch.finfo(torch.bfloat16).eps
    return all(
        one.shape == expected.shape and torch.allclose(one, by * expected, rtol=tolerance, atol=tolerance)
        for one, by in ((query, 1), (key, 2))
    )
