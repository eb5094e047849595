"""The vocabulary projection of a causal language model, apart from its layers, for training and decoding alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.models.adapters.panels import Panels


@dataclass(frozen=True)
class Projection:
    """The map from hidden states to logits: `softcap * tanh((h W^T + b) * scale / softcap)`.

    `weight` is (V, H), `bias` (V,) or None; `softcap` is Gemma 2's bound on logits. `panels` are copies of a frozen W
    for the kernels, or None.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    panels: Panels | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Projection:
        """Take a causal model's own projection; it asks for gradients where the model's does."""
        head = model.get_output_embeddings()
        config = model.config
        return cls(
            weight=head.weight,
            bias=head.bias,
            scale=getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    def with_panels(self, wanted: bool) -> Projection:
        """Return the same with copies of W as it is now, if it is frozen and the kernels compute, or without."""
        if not wanted or self.weight.requires_grad:
            return replace(self, panels=None)
        return replace(self, panels=self.panels or Panels.of_weight(self.weight, self.bias))

    def logits(self, hidden: Tensor) -> Tensor:
        """Map (M, H) hidden states to (M, V) logits in at least float32."""
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        out = torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), bias)
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        self.shape(out)
        return out

    def shape(self, values: Tensor) -> Tensor | None:
        """Scale and bend `h W^T + b` (float32 or finer) into logits, in place; return the bend's slope, if any."""
        if self.scale != 1.0:
            values *= self.scale
        if self.softcap is None:
            return None
        values.div_(self.softcap).tanh_()
        slope = 1 - values.square()
        values *= self.softcap
        return slope
