"""Attention over a token tree on CUDA: FlexAttention (Dong et al. 2024, arXiv:2412.05496) with the tree's block mask.

A tree is laid flat depth-first, so what lies below a token is one stretch right behind it. Query q therefore sees key k
exactly if `k <= q < end[k]`, where `end[k]` is where the subtree of k's segment ends: one number a token says it all.
Blocks that no query sees are never computed, blocks that all see are computed without a mask.

Run and tested on the CPU: masks, scores and the forward pass against `learn.attention.TreeLayout`, uncompiled and as
traced by torch.compile (one trace for a kind of layer, whatever the lengths). Not run: CUDA's compiled kernels and
their backward pass, which need a GPU (PyTorch has no backward pass of FlexAttention on CPUs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from tunesmith.learn.tree import TokenTree

#: FlexAttention's own block: queries by keys.
_BLOCK_TOKENS = 128

#: Compiled once for all trees: lengths are symbols, the settings of a layer are part of the traced functions.
_compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=True)

ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class FlexLayout:
    """The `Layout` (see `models.attention`) of one token tree for FlexAttention.

    Args:
        tree: the tree, its N tokens laid flat depth-first.
        device: where queries will lie; only there, and only on CUDA, kernels are compiled.
    """

    def __init__(self, tree: TokenTree, device: torch.device) -> None:
        """Keep a few numbers a token; the block masks are made at the first layer that needs them."""
        self._attention: Any = _compiled if device.type == "cuda" else flex_attention
        count = len(tree.token_ids)
        #: Tokens with padding up to whole blocks; each padding token is a subtree of its own and sees itself alone.
        self._padded = -(-count // _BLOCK_TOKENS) * _BLOCK_TOKENS
        end = torch.arange(1, self._padded + 1, dtype=torch.int32)
        end[:count] = subtree_ends(tree)
        position = torch.zeros(self._padded, dtype=torch.int32)
        position[:count] = tree.positions
        self._end, self._position = end.to(device), position.to(device)
        self._masks: dict[int | None, BlockMask] = {}

    def attend(
        self,
        layer: int,  # noqa: ARG002
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window_tokens: int | None,
        softcap: float | None,
    ) -> Tensor:
        """See `Layout.attend`; B is 1 and T the tree's number of tokens."""
        count = query.shape[2]
        missing = self._padded - count
        query, key, value = (torch.nn.functional.pad(x, (0, 0, 0, missing)) for x in (query, key, value))
        output: Tensor = self._attention(
            query,
            key,
            value,
            score_mod=None if softcap is None else _bent(softcap),
            block_mask=self.block_mask(window_tokens),
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output[:, :, :count].transpose(1, 2)

    def block_mask(self, window_tokens: int | None) -> BlockMask:
        """Return which blocks of keys each block of queries needs; made once, shared by all layers."""
        if window_tokens not in self._masks:
            some, every = self._blocks(window_tokens)
            partial_count, partial_index = _ordered(some & ~every)
            full_count, full_index = _ordered(every)
            self._masks[window_tokens] = BlockMask.from_kv_blocks(
                partial_count,
                partial_index,
                full_count,
                full_index,
                BLOCK_SIZE=_BLOCK_TOKENS,
                mask_mod=_sight(self._end, self._position, window_tokens),
                seq_lengths=(self._padded, self._padded),
            )
        return self._masks[window_tokens]

    def _blocks(self, window_tokens: int | None) -> tuple[Tensor, Tensor]:
        """Return for (query block, key block) whether some query may see some key, and whether surely all see all.

        Only the blocks' extremes are compared, so nothing of size N x N is made; what is unsure counts as partial,
        where the mask decides token by token.
        """
        end, position = self._end.view(-1, _BLOCK_TOKENS), self._position.view(-1, _BLOCK_TOKENS)
        number = torch.arange(len(end), device=end.device)
        starts = number * _BLOCK_TOKENS
        below, own = number[:, None] > number, number[:, None] == number
        some = own | (below & (end.amax(1) > starts[:, None]))
        every = below & (end.amin(1) >= starts[:, None] + _BLOCK_TOKENS)
        if window_tokens is not None:
            some &= own | (position.amin(1)[:, None] - position.amax(1) < window_tokens)
            every &= position.amax(1)[:, None] - position.amin(1) < window_tokens
        return some, every


def subtree_ends(tree: TokenTree) -> Tensor:
    """Return (N,): behind the last token of the subtree whose root is the token's segment, int32."""
    ends = [segment.start + segment.length for segment in tree.segments]
    # Depth-first: a segment's descendants come after it, so the last of them wins.
    for number, segment in enumerate(tree.segments):
        for ancestor in segment.ancestors:
            ends[ancestor] = max(ends[ancestor], ends[number])
    lengths = torch.tensor([segment.length for segment in tree.segments])
    return torch.tensor(ends, dtype=torch.int32).repeat_interleave(lengths)


def _sight(end: Tensor, position: Tensor, window_tokens: int | None) -> MaskMod:
    """Return FlexAttention's `mask_mod`: whether query q sees key k."""

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
        return (k <= q) & (q < end[k])

    def sees_near(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert window_tokens is not None
        return sees(batch, head, q, k) & (position[q] - position[k] < window_tokens)

    return sees if window_tokens is None else sees_near


def _bent(softcap: float) -> ScoreMod:
    """Return FlexAttention's `score_mod` of a soft cap."""

    def bend(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001
        return softcap * torch.tanh(score / softcap)

    return bend


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return (1, 1, rows) counts and (1, 1, rows, columns) indices of each row's chosen columns, these first."""
    index = torch.argsort(chosen.to(torch.int8), dim=-1, descending=True, stable=True)
    return chosen.sum(-1).to(torch.int32)[None, None], index.to(torch.int32)[None, None]
