"""THE chat renderer: messages to tokens, and which of the tokens are learnt.

Training, evaluation, generation and serving all call this file, so what is served is what was trained. Two promises,
each a property test over every supported template:

1. The tokens of `for_generation(prompt)` are a prefix of the tokens that training saw for that prompt.
2. The learnt tokens decode to the assistant's words and the end-of-turn token, nothing else.

The model's own chat template writes the text. The text is cut where an assistant's words begin, and the pieces are
encoded one by one: a token can then never straddle a prompt and its reply. A template that writes an earlier turn
differently from the last one (Qwen 3 removes the reasoning of earlier turns) can't show all turns in one sequence;
such a conversation becomes one sequence for each assistant turn, each exactly what serving would see.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

from tunesmith.chat.template import PLAIN_TEMPLATE, template_messages, understands_tools
from tunesmith.data.examples import Conversation, Message
from tunesmith.errors import DataError

#: Names under which chat models know the end of a turn or of a text.
_END_NAMES = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>",
    "<eos>", "<|return|>", "<turn|>",
)  # fmt: skip

#: Stands inside a special token's name that a user wrote as plain text, so that it stays plain text. Made of
#: Unicode non-characters, which no valid text holds.
_BREAK = "\ufdd0\ufdd1\ufdd0"


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sequence of tokens. `learnt[t]` says whether token `t` is a target of training. Both have length T."""

    token_ids: tuple[int, ...]
    learnt: tuple[bool, ...]

    @property
    def learnt_tokens(self) -> int:
        """How many tokens are targets."""
        return sum(self.learnt)

    def cut(self, max_tokens: int) -> Rendered:
        """Keep the first `max_tokens` tokens."""
        return Rendered(self.token_ids[:max_tokens], self.learnt[:max_tokens])


