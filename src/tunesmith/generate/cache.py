"""Keys and values of the requests in flight, one slot a request, kept after it ends for prompts that begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Capacities and masks are multiples of this, so that a row's sums are split alike whatever else is in the batch.
_BLOCK_TOKENS = 64


class SlotCache:
    """For each layer, keys and values of shape (slots, key heads, capacity, head size)."""

    def __init__(self) -> None:
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self.slots = 0
        self.capacity_tokens = 0

    def resize(self, keep: Sequence[int], slots: int, tokens: int) -> None:
        """Make room for `slots` requests of `tokens` tokens; the slots `keep` become the first ones, in that order."""
        tokens = whole_blocks(tokens)
        stay = min(tokens, self.capacity_tokens)
        for store in (self._keys, self._values):
            for layer, old in store.items():
                new = old.new_zeros(slots, old.shape[1], tokens, old.shape[3])
                for place, slot in enumerate(keep):
                    new[place, :, :stay] = old[slot, :, :stay]
                store[layer] = new
        self.slots, self.capacity_tokens = slots, tokens

    def write(self, layer: int, slots: Tensor, positions: Tensor, key: Tensor, value: Tensor) -> None:
        """Store keys and values (key heads, N, head size) of N tokens at their slots and positions (N,)."""
        for store, new in ((self._keys, key), (self._values, value)):
            if layer not in store:
                heads, _, size = new.shape
                store[layer] = new.new_zeros(self.slots, heads, self.capacity_tokens, size)
            store[layer][slots, :, positions] = new.transpose(0, 1)

    def view(self, layer: int, slots: slice | Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of some slots, of their first `tokens` positions; of a slice without a copy."""
        return self._keys[layer][slots, :, :tokens], self._values[layer][slots, :, :tokens]

    def copy_prefix(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` positions of one slot to another."""
        for store in (self._keys, self._values):
            for stored in store.values():
                stored[target, :, :tokens] = stored[source, :, :tokens]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of one prompt in the flat batch: `length` tokens from flat index `start`, first at `position`."""

    slot: int
    start: int
    length: int
    position: int


class StepLayout:
    """The `Layout` (see `models.attention`) of one step: one new token of each decoding slot, then prompt chunks.

    The flat batch holds the decoding slots' tokens first, in the order of `decoding`, then the chunks', then
    `padding` copies of its first token.
    """

    def __init__(
        self,
        cache: SlotCache,
        decoding: Sequence[tuple[int, int]],
        chunks: Sequence[Chunk],
        device: torch.device | str = "cpu",
    ) -> None:
        """Take (slot, position) of each decoding token, and the chunks."""
        self._cache = cache
        self._decoding = len(decoding)
        self._chunks = chunks
        self._device = device
        tokens = [*decoding, *((c.slot, c.position + i) for c in chunks for i in range(c.length))]
        # CPUs multiply a single row by another kernel, whose sums round differently; with two rows the results are
        # those of any larger batch.
        self.padding = 1 if len(tokens) == 1 else 0
        where = torch.tensor(tokens + tokens[:1] * self.padding, dtype=torch.long, device=device)
        self._slots, self.positions = where[:, 0], where[:, 1]
        # Rows of the cache that decoding reads: all up to the last one, without a copy, while most of them decode.
        span = 1 + max((slot for slot, _ in decoding), default=-1)
        self._reads_span = span < 2 * len(decoding)
        self._is_whole = not self._reads_span or [slot for slot, _ in decoding] == list(range(span))
        self._rows: slice | Tensor = slice(0, span) if self._reads_span else self._slots[: self._decoding]
        self._keys = self._padded(1 + max((position for _, position in decoding), default=0))
        self._last = self.positions[: self._decoding]
        if not self._is_whole:  # rows that decode nothing see their first key alone and are thrown away
            last = torch.zeros(span, dtype=torch.long, device=device)
            self._last = last.index_copy_(0, self._slots[: self._decoding], self._last)
        self._masks: dict[tuple[Chunk | None, int | None], Tensor] = {}

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
        self._cache.write(layer, self._slots, self.positions, key[0], value[0])
        parts = []
        if self._decoding:
            parts.append(self._decode(layer, query[0, :, : self._decoding], scale, window_tokens, softcap))
        parts += [self._prefill(layer, query[0], chunk, scale, window_tokens, softcap) for chunk in self._chunks]
        if self.padding:
            parts.append(parts[0])
        return torch.cat(parts, dim=0).unsqueeze(0)

    def _decode(
        self, layer: int, query: Tensor, scale: float, window_tokens: int | None, softcap: float | None
    ) -> Tensor:
        """Map (H, decoding, D) to (decoding, H, D)."""
        keys, values = self._cache.view(layer, self._rows, self._keys)
        slots = self._slots[: self._decoding]
        q = query.transpose(0, 1)
        if not self._is_whole:
            q = q.new_zeros(len(keys), *q.shape[1:]).index_copy_(0, slots, q)
        q = q.reshape(len(keys), keys.shape[1], -1, q.shape[-1])
        hidden = self._hidden(None, self._last[:, None], self._keys, window_tokens)
        out = _attention(q, keys, values, hidden, scale, softcap).flatten(1, 2)
        return out if self._is_whole else out.index_select(0, slots)

    def _prefill(
        self, layer: int, query: Tensor, chunk: Chunk, scale: float, window_tokens: int | None, softcap: float | None
    ) -> Tensor:
        """Map one chunk of (H, N, D) to (length, H, D)."""
        end = chunk.position + chunk.length
        keys, values = self._cache.view(layer, slice(chunk.slot, chunk.slot + 1), self._padded(end))
        heads, _, size = query.shape
        q = query[:, chunk.start : chunk.start + chunk.length].reshape(1, keys.shape[1], -1, size)
        own = torch.arange(chunk.position, end, device=self._device)[None]
        hidden = self._hidden(chunk, own, keys.shape[2], window_tokens)
        out = _attention(q, keys, values, hidden, scale, softcap)
        return out.view(heads, chunk.length, size).transpose(0, 1)

    def _hidden(self, chunk: Chunk | None, own: Tensor, keys: int, window_tokens: int | None) -> Tensor:
        """Return (B, Q, T): which of T keys is out of sight of queries at positions `own` (B, Q).

        Made once a step, for the chunk or for all decoding slots, and kept for all layers.
        """
        name = (chunk, window_tokens)
        if name not in self._masks:
            index = torch.arange(keys, device=self._device)
            hidden = index > own[:, :, None]
            if window_tokens is not None:
                hidden |= index <= own[:, :, None] - window_tokens
            self._masks[name] = hidden
        return self._masks[name]

    def _padded(self, tokens: int) -> int:
        return min(whole_blocks(tokens), self._cache.capacity_tokens)


def whole_blocks(tokens: int) -> int:
    """Round up to whole blocks."""
    return -(-tokens // _BLOCK_TOKENS) * _BLOCK_TOKENS


def _attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float, softcap: float | None) -> Tensor:
    """Attend with queries (B, K, G Q, D) to keys and values (B, K, T, D) that aren't `hidden` (B, Q, T).

    G query heads share one of the K key heads.
    """
    scores = torch.matmul(q, k.transpose(-1, -2))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).mul_(scale)
    if softcap is not None:
        scores = torch.tanh(scores / softcap).mul_(softcap)
    rows, queries, keys = hidden.shape
    scores.view(rows, k.shape[1], -1, queries, keys).masked_fill_(hidden[:, None, None], float("-inf"))
    return torch.matmul(torch.softmax(scores, dim=-1).to(v.dtype), v)
