"""Prompts as Python users write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.data.chat_rows import RowCheck, read_messages
from tunesmith.data.examples import Conversation, Message, Place
from tunesmith.data.problems import refusal
from tunesmith.errors import RequestError

#: Words, OpenAI messages, or a conversation.
Prompt = str | Sequence[Mapping[str, Any]] | Conversation


def as_conversation(prompt: Prompt) -> Conversation:
    """Return a prompt as a conversation.

    Raises:
        RequestError: it isn't a text or a list of messages.
    """
    if isinstance(prompt, Conversation):
        return prompt
    if isinstance(prompt, str):
        return Conversation((Message("user", prompt),))
    row = RowCheck(Place("the prompt", 1))
    messages = read_messages([dict(message) for message in prompt], "messages", row)
    if row.problems:
        error = refusal(row.problems)
        raise RequestError(error.message, where=error.where, fix=error.fix, param="messages", code=error.code)
    return Conversation(messages)


def is_one_prompt(prompts: Any) -> bool:
    """Whether a value is one prompt rather than a list of them."""
    return isinstance(prompts, str | Conversation) or (bool(prompts) and isinstance(prompts[0], Mapping))
