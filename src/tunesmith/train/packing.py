"""How a step's sequences are cut into passes: what begins alike together, what is of like length together.

Passes are counted in tokens of their trees, so what sequences share counts once. Which sequences form a step is decided
before and never changed here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from tunesmith.chat.renderer import Rendered

#: A tree shares at least this many tokens less than two neighbours begin with alike (`tree._MIN_SHARED_TOKENS - 1`).
_MAX_UNSHARED_TOKENS = 7


def microbatches(sequences: Sequence[Rendered], max_tokens: int) -> list[list[Rendered]]:
    """Split a step's sequences into passes whose trees hold at most `max_tokens` tokens.

    A longer sequence is a pass of its own. There are as few passes as filling them in order allows, and they are about
    equally large. The same sequences give the same passes, in whatever order they come.
    """
    if not sequences:
        return []
    order = list(_neighbours_alike(sorted(sequences, key=lambda s: (s.token_ids, s.learnt)), 0))
    shared = _shared(order)
    passes = _filled(order, shared, max_tokens)
    # The smallest budget that needs no more passes makes them even.
    low, high = max_tokens // 2, max_tokens
    while high - low > max(8, max_tokens // 64):
        middle = (low + high) // 2
        even = _filled(order, shared, middle)
        if len(even) > len(passes):
            low = middle
        else:
            passes, high = even, middle
    return passes


def tree_tokens(sequences: Sequence[Rendered]) -> int:
    """Return how many tokens the tree of these sequences holds, or up to seven more a sequence."""
    return sum(len(sequence.token_ids) - shared for sequence, shared in shared_with_neighbour(sequences))


def shared_with_neighbour(sequences: Sequence[Rendered]) -> list[tuple[Rendered, int]]:
    """Return sequences, neighbours alike, and how many tokens each is sure to share with the one before it."""
    order = sorted(sequences, key=lambda sequence: sequence.token_ids)
    return list(zip(order, _shared(order), strict=True))


def _shared(order: Sequence[Rendered]) -> list[int]:
    """Return how many tokens a tree is sure to compute once for each sequence and the one before it."""
    common = (_common_length(one.token_ids, other.token_ids) for one, other in itertools.pairwise(order))
    return [0, *(max(0, length - _MAX_UNSHARED_TOKENS) for length in common)]


def _filled(order: Sequence[Rendered], shared: Sequence[int], max_tokens: int) -> list[list[Rendered]]:
    """Fill passes in order; `shared[i]` counts what sequence i has in common with the one before it."""
    passes: list[list[Rendered]] = []
    room = 0
    for sequence, common in zip(order, shared, strict=True):
        size = len(sequence.token_ids)
        if passes and size - common <= room:
            passes[-1].append(sequence)
            room -= size - common
        else:
            passes.append([sequence])
            room = max_tokens - size
    return passes


def _neighbours_alike(group: Sequence[Rendered], depth: int) -> Iterator[Rendered]:
    """Yield sequences, sorted and alike in their first `depth` tokens, so that those alike for longer are neighbours.

    Branches that have no more in common stand in the order of their lengths.
    """
    branches = _branches(group, depth)
    for branch in sorted(branches, key=lambda branch: (max(len(s.token_ids) for s in branch), branch[0].token_ids)):
        if len(branch) == 1 or branch[0].token_ids == branch[-1].token_ids:
            yield from branch
        else:
            yield from _neighbours_alike(branch, _common_length(branch[0].token_ids, branch[-1].token_ids))


def _branches(group: Sequence[Rendered], depth: int) -> list[list[Rendered]]:
    """Split a sorted group by the next tokens, as far as sharing them is worth it."""
    near = depth + _MAX_UNSHARED_TOKENS + 1
    return [list(branch) for _, branch in itertools.groupby(group, key=lambda sequence: sequence.token_ids[:near])]


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences begin with alike, by bisection: comparing slices is quick."""
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
