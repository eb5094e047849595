"""The loss over learnt tokens alone, its vocabulary projection computed in chunks.

The logits of prompts never exist, and at most `chunk_tokens` rows of logits exist at once. As the projection is
frozen, each chunk's gradient is taken while its logits are at hand (Hsu et al. 2024, "Liger Kernel",
arXiv:2410.10989, section 3.2), so nothing of the vocabulary's size is kept for the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from tunesmith.models.projection import Projection


class _ProjectedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, hidden: Tensor, projection: Projection, targets: Tensor, weights: Tensor, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden) if hidden.requires_grad else None
        losses = torch.empty(len(targets), dtype=precise, device=hidden.device)
        for start in range(0, len(targets), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits = projection.logits(hidden[part])
            target = targets[part, None]
            log_sum = logits.logsumexp(-1, keepdim=True)
            losses[part] = (log_sum - logits.gather(1, target)).squeeze(1)
            if grad_hidden is None:  # nothing is trained: the losses are all that is wanted
                continue
            slope = None if projection.softcap is None else 1 - (logits / projection.softcap).square()
            grad = logits.sub_(log_sum).exp_()
            grad.scatter_add_(1, target, torch.full_like(target, -1, dtype=grad.dtype))
            grad *= weights[part, None] * projection.scale
            if slope is not None:
                grad *= slope
            torch.mm(grad.to(hidden.dtype), projection.weight, out=grad_hidden[part])
        if grad_hidden is not None:
            ctx.save_for_backward(grad_hidden)
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad_hidden,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grad_hidden * grads[0].to(grad_hidden.dtype), None, None, None, None


def projected_cross_entropy(
    hidden: Tensor, projection: Projection, targets: Tensor, weights: Tensor, *, chunk_tokens: int = 512
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the targets' losses (natural log), differentiable in `hidden`, and each loss.

    Args:
        hidden: (M, H) final hidden states that predict the targets.
        projection: the frozen vocabulary projection.
        targets: (M,) token ids.
        weights: (M,) factors of the single losses.
        chunk_tokens: targets projected at once: memory against speed, never the result.

    Returns:
        The sum (scalar) and the single, unweighted losses (M,), in at least float32, without gradient.
    """
    total, losses = _ProjectedCrossEntropy.apply(hidden, projection, targets, weights, chunk_tokens)  # type: ignore[no-untyped-call]
    return total, losses
