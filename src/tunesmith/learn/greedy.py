"""What a model would write by itself: which targets greedy decoding gets right, given the words before them."""

from __future__ import annotations

import torch
from torch import Tensor

from tunesmith.learn.loss import default_chunk_tokens
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import TokenTree


@torch.no_grad()
def greedy_hits(model: TreeModel, tree: TokenTree) -> Tensor:
    """Return (M,) booleans: whether each target is the likeliest token in its place.

    A sequence whose targets are all hit is what greedy decoding writes, word for word, after the sequence's prompt.
    """
    hidden = model.hidden_states(tree)
    hidden = hidden.index_select(0, tree.target_source.to(hidden.device))
    targets = tree.target_ids.to(hidden.device)
    chunk = default_chunk_tokens(model.projection)
    parts = [
        model.projection.logits(hidden[start : start + chunk]).argmax(-1) == targets[start : start + chunk]
        for start in range(0, len(targets), chunk)
    ]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.bool)
