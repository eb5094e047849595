"""The prefix cache: a radix tree over token ids whose nodes are pages of keys and values.

A node is one page: 64 tokens that continue its parent's, or fewer at the end of a text, which then has no children.
Each adapter has a tree of its own, because keys and values depend on it. Nodes stay after the requests that computed
them; when pages are needed, the least recently used leaves that no request holds go first.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tunesmith.generate.pages import PAGE_TOKENS, PagePool

#: When pages are needed, this share of all is given up at once: looking for the oldest costs a walk over the tree.
_EVICTED_SHARE = 32


@dataclass(eq=False, slots=True)
class Node:
    """One page of a text. Children are ordered by their tokens, so that the one most alike is found by bisection."""

    tokens: tuple[int, ...] = ()
    page: int = -1
    parent: Node | None = None
    last_used: int = 0
    children: list[Node] = field(default_factory=list)

    def place_of(self, tokens: tuple[int, ...]) -> int:
        """Return where a child with these tokens is or would be."""
        return bisect_left(self.children, tokens, key=lambda child: child.tokens)

    def child(self, tokens: tuple[int, ...]) -> Node | None:
        """Return the child with exactly these tokens."""
        place = self.place_of(tokens)
        if place < len(self.children) and self.children[place].tokens == tokens:
            return self.children[place]
        return None

    def most_alike(self, tokens: tuple[int, ...]) -> tuple[Node | None, int]:
        """Return the child that begins most like `tokens`, and how many tokens are alike."""
        place = self.place_of(tokens)
        near = self.children[max(0, place - 1) : place + 1]
        alike = [common(child.tokens, tokens) for child in near]
        best = max(alike, default=0)
        return (near[alike.index(best)], best) if best else (None, 0)


@dataclass(frozen=True, slots=True)
class Found:
    """What the cache holds of a text's beginning: whole pages down to `node`, and `tokens` of a further `page`."""

    node: Node
    pages: tuple[int, ...]
    part: Node | None
    part_tokens: int

    @property
    def tokens(self) -> int:
        """Number of tokens found."""
        return len(self.pages) * PAGE_TOKENS + self.part_tokens


class PrefixCache:
    """Trees of pages; whoever uses a page that was found must hold it before anything is evicted.

    Args:
        pool: counts the pages' holders.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._roots: dict[str | None, Node] = {}
        self._clock = itertools.count(1)

    def root(self, adapter: str | None) -> Node:
        """Return an adapter's tree."""
        return self._roots.setdefault(adapter, Node())

    def find(self, adapter: str | None, tokens: Sequence[int], most: int) -> Found:
        """Return what is cached of the first `most` tokens of a text."""
        node, now = self.root(adapter), next(self._clock)
        pages: list[int] = []
        while (len(pages) + 1) * PAGE_TOKENS <= most:
            child = node.child(tuple(tokens[len(pages) * PAGE_TOKENS : (len(pages) + 1) * PAGE_TOKENS]))
            if child is None:
                break
            child.last_used = now
            node = child
            pages.append(child.page)
        done = len(pages) * PAGE_TOKENS
        part, alike = node.most_alike(tuple(tokens[done : min(most, done + PAGE_TOKENS)]))
        if part is not None:
            part.last_used = now
        return Found(node, tuple(pages), part, alike)

    def file(self, parent: Node, tokens: tuple[int, ...], page: int) -> Node:
        """Add a page that continues `parent`, unless it is there already; return the node with these tokens.

        The caller holds `page`. A part of a page may be filed too; if a node that begins so is there, it is returned.
        """
        place = parent.place_of(tokens)
        if place < len(parent.children) and parent.children[place].tokens[: len(tokens)] == tokens:
            found = parent.children[place]
            found.last_used = next(self._clock)
            return found
        self._pool.cache(page)
        node = Node(tokens, page, parent, next(self._clock))
        before = parent.children[place - 1] if place else None
        parent.children.insert(place, node)
        # What a text that went on was before is of no use any more.
        if before is not None and tokens[: len(before.tokens)] == before.tokens and self._pool.is_idle(before.page):
            self.drop(before)
        return node

    def drop(self, node: Node) -> None:
        """Take a leaf out of its tree."""
        parent = node.parent
        assert parent is not None
        del parent.children[parent.place_of(node.tokens)]
        self._pool.uncache(node.page)
        node.parent = None

    def forget(self, adapter: str | None) -> None:
        """Give up an adapter's tree."""
        for node in _below(self._roots.pop(adapter, Node())):
            self._pool.uncache(node.page)

    def make_room(self, count: int) -> bool:
        """Evict until `count` pages are free; return whether they are. If they can't be, nothing is evicted."""
        if self._pool.free >= count:
            return True
        if self._pool.free + self._pool.idle < count:
            return False
        goal = max(count, min(self._pool.free + self._pool.idle, self._pool.total // _EVICTED_SHARE))
        leaves = [
            (node.last_used, id(node), node)
            for root in self._roots.values()
            for node in _below(root)
            if not node.children and self._pool.is_idle(node.page)
        ]
        heapq.heapify(leaves)
        while self._pool.free < goal:
            _, _, node = heapq.heappop(leaves)
            parent = node.parent
            assert parent is not None
            self.drop(node)
            if parent.parent is not None and not parent.children and self._pool.is_idle(parent.page):
                heapq.heappush(leaves, (parent.last_used, id(parent), parent))
        return True


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts (both tuples or both lists) begin with alike."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _below(root: Node) -> Iterator[Node]:
    """Yield all nodes below a root."""
    waiting = [*root.children]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.children
