"""The generator: continuous batching over one loaded model.

Requests join and leave at any step. A step computes one new token of every request in flight together with a bounded
piece of the prompts that wait, in one forward pass over a flat batch. A prompt that begins like one that a slot still
holds copies that beginning's keys and values instead of computing them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.answer import Answer
from tunesmith.generate.cache import Chunk, SlotCache, StepLayout, whole_blocks
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.request import Delta, Request
from tunesmith.generate.sampling import choose
from tunesmith.models.attention import use_layout_attention
from tunesmith.models.load import LoadedModel

#: A prompt that would find this many more of its tokens computed in the next step waits for it.
_WORTH_WAITING_TOKENS = 32


@dataclass
class _Slot:
    """What one slot of the cache holds: tokens whose keys and values are (or are about to be) stored.

    `room` has a place for each token up to the request's limit; `computed` of the `count` tokens are stored.
    `last_used` counts placed requests.
    """

    room: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    count: int = 0
    computed: int = 0
    last_used: int = -1
    active: Answer | None = None

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """The tokens so far."""
        return self.room[: self.count]

    def append(self, token_id: int) -> None:
        """Add a token that isn't computed yet."""
        self.room[self.count] = token_id
        self.count += 1


class Engine(Decoder):
    """Decodes with one model. One thread at a time may use it.

    With temperature 0 an answer doesn't depend on what else is in the batch, as far as the machine's matrix products
    give a row the same result in any batch (bfloat16 on CPUs with AVX-512 does; elsewhere to rounding).

    Args:
        loaded: the model; its attention is switched to this engine's.
        renderer: decodes tokens and knows which ones end a turn.
        max_batch: requests computed side by side.
        max_cache_tokens: bound on the tokens held in the cache, all slots together.
        max_prefill_tokens: prompt tokens computed in one step at most.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        renderer: ChatRenderer,
        *,
        max_batch: int = 32,
        max_cache_tokens: int = 131_072,
        max_prefill_tokens: int = 1024,
    ) -> None:
        super().__init__(loaded, renderer, max_cache_tokens)
        use_layout_attention(loaded.model)
        self._max_batch = max_batch
        self._max_cache_tokens = max_cache_tokens
        self._max_prefill_tokens = max_prefill_tokens
        self._cache = SlotCache()
        self._slots: list[_Slot] = []
        self._placed = itertools.count()

    @property
    def has_work(self) -> bool:
        """See `Decoder`."""
        return bool(self._waiting) or any(slot.active for slot in self._slots)

    def cancel(self, request_id: int) -> None:
        """See `Decoder`."""
        self._waiting = deque(item for item in self._waiting if item[0] != request_id)
        for slot in self._slots:
            if slot.active is not None and slot.active.request_id == request_id:
                slot.active = None

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """See `Decoder`."""
        self._admit()
        decoding, chunks, tokens, heads = self._plan()
        if not tokens:
            return []
        layout = StepLayout(self._cache, decoding, chunks, self._device)
        output = self._model.get_decoder()(
            input_ids=torch.tensor([tokens + tokens[:1] * layout.padding], device=self._device),
            position_ids=layout.positions[None],
            use_cache=False,
            layout=layout,
        )
        for chunk in chunks:
            self._slots[chunk.slot].computed += chunk.length
        for slot, _ in decoding:
            self._slots[slot].computed += 1
        if not heads:
            return []
        # Never a single row: see StepLayout.
        rows = torch.tensor([row for row, _ in heads] + [heads[0][0]], device=self._device)
        logits = self._projection.logits(output.last_hidden_state[0].index_select(0, rows))
        return self._extend([slot for _, slot in heads], logits[:-1])

    def _admit(self) -> None:
        """Give waiting requests a slot, in order, as far as memory and sharing allow."""
        while self._waiting:
            request_id, request = self._waiting[0]
            prompt = np.asarray(request.prompt_ids, dtype=np.int64)
            most = self._most_tokens
            total = min(len(prompt) + request.sampling.max_completion_tokens, most)
            busy = sum(slot.active is not None for slot in self._slots)
            too_much = (busy + 1) * self._needed_tokens(total) > self._max_cache_tokens
            if busy and (busy >= self._max_batch or too_much or self._sharing_soon(prompt)):
                return
            self._waiting.popleft()
            self._place(request_id, request, prompt, total)

    def _needed_tokens(self, total: int) -> int:
        """Return the capacity of a slot that holds `total` tokens, or any request in flight."""
        return whole_blocks(max([total, *(len(slot.room) for slot in self._slots if slot.active is not None)]))

    def _sharing_soon(self, prompt: npt.NDArray[np.int64]) -> bool:
        """Whether a prompt in flight is about to compute much of what this one begins with."""
        ready = max((_common(prompt, slot.tokens[: slot.computed]) for slot in self._slots), default=0)
        coming = (slot for slot in self._slots if slot.active is not None and slot.computed < len(slot.tokens))
        soon = max((_common(prompt, slot.tokens) for slot in coming), default=0)
        return soon - ready >= _WORTH_WAITING_TOKENS

    def _place(self, request_id: int, request: Request, prompt: npt.NDArray[np.int64], total: int) -> None:
        """Put a request into a free slot, with what any slot holds of its beginning.

        Args:
            request_id: the request's id.
            request: the request.
            prompt: its tokens.
            total: most tokens of prompt and answer together.
        """
        self._make_room(total)
        longest = len(prompt) - 1  # the last token must be computed: its hidden state gives the first answer token
        shared = [min(longest, _common(prompt, slot.tokens[: slot.computed])) for slot in self._slots]
        best = max(shared)
        free = [i for i, slot in enumerate(self._slots) if slot.active is None]
        continued = [i for i in free if shared[i] == self._slots[i].computed]
        target = (
            max(continued, key=lambda i: shared[i])  # nothing is lost
            if continued
            else min(free, key=lambda i: self._slots[i].last_used)
        )
        if best > shared[target]:
            self._cache.copy_prefix(shared.index(best), target, best)
        room = np.empty(total, dtype=np.int64)
        room[: len(prompt)] = prompt
        active = Answer(request_id, request, self.renderer, self._end_ids, total - len(prompt))
        self._slots[target] = _Slot(room, len(prompt), best, next(self._placed), active)

    def _make_room(self, total: int) -> None:
        """See to a free slot that holds `total` tokens; of the free ones, the latest used are kept if need be."""
        busy = sum(slot.active is not None for slot in self._slots)
        needed, tokens = self._needed_tokens(total), self._cache.capacity_tokens
        if busy < len(self._slots) and needed <= tokens:
            return
        if needed > tokens or (busy + 1) * tokens > self._max_cache_tokens:
            tokens = needed
        most = max(busy + 1, min(self._max_batch, self._max_cache_tokens // tokens))
        # Growing by doubling copies each slot a few times at most.
        count = min(most, len(self._slots) if busy < len(self._slots) else max(4, 2 * busy))
        by_worth = sorted(
            range(len(self._slots)),
            key=lambda i: (self._slots[i].active is not None, self._slots[i].last_used),
            reverse=True,
        )
        keep = sorted(by_worth[:count])
        self._cache.resize(keep, count, tokens)
        self._slots = [self._slots[i] for i in keep] + [_Slot() for _ in range(count - len(keep))]

    def _plan(self) -> tuple[list[tuple[int, int]], list[Chunk], list[int], list[tuple[int, int]]]:
        """Choose this step's tokens.

        Returns:
            (slot, position) of decoding tokens; prompt chunks; the flat token ids; (flat row, slot) of the rows
            whose hidden state gives a request's next token.
        """
        decoding: list[tuple[int, int]] = []
        tokens: list[int] = []
        heads: list[tuple[int, int]] = []
        for index, slot in enumerate(self._slots):
            if slot.active is not None and slot.active.generated:
                heads.append((len(tokens), index))
                decoding.append((index, slot.computed))
                tokens.append(int(slot.tokens[slot.computed]))
        chunks: list[Chunk] = []
        budget = self._max_prefill_tokens
        for index, slot in enumerate(self._slots):
            missing = len(slot.tokens) - slot.computed
            if slot.active is None or slot.active.generated or budget == 0:
                continue
            count = min(missing, budget)
            chunks.append(Chunk(index, len(tokens), count, slot.computed))
            tokens += slot.tokens[slot.computed : slot.computed + count].tolist()
            budget -= count
            if count == missing:
                heads.append((len(tokens) - 1, index))
        return decoding, chunks, tokens, heads

    def _extend(self, slots: Sequence[int], logits: Tensor) -> list[Delta]:
        """Choose each slot's next token from logits (rows, V)."""
        deltas = []
        samplers = [active.sampler for slot in slots if (active := self._slots[slot].active) is not None]
        for slot_index, choice in zip(slots, choose(logits, samplers), strict=True):
            slot = self._slots[slot_index]
            active = slot.active
            assert active is not None
            slot.append(choice.token_id)
            deltas.append(active.take(choice))
            if deltas[-1].completion is not None:
                slot.active = None
        return deltas


def _common(one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> int:
    """Return how many tokens two prompts begin with alike."""
    count = min(len(one), len(other))
    different = np.flatnonzero(one[:count] != other[:count])
    return int(different[0]) if len(different) else count
