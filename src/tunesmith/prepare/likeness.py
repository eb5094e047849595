"""Which texts are nearly the same: MinHash candidates (Broder 1997), verified by exact Jaccard similarity."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

from rensa import RMinHash

Words = tuple[str, ...]
Shingles = frozenset[str]

# 25 bands of 5: a pair at Jaccard 0.8 shares a band with probability 0.99995, at 0.3 with 0.06.
_BANDS = 25
_BAND_SIZE = 5
# Looser thresholds need shorter bands to be found.
_LOOSE_SIMILARITY = 0.6
_LOOSE_BAND_SIZE = 2
_SEED = 42
#: Texts that one text is compared with in one band: bounds the time on templated data, where all texts share bands.
_MAX_BUCKET = 64


def shingles_of(words: Words) -> Shingles:
    """Return the text's single words and its pairs of neighbouring words.

    Single words make short texts comparable ("6th" and "7th" share nothing), pairs make order count.
    """
    return frozenset(words) | frozenset(f"{left} {right}" for left, right in pairwise(words))


def jaccard(left: Shingles, right: Shingles) -> float:
    """Return |left ∩ right| / |left ∪ right|; two empty sets are the same (1)."""
    shared = len(left & right)
    total = len(left) + len(right) - shared
    return shared / total if total else 1.0


def groups_of_near_identical(texts: Sequence[Words], similarity: float) -> list[list[int]]:
    """Return the indices of `texts` in groups, such that texts alike by `similarity` or more are in one group.

    Likeness chains: a ~ b and b ~ c puts all three together. Equal texts are always together. The groups don't depend
    on the order of `texts`; indices and groups ascend.
    """
    owners: defaultdict[Words, list[int]] = defaultdict(list)
    for index, words in enumerate(texts):
        owners[words].append(index)
    distinct = sorted(owners)
    union = _Union(len(distinct))
    _join_alike([shingles_of(words) for words in distinct], similarity, union)
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for position, words in enumerate(distinct):
        groups[union.root(position)].extend(owners[words])
    return sorted(sorted(group) for group in groups.values())


def without_boilerplate(texts: Sequence[Words], share: float = 0.5) -> list[Words]:
    """Return the texts without the words that more than `share` of them hold; a text of nothing else stays whole."""
    holders = Counter(word for words in texts for word in set(words))
    common = {word for word, count in holders.items() if count > share * len(texts)}
    return [tuple(word for word in words if word not in common) or words for words in texts]


class _Union:
    """Disjoint sets with path halving; the smallest member is the root, so that results don't depend on order."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def root(self, item: int) -> int:
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, left: int, right: int) -> None:
        low, high = sorted((self.root(left), self.root(right)))
        self._parent[high] = low


def _join_alike(sets: Sequence[Shingles], similarity: float, union: _Union) -> None:
    if len(sets) < 2:
        return
    band_size = _BAND_SIZE if similarity >= _LOOSE_SIMILARITY else _LOOSE_BAND_SIZE
    digests = RMinHash.digests_from_token_sets(
        [list(shingles) for shingles in sets], num_perm=_BANDS * band_size, seed=_SEED
    )
    buckets: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for item, digest in enumerate(digests):
        seen: set[int] = set()
        for band in range(_BANDS):
            start = band * band_size
            bucket = buckets[(band, *digest[start : start + band_size])]
            seen.update(bucket)
            if len(bucket) < _MAX_BUCKET:
                bucket.append(item)
        own = union.root(item)
        for other in seen:
            root = union.root(other)
            if root != own and jaccard(sets[item], sets[other]) >= similarity:
                union.join(item, other)
                own = union.root(item)
