"""One adapted layer: LoRA with a chosen scale (rsLoRA), beginning (PiSSA) and length of its rows (DoRA)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.models.adapters.frozen import FrozenLinear, row_norms, weight_of, widths_of, with_weight
from tunesmith.models.adapters.frozen_map import FrozenMap
from tunesmith.models.adapters.lora_products import Drop, directed_linear, low_rank_linear
from tunesmith.models.adapters.panels import Panels
from tunesmith.specs.tune import LoraSpec

#: More directions than are wanted, and passes over the weight: what makes a randomised decomposition accurate (Halko
#: et al. 2009, arXiv:0909.4061, section 4.5). It need not be perfect: what it misses stays in the frozen part.
_SPARE_DIRECTIONS, _PASSES = 8, 4


def scale_of(spec: LoraSpec) -> float:
    """Return what B A is multiplied by: alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732)."""
    return spec.alpha / (math.sqrt(spec.rank) if spec.rank_stabilised else spec.rank)


class LoraLinear(nn.Module):
    """A frozen linear layer with its low-rank correction: `y = W x + b + scale B A x`.

    Attributes:
        linear: the frozen layer. Its weights are never changed before `merged`.
        lora_a: A (rank, in), float32, drawn as PEFT draws it (Kaiming uniform with a=sqrt(5)).
        lora_b: B (out, rank), float32, zero.
        scale: alpha / rank, or alpha / sqrt(rank) if the spec says `rank_stabilised` (rsLoRA, arXiv:2312.03732).
        magnitude: m (out,) of DoRA (arXiv:2402.09353), the trained lengths of the rows:
            `y = m (W + scale B A) x / |W + scale B A| + b`, where the norm takes part in no gradient (section 4.3).
        initial: A0 and B0 of PiSSA (arXiv:2404.02948): A and B begin as W's principal part, and the frozen part is
            `W - scale B0 A0`. That difference is never written over W: it is a product of rank `rank` beside it. So
            the base stays what it was, and what was learnt is exactly `scale (B A - B0 A0)`.
    """

    initial_a: Tensor | None
    initial_b: Tensor | None
    settled_factors: Tensor | None

    def __init__(self, linear: FrozenLinear, spec: LoraSpec) -> None:
        super().__init__()
        self.linear = linear
        self.spec = spec
        self.scale = scale_of(spec)
        self.dropout = nn.Dropout(spec.dropout) if spec.dropout else None
        #: The frozen weight as the kernels multiply with it; whoever trains may give it to the layer.
        self.panels: Panels | None = None
        width_in, width_out = widths_of(linear)
        weight = weight_of(linear).detach()
        self.lora_a = nn.Parameter(torch.empty(spec.rank, width_in, dtype=torch.float32, device=weight.device))
        self.lora_b = nn.Parameter(torch.zeros(width_out, spec.rank, dtype=torch.float32, device=weight.device))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.register_buffer("initial_a", None)
        self.register_buffer("initial_b", None)
        self.register_buffer("settled_factors", None)
        if spec.initialisation == "pissa":
            self._begin_as_principal_part(weight)
        self.magnitude = (
            nn.Parameter(row_norms(weight, *self.learnt(), self.scale).to(torch.float32)) if spec.dora else None
        )

    @property
    def is_plain(self) -> bool:
        """Whether `W x + b + scale B A x` is all of it and W is at hand: no DoRA, PiSSA, dropout, quantised W."""
        return (
            self.magnitude is None
            and self.dropout is None
            and self.initial_a is None
            and type(self.linear) in (nn.Linear, Conv1D)
        )

    @property
    def initial(self) -> tuple[Tensor, Tensor] | None:
        """A0 and B0, where the adapter began as a part of W."""
        return None if self.initial_a is None or self.initial_b is None else (self.initial_a, self.initial_b)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        frozen = FrozenMap(self.linear, self.initial, self.scale, self.panels)
        drop = Drop.draw(self.dropout.p) if self.dropout is not None and self.training else None
        if self.magnitude is None:
            return low_rank_linear(x, self.lora_a, self.lora_b, frozen, self.scale, drop)
        factors = self._row_factors() if self.settled_factors is None else self.settled_factors
        return directed_linear(x, self.lora_a, self.lora_b, factors, frozen, self.scale, drop)

    @torch.no_grad()
    def settle(self) -> None:
        """Training is over: what each pass would compute anew, though it no longer changes, is computed once."""
        if self.magnitude is not None:
            self.settled_factors = self._row_factors()

    @torch.no_grad()
    def learnt(self) -> tuple[Tensor, Tensor]:
        """Return the A and B whose product, times the scale, is what to add to the base's own W.

        After PiSSA they are twice as wide: `[A; A0]` and `[B, -B0]`.
        """
        a, b = self.lora_a.detach(), self.lora_b.detach()
        if self.initial is None:
            return a, b
        initial_a, initial_b = self.initial
        return torch.cat([a, initial_a]), torch.cat([b, -initial_b], dim=1)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """Return the weight (out, in) that does what layer and adapter do, computed in float32, in W's format."""
        weight = weight_of(self.linear)
        a, b = self.learnt()
        merged = weight.to(torch.promote_types(weight.dtype, torch.float32)) + self.scale * (b @ a)
        if self.magnitude is not None:
            merged *= self._row_factors()[:, None]
        return merged.to(weight.dtype)

    def merged(self) -> nn.Module:
        """Return a plain layer that does what this one does; where the frozen layer is a plain one, it is changed."""
        return with_weight(self.linear, self.merged_weight())

    def _row_factors(self) -> Tensor:
        """Return DoRA's trained lengths of the rows by their present ones (out,); gradients reach the former alone."""
        assert self.magnitude is not None
        return self.magnitude / row_norms(weight_of(self.linear), *self.learnt(), self.scale)

    @torch.no_grad()
    def _begin_as_principal_part(self, weight: Tensor) -> None:
        """Set A and B to the square roots' halves of W's largest singular values and directions, by the scale."""
        rank = min(self.spec.rank, *weight.shape)
        kept = min(rank + _SPARE_DIRECTIONS, *weight.shape)
        u, s, v = torch.svd_lowrank(weight.to(torch.float32), q=kept, niter=_PASSES)
        root = (s[:rank] / self.scale).sqrt()
        self.lora_a[:rank] = root[:, None] * v[:, :rank].t()
        self.lora_b[:, :rank] = u[:, :rank] * root
        self.initial_a, self.initial_b = self.lora_a.detach().clone(), self.lora_b.detach().clone()
