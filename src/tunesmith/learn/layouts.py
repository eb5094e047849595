"""The one place that chooses how attention over a token tree is computed: by device."""

from __future__ import annotations

import torch

from tunesmith.learn.attention import TreeLayout
from tunesmith.learn.tree import TokenTree
from tunesmith.models.attention import Layout


def tree_layout(tree: TokenTree, device: torch.device) -> Layout:
    """Return the layout of `tree` that suits `device`: FlexAttention on CUDA, matrix products elsewhere."""
    if device.type == "cuda":
        from tunesmith.learn.flex import FlexLayout  # noqa: PLC0415 (brings PyTorch's compiler: a second CPUs needn't wait)

        return FlexLayout(tree, device)
    return TreeLayout(tree, device)
