"""Which tokens the next step computes, and which request holds which pages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from tunesmith.generate.pages import PAGE_TOKENS, PagePool, pages_for
from tunesmith.generate.prefixes import Node, PrefixCache, common
from tunesmith.generate.sequence import Sequence

#: A prompt that would find this many more of its tokens computed in the next steps waits for them.
_WORTH_WAITING_TOKENS = 32
#: Requests looked at in one step, by the number that may run.
_LOOK_AHEAD = 4


@dataclass(slots=True)
class StepPlan:
    """What one step computes.

    Attributes:
        decoding: sequences of which the last token is computed.
        guesses: tokens that may follow, which are computed behind the last one; by request.
        chunks: sequences and how many of their missing tokens are computed.
        taken: pages that were given out for this step.
        copies: pages whose content is copied to others, before anything is computed.
    """

    decoding: list[Sequence] = field(default_factory=list)
    guesses: dict[int, list[int]] = field(default_factory=dict)
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)

    @property
    def advances(self) -> list[tuple[Sequence, int]]:
        """Every sequence of the step with the number of its tokens, in the flat batch's order."""
        return [*((one, 1 + len(self.guesses.get(one.request_id, ()))) for one in self.decoding), *self.chunks]

    @property
    def tokens(self) -> list[int]:
        """The flat batch, as long as nothing has advanced."""
        tokens = []
        for one in self.decoding:
            tokens += [one.tokens[one.computed], *self.guesses.get(one.request_id, ())]
        for one, count in self.chunks:
            tokens += one.tokens[one.computed : one.computed + count]
        return tokens


