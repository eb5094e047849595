"""Attention over a token tree: each segment's tokens attend to the segments above it and to their own past.

Segments of like shape are computed together, padded inside the attention alone; the linear layers see no padding.
Only matrix products and a softmax: on CPUs that is several times faster for short rows than PyTorch's own attention.
The probabilities are computed again in the backward pass, so nothing of size T x T is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from tunesmith.learn.tree import Segment, TokenTree

#: A bucket may be padded to at most this multiple of its blocks' joint area.
_MAX_PADDING = 1.6
#: Scores of one head held at once, in numbers; what has more is computed in parts.
_MAX_SCORES = 1 << 22
#: A position behind all others.
_FAR = 1 << 30
#: Longer segments are computed in blocks of this many queries: less memory, and no block sees keys behind its end.
_BLOCK_QUERIES = 512


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

    `query_index` (S, Tq) and `key_index` (S, Tk) point into the flat batch. `query_position` (S, Tq) and
    `key_position` (S, Tk) are places in the sequences; a padded query has one behind all keys, so that it sees some and
    its softmax is defined (its result is thrown away), a padded key one behind all queries, so that nobody sees it.
    """

    query_index: Tensor
    query_real: Tensor
    is_padded: bool
    key_index: Tensor
    query_position: Tensor
    key_position: Tensor
    hidden_by_window: dict[int | None, Tensor]

    def hidden(self, window_tokens: int | None) -> Tensor:
        """Return (S, Tq, Tk): which key is out of which query's sight. Made once, kept for all layers."""
        if window_tokens not in self.hidden_by_window:
            distance = self.query_position[:, :, None] - self.key_position[:, None, :]
            hidden = distance < 0
            if window_tokens is not None:
                hidden |= (distance >= window_tokens) & self.query_real[:, :, None]
            self.hidden_by_window[window_tokens] = hidden
        return self.hidden_by_window[window_tokens]


class TreeLayout:
    """The `Layout` (see `models.attention`) of one token tree; holds index tables only."""

    def __init__(self, tree: TokenTree, device: torch.device | str = "cpu") -> None:
        """Sort the tree's segments into buckets of like shape."""
        self._buckets = [_bucket(part, tree, device) for part in _parts_of_like_shape(_blocks(tree.segments))]

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
        out: Tensor = _TreeAttention.apply(query[0], key[0], value[0], self._buckets, scale, window_tokens, softcap)  # type: ignore[no-untyped-call]
        return out.transpose(0, 1).unsqueeze(0)


class _TreeAttention(torch.autograd.Function):
    """Flash attention's backward pass (Dao et al. 2022, arXiv:2205.14135, appendix B) over gathered blocks."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        buckets: Sequence[_Bucket],
        scale: float,
        window_tokens: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Map (H, N, D) queries over (K, N, D) keys and values to (H, N, D)."""
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for bucket in buckets:
            q, k, v = _gather(query, key, value, bucket)
            weights, _ = _weights(q, k, bucket, scale, window_tokens, softcap)
            _scatter_queries(out, torch.matmul(weights.to(v.dtype), v), bucket)
        ctx.save_for_backward(query, key, value, out)
        ctx.settings = (buckets, scale, window_tokens, softcap)  # type: ignore[attr-defined]
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, out = ctx.saved_tensors  # type: ignore[attr-defined]
        buckets, scale, window_tokens, softcap = ctx.settings  # type: ignore[attr-defined]
        grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        # A key is read by many segments; its gradients are summed in at least float32.
        sums = torch.promote_types(key.dtype, torch.float32)
        grad_key = torch.zeros(key.shape, dtype=sums, device=key.device)
        grad_value = torch.zeros(value.shape, dtype=sums, device=value.device)
        for bucket in buckets:
            q, k, v = _gather(query, key, value, bucket)
            weights, bend = _weights(q, k, bucket, scale, window_tokens, softcap)
            o = _gather_queries(out, bucket, key.shape[0])
            d_out = _gather_queries(grads[0], bucket, key.shape[0])
            d_value = torch.matmul(weights.to(v.dtype).transpose(-1, -2), d_out)
            inner = torch.matmul(d_out, v.transpose(-1, -2)).to(weights.dtype)
            inner -= (d_out.to(weights.dtype) * o.to(weights.dtype)).sum(-1, keepdim=True)
            d_scores = inner.mul_(weights)
            if bend is not None:
                d_scores *= bend
            d_scores = d_scores.mul_(scale).to(q.dtype)
            _scatter_queries(grad_query, torch.matmul(d_scores, k), bucket)
            flat_index = bucket.key_index.reshape(-1)
            d_key = torch.matmul(d_scores.transpose(-1, -2), q)
            grad_key.index_add_(1, flat_index, d_key.flatten(1, 2).to(sums))
            grad_value.index_add_(1, flat_index, d_value.flatten(1, 2).to(sums))
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None, None