class ChatRenderer:
    """Renders conversations with one tokenizer and one chat template.

    Args:
        tokenizer: a transformers tokenizer (fast).
        template: the chat template's Jinja text; None takes the tokenizer's own, or a plain one if it has none.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        self.tokenizer = tokenizer
        self.template: str = template or own or PLAIN_TEMPLATE
        self.is_plain = self.template == PLAIN_TEMPLATE
        self._native_tools = understands_tools(self.template)
        # Longest first, so that a name is never broken inside a longer one.
        added = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
        self._special_names = sorted(added, key=len, reverse=True)
        self._special_ids = frozenset(added.values())
        self._anchor = tokenizer.eos_token or (self._special_names[0] if self._special_names else None)

    @cached_property
    def template_hash(self) -> str:
        """Identify the rendering: SHA-256 over the template and the special tokens (hex)."""
        names = "\0".join([self.template, *sorted(self._special_names)])
        return hashlib.sha256(names.encode()).hexdigest()

    @cached_property
    def end_of_turn_ids(self) -> frozenset[int]:
        """Tokens that end an assistant's turn; generation stops at any of them."""
        vocabulary = self.tokenizer.get_vocab()
        ends = {vocabulary[name] for name in _END_NAMES if name in vocabulary and vocabulary[name] in self._special_ids}
        if self.tokenizer.eos_token_id is not None:
            ends.add(self.tokenizer.eos_token_id)
        return frozenset(ends)

    def for_generation(self, conversation: Conversation) -> tuple[int, ...]:
        """Return the tokens of a prompt: the conversation so far and the opening of the assistant's next turn.

        Raises:
            DataError: the template refuses these messages.
        """
        text = self._text(conversation, len(conversation.messages), opening=True)
        cuts = self._reply_starts(conversation, text)
        return tuple(itertools.chain.from_iterable(self._encode(piece) for piece in self._pieces(text, cuts)))

    def for_training(self, conversation: Conversation) -> list[Rendered]:
        """Return the sequences to learn from: one, unless the template writes earlier turns differently.

        Raises:
            DataError: the template refuses these messages, or a reply can't be told from its prompt.
        """
        messages = conversation.messages
        whole = self._text(conversation, len(messages), opening=False)
        turns = [i for i, message in enumerate(messages) if message.is_learnt]
        starts = {i: len(self._text(conversation, i, opening=True)) for i in turns}
        in_whole = [i for i in turns if self._shows(conversation, i, whole)]
        rendered = []
        if in_whole:
            cuts = self._reply_starts(conversation, whole)
            rendered.append(self._render(whole, cuts, {starts[i] for i in in_whole}))
        for i in turns:
            if i not in in_whole:
                text = self._text(conversation, i + 1, opening=False)
                if not self._shows(conversation, i, text):
                    raise DataError(
                        "The chat template writes this reply in a way that generation can't continue from.",
                        where=f"{conversation.place or 'a conversation'}, messages[{i}]",
                        fix="Give the base another chat template, or leave this row out.",
                        code="template_mismatch",
                    )
                cuts = self._reply_starts(Conversation(messages[: i + 1], conversation.tools), text)
                rendered.append(self._render(text, cuts, {starts[i]}))
        return rendered

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_text(self, token_id: int) -> str:
        """Return one token's text as it stands in the sequence, special tokens by name."""
        return str(self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False))

    def _shows(self, conversation: Conversation, turn: int, text: str) -> bool:
        """Whether `text` holds the prompt of assistant turn `turn` and then that very turn."""
        prompt = self._text(conversation, turn, opening=True)
        if not text.startswith(prompt):
            return False
        # The reply itself must be written as it is when it is the last turn, up to its end-of-turn token.
        alone = self._text(conversation, turn + 1, opening=False)
        if not alone.startswith(prompt):
            return False
        return self._until_end(alone[len(prompt) :]) == self._until_end(text[len(prompt) :])

    def _until_end(self, text: str) -> str:
        """Return `text` up to the name of the first end-of-turn token in it."""
        names = (self.tokenizer.convert_ids_to_tokens(i) for i in self.end_of_turn_ids)
        found = [position for name in names if (position := text.find(name)) >= 0]
        return text[: min(found)] if found else text.rstrip()

    def _reply_starts(self, conversation: Conversation, text: str) -> list[int]:
        """Return the places in `text` where an assistant's words begin, in order."""
        starts = []
        for i, message in enumerate(conversation.messages):
            if message.role == "assistant":
                prompt = self._text(conversation, i, opening=True)
                if len(prompt) < len(text) and text.startswith(prompt):
                    starts.append(len(prompt))
        return starts

    def _render(self, text: str, cuts: Sequence[int], learnt_starts: set[int]) -> Rendered:
        token_ids: list[int] = []
        learnt: list[bool] = []
        for start, piece in zip([0, *cuts], self._pieces(text, cuts), strict=True):
            ids = self._encode(piece)
            count = self._reply_length(ids, is_last=start == max([0, *cuts])) if start in learnt_starts else 0
            if count > len(ids):  # the template writes no end of turn: learn to stop all the same
                ids = [*ids, self.tokenizer.eos_token_id]
            token_ids += ids
            learnt += [True] * count + [False] * (len(ids) - count)
        return Rendered(tuple(token_ids), tuple(learnt))

    def _reply_length(self, ids: Sequence[int], *, is_last: bool) -> int:
        """Count the tokens of a reply at the start of `ids`, its end-of-turn token included."""
        for position, token_id in enumerate(ids):
            if token_id in self.end_of_turn_ids:
                return position + 1
        return len(ids) + 1 if is_last and self.tokenizer.eos_token_id is not None else len(ids)

    @staticmethod
    def _pieces(text: str, cuts: Sequence[int]) -> list[str]:
        edges = [0, *cuts, len(text)]
        return [text[a:b] for a, b in itertools.pairwise(edges)]

    def _encode(self, text: str) -> list[int]:
        """Encode one piece; special names written by a user stay plain text."""
        ids: list[int] = []
        for part in text.split(_BREAK):
            if not part:
                continue
            if self._anchor is None:
                ids += self.tokenizer.encode(part, add_special_tokens=False)
            else:
                # Behind a special token no tokenizer adds the space that some put before a text's first word.
                ids += self.tokenizer.encode(self._anchor + part, add_special_tokens=False)[1:]
        return ids

    def _text(self, conversation: Conversation, count: int, *, opening: bool) -> str:
        """Write the first `count` messages, and the opening of the assistant's turn if asked.

        Raises:
            DataError: the template refuses these messages.
        """
        messages = [self._shield(message) for message in conversation.messages[:count]]
        tools = [dict(tool) for tool in conversation.tools]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    template_messages(messages, tools, native_tools=self._native_tools),
                    tools=tools if tools and self._native_tools else None,
                    chat_template=self.template,
                    add_generation_prompt=opening,
                    tokenize=False,
                    # Templates of reasoning models open the turn with an empty thought, so that the answer follows.
                    enable_thinking=False,
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"The base's chat template refuses this conversation: {error}",
                where=str(conversation.place) if conversation.place else None,
                fix="Follow the order of turns that this base was made for (most want system, then user and assistant "
                "in turn), or choose another base.",
                code="template_refuses",
            ) from error

    def _shield(self, message: Message) -> Message:
        """Break the names of special tokens in a message's text, so that they are read as plain text."""
        content = message.content
        if content is None or not any(name in content for name in self._special_names):
            return message
        for name in self._special_names:
            if len(name) > 1:
                content = content.replace(name, name[0] + _BREAK + name[1:])
        return Message(
            message.role, content, message.name, message.tool_calls, message.tool_call_id, message.weight
        )
