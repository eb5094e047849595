"""Root mean square normalisation (Zhang & Sennrich 2019, arXiv:1910.07467) with a frozen weight.

Kept for the backward pass: the input, which is kept anyway, and one number a row. Plain code keeps the input again in
float32, and the normalised rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from tunesmith.learn.kernels.rows import pieces
from tunesmith.native.calls import LANES, Kernels, kernels_for


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, *, adds_one: bool) -> Tensor:
    """Return `x / rms(x) * weight`, or `* (1 + weight)`, differentiable in x alone.

    Args:
        x: (..., H).
        weight: (H,), frozen.
        epsilon: added to the mean square.
        adds_one: whether the factor is `1 + weight`, all in float32, as Gemma has it; else the normalised row is
            rounded to x's number format first, as Llama has it.
    """
    out: Tensor = _RmsNorm.apply(x, weight, epsilon, adds_one)  # type: ignore[no-untyped-call]
    return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, epsilon: float, adds_one: bool) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        precise = torch.promote_types(x.dtype, torch.float32)
        out = torch.empty_like(flat)
        inverse = torch.empty(len(flat), 1, dtype=precise, device=x.device)
        ctx.adds_one = adds_one  # type: ignore[attr-defined]
        ctx.save_for_backward(flat, weight, inverse)
        kernels = _kernels_for(flat)
        if kernels is not None:
            kernels.norm(flat, _factors(weight, precise, adds_one), epsilon, out, inverse)
            return out.view(x.shape)
        for part in pieces(flat):
            rows = flat[part].to(precise, copy=True)
            here = inverse[part]
            torch.linalg.vector_norm(rows, dim=-1, keepdim=True, out=here)
            here.square_().div_(rows.shape[-1]).add_(epsilon).rsqrt_()
            rows *= here
            if adds_one:
                rows *= 1 + weight.to(precise)
                out[part] = rows
            else:
                out[part] = rows
                out[part] *= weight
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        flat, weight, inverse = ctx.saved_tensors  # type: ignore[attr-defined]
        grad = grads[0].reshape(flat.shape)
        factor = _factors(weight, inverse.dtype, ctx.adds_one)  # type: ignore[attr-defined]
        kernels = _kernels_for(flat)
        if kernels is not None:
            found = kernels.norm_backward(flat, grad.contiguous(), inverse, factor)
            return found.view(grads[0].shape), None, None, None
        out = torch.empty_like(flat)
        for part in pieces(flat):
            normal = flat[part].to(inverse.dtype, copy=True)
            normal *= inverse[part]
            slope = grad[part].to(inverse.dtype, copy=True)
            slope *= factor
            along = torch.linalg.vecdot(normal, slope).div_(flat.shape[-1])
            slope -= normal.mul_(along[:, None])
            slope *= inverse[part]
            out[part] = slope
        return out.view(grads[0].shape), None, None, None


def _factors(weight: Tensor, dtype: torch.dtype, adds_one: bool) -> Tensor:
    return 1 + weight.to(dtype) if adds_one else weight.to(dtype)


def _kernels_for(flat: Tensor) -> Kernels | None:
    return kernels_for(flat) if flat.is_contiguous() and flat.shape[1] % LANES == 0 else None


def use_rms_norm(module: nn.Module) -> bool:
    """Let a normalisation layer compute with `rms_norm` while its weight is frozen; return whether it does now.

    A layer is known by its result on a random input, not by its name: what computes anything else is left alone.
    """
    weight, epsilon = getattr(module, "weight", None), _epsilon(module)
    if not isinstance(weight, Tensor) or weight.dim() != 1 or epsilon is None or "forward" in vars(module):
        return False
    original = module.forward
    adds_one = _adds_one(module, weight, epsilon)
    if adds_one is None:
        return False

    def forward(x: Tensor, *further: Any, **named: Any) -> Tensor:
        # Training of the weight itself is left to PyTorch; a gate beside the input (Mamba 2) is another computation.
        if module.weight.requires_grad or further or named:
            return original(x, *further, **named)  # type: ignore[no-any-return]
        return rms_norm(x, module.weight, epsilon, adds_one=adds_one)  # type: ignore[arg-type]

    module.forward = forward
    return True


def _epsilon(module: nn.Module) -> float | None:
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


@torch.no_grad()
def _adds_one(module: nn.Module, weight: Tensor, epsilon: float) -> bool | None:
    """Return which of the two forms a layer computes, or None for neither."""
    generator = torch.Generator().manual_seed(0)
    probe = 3 * torch.randn(4, len(weight), generator=generator, dtype=torch.float64)
    probe = probe.to(weight.device, weight.dtype)
    try:
        expected = module(probe)
    except (TypeError, RuntimeError):
        return None
    tolerance = 4 * torch.finfo(weight.dtype).eps
    for adds_one in (False, True):
        found = rms_norm(probe, weight, epsilon, adds_one=adds_one)
        if found.shape == expected.shape and torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
            return adds_one
    return None
