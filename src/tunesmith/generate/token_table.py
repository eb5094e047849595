"""A vocabulary as a grammar sees it: what each token adds to an answer's text, in bytes."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

from tokenizers import Tokenizer

from tunesmith.chat.renderer import ChatRenderer

_WORD_BITS = 32


class TokenTable:
    """The tokens of a model by id.

    Tokens that are no text (special ones, ends of a turn) are marked, rows of the model's vocabulary that no token uses
    are empty; a grammar allows neither unless it names them. Some tokenizers drop the space that an answer's first
    token begins with: there, each token with such a space has a twin without it, behind the model's vocabulary. The
    twin of the space alone is empty.

    Args:
        renderer: knows the tokens.
        vocabulary_size: V, the model's number of logits; may differ from the tokenizer's number of tokens.
        end_ids: tokens that end an answer.

    Attributes:
        tokens: what each token adds; at least V, the twins and an end that nothing can choose behind them.
        special_token_ids: ids that are no text.
        end_ids: ids that end an answer, at least one.
        twins: the twin of each token that begins with a space which an answer's text drops.
    """

    #: Names that llguidance asks for.
    bos_token_id = None

    def __init__(self, renderer: ChatRenderer, vocabulary_size: int, end_ids: Collection[int]) -> None:
        self._renderer = renderer
        self.tokens = [renderer.token_bytes(token_id) for token_id in range(vocabulary_size)]
        ends = sorted(i for i in end_ids if 0 <= i < vocabulary_size)
        special = {i for i in renderer.special_ids if i < vocabulary_size} | set(ends)
        self._ids: dict[bytes, int] = {}
        for token_id, content in enumerate(self.tokens):
            if content and token_id not in special:
                self._ids.setdefault(content, token_id)
        self._longest_bytes = max(map(len, self._ids), default=1)
        # Behind whole words of the bit mask, so that the model's own words hold nothing else.
        self.tokens += [b""] * (-vocabulary_size % _WORD_BITS)
        self.twins: dict[int, int] = {}
        if renderer.drops_first_space:
            for token_id, content in enumerate(self.tokens[:vocabulary_size]):
                if content.startswith(b" ") and token_id not in special:
                    self.twins[token_id] = len(self.tokens)
                    self.tokens.append(content[1:])
        if not ends:
            ends = [len(self.tokens)]
            special.add(len(self.tokens))
            self.tokens.append(b"<no end>")
        self.end_ids = ends
        self.special_token_ids = sorted(special)
        self.eos_token_id = ends[0]

    def __call__(self, text: bytes) -> list[int]:
        """Return the tokens of a text as the tokenizer cuts it, whatever it would put before it left out."""
        words = text.decode(errors="replace")
        for context in ("", "\n"):
            before = self._encode(context)
            ids = self._encode(context + words)
            found = ids[len(before) :]
            is_text = ids[: len(before)] == before and all(i in self._text_ids for i in found)
            if is_text and b"".join(self.tokens[i] for i in found) == text:
                return found
        return self._longest_first(text)

    def spaced_beginnings(self, text: bytes) -> list[int]:
        """Return the tokens that write a space and then a beginning of `text`, which may be empty."""
        sizes = range(min(self._longest_bytes, len(text)) + 1)
        return [self._ids[spaced] for size in sizes if (spaced := b" " + text[:size]) in self._ids]

    @cached_property
    def _text_ids(self) -> frozenset[int]:
        return frozenset(self._ids.values())

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        """A tokenizer of its own: the renderer's is used by other threads, which change its settings."""
        own = Tokenizer.from_str(self._renderer.tokenizer.backend_tokenizer.to_str())
        own.no_padding()
        own.no_truncation()
        return own

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _longest_first(self, text: bytes) -> list[int]:
        """Cut a text into the longest tokens from left to right, as far as there are any."""
        found: list[int] = []
        at = 0
        while at < len(text):
            for size in range(min(self._longest_bytes, len(text) - at), 0, -1):
                token_id = self._ids.get(text[at : at + size])
                if token_id is not None:
                    found.append(token_id)
                    at += size
                    break
            else:
                break
        return found
