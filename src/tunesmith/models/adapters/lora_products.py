"""The products of adapted layers, forward and backward, with nothing kept that is cheap to make again.

W is frozen: its gradient is never computed, and it is asked of its layer again for the backward pass (a layer in 4 bits
makes it anew each time). Dropout keeps a random seed instead of a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from tunesmith.models.adapters.frozen_map import FrozenMap
from tunesmith.models.adapters.narrow import outer_sum

#: Dropout decides by random numbers of 16 bits, four of which come from one draw.
_LEVELS = 1 << 16


@dataclass(frozen=True)
class Drop:
    """One draw of dropout: which inputs are dropped, known by a seed."""

    share: float
    seed: int

    @classmethod
    def draw(cls, share: float) -> Drop:
        """Draw a seed from torch's own random numbers of the CPU, which checkpoints keep, whatever the device."""
        return cls(share, int(torch.randint(2**63 - 1, ())))

    def mask(self, like: Tensor) -> Tensor:
        """Return the factors on `like`: 0 for a `share` of them (in steps of 1 / 65,536), 1 / (1 - share) else."""
        generator = torch.Generator(like.device).manual_seed(self.seed)
        draws = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
        numbers = draws.random_(-(2**63), None, generator=generator).view(torch.int16)[: like.numel()]
        dropped = min(round(self.share * _LEVELS), _LEVELS - 1)
        kept = numbers >= dropped - _LEVELS // 2
        return kept.to(like.dtype).mul_(_LEVELS / (_LEVELS - dropped)).view(like.shape)


def low_rank_linear(x: Tensor, a: Tensor, b: Tensor, frozen: FrozenMap, scale: float, drop: Drop | None) -> Tensor:
    """Return `F(x) + bias + scale (d(x) A^T) B^T`, differentiable in x, A and B.

    Args:
        x: (..., in).
        a: (rank, in), in any number format; it is used in x's.
        b: (out, rank), likewise.
        frozen: F, with its bias.
        scale: factor of the correction.
        drop: dropout d on the correction's input; None: none.
    """
    out: Tensor = _LowRankLinear.apply(x, a, b, frozen, scale, drop)  # type: ignore[no-untyped-call]
    return out


def directed_linear(
    x: Tensor, a: Tensor, b: Tensor, factors: Tensor, frozen: FrozenMap, scale: float, drop: Drop | None
) -> Tensor:
    """Return DoRA's `g (F(d(x)) + scale (d(x) A^T) B^T) + bias + F(x - d(x))`, differentiable in x, A, B and g.

    The last part is what PEFT computes under dropout: the layer's own output is never dropped.

    Args:
        x: (..., in).
        a: (rank, in).
        b: (out, rank).
        factors: g (out,), each row's trained length by its present one.
        frozen: F, with its bias.
        scale: factor of the correction.
        drop: dropout d; None: none.
    """
    out: Tensor = _DirectedLinear.apply(x, a, b, factors, frozen, scale, drop)  # type: ignore[no-untyped-call]
    return out


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, a: Tensor, b: Tensor, frozen: FrozenMap, scale: float, drop: Drop | None
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        kept = flat if drop is None else flat * drop.mask(flat)
        low = kept @ a.to(x.dtype).t()
        out = frozen.map_with(flat, low, b, scale)
        ctx.save_for_backward(flat, a, b, low)
        ctx.settings = frozen, scale, drop  # type: ignore[attr-defined]
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, a, b, low = ctx.saved_tensors  # type: ignore[attr-defined]
        frozen, scale, drop = ctx.settings  # type: ignore[attr-defined]
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_low = grad @ b.to(grad.dtype)
        grad_b = outer_sum(low, grad, scale).t().to(b.dtype)
        mask = None if drop is None else drop.mask(flat)
        grad_a = outer_sum(grad_low, flat if mask is None else flat * mask, scale).to(a.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            if mask is None:
                grad_x = frozen.pull_with(grad, grad_low, a, scale)
            else:
                grad_x = frozen.pull(grad).addcmul_(grad_low @ a.to(grad.dtype), mask, value=scale)
            grad_x = grad_x.view(*grads[0].shape[:-1], -1)
        return grad_x, grad_a, grad_b, None, None, None


class _DirectedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        a: Tensor,
        b: Tensor,
        factors: Tensor,
        frozen: FrozenMap,
        scale: float,
        drop: Drop | None,
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        kept = flat if drop is None else flat * drop.mask(flat)
        low = kept @ a.to(x.dtype).t()
        inner = frozen.map(kept, bias=False)
        inner.addmm_(low, b.to(x.dtype).t(), alpha=scale)
        out = inner * factors.to(x.dtype)
        if drop is not None:
            out += frozen.map(flat - kept, bias=False)
        if frozen.linear.bias is not None:
            out += frozen.linear.bias
        # `inner` costs a whole product to make again, so it is kept.
        ctx.save_for_backward(flat, a, b, factors, low, inner)
        ctx.settings = frozen, scale, drop  # type: ignore[attr-defined]
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, a, b, factors, low, inner = ctx.saved_tensors  # type: ignore[attr-defined]
        frozen, scale, drop = ctx.settings  # type: ignore[attr-defined]
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        grad_factors = (grad * inner).sum(0, dtype=factors.dtype)
        grad_inner = grad * factors.to(grad.dtype)
        grad_low = grad_inner @ b.to(grad.dtype)
        grad_b = outer_sum(low, grad_inner, scale).t().to(b.dtype)
        mask = None if drop is None else drop.mask(flat)
        grad_a = outer_sum(grad_low, flat if mask is None else flat * mask, scale).to(a.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            grad_x = frozen.pull(grad_inner)
            if mask is not None:
                # F(x - d(x)) goes past the mask: d F(d) + (1 - d) F.
                beside = frozen.pull(grad)
                grad_x = grad_x.sub_(beside).mul_(mask).add_(beside)
            _add_correction(grad_x, grad_low, a, scale, mask)
            grad_x = grad_x.view(*grads[0].shape[:-1], -1)
        return grad_x, grad_a, grad_b, grad_factors, None, None, None


def _add_correction(grad_x: Tensor, grad_low: Tensor, a: Tensor, scale: float, mask: Tensor | None) -> None:
    """Add the correction's share of the input's gradient, in place."""
    if mask is None:
        grad_x.addmm_(grad_low, a.to(grad_x.dtype), alpha=scale)
    else:
        grad_x.addcmul_(grad_low @ a.to(grad_x.dtype), mask, value=scale)
