"""Token trees: the one shape of a training batch.

A tree's node is a segment of tokens, a child continues its parent; a token attends to its ancestors and to its own
past. Text that several sequences begin with is one node, computed once. The loss and its gradients are those of the
sequences computed one by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunesmith.chat.renderer import Rendered

#: Sharing fewer tokens than this costs more in bookkeeping than it saves in arithmetic.
_MIN_SHARED_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Segment:
    """A node: tokens `start` to `start + length` of the flat batch, behind the segments `ancestors` (root first)."""

    start: int
    length: int
    ancestors: tuple[int, ...]


@dataclass(frozen=True)
class TokenTree:
    """A batch of sequences as a tree, its N tokens laid flat.

    `token_ids` and `positions` are (N,). The M targets say: the hidden state of token `target_source[m]` predicts
    `target_ids[m]`, which counts `target_weight[m]` times (once for each sequence that learns it).
    `target_owners` names these sequences by their place in the call of `build_tree`, target after target.
    `inverse_lengths` holds, for each segment, the mean of 1 / length over the sequences that pass through it.
    `row_tokens` counts the sequences' tokens as if nothing were shared, `sequences` the sequences.
    """

    token_ids: Tensor
    positions: Tensor
    segments: tuple[Segment, ...]
    target_source: Tensor
    target_ids: Tensor
    target_weight: Tensor
    target_owners: Tensor
    inverse_lengths: tuple[float, ...]
    row_tokens: int
    sequences: int

    @property
    def learnt_tokens(self) -> int:
        """Targets, counted once for each sequence that learns them."""
        return int(self.target_weight.sum().item())

    def by_sequence(self, values: Tensor) -> Tensor:
        """Return the sums of the targets' `values` (M,) over each sequence's targets, in the order of the call."""
        times = self.target_weight.to(values.device, torch.long)
        sums = torch.zeros(self.sequences, dtype=values.dtype, device=values.device)
        return sums.index_add_(0, self.target_owners.to(values.device), values.repeat_interleave(times))

    def paths(self) -> list[tuple[int, ...]]:
        """Return the numbers of the segments from root to leaf, for each leaf: the rows, equal ones once.

        A row that ends where another goes on is a part of the other's path.
        """
        parents = {segment.ancestors[-1] for segment in self.segments if segment.ancestors}
        leaves = [number for number in range(len(self.segments)) if number not in parents]
        return [(*self.segments[leaf].ancestors, leaf) for leaf in leaves]


def build_tree(sequences: Sequence[Rendered]) -> TokenTree:
    """Lay sequences out as a tree that shares their common beginnings.

    Every sequence must hold at least one token.
    """
    order = sorted(range(len(sequences)), key=lambda place: sequences[place].token_ids)
    builder = _Builder()
    builder.add([_Member(place, sequences[place].token_ids, sequences[place].learnt) for place in order], 0, ())
    return TokenTree(
        token_ids=torch.tensor(builder.token_ids, dtype=torch.long),
        positions=torch.tensor(builder.positions, dtype=torch.long),
        segments=tuple(builder.segments),
        target_source=torch.tensor(builder.target_source, dtype=torch.long),
        target_ids=torch.tensor(builder.target_ids, dtype=torch.long),
        target_weight=torch.tensor(builder.target_weight, dtype=torch.float32),
        target_owners=torch.tensor(builder.target_owners, dtype=torch.long),
        inverse_lengths=tuple(builder.inverse_lengths),
        row_tokens=sum(len(sequence.token_ids) for sequence in sequences),
        sequences=len(sequences),
    )


@dataclass(frozen=True, slots=True)
class _Member:
    """A sequence and its place in the call."""

    place: int
    token_ids: tuple[int, ...]
    learnt: tuple[bool, ...]


class _Builder:
    """Grows the flat arrays while the tree is walked from its root."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.target_source: list[int] = []
        self.target_ids: list[int] = []
        self.target_weight: list[int] = []
        self.target_owners: list[int] = []
        self.inverse_lengths: list[float] = []

    def add(self, group: Sequence[_Member], depth: int, ancestors: tuple[int, ...]) -> None:
        """Add the sequences of `group`, sorted and alike in their first `depth` tokens, below `ancestors`."""
        end = _common_length(group[0], group[-1])
        if len(group) == 1 or end - depth >= _MIN_SHARED_TOKENS or _all_end(group, end):
            below = (*ancestors, self._segment(group, depth, end, ancestors)) if end > depth else ancestors
            longer = [sequence for sequence in group if len(sequence.token_ids) > end]
            for _, branch in itertools.groupby(longer, key=lambda sequence: sequence.token_ids[end]):
                self.add(list(branch), end, below)
            return
        # Too little in common at this depth: branch here, by the first token of what is worth sharing.
        near = depth + _MIN_SHARED_TOKENS
        for _, branch in itertools.groupby(group, key=lambda sequence: sequence.token_ids[:near]):
            members = list(branch)
            if _common_length(members[0], members[-1]) - depth >= _MIN_SHARED_TOKENS:
                self.add(members, depth, ancestors)
            else:
                for sequence in members:
                    self.add([sequence], depth, ancestors)

    def _segment(self, group: Sequence[_Member], start: int, end: int, ancestors: tuple[int, ...]) -> int:
        """Add tokens `start` to `end`, which all of `group` share, as a node; return its index."""
        first = len(self.token_ids)
        ids = group[0].token_ids[start:end]
        self.token_ids += ids
        self.positions += range(start, end)
        self.segments.append(Segment(first, len(ids), ancestors))
        self.inverse_lengths.append(sum(1 / len(sequence.token_ids) for sequence in group) / len(group))
        for offset, token_id in enumerate(ids):
            owners = [sequence.place for sequence in group if sequence.learnt[start + offset]]
            before = first + offset - 1 if offset else self._last_token(ancestors)
            if owners and before is not None:  # a text's first token has nothing that predicts it
                self.target_source.append(before)
                self.target_ids.append(token_id)
                self.target_weight.append(len(owners))
                self.target_owners += owners
        return len(self.segments) - 1

    def _last_token(self, ancestors: tuple[int, ...]) -> int | None:
        if not ancestors:
            return None
        parent = self.segments[ancestors[-1]]
        return parent.start + parent.length - 1


def _common_length(one: _Member, other: _Member) -> int:
    """Return how many tokens two sequences begin with alike; of a sorted group's ends: of the whole group."""
    pairs = zip(one.token_ids, other.token_ids, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _all_end(group: Sequence[_Member], end: int) -> bool:
    """Whether the whole group is one and the same sequence."""
    return all(len(sequence.token_ids) == end for sequence in group)
