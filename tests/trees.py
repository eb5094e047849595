"""Rows whose tree is worth testing."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from tunesmith.chat.renderer import Rendered


@st.composite
def batches(draw, longest: int = 14):
    """Sequences that share beginnings at several depths, equal ones, ones that go on where another ends, short ones.

    And pairs of replies to one prompt, as preferences are.
    """
    token, grown = st.integers(3, 6), []
    for _ in range(draw(st.integers(1, 7))):
        begin = list(draw(st.sampled_from(grown))) if grown and draw(st.booleans()) else []
        begin = begin[: draw(st.integers(0, len(begin)))] if draw(st.booleans()) else begin
        end = st.lists(token, min_size=0 if begin else 1, max_size=longest)
        grown += [tuple(begin + draw(end)) for _ in range(draw(st.integers(1, 2)))]
    return [Rendered(ids, tuple(draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))) for ids in grown]


def shared_rows(seed: int = 0) -> list[Rendered]:
    """Ten rows of one long beginning, in two groups, longer than all sliding windows."""
    random = torch.Generator().manual_seed(seed)

    def text(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 300, (count,), generator=random).tolist())

    system, rows = text(24), []
    for group in (text(11), text(17)):
        for count in (1, 5, 20, 33, 60):
            ids = (*system, *group, *text(count))
            rows.append(Rendered(ids, tuple(i >= len(ids) - count for i in range(len(ids)))))
    return rows
