"""Forward passes over token trees: the loss that trains, the losses that validate."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tunesmith.learn.kernels.install import copy_weights, use_kernels
from tunesmith.learn.layouts import tree_layout
from tunesmith.learn.loss import projected_cross_entropy
from tunesmith.learn.tree import TokenTree
from tunesmith.models.attention import use_layout_attention
from tunesmith.models.projection import Projection
from tunesmith.models.side_by_side import why_one_by_one


@dataclass(frozen=True)
class TreeModel:
    """A causal language model that computes losses of token trees; they equal the rows' losses one by one.

    Where the layers take a tree, it is computed at once. Where they can't (state-space layers, convolutions, attention
    sinks), the tree's rows go through the model one at a time with transformers' own attention, and
    `one_by_one_because` says what about the architecture makes that necessary.
    """

    model: PreTrainedModel
    projection: Projection
    one_by_one_because: str | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> TreeModel:
        """Wrap `model`, switching its attention in place where its layers take trees.

        Raises:
            ModelError: its logits aren't a projection of its last hidden states.
        """
        reason = why_one_by_one(model)
        if reason is None:
            use_layout_attention(model)
        use_kernels(model)
        return cls(model, Projection.of(model), reason)

    def with_copied_weights(self, wanted: bool) -> TreeModel:
        """Return the same model, computing with copies of its frozen weights or, where they aren't wanted, without.

        The kernels read them faster, and add what adapters learn before anything is rounded. They take memory twice
        that of the weights. Other wrappers of the same model compute alike from now on, but for their projections.
        """
        copy_weights(self.model, wanted)
        return replace(self, projection=self.projection.with_panels(wanted))

    def hidden_states(self, tree: TokenTree) -> Tensor:
        """Return the final hidden states (N, H) of the tree's tokens."""
        if self.one_by_one_because is not None:
            return self._row_by_row(tree)
        device = self.projection.weight.device
        output = self.model.get_decoder()(
            input_ids=tree.token_ids[None].to(device),
            position_ids=tree.positions[None].to(device),
            use_cache=False,
            layout=tree_layout(tree, device),
        )
        hidden: Tensor = output.last_hidden_state
        return hidden[0]

    def _row_by_row(self, tree: TokenTree) -> Tensor:
        """Compute each path from root to leaf as a row; what paths share is alike in all, and taken from the first."""
        for module in self.model.modules():
            if hasattr(module, "ssm_state_size"):
                # In training these mixers read their linear layers' weights past the adapters. They have no dropout, so
                # nothing else changes.
                module.training = False
        device = self.projection.weight.device
        parts: dict[int, Tensor] = {}
        for path in tree.paths():
            segments = [tree.segments[index] for index in path]
            ids = torch.cat([tree.token_ids[s.start : s.start + s.length] for s in segments])
            output = self.model.get_decoder()(input_ids=ids[None].to(device), use_cache=False)
            pieces = output.last_hidden_state[0].split([s.length for s in segments])
            for index, piece in zip(path, pieces, strict=True):
                parts.setdefault(index, piece)
        return torch.cat([parts[index] for index in range(len(tree.segments))])

    def loss(
        self,
        tree: TokenTree,
        *,
        chunk_tokens: int | None = None,
        label_smoothing: float = 0.0,
        hits: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of the learnt tokens' losses, and each target's plain loss (M,), in nats.

        Args:
            tree: the batch.
            chunk_tokens: targets projected to the vocabulary at once; None: what suits the device.
            label_smoothing: share of each target's probability that the sum spreads over the vocabulary.
            hits: (M,) is filled: 1 where no token is likelier than the target, 0 elsewhere.
        """
        hidden = self.hidden_states(tree)
        device = hidden.device
        return projected_cross_entropy(
            hidden.index_select(0, tree.target_source.to(device)),
            self.projection,
            tree.target_ids.to(device),
            tree.target_weight.to(device),
            chunk_tokens=chunk_tokens,
            label_smoothing=label_smoothing,
            hits=hits,
        )

    @torch.no_grad()
    def loss_sum(self, tree: TokenTree) -> float:
        """Return the sum of the learnt tokens' losses, in nats, without gradients."""
        return float(self.loss(tree)[0])
