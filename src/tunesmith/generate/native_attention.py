"""Attention of one step through the kernels: rows that decode and chunks of prompts alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from tunesmith.native.calls import AttentionArguments, Kernels, StepArguments, TurningArguments

#: What attention.c has room for: numbers of a head, and queries of a tile.
_MOST_SIZE, _MOST_QUERIES = 256, 24
_SIZE_STEP = 32


def can_attend(heads: int, key_heads: int, size: int) -> bool:
    """Whether the kernels have room for heads like these."""
    return size % _SIZE_STEP == 0 and size <= _MOST_SIZE and heads // key_heads <= _MOST_QUERIES


class NativeAttention:
    """Where the rows of one step stand and which pages they read.

    Args:
        kernels: the compiled functions.
        pages: each text's pages, in order.
        places: of each text, its first row, the position of that row's token, and how many rows follow each other.
        slots: (T,), each row's page times the tokens of a page plus its place there.
    """

    def __init__(
        self,
        kernels: Kernels,
        pages: Sequence[Sequence[int]],
        places: Sequence[tuple[int, int, int]],
        slots: Tensor,
    ) -> None:
        self._kernels = kernels
        self._slots = slots
        self._places = places
        self._begins = np.cumsum([0, *(len(own) for own in pages[:-1])]).tolist()
        self._pages = np.fromiter((page for own in pages for page in own), dtype=np.int32)
        self._tiles: dict[int, np.ndarray[tuple[int, int], np.dtype[np.int32]]] = {}

    def attend(
        self,
        together: Tensor,
        heads: int,
        rotation: tuple[Tensor, Tensor],
        keys: Tensor,
        values: Tensor,
        scale: float,
        window_tokens: int | None,
    ) -> Tensor:
        """Turn queries and keys by their positions, keep keys and values, and return the outputs (T, heads x D).

        Args:
            together: (T, heads + 2 K, D), queries, keys and values; it is changed.
            heads: how many are queries.
            rotation: cosines, and sines whose first half has its sign turned, (T, 1, D).
            keys: (pages, K, 64, D).
            values: as `keys`.
            scale: factor on the scores.
            window_tokens: how many tokens a token sees; None: all.
        """
        rows, _, size = together.shape
        key_heads = keys.shape[1]
        tiles = self._tiles_of(_MOST_QUERIES // (heads // key_heads))
        out = together.new_empty(rows, heads * size)
        shared = {
            "keys": keys.data_ptr(), "values": values.data_ptr(), "heads": heads, "key_heads": key_heads, "size": size,
        }  # fmt: skip
        self._kernels.turn_and_keep(
            TurningArguments(
                together=together.data_ptr(),
                cosines=rotation[0].data_ptr(),
                sines=rotation[1].data_ptr(),
                slots=self._slots.data_ptr(),
                rows=rows,
                **shared,
            )
        )
        self._kernels.attend(
            AttentionArguments(
                queries=together.data_ptr(),
                pages=self._pages.ctypes.data,
                tiles=tiles.ctypes.data,
                out=out.data_ptr(),
                tile_count=len(tiles),
                query_stride=together.stride(0),
                window=window_tokens or 0,
                scale=scale,
                **shared,
            )
        )
        return out

    def place(self, step: StepArguments, group: int) -> None:
        """Say where the rows of a step stand, for layers whose keys are read by `group` heads each."""
        tiles = self._tiles_of(_MOST_QUERIES // group)
        step.slots, step.pages = self._slots.data_ptr(), self._pages.ctypes.data
        step.tiles, step.tile_count = tiles.ctypes.data, len(tiles)

    def _tiles_of(self, most_rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """Return (tiles, 4): first row, rows, where the text's pages begin, position of the first row."""
        if most_rows not in self._tiles:
            self._tiles[most_rows] = np.array(
                [
                    (first + offset, min(most_rows, rows - offset), begin, position + offset)
                    for begin, (first, position, rows) in zip(self._begins, self._places, strict=True)
                    for offset in range(0, rows, most_rows)
                ],
                dtype=np.int32,
            )
        return self._tiles[most_rows]
