"""The gated feed-forward layer (Shazeer 2020, arXiv:2002.05202) with adapters: `down(act(gate(x)) * up(x))`.

Kept for the backward pass: x, gate and up. The product of the two is made again: a pass over memory instead of another
tensor of that size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers.activations import GELUTanh, SiLUActivation

from tunesmith.learn.kernels.adapted import Adapted, low_images, pull, scaled_low_gradients, trained_gradients
from tunesmith.learn.kernels.rows import pieces
from tunesmith.models.adapters.lora_layer import LoraLinear
from tunesmith.native.calls import kernels_for

_NAMES = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class _Activation:
    forward: Callable[[Tensor], Tensor]
    #: From the gradient of the activation and its input to the gradient of its input.
    backward: Callable[[Tensor, Tensor], Tensor]


_SILU = _Activation(nn.functional.silu, torch.ops.aten.silu_backward)
_GELU_TANH = _Activation(
    lambda x: nn.functional.gelu(x, approximate="tanh"),
    lambda grad, x: torch.ops.aten.gelu_backward(grad, x, approximate="tanh"),
)
_ACTIVATIONS: dict[type, _Activation] = {nn.SiLU: _SILU, SiLUActivation: _SILU, GELUTanh: _GELU_TANH}


def use_gated_mlp(module: nn.Module) -> bool:
    """Let a gated feed-forward layer compute as one while its three linear layers are plain adapted ones.

    A layer is known by its parts and by its result on a random input; what computes anything else is left alone.
    """
    linears = [getattr(module, name, None) for name in _NAMES]
    act = _ACTIVATIONS.get(type(getattr(module, "act_fn", None)))
    if act is None or not _are_plain(linears) or "forward" in vars(module) or not _computes_gated_mlp(module, act):
        return False
    original = module.forward

    def forward(x: Tensor) -> Tensor:
        layers = [getattr(module, name) for name in _NAMES]
        if not _are_plain(layers):  # adapters were folded in, or the layers exchanged
            return original(x)  # type: ignore[no-any-return]
        return gated_mlp(x, layers, act)

    module.forward = forward
    return True


def gated_mlp(x: Tensor, linears: Sequence[LoraLinear], act: _Activation) -> Tensor:
    """Return `down(act(gate(x)) * up(x))`, differentiable in x (..., H) and the adapters.

    Args:
        x: the input.
        linears: gate, up and down, plain adapted layers.
        act: the activation.
    """
    layers = [Adapted(layer) for layer in linears]
    matrices = [matrix for layer in layers for matrix in layer.trained]
    out: Tensor = _GatedMlp.apply(x, layers, act, *matrices)  # type: ignore[no-untyped-call]
    return out


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, layers: list[Adapted], act: _Activation, *matrices: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        a_gate, b_gate, a_up, b_up, a_down, b_down = (matrix.to(x.dtype) for matrix in matrices)
        low_gate, low_up = low_images(flat, layers[:2], [a_gate, a_up])
        gate = layers[0].forward(flat, low_gate, b_gate)
        up = layers[1].forward(flat, low_up, b_up)
        inner = _product(gate, up, act)
        low_down = inner @ a_down.t()
        out = layers[2].forward(inner, low_down, b_down)
        ctx.save_for_backward(flat, gate, up, low_gate, low_up, low_down)
        ctx.parts = layers, act  # type: ignore[attr-defined]
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, gate, up, low_gate, low_up, low_down = ctx.saved_tensors  # type: ignore[attr-defined]
        layers, act = ctx.parts  # type: ignore[attr-defined]
        grad = grads[0].reshape(-1, grads[0].shape[-1])
        both, down = layers[:2], layers[2:]
        scaled_down = scaled_low_gradients(down, [grad])
        grad_inner = pull(down, [grad], scaled_down)
        inner, grad_gate = _product_backward(gate, up, grad_inner, act)
        trained_down = trained_gradients(down, inner, [low_down], [grad], scaled_down)
        inner_grads = [grad_gate, grad_inner]
        scaled = scaled_low_gradients(both, inner_grads)
        trained = trained_gradients(both, flat, [low_gate, low_up], inner_grads, scaled)
        grad_x = pull(both, inner_grads, scaled).view(grads[0].shape) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        return (grad_x, None, None, *trained, *trained_down)


def _product(gate: Tensor, up: Tensor, act: _Activation) -> Tensor:
    """Return `act(gate) * up`, (M, inner)."""
    kernels = kernels_for(gate) if act is _SILU else None
    if kernels is not None:
        return kernels.gate(gate, up)
    out = torch.empty_like(gate)
    for part in pieces(gate):
        torch.mul(act.forward(gate[part]), up[part], out=out[part])
    return out


def _product_backward(gate: Tensor, up: Tensor, grad: Tensor, act: _Activation) -> tuple[Tensor, Tensor]:
    """Return `act(gate) * up` once more and the gate's gradient; `grad`, that of the product, becomes that of `up`."""
    kernels = kernels_for(gate) if act is _SILU else None
    if kernels is not None:
        return kernels.gate_backward(gate, up, grad)
    inner, grad_gate = torch.empty_like(gate), torch.empty_like(gate)
    for part in pieces(gate):
        active = act.forward(gate[part])
        torch.mul(active, up[part], out=inner[part])
        grad_gate[part] = act.backward(grad[part] * up[part], gate[part])
        grad[part] *= active
    return inner, grad_gate


def _are_plain(linears: list[nn.Module | None]) -> bool:
    return all(isinstance(linear, LoraLinear) and linear.is_plain for linear in linears)


@torch.no_grad()
def _computes_gated_mlp(module: nn.Module, act: _Activation) -> bool:
    """Whether a layer's result on a random input is that of `gated_mlp`, but for rounding."""
    layers = [getattr(module, name) for name in _NAMES]
    weight = layers[0].linear.weight
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(2, layers[0].lora_a.shape[1], generator=generator).to(weight.device, weight.dtype)
    try:
        expected = module(probe)
    except (TypeError, RuntimeError):
        return False
    found = gated_mlp(probe, layers, act)
    tolerance = 8 * torch.finfo(weight.dtype).eps
    return expected.shape == found.shape and bool((found - expected).norm() <= tolerance * (1e-30 + expected.norm()))
