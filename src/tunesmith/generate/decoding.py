"""Attention of rows that decode, one query each, to keys and values in pages.

Keys and values aren't gathered. Queries are: one copy for each page that a row reads, against which the page's keys
and values are multiplied where they lie. Scores are laid out by row for one exact softmax, and what each page adds to
a row is summed in float32. A page that several rows read (a shared beginning) is multiplied by all their queries at
once. Pages that no query's window reaches aren't read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.generate.pages import PAGE_TOKENS

#: Pages that nobody reads may lie between others in one product; a further product costs more than this many.
_GAP_PAGES = 32
#: Pages are copied together if fewer than this share of those between them are read.
_LEAST_DENSITY = 0.5

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Run:
    """Pages that are multiplied at once, each with the queries of `readers` rows.

    Attributes:
        pages: where they lie: a stretch, or single ones.
        readers: how many rows read each page; where they are fewer, the places of others lead nowhere.
        queries: (pages readers,), the rows whose queries are multiplied.
        rows, places: (pages, readers), where scores belong: the row, and the page's place among those it sees.
        mask: (pages, readers, 1, 1, 64), added to scores: 0 where the row sees the key, else minus infinity.
    """

    pages: slice | Tensor
    readers: int
    queries: Tensor
    rows: Tensor
    places: Tensor
    mask: Tensor


@dataclass(slots=True)
class _Reads:
    """What one step's rows read through one window.

    Attributes:
        runs: the products.
        most_pages: the most pages that a row sees.
        parts: of all runs' results one after the other, those that belong to a row, row by row, in the pages' order.
        begins: (rows,), where each row's begin in `parts`.
        scores: room for scores, by shape.
    """

    runs: list[_Run]
    most_pages: int
    parts: Tensor
    begins: Tensor
    scores: dict[tuple[int, ...], Tensor]


class DecodingRows:
    """The rows of one step that decode.

    Args:
        pages: each row's pages, in order.
        positions: each row's position in its text; its key and value are stored already when it attends.
        device: where the pages are.
    """

    def __init__(self, pages: Sequence[Sequence[int]], positions: Sequence[int], device: torch.device) -> None:
        self.count = len(positions)
        self._pages = pages
        self._positions: _Ints = np.asarray(positions, dtype=np.int64)
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
        rows, heads, size = query.shape
        key_heads = keys.shape[1]
        scores = self._room(reads, query, key_heads)
        by_place = scores.permute(0, 3, 1, 2, 4)
        for run in reads.runs:
            k = keys[run.pages].view(-1, PAGE_TOKENS, size)
            q = query.index_select(0, run.queries)
            if run.readers > 1:
                q = q.view(-1, run.readers, key_heads, heads // key_heads, size).transpose(1, 2)
            found = torch.bmm(q.reshape(len(k), -1, size), k.transpose(1, 2))
            found = found.view(-1, key_heads, run.readers, heads // key_heads, PAGE_TOKENS).transpose(1, 2)
            if softcap is None:
                found = torch.add(run.mask, found, alpha=scale)
            else:
                found = (found.to(scores.dtype) * (scale / softcap)).tanh_().mul_(softcap).add_(run.mask)
            by_place.index_put_((run.rows, run.places), found)
        weights = torch.softmax(scores.flatten(3), dim=-1).to(values.dtype)
        by_place = weights.view(scores.shape).permute(0, 3, 1, 2, 4)
        outs = []
        for run in reads.runs:
            v = values[run.pages].view(-1, PAGE_TOKENS, size)
            p = by_place[run.rows, run.places]
            out = torch.bmm(p.transpose(1, 2).reshape(len(v), -1, PAGE_TOKENS), v)
            if run.readers > 1:
                out = out.view(-1, key_heads, run.readers, heads // key_heads, size).transpose(1, 2)
            outs.append(out.reshape(-1, heads * size))
        # Sums in float32, rounded once.
        together = outs[0] if len(outs) == 1 else torch.cat(outs)
        summed = torch.nn.functional.embedding_bag(reads.parts, together, reads.begins, mode="sum")
        return summed.view(rows, heads, size)

    def _room(self, reads: _Reads, query: Tensor, key_heads: int) -> Tensor:
        """Return room for scores (rows + 1, K, G, places, 64).

        The row behind the others takes what nobody asked for. What a row doesn't see stays minus infinity.
        """
        rows, heads, size = query.shape
        shape = (key_heads, heads, size)
        if shape not in reads.scores:
            reads.scores[shape] = torch.full(
                (rows + 1, key_heads, heads // key_heads, reads.most_pages, PAGE_TOKENS),
                -torch.inf,
                dtype=torch.promote_types(query.dtype, torch.float32),
                device=self._device,
            )
        return reads.scores[shape]

    def _plan(self, window_tokens: int | None) -> _Reads:
        """Find out which row reads which page, and which pages are multiplied together."""
        last = self._positions // PAGE_TOKENS
        first = np.zeros_like(last)
        if window_tokens is not None:
            first = np.maximum(self._positions - window_tokens + 1, 0) // PAGE_TOKENS
        counts = last - first + 1
        rows = np.repeat(np.arange(self.count), counts)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        pages = np.concatenate(
            [np.asarray(own[a : b + 1], dtype=np.int64) for own, a, b in zip(self._pages, first, last, strict=True)]
        )
        order = np.argsort(pages, kind="stable")
        pages, rows, places = pages[order], rows[order], places[order]
        most_pages = int(counts.max())
        begins = np.flatnonzero(np.diff(pages, prepend=-1))
        readers = np.diff(begins, append=len(pages))
        # By how many rows read a page, up to the next power of two: few products, each of equal shapes.
        widths = 1 << np.ceil(np.log2(readers)).astype(np.int64)
        runs: list[_Run] = []
        owners: list[_Ints] = []
        for width in np.unique(widths):
            chosen = np.flatnonzero(widths == width)
            for part in _stretches(pages[begins[chosen]]):
                own = chosen[part]
                reading = _Reading(rows, places, begins[own], readers[own], pages[begins[own]])
                run, owner = self._run(reading, int(width), (first, window_tokens))
                runs.append(run)
                owners.append(owner)
        parts, row_begins = self._by_row(np.concatenate(owners, axis=1))
        reads = _Reads(runs, most_pages, parts, row_begins, {})
        self._reads[window_tokens] = reads
        return reads

    def _by_row(self, owners: _Ints) -> tuple[Tensor, Tensor]:
        """Return which results belong to the rows, row by row, and where each row's begin.

        Args:
            owners: (2, results), the row of each and its page's place there; others' rows are none of this step's.
        """
        order = np.lexsort((owners[1], owners[0]))
        order = order[owners[0][order] < self.count]
        begins = np.searchsorted(owners[0][order], np.arange(self.count))
        return torch.from_numpy(order).to(self._device), torch.from_numpy(begins).to(self._device)

    def _run(self, reading: _Reading, width: int, window: tuple[_Ints, int | None]) -> tuple[_Run, _Ints]:
        """Lay out the products of a few pages.

        Args:
            reading: who reads them.
            width: queries of each page.
            window: each row's first page, and how far it sees.

        Returns:
            The products, and (2, results) whose they are: rows, and the pages' places there.
        """
        pages = reading.pages
        low, span = pages[0], pages[-1] - pages[0] + 1
        is_dense = len(pages) >= _LEAST_DENSITY * span
        at = pages - low if is_dense else np.arange(len(pages))
        rows = np.full((span if is_dense else len(pages), width), self.count)
        places = np.zeros_like(rows)
        reader = np.arange(width) < reading.counts[:, None]
        entries = (reading.begins[:, None] + np.arange(width))[reader]
        line, column = np.nonzero(reader)
        rows[at[line], column] = reading.rows[entries]
        places[at[line], column] = reading.places[entries]
        first, window_tokens = window
        queries = np.minimum(rows, self.count - 1)
        key = ((first[queries] + places) * PAGE_TOKENS)[..., None] + np.arange(PAGE_TOKENS)
        own = self._positions[queries][..., None]
        hidden = key > own
        if window_tokens is not None:
            hidden |= key <= own - window_tokens
        mask = np.where(hidden, np.float32(-np.inf), np.float32(0))[:, :, None, None]
        numbers = torch.from_numpy(np.stack([rows, places, queries])).to(self._device)
        run = _Run(
            pages=slice(int(low), int(low + span)) if is_dense else torch.from_numpy(pages).to(self._device),
            readers=width,
            queries=numbers[2].flatten(),
            rows=numbers[0],
            places=numbers[1],
            mask=torch.from_numpy(mask).to(self._device),
        )
        return run, np.stack([rows.ravel(), places.ravel()])


@dataclass(frozen=True, slots=True)
class _Reading:
    """Who reads some pages: of each, `counts` entries of `rows` and `places` from `begins` on."""

    rows: _Ints
    places: _Ints
    begins: _Ints
    counts: _Ints
    pages: _Ints


def _stretches(pages: _Ints) -> Iterator[_Ints]:
    """Cut ascending pages where many lie between them that nobody reads; yield indices.

    Stretches in which few pages are read are joined, for these are copied together.
    """
    parts = np.split(np.arange(len(pages)), np.flatnonzero(np.diff(pages) > _GAP_PAGES) + 1)
    sparse = []
    for part in parts:
        if len(part) >= _LEAST_DENSITY * (pages[part[-1]] - pages[part[0]] + 1):
            yield part
        else:
            sparse.append(part)
    if sparse:
        yield np.concatenate(sparse)
