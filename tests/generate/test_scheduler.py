"""Pages, prefix cache and scheduler, against a memory that remembers which token was written where."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tiny_models import tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.answer import Answer
from tunesmith.generate.pages import PAGE_TOKENS, PagePool
from tunesmith.generate.prefixes import Node, PrefixCache, common
from tunesmith.generate.request import Request, ScoreRequest
from tunesmith.generate.scheduler import Scheduler
from tunesmith.generate.sequence import Scoring, Sequence
from tunesmith.specs.generation import SamplingSpec

_TOTAL = 9
_MOST_TOKENS = _TOTAL * PAGE_TOKENS


@cache
def renderer() -> ChatRenderer:
    return ChatRenderer(tiny_tokenizer("smollm2"))


def answer(request_id: int, prompt: tuple[int, ...], limit: int) -> Answer:
    return Answer(request_id, Request(prompt, SamplingSpec()), renderer(), (), limit)


def nodes_of(tree: PrefixCache) -> list[Node]:
    waiting, found = list(tree._roots.values()), []
    while waiting:
        node = waiting.pop()
        waiting += node.children
        found.append(node)
    return [node for node in found if node.parent is not None]


class Life(RuleBasedStateMachine):
    """Requests come, grow, are scored, cancelled and preempted, in any order, in a pool that is too small."""

    @initialize(
        max_batch=st.integers(1, 5),
        prefill=st.sampled_from([1, 30, 64, 200, 1000]),
        beside=st.sampled_from([3, 100]),
        rows=st.sampled_from([0, 4, 8, 40]),
        seed=st.integers(0, 99),
    )
    def make(self, max_batch, prefill, beside, rows, seed):
        self.rows, self.random = rows, random.Random(seed)
        self.pool = PagePool(_TOTAL)
        self.scheduler = Scheduler(
            self.pool,
            max_batch=max_batch,
            max_prefill_tokens=prefill,
            prefill_beside_tokens=beside,
            lookahead_rows=rows,
        )
        self.memory = {page: [None] * PAGE_TOKENS for page in range(_TOTAL)}
        self.limits: dict[int, int] = {}
        self.count = 0

    @rule(
        shared=st.integers(0, 300),
        own=st.integers(1, 150),
        kind=st.integers(0, 3),
        growth=st.integers(1, 200),
        adapter=st.sampled_from([None, "a"]),
        is_scored=st.booleans(),
    )
    def add(self, shared, own, kind, growth, adapter, is_scored):
        """Texts share a beginning of some length; how they go on is one of a few ways."""
        prompt = (*range(shared), *(1000 * (kind + 1) + i for i in range(own)))
        growth = min(growth, _MOST_TOKENS - len(prompt))
        if is_scored:
            continuation = tuple(5000 + kind + i for i in range(growth))
            job, tokens = Scoring(self.count, ScoreRequest(prompt, continuation)), [*prompt, *continuation[:-1]]
        else:
            job, tokens = answer(self.count, prompt, growth), [*prompt]
        self.scheduler.waiting.append(Sequence(adapter, tokens, len(prompt), job))
        self.limits[self.count] = len(prompt) + growth
        self.count += 1

    @rule(which=st.integers(0, 100))
    def cancel(self, which):
        if self.limits:
            self.end(sorted(self.limits)[which % len(self.limits)])

    @rule(times=st.integers(1, 40))
    def step(self, times):
        for _ in range(times):
            self.one_step()

    def one_step(self):
        plan = self.scheduler.plan()
        assert bool(plan.advances) == bool(self.limits), "with work, something advances"
        fresh = {page: [*self.memory[source]] for source, page in plan.copies}
        for page in plan.taken:
            self.memory[page] = fresh.get(page, [None] * PAGE_TOKENS)
        assert len(plan.decoding) + sum(map(len, plan.guesses.values())) <= max(self.rows, len(plan.decoding))
        for one, rows in plan.advances:
            guesses = plan.guesses.get(one.request_id, [])
            count = rows - len(guesses)
            assert one in self.scheduler.running
            assert 1 <= count <= one.missing
            assert not guesses or len(one.tokens) + rows <= self.limits[one.request_id]
            for position, token in enumerate([*one.tokens[one.computed :][:count], *guesses], one.computed):
                place = self.memory[one.pages[position // PAGE_TOKENS]]
                place[position % PAGE_TOKENS] = (one.adapter, token)
            held = [entry for page in one.pages for entry in self.memory[page]][: one.computed + count]
            assert held == [(one.adapter, token) for token in one.tokens[: one.computed + count]]
        self.scheduler.advance(plan)
        for one, count in plan.advances:
            if isinstance(one.job, Scoring):
                targets = one.job.targets(one.computed)
                assert len(targets) <= count, "the hidden states before the targets were computed in this step"
                one.job.take([0.0] * len(targets), [False] * len(targets), [])
                if one.job.score is not None:
                    self.end(one.request_id)
            elif one.missing == 0:
                guesses = plan.guesses.get(one.request_id, [])
                right = self.random.randint(0, len(guesses))
                one.tokens += [*guesses[:right], 7000 + self.random.randrange(3)]
                if guesses:
                    self.scheduler.accept(one, len(guesses), right)
                if len(one.tokens) >= self.limits[one.request_id]:
                    self.end(one.request_id)

    def end(self, request_id):
        (one,) = [one for one in self.scheduler.sequences() if one.request_id == request_id]
        self.scheduler.end(one)
        del self.limits[request_id]

    @invariant()
    def the_books_are_right(self):
        if not hasattr(self, "pool"):
            return
        pool, nodes = self.pool, nodes_of(self.scheduler.cache)
        holders = Counter(page for one in self.scheduler.running for page in one.pages)
        cached = Counter(node.page for node in nodes)
        assert max(cached.values(), default=1) == 1
        assert [holders[page] for page in range(_TOTAL)] == pool._holders
        assert [page in cached for page in range(_TOTAL)] == pool._is_cached
        used = holders.keys() | cached.keys()
        assert sorted(pool._free) == [page for page in range(_TOTAL) if page not in used]
        assert pool.idle == len(cached.keys() - holders.keys())
        assert all(not one.pages for one in self.scheduler.waiting)
        for node in nodes:
            assert len(node.tokens) == PAGE_TOKENS or not node.children
            assert [child.tokens for child in node.children] == sorted({child.tokens for child in node.children})
            parent = node.parent
            assert parent.parent is None or holders[node.page] <= holders[parent.page], "who holds a page holds its way"
            held = [token for _, token in self.memory[node.page][: len(node.tokens)]]
            assert held == list(node.tokens)

    def teardown(self):
        if not hasattr(self, "pool"):
            return
        for _ in range(20_000):
            if not self.limits:
                break
            self.one_step()
        assert not self.limits, "all requests come to their end"
        assert self.pool.free + self.pool.idle == _TOTAL
        assert self.scheduler.cache.make_room(_TOTAL), "all that is cached can be given up"
        assert self.pool.free == _TOTAL


Life.TestCase.settings = settings(max_examples=80, stateful_step_count=20, deadline=None)
TestLife = Life.TestCase


def test_the_beginning_most_alike_is_found():
    pool = PagePool(8)
    tree = PrefixCache(pool)
    first, second = tuple(range(64)), (*range(30), *range(500, 534))
    for tokens in (first, second, (*range(10), 7)):
        tree.file(tree.root(None), tokens, pool.take())
    found = tree.find(None, (*range(40), 3, 4), 42)
    assert (found.pages, found.part.tokens, found.part_tokens) == ((), first, 40)
    assert tree.find(None, first, 64).pages == (0,)
    assert tree.find(None, first, 63).tokens == 63
    assert tree.find("other", first, 64).tokens == 0
    assert tree.find(None, (9, 9), 2).tokens == 0


def test_the_least_recently_used_goes_first():
    pool = PagePool(64)
    tree = PrefixCache(pool)
    texts = [tuple(range(100 * i, 100 * i + 64)) for i in range(4)]
    for text in texts:
        page = pool.take()
        tree.file(tree.root(None), text, page)
        pool.let_go(page)
    tree.find(None, texts[0], 64)
    assert tree.make_room(62)
    assert [tree.find(None, text, 64).tokens for text in texts] == [64, 0, 0, 64]
    assert not tree.make_room(65)
    assert [tree.find(None, text, 64).tokens for text in texts] == [64, 0, 0, 64]
    tree.forget(None)
    assert pool.free == 64


def test_a_page_is_let_go_once():
    pool = PagePool(2)
    page = pool.take()
    pool.let_go(page)
    with pytest.raises(ValueError, match="nobody holds"):
        pool.let_go(page)
    with pytest.raises(ValueError, match="can't be cached"):
        pool.cache(page)


def test_common_beginnings():
    assert common((), (1,)) == 0
    assert common((1, 2, 3), (1, 2, 3, 4)) == 3
    assert all(common([*range(k), -1, *range(20)], list(range(40))) == k for k in range(30))
