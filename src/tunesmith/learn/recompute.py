"""Layers that compute their activations again in the backward pass instead of keeping them.

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174. Exact, dropout included: the random
state of the forward pass is restored for the second computation.
"""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def recomputable_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder layers that can be computed again, the first layer first."""
    return [layer for layer in model.get_decoder().modules() if isinstance(layer, GradientCheckpointingLayer)]


def recompute_layers(model: PreTrainedModel, count: int) -> None:
    """Let the first `count` decoder layers keep only their input in training; the others keep everything."""
    for number, layer in enumerate(recomputable_layers(model)):
        layer.gradient_checkpointing = number < count  # type: ignore[assignment]
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
