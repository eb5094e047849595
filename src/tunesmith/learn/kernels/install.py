"""Where the kernels take over: normalisations, rotations, feed-forward layers and groups of linear layers."""

from __future__ import annotations

from torch import nn

from tunesmith.learn.kernels.adapted import SharedInput
from tunesmith.learn.kernels.gated_mlp import use_gated_mlp
from tunesmith.learn.kernels.rms_norm import use_rms_norm
from tunesmith.learn.kernels.rotation import use_rotation
from tunesmith.models.adapters.lora_layer import LoraLinear
from tunesmith.models.adapters.panels import Panels

#: Layers of one module that read the same tensor in every architecture that has them.
_SHARED = ("q_proj", "k_proj", "v_proj")


def use_kernels(model: nn.Module) -> None:
    """Exchange what the kernels can compute, in place; everything else stays as it is.

    Weights and modules keep their places and names; only the way of computing changes. Doing it again changes nothing.
    """
    for module in list(model.modules()):
        if use_rms_norm(module) or use_gated_mlp(module):
            continue
        use_rotation(module)
        layers = [getattr(module, name, None) for name in _SHARED]
        if all(isinstance(layer, LoraLinear) and "forward" not in vars(layer) for layer in layers):
            SharedInput(layers)  # type: ignore[arg-type]


def copy_weights(model: nn.Module, wanted: bool) -> None:
    """Let the kernels multiply with copies of adapted layers' frozen weights, or take the copies away.

    Nothing is done where there are copies already, or where the kernels can't compute.
    """
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.panels = (module.panels or Panels.of(module.linear)) if wanted else None
