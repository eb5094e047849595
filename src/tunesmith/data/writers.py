"""Write rows as JSONL, conversations as OpenAI has them, which reads back as the same rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunesmith.data.examples import Conversation, Document, Example, Message
from tunesmith.errors import storage_errors


def chat_row(conversation: Conversation) -> dict[str, Any]:
    """Return the conversation as OpenAI's training row: `messages` and, where there are any, `tools`."""
    row: dict[str, Any] = {"messages": [chat_message(message) for message in conversation.messages]}
    if conversation.tools:
        row["tools"] = [dict(tool) for tool in conversation.tools]
    return row


def document_row(document: Document) -> dict[str, Any]:
    """Return the document as a row: its `text` and, where more of it follows elsewhere, `continues`."""
    return {"text": document.text, **({"continues": True} if document.continues else {})}


def chat_message(message: Message) -> dict[str, Any]:
    """Return the message as OpenAI's object, without the fields that are empty."""
    row: dict[str, Any] = {"role": message.role}
    if message.content is not None or not message.tool_calls:
        row["content"] = message.content
    if message.name is not None:
        row["name"] = message.name
    if message.tool_calls:
        row["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        row["tool_call_id"] = message.tool_call_id
    if message.weight is not None:
        row["weight"] = message.weight
    return row


def write_jsonl(path: Path, rows: Iterable[Example]) -> int:
    """Write one row a line to `path`, UTF-8, and return the number of rows.

    The file appears whole or not at all: it is written beside its name, flushed to the disk, then renamed.

    Raises:
        StorageError: the disk is full or the folder can't be written.
    """
    written = 0
    unfinished = path.with_name(f".{path.name}.unfinished")
    with storage_errors(path):
        try:
            with unfinished.open("w", encoding="utf-8", newline="\n") as file:
                for row in rows:
                    values = document_row(row) if isinstance(row, Document) else chat_row(row)
                    file.write(json.dumps(values, ensure_ascii=False) + "\n")
                    written += 1
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return written
