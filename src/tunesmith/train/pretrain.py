"""Domain adaptation: go on with the base's own training on plain documents; every token is learnt.

A document becomes its tokens behind the token that stands before texts, with the end-of-text token at its end. A long
one is cut into pieces of full length; each piece but the first begins with the last tokens of the one before, which
give it context and aren't learnt again, so that every token is learnt exactly once. Pieces are packed into windows of
`limits.max_tokens` tokens. A window is a row of training; its pieces are sequences of their own in the token tree, so
no token ever sees another document.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.chat.renderer import Rendered
from tunesmith.data.examples import Document
from tunesmith.train.sft import Row

#: A piece begins with this share of its length (and at most so many tokens) from the piece before.
_OVERLAP_SHARE, _MOST_OVERLAP_TOKENS = 8, 128
#: The tokens that end documents in the bases' own training, the likeliest first.
_END_NAMES = ("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>")
#: Longer texts are encoded in parts, cut at line ends, because tokenizers take time and memory by the whole.
_ENCODED_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one document, and its number among the documents."""

    document: int
    sequence: Rendered


@dataclass(frozen=True)
class Windows:
    """Rows of training, each with the number of the source that its documents come from."""

    rows: list[Row]
    sources: list[int]


def overlap_tokens(max_tokens: int) -> int:
    """Return how many tokens of the piece before a piece of a long document begins with."""
    return min(max_tokens // _OVERLAP_SHARE, _MOST_OVERLAP_TOKENS)


def cut_documents(documents: Sequence[Document], tokenizer: Any, max_tokens: int) -> Iterator[Piece]:
    """Yield the documents' pieces in order, each of at most `max_tokens` tokens (at least 8)."""
    start, end = text_boundaries(tokenizer)
    for number, document in enumerate(documents):
        ids = [start, *_encode(document.text, tokenizer), *([] if document.continues else [end])]
        learnt_to = 1  # a text's first token has nothing that foretells it
        while learnt_to < len(ids):
            begin = 0 if learnt_to == 1 else learnt_to - overlap_tokens(max_tokens)
            stop = min(len(ids), begin + max_tokens)
            learnt = (False,) * (learnt_to - begin) + (True,) * (stop - learnt_to)
            yield Piece(number, Rendered(tuple(ids[begin:stop]), learnt))
            learnt_to = stop


def pack(documents: Sequence[Document], tokenizer: Any, max_tokens: int) -> Windows:
    """Return the documents' pieces in windows of at most `max_tokens` tokens, in the documents' order.

    Each piece, the longest first, goes into the fullest window that still has room for it (best fit decreasing). A
    window holds documents of one source only, so that sources can be mixed by weight.
    """
    pieces = list(cut_documents(documents, tokenizer, max_tokens))
    windows: list[list[int]] = []
    for source in sorted({document.source for document in documents}):
        own = [index for index, piece in enumerate(pieces) if documents[piece.document].source == source]
        windows += _best_fit([len(pieces[index].sequence.token_ids) for index in own], own, max_tokens)
    windows.sort()
    return Windows(
        [[pieces[index].sequence for index in window] for window in windows],
        [documents[pieces[window[0]].document].source for window in windows],
    )


def text_boundaries(tokenizer: Any) -> tuple[int, int]:
    """Return the tokens that stand before a text and at its end, as the base knows them from its own training."""
    added = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
    end = next((added[name] for name in _END_NAMES if name in added), tokenizer.eos_token_id)
    if end is None:  # nothing ends texts here: a line end is the least that does
        end = tokenizer.encode("\n", add_special_tokens=False)[-1]
    first = tokenizer.encode("a")[0]
    return (first if first == tokenizer.bos_token_id else end), end


def _encode(text: str, tokenizer: Any) -> list[int]:
    """Return a text's tokens; names of special tokens in it are plain text."""
    ids: list[int] = []
    position = 0
    while position < len(text):
        stop = text.rfind("\n", position, position + _ENCODED_CHARACTERS) + 1
        if stop <= position or len(text) - position <= _ENCODED_CHARACTERS:
            stop = position + _ENCODED_CHARACTERS
        part = tokenizer(text[position:stop], add_special_tokens=False, split_special_tokens=True, verbose=False)
        ids += part["input_ids"]
        position = stop
    return ids


def _best_fit(sizes: Sequence[int], names: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack things of some sizes into bins; return each bin's names, ascending."""
    bins: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # bins by their room
    rooms: list[int] = []  # the rooms that bins have, ascending
    for position in sorted(range(len(sizes)), key=lambda position: -sizes[position]):
        size = sizes[position]
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            room, chosen = capacity, len(bins)
            bins.append([])
        else:
            room = rooms[at]
            chosen = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        bins[chosen].append(names[position])
        left = room - size
        if left:
            if left not in with_room:
                bisect.insort(rooms, left)
            with_room.setdefault(left, []).append(chosen)
    return [sorted(chosen) for chosen in bins]
