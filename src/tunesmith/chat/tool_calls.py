"""The form in which a model writes tool calls."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ToolCallFormat:
    """How calls are written: `opening`, calls with `between` between them, `closing`; see `chat.call_probe`.

    A call is `lead`, the function's name, `middle`, the arguments as a JSON object, `tail`. All texts are exactly as
    the template writes them.

    Attributes:
        opening: what stands before the first call; may be nothing.
        between: what stands between two calls; None where the template can't write more than one.
        closing: what stands behind the last call.
        glue: the white space that the template puts between an answer's words and its calls.
        lead: a call's beginning; empty where a call isn't one JSON object.
        middle: between name and arguments.
        tail: a call's end.
        name_key: the key of the name in a call's object; None where a call isn't one JSON object.
        arguments_key: the key of the arguments in a call's object.
        call_id: what stands for a call's id in `middle` and `tail`.
        added: names and ids of the tokenizer's own tokens in these texts and of `tag`.
        separators: what the template puts between the members of the arguments, and behind their names.
        tag: name of a token that may stand before a bare call, though the template leaves it out (Llama 3).
        shown_ids: special tokens of calls; they must be kept in an answer's text for calls to be found in it.
    """

    opening: str
    between: str | None
    closing: str
    glue: str
    lead: str
    middle: str
    tail: str
    name_key: str | None
    arguments_key: str | None
    call_id: str
    added: tuple[tuple[str, int], ...]
    separators: tuple[str, str]
    tag: str | None
    shown_ids: frozenset[int]

    @property
    def is_bare(self) -> bool:
        """Whether nothing marks a call: then a call is what an answer begins with, and names an offered function."""
        return not self.opening.strip()

    @property
    def is_closed_each(self) -> bool:
        """Whether each of several calls has its own opening and closing."""
        return self.between is not None and self.atoms(self.between) == self.atoms(self.closing + self.opening)

    def pieces(self, text: str) -> list[str]:
        """Return `text` cut into the names of the tokenizer's own tokens, `call_id`, and what stands between them."""
        names = [*(name for name, _ in self.added), self.call_id]
        pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        return [piece for piece in re.split(f"({pattern})", text) if piece]

    def atoms(self, text: str) -> tuple[str, ...]:
        """Return what must stand in a text like `text`, in order; models are free in the white space between."""
        return tuple(atom for piece in self.pieces(text) for atom in piece.split())
