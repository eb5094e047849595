"""The vocabulary projection of a causal language model, apart from its layers, for training and decoding alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Projection:
    """The map from hidden states to logits: `softcap * tanh((h W^T + b) * scale / softcap)`.

    `weight` is (V, H), `bias` (V,) or None; `softcap` is Gemma 2's bound on logits.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Projection:
        """Take a causal model's own projection."""
        head = model.get_output_embeddings()
        config = model.config
        return cls(
            weight=head.weight.detach(),
            bias=None if head.bias is None else head.bias.detach(),
            scale=getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0),
            softcap=getattr(config, "final_logit_softcapping", None),
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Map (M, H) hidden states to (M, V) logits in at least float32."""
        out = torch.nn.functional.linear(hidden, self.weight, self.bias)
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        if self.scale != 1.0:
            out = out.mul_(self.scale)
        if self.softcap is not None:
            out = torch.tanh(out / self.softcap).mul_(self.softcap)
        return out
