"""Attention over a token tree on CPUs: each segment's tokens attend to the segments above it and to their own past.

In bf16, the kernels in C do it where they can (see `learn.native_attention`); elsewhere it is done as follows.
Segments are cut into blocks of queries, so that keys behind a block's end are never touched; blocks of like shape are
computed together, padded inside the attention alone, as many at once as the processor's cache holds. Only matrix
products and a softmax: for short rows several times faster than PyTorch's own attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from tunesmith.learn.native_attention import TreePaths, kernels_of, native_attention
from tunesmith.learn.tree import Segment, TokenTree

#: A bucket may be padded to at most this multiple of its blocks' joint area.
_MAX_PADDING = 1.3
#: Scores of one head computed at once, in numbers: with all heads of a small model, what a processor's cache holds.
MAX_SCORES = 1 << 16
#: Longer segments are cut into blocks of at most this many queries.
_BLOCK_QUERIES = 128
#: Probabilities are kept for the backward pass if a query has at most this many keys on average; beyond, they are
#: computed again: the time hardly matters then beside the memory.
KEPT_KEYS = 256


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries `start` to `end` of one segment, counted within it; they see `keys` keys."""

    segment: Segment
    start: int
    end: int
    keys: int

    @property
    def queries(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class _Bucket:
    """S blocks, padded to Tq queries and Tk keys.

    `query_token` (S, Tq) and `key_token` (S, Tk) point into the flat batch; a padded query points behind its end.
    `query_position` (S, Tq) and `key_position` (S, Tk) are places in the sequences; a padded key stands behind all
    queries. Keys before `first_hidden` are in the sight of all queries, windows apart.
    """

    query_token: Tensor
    key_token: Tensor
    query_position: Tensor
    key_position: Tensor
    first_hidden: int
    is_padded: bool
    _masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)
    _rows: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def mask(self, window_tokens: int | None, dtype: torch.dtype) -> Tensor:
        """Return (S, 1, Tq, Tk - first hidden), for windows (S, 1, Tq, Tk): 0, or -infinity for a key out of sight.

        Made once, kept for all layers.
        """
        known = (window_tokens, dtype)
        if known not in self._masks:
            first = self.first_hidden if window_tokens is None else 0
            distance = self.query_position[:, :, None] - self.key_position[:, None, first:]
            hidden = distance < 0
            if window_tokens is not None:
                hidden |= distance >= window_tokens
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._masks[known] = mask.masked_fill_(hidden, float("-inf"))[:, None]
        return self._masks[known]

    def rows(self, heads: int, key_heads: int) -> tuple[Tensor, Tensor]:
        """Return where the bucket's queries and keys stand among rows that are ordered by token, then by head.

        The first is in the order (key head, S, query head of that key head, Tq), the second (key head, S, Tk).
        """
        if (heads, key_heads) not in self._rows:
            device = self.query_token.device
            head = torch.arange(heads, device=device).view(key_heads, 1, -1, 1)
            queries = self.query_token[None, :, None] * heads + head
            keys = self.key_token * key_heads + torch.arange(key_heads, device=device).view(-1, 1, 1)
            self._rows[heads, key_heads] = queries.reshape(-1), keys.reshape(-1)
        return self._rows[heads, key_heads]


class TreeLayout:
    """The `Layout` (see `models.attention`) of one token tree; holds index tables and masks only."""

    def __init__(self, tree: TokenTree, device: torch.device | str = "cpu") -> None:
        """Take the tree; what a way of computing needs of it is made when it is first asked for."""
        self._tree, self._device = tree, device

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
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        kernels = kernels_of(q, k) if softcap is None else None
        if kernels is not None:
            out = native_attention(kernels, self._paths, q, k, v, scale=scale, window_tokens=window_tokens)
        else:
            settings = _Settings(self._buckets, scale, window_tokens, softcap, self._keeps_weights)
            out = _TreeAttention.apply(q, k, v, settings)  # type: ignore[no-untyped-call]
        return out.unsqueeze(0)

    @cached_property
    def _paths(self) -> TreePaths:
        return TreePaths(self._tree.segments)

    @cached_property
    def _blocks(self) -> list[_Block]:
        return _blocks(self._tree.segments)

    @cached_property
    def _buckets(self) -> list[_Bucket]:
        """The tree's segments, in buckets of like shape."""
        return [_bucket(part, self._tree, self._device) for part in _parts_of_like_shape(self._blocks)]

    @cached_property
    def _keeps_weights(self) -> bool:
        return sum(b.queries * b.keys for b in self._blocks) <= KEPT_KEYS * len(self._tree.token_ids)


