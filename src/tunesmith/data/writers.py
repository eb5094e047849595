"""Write conversations as OpenAI's chat JSONL, which reads back as the same conversations."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunesmith.data.examples import Conversation, Message
from tunesmith.errors import storage_errors


def chat_row(conversation: Conversation) -> dict[str, Any]:
    """Return the conversation as OpenAI's training row: `messages` and, where there are any, `tools`."""
    row: dict[str, Any] = {"messages": [chat_message(message) for message in conversation.messages]}
    if conversation.tools:
        row["tools"] = [dict(tool) for tool in conversation.tools]
    return row


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


def write_chat_jsonl(path: Path, conversations: Iterable[Conversation]) -> int:
    """Write one row a line to `path`, UTF-8, and return the number of rows.

    The file appears whole or not at all: it is written beside its name, flushed to the disk, then renamed.

    Raises:
        StorageError: the disk is full or the folder can't be written.
    """
    rows = 0
    unfinished = path.with_name(f".{path.name}.unfinished")
    with storage_errors(path):
        try:
            with unfinished.open("w", encoding="utf-8", newline="\n") as file:
                for conversation in conversations:
                    file.write(json.dumps(chat_row(conversation), ensure_ascii=False) + "\n")
                    rows += 1
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return rows
