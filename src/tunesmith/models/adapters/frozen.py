"""The frozen layers that adapters sit on: linear maps kept as (out, in), as GPT-2's (in, out), or in 4 bits.

Everything here works on `weight_of`; no other file of this folder knows how a layer keeps its weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunesmith.models.quantised import Nf4Linear

#: What an adapter can sit on; also `Conv1D`, GPT-2's name for a linear layer whose weight is (in, out), which has no
#: types.
FrozenLinear = nn.Linear | Nf4Linear

#: Rows of a weight that are brought to float32 at once.
_ROWS_AT_ONCE = 1024


def is_adaptable(module: nn.Module) -> bool:
    """Whether an adapter can sit on a module: exactly these types, as a subclass may compute something else."""
    return type(module) in (nn.Linear, Conv1D, Nf4Linear)


def widths_of(linear: FrozenLinear) -> tuple[int, int]:
    """Return a layer's (in, out)."""
    return (linear.nx, linear.nf) if isinstance(linear, Conv1D) else (linear.in_features, linear.out_features)


def weight_of(linear: FrozenLinear) -> Tensor:
    """Return a layer's weight as (out, in); of a layer in 4 bits, made anew."""
    weight: Tensor = linear.weight.t() if isinstance(linear, Conv1D) else linear.weight
    return weight


@torch.no_grad()
def with_weight(linear: FrozenLinear, weight: Tensor) -> nn.Module:
    """Return the layer with another weight (out, in), written in place where the layer is a plain one."""
    plain: nn.Linear = linear.plain() if isinstance(linear, Nf4Linear) else linear
    weight_of(plain).copy_(weight)
    return plain


@torch.no_grad()
def row_norms(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return the lengths (out,) of the rows of `W + scale B A`, in at least float32; the sum never exists as a whole.

    Args:
        weight: (out, in).
        a: (rank, in).
        b: (out, rank).
        scale: factor of the correction.
    """
    precise = torch.promote_types(weight.dtype, torch.float32)
    a, b = a.to(precise), b.to(precise)
    return torch.cat(
        [
            torch.addmm(part.to(precise), b_part, a, alpha=scale).norm(dim=1)
            for part, b_part in zip(torch.split(weight, _ROWS_AT_ONCE), torch.split(b, _ROWS_AT_ONCE), strict=True)
        ]
    )