@dataclass(frozen=True, slots=True)
class _Settings:
    buckets: Sequence[_Bucket]
    scale: float
    window_tokens: int | None
    softcap: float | None
    keeps_weights: bool


class _TreeAttention(torch.autograd.Function):
    """Softmax attention over gathered blocks."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, settings: _Settings) -> Tensor:
        """Map (N, H, D) queries over (N, K, D) keys and values to (N, H, D)."""
        # One row more than there are: padded queries write there.
        out = query.new_empty(query.shape[0] + 1, *query.shape[1:])
        kept: list[Tensor | None] = []
        for bucket in settings.buckets:
            q, k, v, rows, _ = _gather(query, key, value, bucket)
            weights, _ = _weights(q, k, bucket, settings)
            out.view(-1, out.shape[-1]).index_copy_(0, rows, torch.bmm(weights, v).view(-1, out.shape[-1]))
            kept.append(weights if settings.keeps_weights and settings.softcap is None else None)
        ctx.save_for_backward(query, key, value, *kept)  # type: ignore[arg-type]
        ctx.settings = settings  # type: ignore[attr-defined]
        return out[:-1]

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, *kept = ctx.saved_tensors  # type: ignore[attr-defined]
        settings: _Settings = ctx.settings  # type: ignore[attr-defined]
        tokens, _, width = query.shape
        grad_query = query.new_empty(tokens + 1, *query.shape[1:])
        # A key is read by many blocks; its gradients are summed in at least float32.
        sums = torch.promote_types(key.dtype, torch.float32)
        grad_key, grad_value = (torch.zeros(key.shape, dtype=sums, device=key.device) for _ in range(2))
        d_out_rows = _rows_by_token(torch.nn.functional.pad(grads[0], (0, 0, 0, 0, 0, 1)))
        for bucket, weights in zip(settings.buckets, kept, strict=True):
            q, k, v, rows, key_rows = _gather(query, key, value, bucket)
            bend = None
            if weights is None:
                weights, bend = _weights(q, k, bucket, settings)
            d_out = d_out_rows.index_select(0, rows).view_as(q)
            d_value = torch.bmm(weights.transpose(1, 2), d_out)
            d_weights = torch.bmm(d_out, v.transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if bend is not None:
                d_scores *= bend
            d_query = _scaled_product(d_scores, k, settings.scale)
            d_key = _scaled_product(d_scores.transpose(1, 2), q, settings.scale)
            grad_query.view(-1, width).index_copy_(0, rows, d_query.view(-1, width))
            grad_key.view(-1, width).index_add_(0, key_rows, d_key.view(-1, width).to(sums))
            grad_value.view(-1, width).index_add_(0, key_rows, d_value.view(-1, width).to(sums))
        return grad_query[:-1], grad_key.to(key.dtype), grad_value.to(value.dtype), None


def _gather(query: Tensor, key: Tensor, value: Tensor, bucket: _Bucket) -> tuple[Tensor, ...]:
    """Return q (K S, G Tq, D), k and v (K S, Tk, D), where G query heads share one of K key heads, and their rows."""
    (tokens, heads, width), key_heads = query.shape, key.shape[1]
    rows, key_rows = bucket.rows(heads, key_heads)
    blocks, keys = bucket.key_token.shape
    # What a padded query computes is thrown away, so it may be any.
    readable = rows.clamp(max=tokens * heads - 1) if bucket.is_padded else rows
    q = _rows_by_token(query).index_select(0, readable).view(key_heads * blocks, -1, width)
    k, v = (_rows_by_token(x).index_select(0, key_rows).view(-1, keys, width) for x in (key, value))
    return q, k, v, rows, key_rows


def _rows_by_token(x: Tensor) -> Tensor:
    """Turn (N, H, D) into (N H, D); without a copy where the heads of a token lie side by side."""
    return x.reshape(-1, x.shape[-1])


def _weights(q: Tensor, k: Tensor, bucket: _Bucket, settings: _Settings) -> tuple[Tensor, Tensor | None]:
    """Return the attention's probabilities (K S, G Tq, Tk) and the soft cap's derivative."""
    scores = _scaled_product(q, k.transpose(1, 2), settings.scale)
    bend = None
    if settings.softcap is not None:
        bent = torch.tanh(scores / settings.softcap)
        scores, bend = bent * settings.softcap, 1 - bent.square()
    mask = bucket.mask(settings.window_tokens, scores.dtype)
    blocks, _, queries, hidden = mask.shape
    scores.view(-1, blocks, scores.shape[1] // queries, queries, scores.shape[2])[..., -hidden:] += mask
    return torch.softmax(scores, dim=-1), bend


def _scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return `scale a b`, scaled before it is rounded."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


def _blocks(segments: Sequence[Segment]) -> list[_Block]:
    """Cut each segment's queries into blocks of about equal size."""
    blocks = []
    for segment in segments:
        above = sum(segments[ancestor].length for ancestor in segment.ancestors)
        count = -(-segment.length // _BLOCK_QUERIES)
        ends = [segment.length * (number + 1) // count for number in range(count)]
        for start, end in zip([0, *ends], ends, strict=False):
            blocks.append(_Block(segment, start, end, above + end))
    return blocks


def _parts_of_like_shape(blocks: Sequence[_Block]) -> list[list[_Block]]:
    """Group blocks so that padding stays small and the scores fit `MAX_SCORES`."""
    parts: list[list[_Block]] = []
    queries = keys = area = 0
    for block in sorted(blocks, key=lambda block: (block.queries, block.keys)):
        queries_then, keys_then = max(queries, block.queries), max(keys, block.keys)
        count = len(parts[-1]) + 1 if parts else 1
        area_then = area + block.queries * block.keys
        fits = count * queries_then * keys_then <= min(MAX_SCORES, _MAX_PADDING * area_then)
        if parts and fits:
            parts[-1].append(block)
            queries, keys, area = queries_then, keys_then, area_then
        else:
            parts.append([block])
            queries, keys, area = block.queries, block.keys, block.queries * block.keys
    return parts


def _bucket(part: Sequence[_Block], tree: TokenTree, device: torch.device | str) -> _Bucket:
    queries = max(block.queries for block in part)
    keys = max(block.keys for block in part)
    query_token = torch.full((len(part), queries), len(tree.token_ids), dtype=torch.long)
    key_token = torch.zeros(len(part), keys, dtype=torch.long)
    # A padded query stands where its block's last one does, so that it sees some key and its softmax is defined.
    query_position = torch.tensor([block.keys - 1 for block in part])[:, None].repeat(1, queries)
    key_position = torch.full((len(part), keys), torch.iinfo(torch.long).max // 2, dtype=torch.long)
    for row, block in enumerate(part):
        segment = block.segment
        path = [tree.segments[ancestor] for ancestor in segment.ancestors]
        above = [torch.arange(a.start, a.start + a.length) for a in path]
        own = torch.arange(segment.start, segment.start + block.end)
        query_token[row, : block.queries] = own[block.start :]
        key_token[row, : block.keys] = torch.cat([*above, own])
        # Along one path from the root, positions count up from 0.
        key_position[row, : block.keys] = torch.arange(block.keys)
        query_position[row, : block.queries] = torch.arange(block.keys - block.queries, block.keys)
    return _Bucket(
        query_token=query_token.to(device),
        key_token=key_token.to(device),
        query_position=query_position.to(device),
        key_position=key_position.to(device),
        first_hidden=min(block.keys - block.queries for block in part),
        is_padded=any(block.queries < queries for block in part),
    )