def _gather(query: Tensor, key: Tensor, value: Tensor, bucket: _Bucket) -> tuple[Tensor, Tensor, Tensor]:
    """Return q (K, S, G Tq, D), k and v (K, S, Tk, D), where G query heads share one key head."""
    segments, keys = bucket.key_index.shape
    flat = bucket.key_index.reshape(-1)
    k = key.index_select(1, flat).view(key.shape[0], segments, keys, -1)
    v = value.index_select(1, flat).view(value.shape[0], segments, keys, -1)
    return _gather_queries(query, bucket, key.shape[0]), k, v


def _gather_queries(x: Tensor, bucket: _Bucket, key_heads: int) -> Tensor:
    """Turn (H, N, D) into (K, S, G Tq, D), padding set to zero."""
    segments, queries = bucket.query_index.shape
    groups = x.shape[0] // key_heads
    picked = x.index_select(1, bucket.query_index.reshape(-1)).view(key_heads, groups, segments, queries, -1)
    if bucket.is_padded:
        picked = picked * bucket.query_real[None, None, :, :, None]
    return picked.transpose(1, 2).reshape(key_heads, segments, groups * queries, -1)


def _scatter_queries(target: Tensor, x: Tensor, bucket: _Bucket) -> None:
    """Write (K, S, G Tq, D) to its tokens' places in (H, N, D)."""
    segments, queries = bucket.query_index.shape
    key_heads = x.shape[0]
    heads = x.view(key_heads, segments, -1, queries, x.shape[-1]).transpose(1, 2)
    heads = heads.reshape(target.shape[0], segments * queries, -1)
    index = bucket.query_index.reshape(-1)
    if bucket.is_padded:
        real = bucket.query_real.reshape(-1)
        heads, index = heads[:, real], index[real]
    target.index_copy_(1, index, heads)


def _weights(
    q: Tensor, k: Tensor, bucket: _Bucket, scale: float, window_tokens: int | None, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Return the attention's probabilities (K, S, G Tq, Tk), at least float32, and the soft cap's derivative."""
    precise = torch.promote_types(q.dtype, torch.float32)
    scores = torch.matmul(q, k.transpose(-1, -2)).to(precise).mul_(scale)
    bend = None
    if softcap is not None:
        bent = torch.tanh(scores / softcap)
        scores, bend = bent * softcap, 1 - bent.square()
    hidden = bucket.hidden(window_tokens)
    segments, queries, keys = hidden.shape
    grouped = scores.view(scores.shape[0], segments, -1, queries, keys)
    grouped.masked_fill_(hidden[None, :, None], float("-inf"))
    return torch.softmax(scores, dim=-1), bend


def _blocks(segments: Sequence[Segment]) -> list[_Block]:
    """Cut each segment's queries into blocks."""
    blocks = []
    for segment in segments:
        above = sum(segments[ancestor].length for ancestor in segment.ancestors)
        for start in range(0, segment.length, _BLOCK_QUERIES):
            end = min(start + _BLOCK_QUERIES, segment.length)
            blocks.append(_Block(segment, start, end, above + end))
    return blocks


def _parts_of_like_shape(blocks: Sequence[_Block]) -> list[list[_Block]]:
    """Group blocks so that padding stays small and the scores fit `_MAX_SCORES`."""
    parts: list[list[_Block]] = []
    queries = keys = area = 0
    for block in sorted(blocks, key=lambda block: (block.queries, block.keys)):
        queries_then, keys_then = max(queries, block.queries), max(keys, block.keys)
        count = len(parts[-1]) + 1 if parts else 1
        area_then = area + block.queries * block.keys
        fits = count * queries_then * keys_then <= min(_MAX_SCORES, _MAX_PADDING * area_then)
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
    query_index = torch.zeros(len(part), queries, dtype=torch.long)
    key_index = torch.zeros(len(part), keys, dtype=torch.long)
    query_real = torch.zeros(len(part), queries, dtype=torch.bool)
    query_position = torch.full((len(part), queries), _FAR // 2, dtype=torch.int32)
    key_position = torch.full((len(part), keys), _FAR, dtype=torch.int32)
    for row, block in enumerate(part):
        segment = block.segment
        path = [tree.segments[ancestor] for ancestor in segment.ancestors]
        above = [torch.arange(a.start, a.start + a.length) for a in path]
        own = torch.arange(segment.start, segment.start + block.end)
        query_index[row, : block.queries] = own[block.start :]
        query_real[row, : block.queries] = True
        key_index[row, : block.keys] = torch.cat([*above, own])
        # Along one path from the root, positions count up from 0.
        key_position[row, : block.keys] = torch.arange(block.keys)
        query_position[row, : block.queries] = torch.arange(block.keys - block.queries, block.keys)
    return _Bucket(
        query_index=query_index.to(device),
        query_real=query_real.to(device),
        is_padded=not bool(query_real.all()),
        key_index=key_index.to(device),
        query_position=query_position.to(device),
        key_position=key_position.to(device),
        hidden_by_window={},
    )
