"""The loss over learnt tokens alone, its vocabulary projection computed in chunks.

The logits of prompts never exist, and at most a chunk of logits exists at once. Each chunk's gradient is taken while
its logits are at hand (Hsu et al. 2024, "Liger Kernel", arXiv:2410.10989, section 3.2), so nothing of the size targets
x vocabulary is kept for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from tunesmith.models.adapters.panels import Panels
from tunesmith.models.projection import Projection
from tunesmith.native.calls import Kernels, kernels_for

#: A chunk's logits take about this much, by device; fewer than `_MIN_CHUNK` targets would starve the matrix product.
_CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}
_MIN_CHUNK = 128
#: On a CPU the arithmetic around the exponential runs over this many rows at once, so that they stay in its cache.
_CACHED_ROWS = 16


def default_chunk_tokens(projection: Projection) -> int:
    """Return how many targets are projected at once where nobody says: enough for speed, bounded in memory."""
    weight = projection.weight
    return max(_MIN_CHUNK, _CHUNK_BYTES.get(weight.device.type, 512 << 20) // (len(weight) * weight.dtype.itemsize))


def projected_cross_entropy(
    hidden: Tensor,
    projection: Projection,
    targets: Tensor,
    weights: Tensor,
    *,
    chunk_tokens: int | None = None,
    label_smoothing: float = 0.0,
    hits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the targets' losses (natural log), differentiable, and each target's plain loss.

    Differentiable in `hidden`, and in the projection's weight and bias where they ask for gradients.

    Args:
        hidden: (M, H) final hidden states that predict the targets.
        projection: the vocabulary projection.
        targets: (M,) token ids.
        weights: (M,) factors of the single losses.
        chunk_tokens: targets projected at once: memory against speed, never the result.
        label_smoothing: share e of each target's probability that is spread evenly over the vocabulary (Szegedy et al.
            2015, arXiv:1512.00567, section 7): the sum's losses become `(1 - e) nll + e mean over the vocabulary`.
        hits: (M,) is filled: 1 where no token is likelier than the target, 0 elsewhere.

    Returns:
        The sum (scalar) and the single losses (M,), unweighted and unsmoothed, in at least float32, without gradient.
    """
    chunk_tokens = chunk_tokens or default_chunk_tokens(projection)
    settings = _Settings(projection, chunk_tokens, label_smoothing, torch.is_grad_enabled(), hits)
    total, losses = _ProjectedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, projection.weight, projection.bias, targets, weights, settings
    )
    return total, losses


@dataclass(frozen=True, slots=True)
class _Settings:
    projection: Projection
    chunk_tokens: int
    label_smoothing: float
    differentiable: bool
    hits: Tensor | None = None


class _ProjectedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor]:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        trains_head = weight.requires_grad and settings.differentiable
        with_gradient = (hidden.requires_grad and settings.differentiable) or trains_head
        # A head that is trained in float32 beside a base in bfloat16 is used as the base would use it.
        used, used_bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        panels = settings.projection.panels if hidden.dtype == Panels.dtype and not trains_head else None
        grad_hidden = torch.empty_like(hidden) if with_gradient else None
        grad_weight = torch.zeros_like(weight, dtype=precise) if trains_head else None
        grad_bias = None if bias is None or not trains_head else torch.zeros_like(bias, dtype=precise)
        objective, losses = (torch.empty(len(targets), dtype=precise, device=hidden.device) for _ in range(2))
        size = min(settings.chunk_tokens, len(targets))
        logits = torch.empty(size, len(weight), dtype=hidden.dtype, device=hidden.device)
        for start in range(0, len(targets), settings.chunk_tokens):
            part = slice(start, min(start + settings.chunk_tokens, len(targets)))
            chunk = logits[: part.stop - start]
            if panels is not None:
                panels.forward.write(hidden[part], chunk)
            elif used_bias is None:
                torch.mm(hidden[part], used.t(), out=chunk)
            else:
                torch.addmm(used_bias, hidden[part], used.t(), out=chunk)
            objective[part], losses[part] = _losses(chunk, targets[part], weights[part], settings, with_gradient, part)
            if grad_hidden is not None and panels is not None:
                panels.backward.write(chunk, grad_hidden[part])
            elif grad_hidden is not None:
                torch.mm(chunk, used, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += chunk.t() @ hidden[part]
            if grad_bias is not None:
                grad_bias += chunk.sum(0, dtype=precise)
        ctx.grads = (  # type: ignore[attr-defined]
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(losses)
        return (objective * weights).sum(), losses

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept: tuple[Tensor | None, ...] = ctx.grads  # type: ignore[attr-defined]
        return (*(None if grad is None else grad * grads[0].to(grad.dtype) for grad in kept), None, None, None)


def _kernels_for(logits: Tensor, settings: _Settings) -> Kernels | None:
    """Return the kernels if they compute this loss: nothing is smoothed, scaled or bent."""
    projection = settings.projection
    is_plain = projection.scale == 1.0 and projection.softcap is None and not settings.label_smoothing
    return kernels_for(logits) if is_plain and logits.is_contiguous() else None


def _losses(
    logits: Tensor, targets: Tensor, weights: Tensor, settings: _Settings, with_gradient: bool, place: slice
) -> tuple[Tensor, Tensor]:
    """Return a chunk's losses, smoothed and plain; `logits` (C, V) become the weighted sum's gradient by them.

    `place` is where the chunk's targets stand among all.
    """
    kernels = _kernels_for(logits, settings)
    if kernels is not None:
        losses, hits = kernels.cross_entropy(logits, targets, weights if with_gradient else None)
        if settings.hits is not None:
            settings.hits[place] = hits.to(settings.hits.dtype)
        return losses, losses
    rows = _CACHED_ROWS if logits.device.type == "cpu" else len(logits)
    precise = torch.promote_types(logits.dtype, torch.float32)
    room = torch.empty(min(rows, len(logits)), logits.shape[1], dtype=precise, device=logits.device)
    smoothed, plain = (torch.empty(len(logits), dtype=precise, device=logits.device) for _ in range(2))
    projection, share = settings.projection, settings.label_smoothing
    for start in range(0, len(logits), rows):
        part = slice(start, min(start + rows, len(logits)))
        values, target, weight = room[: part.stop - start], targets[part, None], weights[part, None]
        values.copy_(logits[part])
        slope = projection.shape(values)
        values -= values.amax(-1, keepdim=True)
        at_target = values.gather(1, target).squeeze(1)
        if settings.hits is not None:
            # The likeliest token stands at zero now.
            settings.hits[place][part] = (at_target == 0).to(settings.hits.dtype)
        mean = values.mean(-1) if share else at_target
        total = values.exp_().sum(-1, keepdim=True)
        log_total = total.squeeze(1).log()
        plain[part] = log_total - at_target
        smoothed[part] = log_total - (1 - share) * at_target - share * mean
        if not with_gradient:
            continue
        factor = (weight * projection.scale).to(precise)
        values *= factor / total
        if share:
            values -= factor * (share / values.shape[1])
        values.scatter_add_(1, target, factor * (share - 1))
        if slope is not None:
            values *= slope
        logits[part] = values
    return smoothed, plain
