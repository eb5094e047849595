"""Where the kernels take over: normalisations, rotations, feed-forward layers and groups of linear layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from tunesmith.learn.kernels.adapted import SharedInput
from tunesmith.learn.kernels.gated_mlp import use_gated_mlp
from tunesmith.learn.kernels.rms_norm import use_rms_norm
from tunesmith.learn.kernels.rotation import use_rotation
from tunesmith.models.adapters.frozen import weight_of
from tunesmith.models.adapters.lora_layer import LoraLinear
from tunesmith.models.adapters.panels import Panels, fits

#: Layers of one module that read the same tensor in every architecture that has them.
_SHARED = ("q_proj", "k_proj", "v_proj")


def use_kernels(model: nn.Module) -> None:
    """Exchange what the kernels can compute, in place; everything else stays as it is.

    Weights and modules keep their places and names; only the way of computing changes. Doing it again changes nothing.
    """
    _use_panels([module for module in model.modules() if isinstance(module, LoraLinear)])
    for module in list(model.modules()):
        if use_rms_norm(module) or use_gated_mlp(module):
            continue
        use_rotation(module)
        layers = [getattr(module, name, None) for name in _SHARED]
        if all(isinstance(layer, LoraLinear) and "forward" not in vars(layer) for layer in layers):
            SharedInput(layers)  # type: ignore[arg-type]


def _use_panels(layers: Sequence[LoraLinear]) -> None:
    """Let the kernels multiply with the layers' frozen weights, where memory allows copies."""
    plain = [layer for layer in layers if type(layer.linear) in (nn.Linear, Conv1D)]
    if fits([weight_of(layer.linear) for layer in plain]):
        for layer in plain:
            layer.panels = layer.panels or Panels.of(layer.linear)
