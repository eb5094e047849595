"""One training row token by token, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tunesmith.chat.renderer import ChatRenderer, Rendered
from tunesmith.data.examples import Conversation, Document
from tunesmith.train.pretrain import cut_documents

#: The row is chosen among the first so many.
_CHOICE = 20
#: An answer longer than this isn't more telling.
_TELLING_CHARACTERS = 300
#: A document is shown to here.
_SHOWN_CHARACTERS = 500


def preview_tokens(rows: Sequence[Conversation | Document], renderer: ChatRenderer) -> list[tuple[str, bool]]:
    """Return the tokens of a telling row, one of the first with much to learn: each text, and whether it is learnt.

    Of documents it is the beginning of the first one.

    Args:
        rows: training rows, at least one.
        renderer: turns them into tokens as training does.
    """
    sequence = _telling(rows[:_CHOICE], renderer)
    return [
        (renderer.token_text(token_id), bool(is_learnt))
        for token_id, is_learnt in zip(sequence.token_ids, sequence.learnt, strict=True)
    ]


def _telling(rows: Sequence[Conversation | Document], renderer: ChatRenderer) -> Rendered:
    first = rows[0]
    if isinstance(first, Document):
        beginning = replace(first, text=first.text[:_SHOWN_CHARACTERS], continues=True)
        return next(cut_documents([beginning], renderer.tokenizer, _SHOWN_CHARACTERS)).sequence
    conversations = [row for row in rows if isinstance(row, Conversation)]
    row = max(conversations, key=lambda row: min(len(row.reference), _TELLING_CHARACTERS))
    return renderer.for_training(row)[-1]
