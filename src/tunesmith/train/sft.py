"""Supervised fine-tuning: learn the assistant's words, given everything before them."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.chat.renderer import ChatRenderer, Rendered
from tunesmith.data.examples import Conversation

#: A row as training sees it: one sequence, or one for each turn where the chat template can't show all in one.
Row = list[Rendered]


def encode(rows: Sequence[Conversation], renderer: ChatRenderer, max_tokens: int) -> list[Row]:
    """Render rows for training, each sequence cut at `max_tokens`.

    Sequences without anything to learn within the limit are left out of their row.

    Raises:
        DataError: the base's chat template refuses a row.
    """
    encoded = []
    for row in rows:
        sequences = [sequence.cut(max_tokens) for sequence in renderer.for_training(row)]
        encoded.append([sequence for sequence in sequences if sequence.learnt_tokens])
    return encoded
