"""Attention of one step of the generator: one new token of each growing answer, then chunks of prompts.

Everything that doesn't depend on the layer is made once a step, when a layer first asks for it. Lean layers in bf16 go
through the kernels where there are some (see `native`). Elsewhere, rows that decode attend to pages where
these lie (see `generate.decoding`), and chunks of prompts gather their pages, which is little beside their own work
(see `generate.chunks`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.generate.chunks import Piece, PromptChunks
from tunesmith.generate.decoding import DecodingRows
from tunesmith.generate.native_attention import NativeAttention
from tunesmith.generate.pages import PAGE_TOKENS, PageMemory, pages_for
from tunesmith.native.calls import kernels


class StepLayout:
    """The `Layout` (see `models.attention`) of one step.

    The flat batch holds the decoding rows' tokens first, then the chunks', then `padding` copies of its first token.

    Args:
        memory: the pages.
        decoding: the decoding rows; each has a length of 1.
        chunks: the chunks.
        device: where the model computes.
    """

    def __init__(
        self, memory: PageMemory, decoding: Sequence[Piece], chunks: Sequence[Piece], device: torch.device
    ) -> None:
        self.memory = memory
        self._device = device
        self._pieces = (*decoding, *chunks)
        self._rows = DecodingRows([piece.pages for piece in decoding], [p.position for p in decoding], device)
        self._chunks = PromptChunks(chunks, device)
        pieces = self._pieces
        positions = np.concatenate([np.arange(p.position, p.position + p.length) for p in pieces])
        pages = np.concatenate([_pages_of(piece) for piece in pieces])
        # CPUs multiply a single row by another kernel, whose sums round differently; with two rows the results are
        # those of any larger batch.
        self.padding = 1 if len(positions) == 1 else 0
        places = np.stack([positions, pages])
        places = np.concatenate([places, places[:, :1].repeat(self.padding, 1)], axis=1)
        where = torch.from_numpy(places).to(device)
        #: (T,), each token's place in its text.
        self.positions = where[0]
        self._pages, self._offsets = where[1], where[0] % PAGE_TOKENS
        self._written: dict[int, Tensor] = {}
        self._native: NativeAttention | None = None

    def attend_natively(
        self,
        layer: int,
        together: Tensor,
        heads: int,
        rotation: tuple[Tensor, Tensor],
        *,
        scale: float,
        window_tokens: int | None,
    ) -> Tensor:
        """Do what `attend` does, and turn queries and keys by their positions before, all in the kernels.

        Args:
            layer: index of the layer, from 0.
            together: (T, heads + 2 K, D), queries, keys and values in bf16; it is changed.
            heads: how many are queries.
            rotation: cosines, and sines whose first half has its sign turned, (T, 1, D).
            scale: factor on the scores.
            window_tokens: a token sees itself and at most `window_tokens - 1` tokens before it; None: all.

        Returns:
            (T, heads x D).
        """
        key_heads, size = (together.shape[1] - heads) // 2, together.shape[2]
        keys, values = self.memory.layer(layer, together.new_empty(key_heads, 0, size))
        return self.native.attend(together, heads, rotation, keys, values, scale, window_tokens)

    @property
    def native(self) -> NativeAttention:
        """The rows as the kernels' attention has them."""
        if self._native is None:
            self._native = self._make_native()
        return self._native

    def _make_native(self) -> NativeAttention:
        found = kernels()
        assert found is not None
        lengths = [piece.length for piece in self._pieces]
        firsts = np.cumsum([0, *lengths[:-1]]).tolist()
        places = [(first, piece.position, piece.length) for first, piece in zip(firsts, self._pieces, strict=True)]
        pages = [piece.pages[: pages_for(piece.position + piece.length)] for piece in self._pieces]
        if self.padding:
            places.append((1, *places[0][1:]))
            pages.append(pages[0])
        return NativeAttention(found, pages, places, self._pages * PAGE_TOKENS + self._offsets)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float,
        window_tokens: int | None,
        softcap: float | None,
    ) -> Tensor:
        """See `Layout.attend`; B is 1 and T the number of tokens in this step."""
        keys, values = self.memory.layer(layer, key[0])
        heads, size = keys.shape[1], keys.shape[3]
        into = self._rows_written(heads)
        keys.view(-1, size).index_copy_(0, into, key[0].transpose(0, 1).reshape(-1, size))
        values.view(-1, size).index_copy_(0, into, value[0].transpose(0, 1).reshape(-1, size))
        queries = query[0].transpose(0, 1)
        parts = []
        start = self._rows.count
        if start:
            parts.append(self._rows.attend(queries[:start], keys, values, scale, window_tokens, softcap))
        if self._chunks.count:
            own = queries[start : start + self._chunks.count]
            parts.append(self._chunks.attend(own, keys, values, scale, window_tokens, softcap))
        output = parts[0] if len(parts) == 1 else torch.cat(parts)
        return (output.expand(2, -1, -1).contiguous() if self.padding else output).unsqueeze(0)

    def _rows_written(self, heads: int) -> Tensor:
        """Return which vectors of all pages' the step's tokens are, (T heads,), tokens first."""
        if heads not in self._written:
            head = torch.arange(heads, device=self._device)
            vectors = (self._pages[:, None] * heads + head) * PAGE_TOKENS + self._offsets[:, None]
            self._written[heads] = vectors.flatten()
        return self._written[heads]


def _pages_of(piece: Piece) -> npt.NDArray[np.int64]:
    """Return the page of each token of a piece."""
    places = np.arange(piece.position, piece.position + piece.length) // PAGE_TOKENS
    first = piece.position // PAGE_TOKENS
    own = np.asarray(piece.pages[first : pages_for(piece.position + piece.length)], dtype=np.int64)
    return own[places - first]
