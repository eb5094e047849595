"""Attention over a token tree through the kernels in C (see `native`): bf16 on a CPU.

Nothing of the size queries x keys exists: probabilities are made in the cache, and again for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from tunesmith.learn.tree import Segment
from tunesmith.native.calls import Kernels, TreeArguments, kernels_for

#: What tree.c has room for: numbers of a head, and queries of a tile.
_MOST_SIZE, _MOST_QUERIES = 256, 64
_SIZE_STEP = 32
#: Parts that sum gradients of keys and values apart; more would take memory without end on many cores.
_MOST_PARTS = 8


def has_room(heads: int, key_heads: int, size: int) -> bool:
    """Whether the kernels have room for so many heads of a size."""
    return size % _SIZE_STEP == 0 and size <= _MOST_SIZE and heads // key_heads <= _MOST_QUERIES


def kernels_of(query: Tensor, key: Tensor) -> Kernels | None:
    """Return the kernels if they have room for heads like these: query (N, H, D), key (N, K, D)."""
    return kernels_for(query) if has_room(query.shape[1], key.shape[1], query.shape[2]) else None


@dataclass(frozen=True)
class _Tiles:
    """Tiles of consecutive queries, and parts of them that cost about the same.

    Attributes:
        tiles: (tiles, 4) int32: first token, tokens, where the path's stretches begin, keys.
        parts: (parts + 1,) int64, where each part's tiles begin.
    """

    tiles: npt.NDArray[np.int32]
    parts: npt.NDArray[np.int64]


class TreePaths:
    """Where the keys of each segment's path lie in the flat batch.

    Args:
        segments: the tree's segments.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments
        stretches: list[tuple[int, int]] = []
        self._begins: list[int] = []
        self._above: list[int] = []
        for segment in segments:
            path = [segments[index] for index in segment.ancestors]
            self._begins.append(len(stretches))
            self._above.append(sum(one.length for one in path))
            stretches += [(one.start, one.length) for one in (*path, segment)]
        self.stretches = np.array(stretches, dtype=np.int32)
        self._tiles: dict[tuple[int, int], _Tiles] = {}

    def tiles(self, group: int) -> _Tiles:
        """Return the tiles where `group` query heads share a key head."""
        parts = min(torch.get_num_threads(), _MOST_PARTS)
        if (group, parts) not in self._tiles:
            most = _MOST_QUERIES // group
            tiles = np.array(
                [
                    (segment.start + offset, count, begin, above + offset + count)
                    for segment, begin, above in zip(self._segments, self._begins, self._above, strict=True)
                    for offset in range(0, segment.length, most)
                    for count in (min(most, segment.length - offset),)
                ],
                dtype=np.int32,
            )
            costs = np.cumsum(tiles[:, 1].astype(np.int64) * tiles[:, 3])
            bounds = np.searchsorted(costs, costs[-1] * np.arange(1, parts) / parts)
            self._tiles[group, parts] = _Tiles(tiles, np.array([0, *bounds, len(tiles)], dtype=np.int64))
        return self._tiles[group, parts]


@dataclass(frozen=True, slots=True)
class _Call:
    kernels: Kernels
    paths: TreePaths
    scale: float
    window_tokens: int | None

    def arguments(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logs: Tensor) -> TreeArguments:
        (tokens, heads, size), key_heads = query.shape, key.shape[1]
        tiles = self.paths.tiles(heads // key_heads)
        return TreeArguments(
            **{name: x.data_ptr() for name, x in zip(_NAMES, (query, key, value, out, logs), strict=True)},
            tiles=tiles.tiles.ctypes.data,
            stretches=self.paths.stretches.ctypes.data,
            parts=tiles.parts.ctypes.data,
            tile_count=len(tiles.tiles),
            part_count=len(tiles.parts) - 1,
            tokens=tokens,
            heads=heads,
            key_heads=key_heads,
            size=size,
            window=self.window_tokens or 0,
            scale=self.scale,
        )


_NAMES = ("query", "key", "value", "out", "logs")


def native_attention(
    kernels: Kernels,
    paths: TreePaths,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    window_tokens: int | None,
) -> Tensor:
    """Return the outputs (N, H, D) of queries (N, H, D) over keys and values (N, K, D), differentiable.

    Args:
        kernels: the compiled functions.
        paths: the tree's paths.
        query: the queries.
        key: the keys.
        value: the values.
        scale: factor on the scores.
        window_tokens: a token sees itself and at most `window_tokens - 1` tokens before it; None: all.
    """
    call = _Call(kernels, paths, scale, window_tokens)
    out: Tensor = _NativeAttention.apply(query, key, value, call)  # type: ignore[no-untyped-call]
    return out


class _NativeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor, call: _Call) -> Tensor:
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out, logs = torch.empty_like(query), torch.empty(query.shape[:2])
        call.kernels.attend_tree(call.arguments(query, key, value, out, logs))
        ctx.save_for_backward(query, key, value, out, logs)
        ctx.call = call  # type: ignore[attr-defined]
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, logs = ctx.saved_tensors  # type: ignore[attr-defined]
        call: _Call = ctx.call  # type: ignore[attr-defined]
        grad = grads[0].contiguous()
        arguments = call.arguments(query, key, value, out, logs)
        grad_query = torch.empty_like(query)
        sums = torch.zeros(arguments.part_count, 2, *key.shape)
        arguments.out_gradient, arguments.query_gradient = grad.data_ptr(), grad_query.data_ptr()
        arguments.sums = sums.data_ptr()
        call.kernels.pull_tree(arguments)
        return grad_query, sums[0, 0].to(key.dtype), sums[0, 1].to(value.dtype), None
