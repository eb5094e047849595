"""What passes have to compute: counted from the rows, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.chat.renderer import Rendered
from tunesmith.train.packing import microbatches, shared_with_neighbour


@dataclass(frozen=True, slots=True)
class Load:
    """One pass: `tokens` of its tree, `learnt` targets, `pairs` of a token and one that it attends to."""

    tokens: int
    learnt: int
    pairs: int


def pass_loads(sequences: Sequence[Rendered], tokens_per_pass: int) -> list[Load]:
    """Return the loads of a step's passes, in their order."""
    return [load_of(part) for part in microbatches(sequences, tokens_per_pass)]


def load_of(part: Sequence[Rendered]) -> Load:
    """Return the load of one pass."""
    tokens = learnt = pairs = 0
    for sequence, shared in shared_with_neighbour(part):
        length = len(sequence.token_ids)
        own = length - shared
        tokens += own
        learnt += sum(sequence.learnt[shared:])
        pairs += own * (shared + length) // 2
    return Load(tokens, learnt, pairs)
