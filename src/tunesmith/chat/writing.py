"""A conversation as text, written by the base's chat template: prompts, replies, and where each reply begins.

Templates differ between a prompt and the same turns once they are answered: Qwen 3 removes the reasoning of earlier
turns, Mistral shows the system message only before the turn that is asked for. So nothing here is assumed: each
prompt and each reply is written by the template itself, and what is learnt is always the prompt that serving sees,
followed by the reply as the template writes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from tunesmith.chat.template import template_messages, understands_tools
from tunesmith.data.examples import Conversation, Message, ToolCall
from tunesmith.errors import DataError

#: Stands inside a special token's name that a user wrote as plain text, so that it stays plain text. Made of
#: Unicode non-characters, which no valid text holds.
BREAK = "\ufdd0\ufdd1\ufdd0"

#: Stands for a reply whose place in the text is sought.
_REPLY = "\ufdd2\ufdd3\ufdd2"

#: Templates that write the date (Llama 3) get this one, Llama's own default: else a model trained today would see
#: another prompt tomorrow, and a resumed run other tokens. Defined in Jinja, as transformers lets no function in.
_TODAY = {"%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%a": "Fri", "%A": "Friday"}
_FIXED_DATE = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f" | replace('{code}', '{text}')" for code, text in _TODAY.items())
    + " }}{% endmacro %}\n"
)

#: What a template raises when it can't write a conversation.
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


class Script:
    """A base's chat template and the names of its special tokens.

    Args:
        tokenizer: a transformers tokenizer.
        template: the chat template's Jinja text.
        end_names: the names of the tokens that end a turn.
    """

    def __init__(self, tokenizer: Any, template: str, end_names: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._template = _FIXED_DATE + template if "strftime_now" in template else template
        self._native_tools = understands_tools(template)
        # Longest first, so that a name is never broken inside a longer one.
        added = sorted(tokenizer.added_tokens_decoder.values(), key=lambda token: len(str(token)), reverse=True)
        self._names = [str(token) for token in added if len(str(token)) > 1]
        self._special_names = [str(token) for token in added if len(str(token)) > 1 and token.special]
        self._end_names = tuple(end_names)

    def write(self, conversation: Conversation, messages: Sequence[Message], *, opening: bool) -> str:
        """Return the text of `messages` with the conversation's tools, and the opening of the next reply if asked.

        Raises:
            DataError: the template refuses these messages.
        """
        where = str(conversation.place) if conversation.place else None
        tools = [self._plain_json(tool, self._special_names) for tool in conversation.tools]
        plain = [self._plain(message) for message in messages]
        try:
            text = self._apply(plain, tools, opening=opening)
        except _REFUSALS as error:
            try:
                text = self._apply([_with_short_ids(message) for message in plain], tools, opening=opening)
            except _REFUSALS:
                raise DataError(
                    f"The base's chat template refuses this conversation: {error}",
                    where=where,
                    fix="Follow the order of turns that this base was made for (most want system, then user and "
                    "assistant in turn), or choose another base.",
                    code="template_refuses",
                ) from error
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                "This conversation holds half a character (an unpaired surrogate), which no tokenizer can read.",
                where=where,
                fix=r"Remove \ud800 to \udfff escapes that stand alone, often left where a text was cut.",
                code="invalid_unicode",
            ) from error
        return text

    def _apply(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, opening: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                template_messages(messages, tools, native_tools=self._native_tools),
                tools=tools if tools and self._native_tools else None,
                chat_template=self._template,
                add_generation_prompt=opening,
                tokenize=False,
                # Templates of reasoning models open the turn with an empty thought, so that the answer follows.
                enable_thinking=False,
            )
        )

    def until_end(self, text: str) -> str:
        """Return `text` up to the name of the first end-of-turn token in it."""
        found = [position for name in self._end_names if (position := text.find(name)) >= 0]
        return text[: min(found)] if found else text.rstrip()

    def _plain(self, message: Message) -> Message:
        """Break the names of special tokens in a message, so that they are read as plain text.

        What users and tools write can't become any added token. The developer and the model may write the tokens
        that a tokenizer counts as ordinary text, such as `<think>` and `<tool_call>`.
        """
        names = self._names if message.role in ("user", "tool") else self._special_names
        return replace(
            message,
            content=None if message.content is None else _broken(message.content, names),
            name=None if message.name is None else _broken(message.name, names),
            tool_calls=tuple(
                ToolCall(_broken(call.id, names), _broken(call.name, names), _broken(call.arguments, names))
                for call in message.tool_calls
            ),
        )

    @staticmethod
    def _plain_json(value: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
        text = json.dumps(value, ensure_ascii=False)
        plain: dict[str, Any] = json.loads(_broken(text, names))
        return plain


class Writing:
    """One conversation's texts, each written once."""

    def __init__(self, script: Script, conversation: Conversation) -> None:
        self._script = script
        self._conversation = conversation
        self._messages = conversation.messages
        self._wholes: dict[int, str] = {}
        self._prompts: dict[int, str] = {}

    def whole(self, count: int) -> str:
        """Return the first `count` messages as the template writes them.

        Raises:
            DataError: the template refuses them; so in all methods.
        """
        if count not in self._wholes:
            messages = self._messages[:count]
            self._wholes[count] = self._script.write(self._conversation, messages, opening=False)
        return self._wholes[count]

    def prompt(self, turn: int) -> str:
        """Return what generation of message `turn` continues: the messages before it and the reply's opening."""
        if turn not in self._prompts:
            # A template can't write no messages at all; before the first one stands what it writes before a reply.
            self._prompts[turn] = (
                self._script.write(self._conversation, self._messages[:turn], opening=True)
                if turn
                else self._before_reply(0)
            )
        return self._prompts[turn]

    def shows(self, turn: int, text: str) -> bool:
        """Whether `text` holds the prompt of reply `turn` and then that reply as it is written when it is the last."""
        prompt = self.prompt(turn)
        if not text.startswith(prompt):
            return False
        alone, until_end = self.whole(turn + 1), self._script.until_end
        return alone.startswith(prompt) and until_end(alone[len(prompt) :]) == until_end(text[len(prompt) :])

    def ending_with(self, turn: int) -> str:
        """Return the prompt of reply `turn` and then the reply, with all that the template writes after it.

        Raises:
            DataError: also if the template changes what stands before the reply, so that it can't be told apart.
        """
        whole, prompt = self.whole(turn + 1), self.prompt(turn)
        if whole.startswith(prompt):
            return whole
        before = self._before_reply(turn)
        if not whole.startswith(before):
            place = self._conversation.place or "a conversation"
            raise DataError(
                "The chat template writes this reply in a way that generation can't continue from.",
                where=f"{place}, messages[{turn}]",
                fix="Leave reasoning (<think>...</think>) out of the reply, or choose another base.",
                code="template_mismatch",
            )
        return prompt + whole[len(before) :]

    def reply_starts(self, text: str, count: int) -> list[int]:
        """Return the places in `text`, of the first `count` messages, where an assistant's words begin, in order."""
        starts = set()
        for turn, message in enumerate(self._messages[:count]):
            if message.role == "assistant":
                prompt = self.prompt(turn)
                if len(prompt) < len(text) and text.startswith(prompt):
                    starts.add(len(prompt))
        return sorted(starts)

    def _before_reply(self, turn: int) -> str:
        """Return what the template writes before the words of reply `turn` once it is there."""
        messages = [*self._messages[:turn], Message("assistant", _REPLY)]
        return self._script.write(self._conversation, messages, opening=False).partition(_REPLY)[0]


def _with_short_ids(message: Message) -> Message:
    """Return the message with the ids of its calls as nine letters and digits: Mistral's template takes no others."""

    def short(call_id: str) -> str:
        return hashlib.sha256(call_id.encode(errors="replace")).hexdigest()[:9]

    return replace(
        message,
        tool_calls=tuple(replace(call, id=short(call.id)) for call in message.tool_calls),
        tool_call_id=None if message.tool_call_id is None else short(message.tool_call_id),
    )


def _broken(text: str, names: Sequence[str]) -> str:
    """Return `text` with each of `names` broken behind its first letter."""
    for name in names:
        if name in text:
            text = text.replace(name, name[0] + BREAK + name[1:])
    return text
