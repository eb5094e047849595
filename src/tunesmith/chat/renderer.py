"""THE chat renderer: messages to tokens, and which of the tokens are learnt.

Training, evaluation, generation and serving all call this file, so what is served is what was trained. Two promises,
each a property test over every supported template:

1. The tokens of `for_generation(prompt)` are a prefix of the tokens that training saw for that prompt.
2. The learnt tokens decode to the assistant's words and the end-of-turn token, nothing else.

The model's own chat template writes the text (see `chat.writing`). The text is cut where an assistant's words begin,
and the pieces are encoded one by one: a token can then never straddle a prompt and its reply. A template that writes an
earlier turn differently from the last one (Qwen 3 removes the reasoning of earlier turns) can't show all turns in one
sequence; such a conversation becomes one sequence for each assistant turn, each exactly what serving would see.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tunesmith.chat.template import PLAIN_TEMPLATE
from tunesmith.chat.token_bytes import TokenBytes
from tunesmith.chat.writing import BREAK, Script, Writing
from tunesmith.data.examples import Conversation, Message
from tunesmith.errors import DataError

#: Names under which chat models know the end of a turn or of a text.
_END_NAMES = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "</s>",
    "<eos>", "<|return|>", "<turn|>",
)  # fmt: skip


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
        self._added = {str(token): token_id for token_id, token in tokenizer.added_tokens_decoder.items()}
        self._added_ids = frozenset(self._added.values())
        self._bytes = TokenBytes(tokenizer)
        self._script = Script(tokenizer, self.template, tokenizer.convert_ids_to_tokens(sorted(self.end_of_turn_ids)))
        self._behind_special, self._behind_text = self._contexts()

    @cached_property
    def template_hash(self) -> str:
        """Identify the rendering: SHA-256 over the template and the special tokens (hex)."""
        names = "\0".join([self.template, *sorted(self._added, key=len, reverse=True)])
        return hashlib.sha256(names.encode()).hexdigest()

    @cached_property
    def end_of_turn_ids(self) -> frozenset[int]:
        """Tokens that end an assistant's turn; generation stops at any of them."""
        ends = {self._added[name] for name in _END_NAMES if name in self._added}
        if self.tokenizer.eos_token_id is not None:
            ends.add(self.tokenizer.eos_token_id)
        return frozenset(ends)

    def for_generation(self, conversation: Conversation, *, most_characters: int | None = None) -> tuple[int, ...]:
        """Return the tokens of a prompt: the conversation so far and the opening of the assistant's next turn.

        Args:
            conversation: the messages, and the tools that the model is shown.
            most_characters: a longer text is refused before it is cut into tokens, of which each takes some hundred
                bytes; None: any is cut.

        Raises:
            DataError: the template refuses these messages, or their text is longer (`context_length_exceeded`).
        """
        writing = Writing(self._script, conversation)
        count = len(conversation.messages)
        text = writing.prompt(count)
        characters = len(text) - len(BREAK) * text.count(BREAK)
        if most_characters is not None and characters > most_characters:
            raise DataError(
                f"The prompt has {characters:,} characters, which are more than this model takes.",
                fix="Shorten the messages.",
                code="context_length_exceeded",
            )
        return self._render(text, writing.reply_starts(text, count), frozenset()).token_ids

    def for_training(self, conversation: Conversation) -> list[Rendered]:
        """Return the sequences to learn from, each learnt turn in one of them; the last one holds the last such turn.

        It is one sequence, unless the template writes earlier turns differently.

        Raises:
            DataError: the template refuses these messages, or a reply can't be told from its prompt.
        """
        writing = Writing(self._script, conversation)
        count = len(conversation.messages)
        whole = writing.whole(count)
        turns = [i for i, message in enumerate(conversation.messages) if message.is_learnt]
        together = [turn for turn in turns if writing.shows(turn, whole)]
        rendered = []
        for turn in turns:
            if turn not in together:
                text = writing.ending_with(turn)
                starts = writing.reply_starts(text, turn + 1)
                rendered.append(self._render(text, starts, {len(writing.prompt(turn))}))
            elif turn == together[-1]:
                starts = writing.reply_starts(whole, count)
                rendered.append(self._render(whole, starts, {len(writing.prompt(i)) for i in together}))
        return rendered

    def continuation_ids(self, conversation: Conversation, reply: str) -> tuple[int, ...]:
        """Return the tokens of a reply to a prompt, up to the end of the turn, as training would learn them.

        The tokens of `for_generation(conversation)` with these behind them are what training sees. A template that
        trims replies trims this one too.

        Raises:
            DataError: the template refuses these messages, or the reply can't be told from its prompt.
        """
        turn = len(conversation.messages)
        answered = (*conversation.messages, Message("assistant", reply))
        writing = Writing(self._script, replace(conversation, messages=answered))
        text = writing.ending_with(turn)
        rendered = self._render(text, writing.reply_starts(text, turn + 1), {len(writing.prompt(turn))})
        return tuple(itertools.compress(rendered.token_ids, rendered.learnt))

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text that is no chat; names of special tokens in it count as such."""
        return tuple(self.tokenizer.encode(text))

    @cached_property
    def text_start_id(self) -> int:
        """The token behind which a text begins, for a model that is to begin one of its own."""
        names = ("<|endoftext|>", "<|begin_of_text|>")
        known = [self._added[name] for name in names if name in self._added]
        for token_id in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            known += [] if token_id is None else [token_id]
        return known[0] if known else 0

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of tokens, special tokens left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_text(self, token_id: int) -> str:
        """Return one token's text as it stands in the sequence, special tokens by name, half characters as U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return what a token adds to the text, in UTF-8, which may be a part of a character."""
        return self._bytes.of(token_id)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are no part of any text."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def drops_first_space(self) -> bool:
        """Whether an answer's text leaves out the space that its first token may begin with."""
        return self._bytes.drops_first_space

    def _render(self, text: str, starts: Sequence[int], learnt_starts: AbstractSet[int]) -> Rendered:
        """Encode `text` piece by piece, cut at `starts`; replies at `learnt_starts` are learnt to their end."""
        token_ids: list[int] = []
        learnt: list[bool] = []
        edges = [0, *starts, len(text)]
        for start, end in itertools.pairwise(edges):
            ids = self._encode(text[start:end], behind_special=not token_ids or token_ids[-1] in self._added_ids)
            count = 0
            if start in learnt_starts:
                ends = [i for i, token_id in enumerate(ids) if token_id in self.end_of_turn_ids]
                if not ends and end == len(text) and self.tokenizer.eos_token_id is not None:
                    ids.append(self.tokenizer.eos_token_id)  # the template ends no turn: learn to stop all the same
                count = ends[0] + 1 if ends else len(ids)
            token_ids += ids
            learnt += [True] * count + [False] * (len(ids) - count)
        return Rendered(tuple(token_ids), tuple(learnt))

    def _encode(self, piece: str, *, behind_special: bool) -> list[int]:
        """Encode one piece as it would be behind a special token or behind text; broken names stay plain text."""
        ids: list[int] = []
        for part in filter(None, piece.split(BREAK)):
            context = self._behind_special if behind_special and not ids else self._behind_text
            whole = self._plain_encode(context.text + part)
            if whole[: len(context.ids)] != context.ids:  # the context has grown together with the part
                context = self._behind_special
                whole = self._plain_encode(context.text + part)
            ids += whole[len(context.ids) :]
        return ids

    def _contexts(self) -> tuple[_Context, _Context]:
        """Return what is put before a piece to have it encoded as behind a special token, and as behind text.

        SentencePiece tokenizers of the older kind put a space before each text that follows a special token.
        """
        special = [
            token for token in self.tokenizer.added_tokens_decoder.values() if token.special and not token.rstrip
        ]
        if not special:
            return _Context("", []), _Context("", [])
        name = str(special[0])
        behind_special = _Context(name, self._plain_encode(name))
        first = self.tokenizer.convert_ids_to_tokens(self._plain_encode(name + "a")[1:2])
        if not first or not first[0].startswith("\u2581"):
            return behind_special, behind_special
        # A line break is a byte token of its own, which grows together with nothing.
        return behind_special, _Context(name + "\n", self._plain_encode(name + "\n"))

    def _plain_encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


@dataclass(frozen=True, slots=True)
class _Context:
    """Text put before a piece while it is encoded, and the tokens to take away again."""

    text: str
    ids: list[int]
