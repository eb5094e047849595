"""Consecutive decoder layers of a step in one call of the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import ref

import torch
from torch import Tensor

from tunesmith.native.calls import (
    ADDED,
    GATED,
    STORED,
    AdaptedArguments,
    Kernels,
    LayerArguments,
    NarrowLayerArguments,
    StepArguments,
)
from tunesmith.native.product import NativeProduct

#: Stretches of rows with an adapter that a step may have; layers.c has room for no more.
MOST_ADAPTED = 256


class NativeNorm:
    """`x / rms(x) * factors` for x (M, [heads,] size) in bf16.

    Args:
        kernels: the compiled functions.
        factors: (size,), float32.
        epsilon: added to the mean square.
    """

    def __init__(self, kernels: Kernels, factors: Tensor, epsilon: float) -> None:
        self.factors, self.epsilon = factors, epsilon
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise vectors."""
        has_gaps = x.stride(-1) != 1 or (x.dim() == 3 and x.stride(1) != x.shape[2])
        out = torch.empty(x.shape, dtype=x.dtype)
        self._kernels.norm(x.contiguous() if has_gaps else x, self.factors, self.epsilon, out)
        return out


@dataclass(frozen=True)
class LayerParts:
    """What a layer is put together from: attention, then a gated feed-forward layer, each with its residual.

    Attributes:
        index: the layer's number in the model.
        before, between: normalisations before the two.
        head_norms: of single queries and keys; None: there are none.
        qkv: queries, keys and values, heads one after the other.
        out, gate, up, down: the other products.
        heads, key_heads, size: of attention.
        scale: factor on its scores.
        window_tokens: how many tokens a token sees; None: all.
    """

    index: int
    before: NativeNorm
    between: NativeNorm
    head_norms: tuple[NativeNorm, NativeNorm] | None
    qkv: NativeProduct
    out: NativeProduct
    gate: NativeProduct
    up: NativeProduct
    down: NativeProduct
    heads: int
    key_heads: int
    size: int
    scale: float
    window_tokens: int | None

    def can_follow(self, other: LayerParts) -> bool:
        """Whether one plan of attention serves both layers."""
        return (self.heads, self.key_heads, self.size) == (other.heads, other.key_heads, other.size)

    def arguments(self) -> LayerArguments:
        """Return what the kernels need of it, but for keys and values."""
        found = LayerArguments(
            before=self.before.factors.data_ptr(),
            before_epsilon=self.before.epsilon,
            between=self.between.factors.data_ptr(),
            between_epsilon=self.between.epsilon,
            heads=self.heads,
            key_heads=self.key_heads,
            size=self.size,
            window=self.window_tokens or 0,
            scale=self.scale,
        )
        if self.head_norms is not None:
            queries, keys = self.head_norms
            found.query_norm, found.query_epsilon = queries.factors.data_ptr(), queries.epsilon
            found.key_norm, found.key_epsilon = keys.factors.data_ptr(), keys.epsilon
        self.qkv.describe(found.qkv)
        self.out.describe(found.out)
        self.gate.describe(found.gated, self.up)
        self.down.describe(found.down)
        found.qkv.kind, found.gated.kind = STORED, GATED
        found.out.kind = found.down.kind = ADDED
        return found


class NarrowLayers:
    """What an adapter adds to layers.

    Args:
        kernels: the compiled functions.
        layers: of each layer, A (rank, in) and B (out, rank) of its four products, of even ranks, or None where
            nothing is added; the gated one's A stands for both its weights and is followed by a B for each of them.
    """

    def __init__(self, kernels: Kernels, layers: Sequence[Sequence[tuple[Tensor, ...] | None]]) -> None:
        self._products: list[NativeProduct] = []  # what the arguments point to
        self.highest_rank = 0
        self._arguments = (NarrowLayerArguments * len(layers))()
        for arguments, parts in zip(self._arguments, layers, strict=True):
            for name, part in zip(("qkv", "out", "gated", "down"), parts, strict=True):
                if part is not None:
                    products = [NativeProduct(kernels, matrix, None) for matrix in part]
                    narrow = getattr(arguments, name)
                    narrow.a, narrow.b = products[0].pointer, products[1].pointer
                    narrow.second_b = products[-1].pointer
                    narrow.rank = products[0].outputs
                    self.highest_rank = max(self.highest_rank, narrow.rank)
                    self._products += products

    @property
    def pointer(self) -> int:
        """Where the layers' arguments begin."""
        return ctypes.addressof(self._arguments)


class NativeLayers:
    """Maps hidden states of a step in bf16. One thread at a time may use it.

    Args:
        kernels: the compiled functions.
        layers: what the layers are, in their order; their heads are alike, see `can_follow`.
    """

    def __init__(self, kernels: Kernels, layers: Sequence[LayerParts]) -> None:
        self._kernels, self._parts = kernels, tuple(layers)
        self._layers = (LayerArguments * len(layers))(*(parts.arguments() for parts in layers))
        self._widths = [
            max(widths)
            for widths in zip(
                *((one.qkv.depth, one.qkv.outputs, one.out.depth, one.down.depth) for one in layers), strict=True
            )
        ]
        self._room: tuple[Tensor, ...] = ()
        self._keeper: ref[object] | None = None
        self._step = StepArguments()

    def keep_in(self, keeper: object, kept: Callable[[LayerParts], tuple[Tensor, Tensor]]) -> None:
        """Keep keys and values there from now on.

        Args:
            keeper: whoever keeps them; nothing is done if it is the same as before.
            kept: returns keys and values of a layer, (pages, key heads, 64, size).
        """
        if self._keeper is not None and self._keeper() is keeper:
            return
        for arguments, parts in zip(self._layers, self._parts, strict=True):
            keys, values = kept(parts)
            arguments.keys, arguments.values = keys.data_ptr(), values.data_ptr()
        self._keeper = ref(keeper)

    def __call__(
        self,
        hidden: Tensor,
        place: Callable[[StepArguments], None],
        adapted: Sequence[tuple[int, int, NarrowLayers]] = (),
    ) -> Tensor:
        """Map (T, H) to (T, H).

        Args:
            hidden: the hidden states, without gaps.
            place: says where the rows stand.
            adapted: rows from the first to the second number (exclusive) have that added; at most `MOST_ADAPTED`.
        """
        step, result = self._step, torch.empty_like(hidden)
        if step.rows != len(hidden):
            self._room = tuple(torch.empty(len(hidden), width, dtype=hidden.dtype) for width in self._widths)
            step.normal, step.together, step.attended, step.inner = (room.data_ptr() for room in self._room)
            step.rows = len(hidden)
        step.hidden, step.result = hidden.data_ptr(), result.data_ptr()
        place(step)
        step.highest_rank = max((narrow.highest_rank for _, _, narrow in adapted), default=0)
        images = torch.empty(len(hidden), step.highest_rank, dtype=hidden.dtype)
        described = (AdaptedArguments * len(adapted))(
            *(AdaptedArguments(one.pointer, start, end) for start, end, one in adapted)
        )
        step.narrow, step.adapted = images.data_ptr(), ctypes.addressof(described)
        step.adapted_count = len(adapted)
        self._kernels.layers(self._layers, step)
        return result
