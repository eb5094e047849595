"""The true bytes of tokens: a token may hold half a character, which no text can show."""

from __future__ import annotations

import json
import re
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

#: SentencePiece writes a space as this character.
_SPACE = "\u2581"


class TokenBytes:
    """What each token of a vocabulary adds to a text, in bytes.

    Knows byte-level BPE (each byte has a letter of its own, as in GPT-2) and SentencePiece (spaces as U+2581, bytes
    as `<0xE2>`). A vocabulary of another kind gives what its decoder says for the token alone.

    Attributes:
        drops_first_space: whether the tokenizer's decoder removes the space before a text's first word, which its
            encoder has put there.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Take a transformers tokenizer (fast)."""
        self._tokenizer = tokenizer
        self._added = {token_id: str(token).encode() for token_id, token in tokenizer.added_tokens_decoder.items()}
        parts = _decoder_parts(tokenizer.backend_tokenizer.decoder)
        kinds = {part["type"] for part in parts}
        self._is_byte_level = "ByteLevel" in kinds
        self._is_sentencepiece = bool(kinds & {"ByteFallback", "Metaspace"})
        self.drops_first_space = any(
            (part["type"] == "Strip" and part.get("content") == " " and part.get("start"))
            or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
            for part in parts
        )

    def of(self, token_id: int) -> bytes:
        """Return a token's bytes; special tokens give their name, ids outside the vocabulary nothing."""
        if token_id in self._added:
            return self._added[token_id]
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:
            return b""
        if self._is_byte_level and all(letter in _BYTE_OF for letter in token):
            return bytes(_BYTE_OF[letter] for letter in token)
        if self._is_sentencepiece:
            match = _BYTE_TOKEN.fullmatch(token)
            return bytes([int(match[1], 16)]) if match else str(token).replace(_SPACE, " ").encode()
        return str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)).encode()


def _decoder_parts(decoder: Any) -> list[dict[str, Any]]:
    """Return the steps of a decoder of the tokenizers library as they stand in `tokenizer.json`."""
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    return list(state["decoders"]) if state["type"] == "Sequence" else [state]


def _letters_of_bytes() -> dict[str, int]:
    """Return GPT-2's alphabet: printable bytes stand for themselves, the others for letters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _letters_of_bytes()