class Scheduler:
    """Admits, advances, preempts and ends sequences. It knows pages by number alone.

    Args:
        pool: the pages; at least as many as the longest sequence needs.
        max_batch: sequences in flight at once.
        max_prefill_tokens: tokens of prompts in one step at most.
        prefill_beside_tokens: the same, while answers grow: they shouldn't wait long for others' prompts.
        lookahead_rows: tokens of growing answers in one step at most, where some of them are guessed; 0: none are.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        max_batch: int,
        max_prefill_tokens: int,
        prefill_beside_tokens: int,
        lookahead_rows: int = 0,
    ) -> None:
        self.pool = pool
        self.cache = PrefixCache(pool)
        self.running: list[Sequence] = []  # the oldest first
        self.waiting: deque[Sequence] = deque()
        #: Counted since the beginning, for statistics.
        self.found_tokens = self.computed_tokens = self.preemptions = 0
        self.guessed_tokens = self.accepted_tokens = 0
        self._max_batch = max_batch
        self._max_prefill_tokens = max_prefill_tokens
        self._prefill_beside_tokens = min(max_prefill_tokens, prefill_beside_tokens)
        self._lookahead_rows = lookahead_rows
        self._plan = StepPlan()

    def sequences(self) -> Iterable[Sequence]:
        """Return all sequences, in flight and waiting."""
        return [*self.running, *self.waiting]

    def plan(self) -> StepPlan:
        """Choose what the next step computes; its pages are given out."""
        self._plan = StepPlan()
        self._let_answers_grow()
        self._admit()
        self._plan.decoding = [one for one in self.running if one.is_decoding]
        budget = self._prefill_beside_tokens if self._plan.decoding else self._max_prefill_tokens
        for one in self.running:
            if budget == 0:
                break
            if not one.is_decoding:
                count = min(one.missing, budget)
                self._plan.chunks.append((one, count))
                budget -= count
        # Rows of one adapter lie side by side.
        self._plan.decoding.sort(key=_adapter_first)
        self._plan.chunks.sort(key=lambda chunk: _adapter_first(chunk[0]))
        self._look_ahead()
        return self._plan

    def advance(self, plan: StepPlan) -> None:
        """Note that a step was computed, but for guesses; what it completed can be found by others."""
        for one in plan.decoding:
            one.computed += 1
            self._file(one, with_tail=False)
        for one, count in plan.chunks:
            one.computed += count
            self.computed_tokens += count
            self._file(one, with_tail=one.missing == 0)

    def accept(self, one: Sequence, guessed: int, accepted: int) -> None:
        """Note how many guesses of the last step came true; the others' keys and values are written over."""
        one.computed += accepted
        self._file(one, with_tail=False)
        one.lookahead.learn(guessed, accepted)
        self.guessed_tokens += guessed
        self.accepted_tokens += accepted

    def end(self, one: Sequence) -> None:
        """Give a sequence's pages back, wherever it is; what it computed stays in the prefix cache."""
        if one in self.running:
            self.running.remove(one)
            self._give_back(one)
        else:
            self.waiting.remove(one)

    def _let_answers_grow(self) -> None:
        """See to a page for the next token of each answer; the youngest sequences make room if need be."""
        for one in list(self.running):
            # It may have been preempted for an older one.
            while one in self.running and one.is_decoding and one.room <= one.computed:
                if self.cache.make_room(1):
                    self._take(one, 1)
                else:
                    self._preempt(self.running[-1])

    def _look_ahead(self) -> None:
        """Add guesses to answers that grow, as far as rows, and pages that nobody needs soon, are left for them."""
        growing = self._plan.decoding
        rows = self._lookahead_rows - len(growing)
        for left, one in zip(range(len(growing), 0, -1), growing, strict=True):
            if rows <= 0:
                return
            guesses = one.lookahead.guesses(min(-(-rows // left), one.guessable))
            if one.computed + 1 + len(guesses) > one.room and self.pool.free > len(self.running):
                self._take(one, 1)
            guesses = guesses[: one.room - one.computed - 1]
            if guesses:
                self._plan.guesses[one.request_id] = guesses
                rows -= len(guesses)

    def _preempt(self, one: Sequence) -> None:
        """Let a sequence wait, in its turn; it is computed again from what the prefix cache still holds then."""
        self.running.remove(one)
        self._give_back(one)
        one.computed = 0
        self.waiting.appendleft(one)
        self.preemptions += 1

    def _admit(self) -> None:
        """Give waiting sequences their pages, in order, as far as memory and sharing allow."""
        passed: list[Sequence] = []
        for _ in range(_LOOK_AHEAD * self._max_batch):
            if not self.waiting or len(self.running) >= self._max_batch:
                break
            one = self.waiting.popleft()
            if self._sharing_soon(one):
                passed.append(one)
                continue
            if not self._start(one):
                self.waiting.appendleft(one)
                break
        self.waiting.extendleft(reversed(passed))

    def _sharing_soon(self, one: Sequence) -> bool:
        """Whether a sequence in flight is about to compute much of what this one begins with."""
        soon = max(
            (
                common(one.tokens, other.tokens[: other.prompt_tokens])
                for other in self.running
                if other.adapter == one.adapter and other.computed < other.prompt_tokens
            ),
            default=0,
        )
        if soon < _WORTH_WAITING_TOKENS:
            return False
        soon = min(soon, one.reusable)
        return soon - self.cache.find(one.adapter, one.tokens, one.reusable).tokens >= _WORTH_WAITING_TOKENS

    def _start(self, one: Sequence) -> bool:
        """Give a sequence pages for all its tokens and what the cache holds of them; return whether there are enough.

        Beside other sequences, each of them must have a page left to grow into.
        """
        found = self.cache.find(one.adapter, one.tokens, one.reusable)
        for page in found.pages:
            self.pool.hold(page)
        if found.part is not None:
            self.pool.hold(found.part.page)
        needed = pages_for(len(one.tokens)) - len(found.pages)
        spare = sum(other.is_decoding for other in self.running)
        is_there = self.cache.make_room(needed + spare)
        part = found.part
        if not is_there and not self.running and part is not None:
            # Alone, it fits without the page that it would only copy from.
            self.pool.let_go(part.page)
            part, is_there = None, self.cache.make_room(needed)
        if not is_there:
            for page in found.pages:
                self.pool.let_go(page)
            if part is not None:
                self.pool.let_go(part.page)
            return False
        one.begin()
        one.pages, one.node, one.filed, one.tail = [*found.pages], found.node, len(found.pages), None
        one.computed = len(found.pages) * PAGE_TOKENS
        self._take(one, needed)
        if part is not None:
            self._plan.copies.append((part.page, one.pages[len(found.pages)]))
            one.computed += found.part_tokens
            # Nothing is given out or evicted between here and the copy but by this plan, which takes free pages.
            self.pool.let_go(part.page)
        self.found_tokens += one.computed
        self.running.append(one)
        self.running.sort(key=lambda other: other.request_id)
        return True

    def _take(self, one: Sequence, count: int) -> None:
        pages = [self.pool.take() for _ in range(count)]
        one.pages += pages
        self._plan.taken += pages

    def _file(self, one: Sequence, *, with_tail: bool) -> None:
        """Put what a sequence computed into the prefix cache: whole pages, and perhaps the part of one at the end."""
        whole = one.computed // PAGE_TOKENS
        if whole == one.filed and not with_tail:
            return
        if one.tail is not None:
            self.cache.drop(one.tail)
            one.tail = None
        while one.filed < whole:
            begin = one.filed * PAGE_TOKENS
            page = one.pages[one.filed]
            node = self._filed(one, tuple(one.tokens[begin : begin + PAGE_TOKENS]), page)
            if node.page != page:  # somebody else computed the same meanwhile
                self.pool.hold(node.page)
                one.pages[one.filed] = node.page
                self.pool.let_go(page)
            one.node = node
            one.filed += 1
        tokens = tuple(one.tokens[whole * PAGE_TOKENS : one.computed])
        if with_tail and tokens:
            page = one.pages[whole]
            node = self._filed(one, tokens, page)
            one.tail = node if node.page == page else None

    def _filed(self, one: Sequence, tokens: tuple[int, ...], page: int) -> Node:
        assert one.node is not None
        return self.cache.file(one.node, tokens, page)

    def _give_back(self, one: Sequence) -> None:
        self._file(one, with_tail=True)
        for page in one.pages:
            self.pool.let_go(page)
        one.pages, one.node, one.filed, one.tail = [], None, 0, None


def _adapter_first(one: Sequence) -> tuple[str, int]:
    """Order sequences by adapter, then by age."""
    return one.adapter or "", one.request_id
