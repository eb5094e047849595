"""Attention of one step of the generator: one new token of each growing answer, then chunks of prompts.

Everything that doesn't depend on the layer is made once a step. Rows that decode attend to pages where these lie
(see `generate.decoding`); chunks of prompts gather their pages, which is little beside their own work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.generate.decoding import DecodingRows
from tunesmith.generate.pages import PAGE_TOKENS, PageMemory, pages_for

#: Queries of a chunk that attend at once: keys behind them aren't touched, and the scores stay small.
_QUERIES = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one text that a step computes: `length` tokens from `position` on, kept in `pages`."""

    pages: Sequence[int]
    position: int
    length: int


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries of a chunk: flat rows `start` to `end`, which see keys `first` to `last` of the chunk's gathered ones.

    `hidden` (queries, keys) marks those that are out of sight.
    """

    start: int
    end: int
    first: int
    last: int
    hidden: Tensor


@dataclass(frozen=True, slots=True)
class _Reads:
    """What a chunk reads: the pages that it sees anything of, and its blocks of queries."""

    pages: slice | Tensor
    blocks: list[_Block]


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
        self._memory = memory
        self._device = device
        self._rows = DecodingRows([piece.pages for piece in decoding], [p.position for p in decoding], device)
        self._chunks = chunks
        pieces = [*decoding, *chunks]
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
        self._reads: dict[tuple[int, int | None], _Reads] = {}

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
        keys, values = self._memory.layer(layer, key[0])
        heads, size = keys.shape[1], keys.shape[3]
        into = self._rows_written(heads)
        keys.view(-1, size).index_copy_(0, into, key[0].transpose(0, 1).reshape(-1, size))
        values.view(-1, size).index_copy_(0, into, value[0].transpose(0, 1).reshape(-1, size))
        queries = query[0].transpose(0, 1)
        parts = []
        start = self._rows.count
        if start:
            parts.append(self._rows.attend(queries[:start], keys, values, scale, window_tokens, softcap))
        for index, chunk in enumerate(self._chunks):
            own = queries[start : start + chunk.length]
            parts += self._chunk(index, own, keys, values, scale, window_tokens, softcap)
            start += chunk.length
        output = parts[0] if len(parts) == 1 else torch.cat(parts)
        return (output.expand(2, -1, -1).contiguous() if self.padding else output).unsqueeze(0)

    def _rows_written(self, heads: int) -> Tensor:
        """Return which vectors of all pages' the step's tokens are, (T heads,), tokens first."""
        if heads not in self._written:
            head = torch.arange(heads, device=self._device)
            vectors = (self._pages[:, None] * heads + head) * PAGE_TOKENS + self._offsets[:, None]
            self._written[heads] = vectors.flatten()
        return self._written[heads]

    def _chunk(
        self,
        index: int,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        window_tokens: int | None,
        softcap: float | None,
    ) -> list[Tensor]:
        """Map a chunk's queries (length, H, D) to outputs (length, H, D), in parts."""
        reads = self._reads_of(index, window_tokens)
        k, v = (kept[reads.pages].transpose(0, 1).flatten(1, 2) for kept in (keys, values))  # (K, tokens, D)
        heads, _, size = k.shape
        outputs = []
        for block in reads.blocks:
            q = query[block.start : block.end]
            q = q.reshape(len(q), heads, -1, size).permute(1, 2, 0, 3).reshape(heads, -1, size)  # (K, G queries, D)
            scores = torch.bmm(q, k[:, block.first : block.last].transpose(1, 2))
            scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scale)
            if softcap is not None:
                scores = scores.div_(softcap).tanh_().mul_(softcap)
            scores.view(heads, -1, *block.hidden.shape).masked_fill_(block.hidden, float("-inf"))
            out = torch.bmm(torch.softmax(scores, dim=-1).to(v.dtype), v[:, block.first : block.last])
            outputs.append(out.view(heads, -1, len(block.hidden), size).permute(2, 0, 1, 3).flatten(1, 2))
        return outputs

    def _reads_of(self, index: int, window_tokens: int | None) -> _Reads:
        """Return what a chunk reads; made once a step."""
        name = (index, window_tokens)
        if name not in self._reads:
            chunk = self._chunks[index]
            first = _first_page(chunk.position, window_tokens)
            pages = np.asarray(chunk.pages[first : pages_for(chunk.position + chunk.length)], dtype=np.int64)
            blocks = [
                self._block(chunk, start, min(start + _QUERIES, chunk.length), first, window_tokens)
                for start in range(0, chunk.length, _QUERIES)
            ]
            are_neighbours = bool(np.all(np.diff(pages) == 1))
            self._reads[name] = _Reads(
                slice(int(pages[0]), int(pages[-1]) + 1)
                if are_neighbours
                else torch.from_numpy(pages).to(self._device),
                blocks,
            )
        return self._reads[name]

    def _block(self, chunk: Piece, start: int, end: int, first: int, window_tokens: int | None) -> _Block:
        # Whole pages: sums are split alike, whatever else a page holds by now.
        begin = _first_page(chunk.position + start, window_tokens) * PAGE_TOKENS
        stop = pages_for(chunk.position + end) * PAGE_TOKENS
        own = torch.arange(chunk.position + start, chunk.position + end, device=self._device)[:, None]
        seen = torch.arange(begin, stop, device=self._device)
        hidden = seen > own
        if window_tokens is not None:
            hidden |= seen <= own - window_tokens
        offset = first * PAGE_TOKENS
        return _Block(start, end, begin - offset, stop - offset, hidden)


def _pages_of(piece: Piece) -> npt.NDArray[np.int64]:
    """Return the page of each token of a piece."""
    places = np.arange(piece.position, piece.position + piece.length) // PAGE_TOKENS
    first = piece.position // PAGE_TOKENS
    own = np.asarray(piece.pages[first : pages_for(piece.position + piece.length)], dtype=np.int64)
    return own[places - first]


def _first_page(position: int, window_tokens: int | None) -> int:
    """Return the first page that a token sees anything of."""
    return 0 if window_tokens is None else max(0, position - window_tokens + 1) // PAGE_TOKENS
