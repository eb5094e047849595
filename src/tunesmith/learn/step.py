"""Forward passes over token trees: the loss that trains, the losses that validate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.learn.attention import TreeLayout
from tunesmith.learn.loss import projected_cross_entropy
from tunesmith.learn.tree import TokenTree
from tunesmith.models.attention import use_layout_attention
from tunesmith.models.projection import Projection


@dataclass(frozen=True)
class TreeModel:
    """A causal language model that computes losses of token trees.

    The wrapped model's attention is switched to layouts; `loss` is exact: it equals the rows' losses one by one.
    """

    model: PreTrainedModel
    projection: Projection

    @classmethod
    def of(cls, model: PreTrainedModel) -> TreeModel:
        """Wrap `model`, switching its attention in place."""
        use_layout_attention(model)
        return cls(model, Projection.of(model))

    def hidden_states(self, tree: TokenTree) -> Tensor:
        """Return the final hidden states (N, H) of the tree's tokens."""
        device = self.projection.weight.device
        output = self.model.get_decoder()(
            input_ids=tree.token_ids[None].to(device),
            position_ids=tree.positions[None].to(device),
            use_cache=False,
            layout=TreeLayout(tree, device),
        )
        hidden: Tensor = output.last_hidden_state
        return hidden[0]

    def loss(self, tree: TokenTree) -> tuple[Tensor, Tensor]:
        """Return the sum of the learnt tokens' losses, and each target's loss (M,), in nats."""
        hidden = self.hidden_states(tree)
        device = hidden.device
        return projected_cross_entropy(
            hidden.index_select(0, tree.target_source.to(device)),
            self.projection,
            tree.target_ids.to(device),
            tree.target_weight.to(device),
        )

    @torch.no_grad()
    def loss_sum(self, tree: TokenTree) -> float:
        """Return the sum of the learnt tokens' losses, in nats, without gradients."""
        return float(self.loss(tree)[0])
