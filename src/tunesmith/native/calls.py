"""The kernels as Python calls them: tensors in, tensors out."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_float, c_long, c_void_p
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from tunesmith.native.build import library

#: Outputs of a weight that lie together, as the kernels have it.
PANEL = 32
#: Kinds of products; see parts.h.
STORED, ADDED, GATED, WIDE, UPDATED = range(5)
#: Numbers of a narrow row that `sum_outer` takes at once.
NARROW = 8
#: Vectors are read in parts of so many numbers.
LANES = 16


class ProductArguments(ctypes.Structure):
    """`Product` of parts.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "weight", "second", "bias", "second_bias", "other", "out")),
        *((name, c_long) for name in ("rows", "depth", "outputs", "x_stride", "other_stride", "out_stride", "kind")),
        ("further", c_void_p),
        ("further_count", c_long),
    ]


class FurtherArguments(ctypes.Structure):
    """`Further` of parts.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "weight", "second")),
        *((name, c_long) for name in ("first", "end", "depth", "x_stride")),
    ]


class NormArguments(ctypes.Structure):
    """`Norm` of parts.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("x", "factors", "out", "inverses")),
        *((name, c_long) for name in ("outer", "inner", "size", "x_stride", "out_stride")),
        ("epsilon", c_float),
    ]


