"""Adapted linear layers that read the same input, computed together.

Their inputs' low-rank images are one matrix product instead of several, the input is kept once, and its gradient is
summed in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from tunesmith.models.adapters.frozen import weight_of
from tunesmith.models.adapters.lora_layer import LoraLinear
from tunesmith.models.adapters.narrow import outer_sum


@dataclass(frozen=True)
class Adapted:
    """One plain adapted layer, `x W^T + b + scale (x A^T) B^T`, by its parts."""

    layer: LoraLinear

    @property
    def trained(self) -> tuple[Tensor, Tensor]:
        """A (rank, in) and B (out, rank)."""
        return self.layer.lora_a, self.layer.lora_b

    def forward(self, x: Tensor, low: Tensor, b: Tensor) -> Tensor:
        """Map (M, in) to (M, out), given the low-rank image (M, rank) and B in x's number format."""
        if self.layer.panels is not None and x.dtype == self.layer.panels.dtype:
            return self.layer.panels.map(x, low, (self.layer.scale * self.layer.lora_b.detach()).to(x.dtype))
        weight, bias = weight_of(self.layer.linear), self.layer.linear.bias
        out = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
        return out.addmm_(low, b.t(), alpha=self.layer.scale)

    def pull(self, grad: Tensor, into: Tensor | None) -> Tensor:
        """Map the output's gradient (M, out) to the input's (M, in) through W, added to `into` if there is one."""
        if self.layer.panels is not None and grad.dtype == self.layer.panels.dtype:
            backward = self.layer.panels.backward
            if into is None:
                return backward(grad)
            backward.update(into, grad)
            return into
        weight = weight_of(self.layer.linear)
        return torch.mm(grad, weight) if into is None else into.addmm_(grad, weight)


def low_images(x: Tensor, layers: Sequence[Adapted], matrices: Sequence[Tensor]) -> list[Tensor]:
    """Return each layer's (M, rank) image `x A^T` of the same x (M, in); `matrices` are the A in x's number format."""
    low = x @ torch.cat(list(matrices)).t()
    return list(torch.split(low, [layer.layer.lora_a.shape[0] for layer in layers], dim=1))


def pull(layers: Sequence[Adapted], grads: Sequence[Tensor], scaled: Sequence[Tensor]) -> Tensor:
    """Return the gradient (M, in) of the layers' shared input.

    Args:
        layers: the layers.
        grads: the gradients (M, out) of their outputs.
        scaled: what `scaled_low_gradients` made of these.
    """
    grad_x: Tensor | None = None
    for layer, grad in zip(layers[:-1], grads, strict=False):
        grad_x = layer.pull(grad, grad_x)
    low = scaled[0] if len(scaled) == 1 else torch.cat(list(scaled), dim=1)
    matrices = torch.cat([layer.layer.lora_a.to(grads[0].dtype) for layer in layers])
    panels = layers[-1].layer.panels
    if panels is not None and grads[-1].dtype == panels.dtype:
        return panels.pull(grads[-1], low, matrices, grad_x)
    return layers[-1].pull(grads[-1], grad_x).addmm_(low, matrices)


def scaled_low_gradients(layers: Sequence[Adapted], grads: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient (M, rank) of each layer's low-rank image, given those of the outputs (M, out)."""
    return [
        (grad @ layer.layer.lora_b.to(grad.dtype)).mul_(layer.layer.scale)
        for layer, grad in zip(layers, grads, strict=True)
    ]


def trained_gradients(
    layers: Sequence[Adapted], x: Tensor, lows: Sequence[Tensor], grads: Sequence[Tensor], scaled: Sequence[Tensor]
) -> list[Tensor]:
    """Return the gradients of A and B of each layer, in order.

    Args:
        layers: layers that read the same input.
        x: that input (M, in).
        lows: their low-rank images (M, rank) of it.
        grads: the gradients (M, out) of their outputs.
        scaled: the gradients of their low-rank images.
    """
    grads_a = torch.split(outer_sum(torch.cat(list(scaled), dim=1), x, 1.0), [part.shape[1] for part in scaled])
    trained: list[Tensor] = []
    for layer, low, grad, grad_a in zip(layers, lows, grads, grads_a, strict=True):
        a, b = layer.trained
        trained += [grad_a.to(a.dtype), outer_sum(low, grad, layer.layer.scale).t().to(b.dtype)]
    return trained


class SharedInput:
    """Adapted layers (query, key and value, for example) that the model calls one after the other on one tensor.

    The first call computes all; the others take what is ready.
    """

    def __init__(self, layers: Sequence[LoraLinear]) -> None:
        """Let the layers' `forward` go through this object while all of them are plain."""
        self._layers = [Adapted(layer) for layer in layers]
        self._ready: tuple[Tensor, list[Tensor | None]] | None = None
        for index, layer in enumerate(layers):
            layer.forward = self._member(index, layer)  # type: ignore[method-assign]

    def _member(self, index: int, layer: LoraLinear):  # type: ignore[no-untyped-def]
        def forward(x: Tensor) -> Tensor:
            if not all(other.layer.is_plain for other in self._layers):
                return LoraLinear.forward(layer, x)
            ready = self._ready
            if ready is None or ready[0] is not x or ready[1][index] is None:
                matrices = [matrix for other in self._layers for matrix in other.trained]
                ready = (x, list(_SharedLinear.apply(x, self._layers, *matrices)))  # type: ignore[no-untyped-call]
            out, ready[1][index] = ready[1][index], None
            self._ready = ready if any(other is not None for other in ready[1]) else None
            assert out is not None
            return out

        return forward


class _SharedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, layers: Sequence[Adapted], *matrices: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        cast = [matrix.to(x.dtype) for matrix in matrices]
        lows = low_images(flat, layers, cast[::2])
        outs = [layer.forward(flat, low, b) for layer, low, b in zip(layers, lows, cast[1::2], strict=True)]
        ctx.save_for_backward(flat, *lows)
        ctx.layers = layers  # type: ignore[attr-defined]
        return tuple(out.view(*x.shape[:-1], -1) for out in outs)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, *lows = ctx.saved_tensors  # type: ignore[attr-defined]
        flat_grads = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        layers: Sequence[Adapted] = ctx.layers  # type: ignore[attr-defined]
        scaled = scaled_low_gradients(layers, flat_grads)
        trained = trained_gradients(layers, flat, lows, flat_grads, scaled)
        if not ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            return (None, None, *trained)
        return (pull(layers, flat_grads, scaled).view(*grads[0].shape[:-1], -1), None, *trained)
