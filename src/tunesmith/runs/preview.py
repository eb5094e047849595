"""One training row token by token, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.data.examples import Conversation

#: The row is chosen among the first so many.
_CHOICE = 20
#: An answer longer than this isn't more telling.
_TELLING_CHARACTERS = 300


def preview_tokens(rows: Sequence[Conversation], renderer: ChatRenderer) -> list[tuple[str, bool]]:
    """Return the tokens of a telling row, one of the first with much to learn: each text, and whether it is learnt.

    Args:
        rows: training rows, at least one.
        renderer: turns them into tokens as training does.
    """
    row = max(rows[:_CHOICE], key=lambda row: min(len(row.reference), _TELLING_CHARACTERS))
    sequence = renderer.for_training(row)[-1]
    return [
        (renderer.token_text(token_id), bool(is_learnt))
        for token_id, is_learnt in zip(sequence.token_ids, sequence.learnt, strict=True)
    ]
