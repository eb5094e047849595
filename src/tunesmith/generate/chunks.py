"""Attention of chunks of prompts: each token to its text's pages up to itself.

Short chunks that read equally many pages attend together, as one product for all of them: a step may hold many. A long
chunk attends block by block of its queries, so that keys behind a block aren't touched. Whole pages are read always:
sums are split alike, whatever else is in the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.generate.pages import PAGE_TOKENS, pages_for

#: Queries of a chunk that attend at once.
_QUERIES = 256
#: Scores (queries times keys, of one head) that are made at once.
_MOST_SCORES = 1 << 20

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one text that a step computes: `length` tokens from `position` on, kept in `pages`."""

    pages: Sequence[int]
    position: int
    length: int


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive queries of one chunk, and the pages that they see anything of.

    Attributes:
        start, end: their rows among those of all chunks.
        position: the first one's place in its text.
        first: the number of the first of `pages` in the text.
        pages: the pages.
    """

    start: int
    end: int
    position: int
    first: int
    pages: tuple[int, ...]

    @property
    def kind(self) -> tuple[int, int]:
        """Blocks of a kind attend together: as many pages, and about as many queries."""
        return len(self.pages), pages_for(self.end - self.start)


@dataclass(frozen=True, slots=True)
class _Group:
    """Blocks that attend together, filled up to equally many queries.

    Attributes:
        rows: (blocks queries,), the rows of the queries.
        blocks: how many.
        pages: where the keys lie, block by block.
        hidden: (blocks, 1, 1, queries, keys), which keys a query doesn't see.
        kept: (rows of the blocks,), which of the results are asked for; None: all.
    """

    rows: Tensor
    blocks: int
    pages: slice | Tensor
    hidden: Tensor
    kept: Tensor | None


@dataclass(frozen=True, slots=True)
class _Reads:
    """What the chunks read through one window: groups, and how their results come into the rows' order."""

    groups: list[_Group]
    order: Tensor | None


class PromptChunks:
    """The chunks of one step.

    Args:
        chunks: the chunks, in the order of their rows.
        device: where the pages are.
    """

    def __init__(self, chunks: Sequence[Piece], device: torch.device) -> None:
        self.count = sum(chunk.length for chunk in chunks)
        self._chunks = chunks
        self._device = device
        self._reads: dict[int | None, _Reads] = {}

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        window_tokens: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Map queries (rows, H, D) to outputs (rows, H, D), with keys and values (pages, K, 64, D)."""
        reads = self._reads.get(window_tokens) or self._plan(window_tokens)
        outputs = [_attend(group, query, keys, values, scale, softcap) for group in reads.groups]
        together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return together if reads.order is None else together.index_select(0, reads.order)

    def _plan(self, window_tokens: int | None) -> _Reads:
        """Find out which blocks attend together; made once a step."""
        kinds: dict[tuple[int, int], list[_Block]] = {}
        for block in self._blocks(window_tokens):
            kinds.setdefault(block.kind, []).append(block)
        groups: list[_Group] = []
        rows: list[_Ints] = []
        for (pages, queries), blocks in kinds.items():
            most = max(1, _MOST_SCORES // (pages * queries * PAGE_TOKENS**2))
            for begin in range(0, len(blocks), most):
                part = blocks[begin : begin + most]
                groups.append(self._group(part, window_tokens))
                rows += [np.arange(block.start, block.end) for block in part]
        order = np.argsort(np.concatenate(rows))
        is_sorted = bool(np.all(np.diff(order) == 1))
        reads = _Reads(groups, None if is_sorted else torch.from_numpy(order).to(self._device))
        self._reads[window_tokens] = reads
        return reads

    def _blocks(self, window_tokens: int | None) -> list[_Block]:
        blocks, start = [], 0
        for chunk in self._chunks:
            for offset in range(0, chunk.length, _QUERIES):
                length = min(_QUERIES, chunk.length - offset)
                position = chunk.position + offset
                first = 0 if window_tokens is None else max(0, position - window_tokens + 1) // PAGE_TOKENS
                pages = tuple(chunk.pages[first : pages_for(position + length)])
                blocks.append(_Block(start + offset, start + offset + length, position, first, pages))
            start += chunk.length
        return blocks

    def _group(self, blocks: Sequence[_Block], window_tokens: int | None) -> _Group:
        lengths = np.array([[block.end - block.start] for block in blocks])
        starts = np.array([[block.start] for block in blocks])
        positions = np.array([[block.position] for block in blocks])
        firsts = np.array([[block.first] for block in blocks])
        place = np.arange(lengths.max())
        within = np.minimum(place, lengths - 1)  # a place too many repeats a block's last query
        own = (positions + within)[:, :, None]
        seen = (firsts * PAGE_TOKENS + np.arange(len(blocks[0].pages) * PAGE_TOKENS))[:, None, :]
        hidden = seen > own
        if window_tokens is not None:
            hidden |= seen <= own - window_tokens
        pages = np.concatenate([block.pages for block in blocks])
        are_neighbours = bool(np.all(np.diff(pages) == 1))
        is_full = bool(np.all(lengths == len(place)))
        return _Group(
            rows=self._there((starts + within).ravel()),
            blocks=len(blocks),
            pages=slice(int(pages[0]), int(pages[-1]) + 1) if are_neighbours else self._there(pages),
            hidden=torch.from_numpy(hidden[:, None, None]).to(self._device),
            kept=None if is_full else self._there(np.flatnonzero(place < lengths)),
        )

    def _there(self, numbers: _Ints) -> Tensor:
        return torch.from_numpy(numbers).to(self._device)


def _attend(group: _Group, query: Tensor, keys: Tensor, values: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Return the outputs (rows of the blocks, H, D) of a group."""
    heads, size = query.shape[1:]
    key_heads, blocks = keys.shape[1], group.blocks
    k, v = _of_blocks(keys, group), _of_blocks(values, group)
    q = query.index_select(0, group.rows).view(blocks, -1, key_heads, heads // key_heads, size)
    q = q.permute(0, 2, 3, 1, 4).reshape(blocks * key_heads, -1, size)
    scores = torch.bmm(q, k.transpose(1, 2))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scale)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    queries, seen = group.hidden.shape[-2:]
    scores.view(blocks, key_heads, -1, queries, seen).masked_fill_(group.hidden, float("-inf"))
    out = torch.bmm(torch.softmax(scores, dim=-1).to(v.dtype), v)
    out = out.view(blocks, key_heads, -1, queries, size).permute(0, 3, 1, 2, 4).reshape(-1, heads, size)
    return out if group.kept is None else out.index_select(0, group.kept)


def _of_blocks(kept: Tensor, group: _Group) -> Tensor:
    """Gather keys or values (pages, K, 64, D) as (blocks K, keys, D)."""
    key_heads, size = kept.shape[1], kept.shape[3]
    pages = kept[group.pages].view(group.blocks, -1, key_heads, PAGE_TOKENS, size)
    return pages.transpose(1, 2).reshape(group.blocks * key_heads, -1, size)
