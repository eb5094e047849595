"""Stable hashes and normalised words of rows: what identity and likeness are measured by."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable

from tunesmith.data.examples import Conversation, Document, Example
from tunesmith.data.writers import chat_message, chat_row, document_row

# Chinese, Japanese, Korean and Thai write without spaces: there, each character counts as a word.
_SPACELESS = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
#: Documents that begin with so many words alike are alike.
_DOCUMENT_WORDS = 4000
#: Their text is looked at to so many characters, however long its words are.
_DOCUMENT_CHARACTERS = 16 * _DOCUMENT_WORDS
_WORD = re.compile(rf"[{_SPACELESS}]|(?:(?![{_SPACELESS}])\w)+")


def row_hash(row: Example) -> str:
    """Return the SHA-256 (hex) of the whole row as canonical JSON; the place doesn't count."""
    return _sha256(document_row(row) if isinstance(row, Document) else chat_row(row))


def prompt_hash(row: Example) -> str:
    """Return the SHA-256 (hex) of everything before the last assistant turn, to the letter; of a whole document."""
    return row_hash(row) if isinstance(row, Document) else _sha256(chat_row(row.prompt))


def answer_text(conversation: Conversation) -> str:
    """Return the last assistant turn as text, tool calls as JSON."""
    reply = next(message for message in reversed(conversation.messages) if message.role == "assistant")
    if not reply.tool_calls:
        return reply.content or ""
    return json.dumps(chat_message(reply), ensure_ascii=False, sort_keys=True)


def content_hash(splits: Iterable[tuple[str, Iterable[Example]]]) -> str:
    """Return the SHA-256 (hex) of named splits of rows, independent of the rows' order."""
    lines = sorted(f"{name}:{row_hash(row)}" for name, rows in splits for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def user_words(row: Example) -> tuple[str, ...]:
    """Return the normalised words of all user turns; of all turns before the reply where no user speaks.

    Of a document, its first 4,000 words.
    """
    if isinstance(row, Document):
        return words_of(row.text[:_DOCUMENT_CHARACTERS])[:_DOCUMENT_WORDS]
    texts = [message.content or "" for message in row.messages if message.role == "user"]
    return words_of("\n".join(texts)) if texts else prompt_words(row)


def prompt_words(row: Example) -> tuple[str, ...]:
    """Return the normalised words of everything before the last assistant turn; a document's first 4,000."""
    if isinstance(row, Document):
        return user_words(row)
    return words_of("\n".join(message.content or "" for message in row.prompt.messages))


def words_of(text: str) -> tuple[str, ...]:
    """Return the words of a text, whatever its case, punctuation, spacing and Unicode form; digits stay.

    A text without words (an emoji, "?!") is one word: itself.
    """
    plain = unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("’", "")
    words = tuple(_WORD.findall(plain))
    return words or ((plain.strip(),) if plain.strip() else ())


@functools.lru_cache(maxsize=1)
def _encoder() -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def _sha256(value: object) -> str:
    return hashlib.sha256(_encoder().encode(value).encode()).hexdigest()