class TurningArguments(ctypes.Structure):
    """`Turning` of parts.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("together", "cosines", "sines", "keys", "values", "slots")),
        *((name, c_long) for name in ("rows", "heads", "key_heads", "size")),
    ]


class AttentionArguments(ctypes.Structure):
    """`Attention` of parts.h."""

    _fields_ = [
        *((name, c_void_p) for name in ("queries", "keys", "values", "pages", "tiles", "out")),
        *((name, c_long) for name in ("tile_count", "query_stride", "heads", "key_heads", "size", "window")),
        ("scale", c_float),
    ]


class LayerArguments(ctypes.Structure):
    """`Layer` of layers.c."""

    _fields_ = [
        *((name, c_void_p) for name in ("before", "between", "query_norm", "key_norm")),
        *((name, ProductArguments) for name in ("qkv", "out", "gated", "down")),
        *((name, c_void_p) for name in ("keys", "values")),
        *((name, c_long) for name in ("heads", "key_heads", "size", "window")),
        *((name, c_float) for name in ("before_epsilon", "between_epsilon", "query_epsilon", "key_epsilon", "scale")),
    ]


class NarrowArguments(ctypes.Structure):
    """`Narrow` of layers.c."""

    _fields_ = [*((name, c_void_p) for name in ("a", "b", "second_b")), ("rank", c_long)]


class NarrowLayerArguments(ctypes.Structure):
    """`NarrowLayer` of layers.c."""

    _fields_ = [(name, NarrowArguments) for name in ("qkv", "out", "gated", "down")]


class AdaptedArguments(ctypes.Structure):
    """`Adapted` of layers.c."""

    _fields_ = [("layers", c_void_p), ("first", c_long), ("end", c_long)]


class StepArguments(ctypes.Structure):
    """`Step` of layers.c."""

    _fields_ = [
        *((name, c_void_p) for name in ("hidden", "result", "normal", "together", "attended", "inner", "narrow")),
        *((name, c_void_p) for name in ("adapted", "cosines", "sines", "slots", "pages", "tiles")),
        *((name, c_long) for name in ("rows", "tile_count", "adapted_count", "highest_rank")),
    ]


class TreeArguments(ctypes.Structure):
    """`Tree` of tree.c."""

    _fields_ = [
        *((name, c_void_p) for name in ("query", "key", "value", "out", "logs", "out_gradient", "query_gradient")),
        *((name, c_void_p) for name in ("sums", "tiles", "stretches", "parts")),
        *((name, c_long) for name in ("tile_count", "part_count", "tokens", "heads", "key_heads", "size", "window")),
        ("scale", c_float),
    ]


class Kernels:
    """The functions of the compiled library; numbers are in bf16 where nothing else is said, on the CPU."""

    def __init__(self, compiled: ctypes.CDLL) -> None:
        pointer, number = c_void_p, c_long
        self._product = _function(compiled, "product", [pointer, number])
        self._sum_outer = _function(
            compiled, "sum_outer", [pointer, *[number] * 2, pointer, *[number] * 3, c_float, pointer, pointer, number]
        )
        self._norm = _function(compiled, "norm", [pointer, number])
        self._norm_backward = _function(
            compiled, "norm_backward", [*[pointer] * 3, number, number, pointer, pointer, number]
        )
        self._gate = _function(compiled, "gate", [pointer, pointer, number, pointer, number])
        self._gate_backward = _function(compiled, "gate_backward", [pointer, pointer, number, *[pointer] * 3, number])
        self._rotate = _function(compiled, "rotate", [pointer, *[number] * 3, *[pointer] * 2, number, pointer, number])
        self._turn_and_keep = _function(compiled, "turn_and_keep", [pointer, number])
        self._attend = _function(compiled, "attend", [pointer, number])
        self._layers = _function(compiled, "decoder_layers", [pointer, number, pointer, number])
        self._attend_tree = _function(compiled, "attend_tree", [pointer, number])
        self._cross_entropy = _function(compiled, "cross_entropy", [pointer, number, number, *[pointer] * 4, number])
        self._likeliest = _function(compiled, "likeliest", [pointer, *[number] * 3, pointer, number])
        self._pull_tree = _function(compiled, "pull_tree", [pointer, number])

    def product(self, arguments: ProductArguments) -> None:
        """Compute a product."""
        self._product(ctypes.byref(arguments), torch.get_num_threads())

    def sum_outer(self, narrow: Tensor, wide: Tensor, scale: float) -> Tensor:
        """Return `scale narrow^T wide` (r, N) in float32 for narrow (M, r) and wide (M, N): a sum of outer products."""
        narrow, wide = (x if x.stride(1) == 1 else x.contiguous() for x in (narrow, wide))
        (rows, width), columns = narrow.shape, wide.shape[1]
        padded = -(-width // NARROW) * NARROW
        pairs = torch.zeros(-(-rows // 2), padded, 2, dtype=narrow.dtype)
        sums = torch.zeros(padded, -(-columns // PANEL) * PANEL)
        self._sum_outer(
            *(narrow.data_ptr(), narrow.stride(0), width, wide.data_ptr(), wide.stride(0), columns, rows),
            *(scale, pairs.data_ptr(), sums.data_ptr(), torch.get_num_threads()),
        )
        return sums[:width, :columns]

    def norm(self, x: Tensor, factors: Tensor, epsilon: float, out: Tensor, inverses: Tensor | None = None) -> None:
        """Write x / rms(x) * factors, and 1 / rms(x) to `inverses`.

        Args:
            x: (M, [heads,] size); the last dimensions lie without gaps.
            factors: (size,), float32.
            epsilon: added to the mean square.
            out: as x.
            inverses: one number for each vector, float32; None: they aren't asked for.
        """
        arguments = NormArguments(
            x=x.data_ptr(),
            factors=factors.data_ptr(),
            out=out.data_ptr(),
            inverses=None if inverses is None else inverses.data_ptr(),
            outer=len(x),
            inner=1 if x.dim() == 2 else x.shape[1],
            size=x.shape[-1],
            x_stride=x.stride(0),
            out_stride=out.stride(0),
            epsilon=epsilon,
        )
        self._norm(ctypes.byref(arguments), torch.get_num_threads())

    def norm_backward(self, x: Tensor, gradients: Tensor, inverses: Tensor, factors: Tensor) -> Tensor:
        """Return the gradient of `norm` by x (M, size), given that of its result; all without gaps."""
        out = torch.empty_like(x)
        self._norm_backward(
            *(x.data_ptr(), gradients.data_ptr(), inverses.data_ptr(), len(x), x.shape[1], factors.data_ptr()),
            *(out.data_ptr(), torch.get_num_threads()),
        )
        return out

    def gate(self, gates: Tensor, ups: Tensor) -> Tensor:
        """Return silu(gates) * ups for two tensors of one shape without gaps, as a gated product gives it."""
        out = torch.empty_like(gates)
        self._gate(gates.data_ptr(), ups.data_ptr(), gates.numel(), out.data_ptr(), torch.get_num_threads())
        return out

    def gate_backward(self, gates: Tensor, ups: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the result of `gate` once more and the gradient of `gates`; `gradients` become those of `ups`."""
        out, gate_gradients = torch.empty_like(gates), torch.empty_like(gates)
        self._gate_backward(
            *(gates.data_ptr(), ups.data_ptr(), gates.numel(), gradients.data_ptr(), gate_gradients.data_ptr()),
            *(out.data_ptr(), torch.get_num_threads()),
        )
        return out, gate_gradients

    def rotate(self, x: Tensor, cosines: Tensor, sines: Tensor, *, goes_back: bool = False) -> Tensor:
        """Turn rows of heads by their positions; `goes_back` is for gradients: the transposed map.

        Args:
            x: (T, heads, D) without gaps, D a multiple of 32.
            cosines: (T, D) without gaps.
            sines: likewise.
            goes_back: whether x are gradients of a result.
        """
        out = torch.empty_like(x)
        self._rotate(
            *(x.data_ptr(), *x.shape, cosines.data_ptr(), sines.data_ptr(), goes_back),
            *(out.data_ptr(), torch.get_num_threads()),
        )
        return out

    def turn_and_keep(self, arguments: TurningArguments) -> None:
        """Turn queries and keys by their positions, in place, and keep keys and values in pages."""
        self._turn_and_keep(ctypes.byref(arguments), torch.get_num_threads())

    def attend(self, arguments: AttentionArguments) -> None:
        """Let queries attend to pages."""
        self._attend(ctypes.byref(arguments), torch.get_num_threads())

    def layers(self, layers: ctypes.Array[LayerArguments], step: StepArguments) -> None:
        """Compute consecutive decoder layers."""
        self._layers(layers, len(layers), ctypes.byref(step), torch.get_num_threads())

    def attend_tree(self, arguments: TreeArguments) -> None:
        """Let a token tree's segments attend to their paths."""
        self._attend_tree(ctypes.byref(arguments), torch.get_num_threads())

    def pull_tree(self, arguments: TreeArguments) -> None:
        """Compute the gradients of queries, and sums of those of keys and values."""
        self._pull_tree(ctypes.byref(arguments), torch.get_num_threads())

    def cross_entropy(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return each target's negative log-likelihood (M,) in float32, and 1 where no token is likelier, else 0.

        Args:
            logits: (M, V) without gaps; with weights, they become the weighted sum's gradient by them.
            targets: (M,) int64.
            weights: (M,), used in float32; None: no gradient is wanted.

        Raises:
            IndexError: a target is outside the vocabulary; the kernel would write where nobody should.
        """
        lowest, highest = (int(bound) for bound in torch.aminmax(targets))
        if lowest < 0 or highest >= logits.shape[1]:
            raise IndexError(f"targets from {lowest} to {highest} for {logits.shape[1]} tokens")
        losses, hits = torch.empty(len(targets)), torch.empty(len(targets))
        targets = targets.contiguous()
        factors = None if weights is None else weights.to(torch.float32).contiguous()
        self._cross_entropy(
            *(logits.data_ptr(), *logits.shape, targets.data_ptr(), None if factors is None else factors.data_ptr()),
            *(losses.data_ptr(), hits.data_ptr(), torch.get_num_threads()),
        )
        return losses, hits

    def likeliest(self, logits: Tensor) -> Tensor:
        """Return the place of each row's greatest (M,), of equal ones the first, for (M, V) in float32.

        It is -1 where it isn't finite, and in rows that hold NaN.
        """
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        places = torch.empty(len(logits), dtype=torch.int64)
        self._likeliest(
            *(logits.data_ptr(), len(logits), logits.stride(0), logits.shape[1], places.data_ptr()),
            torch.get_num_threads(),
        )
        return places


@cache
def kernels() -> Kernels | None:
    """Return the kernels, or None where there are none; see `native.build`."""
    compiled = library()
    return None if compiled is None else Kernels(compiled)


def kernels_for(weight: Tensor) -> Kernels | None:
    """Return the kernels if they compute with tensors like this one."""
    return kernels() if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" else None


def _function(compiled: ctypes.CDLL, name: str, types: list[type]) -> Callable[..., None]:
    function: Any = getattr(compiled, name)
    function.argtypes, function.restype = types, None
    return cast(Callable[..., None], function)
