"""Arms: ways to ask the same rows, from the bare prompt to examples in the prompt.

An arm only rewrites requests. Which model answers is the caller's business, so one arm serves base and tuned alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np
from rapidfuzz import fuzz, process

from tunesmith.data.examples import Conversation, Message

#: Examples are chosen among at most this many rows (the choice compares all pairs).
_CANDIDATES = 300

#: How much a long example costs: its gain is divided by its length to this power.
_LENGTH_COST = 0.3

_INSTRUCTIONS = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to get answers.

    Attributes:
        name: a short name for tables (`base, careful prompt`).
        description: what it does, in a few words.
        ask: turns a row's prompt (the conversation without its last answer) into the request.
        shots: how many solved examples each request holds.
    """

    name: str
    description: str
    ask: Callable[[Conversation], Conversation]
    shots: int = 0

    def request(self, row: Conversation) -> Conversation:
        """Return what the model is asked for one test row; never holds the row's answer."""
        return self.ask(row.prompt)

    def requests(self, rows: Sequence[Conversation]) -> list[Conversation]:
        """Return the requests for the test rows, in their order."""
        return [self.request(row) for row in rows]


def as_is(name: str, description: str = "the rows' own prompt") -> Arm:
    """Return the arm that asks the rows as they stand."""
    return Arm(name, description, ask_as_is)


def with_system_prompt(name: str, description: str, text: str, *, place: Literal["replace", "add"] = "replace") -> Arm:
    """Return the arm that asks with another system prompt: in place of the row's own, or after its words."""
    return Arm(name, description, partial(ask_with_system_prompt, text=text, place=place))


def with_examples(name: str, description: str, examples: Sequence[Conversation], *, system: str | None = None) -> Arm:
    """Return the arm that shows solved examples first, with another system prompt if one is given.

    The examples are the same for every row and stand before what differs, so their tokens are a shared prefix that a
    generator computes once.
    """
    return Arm(name, description, partial(_ask_with_both, examples=tuple(examples), system=system), len(examples))


def ask_as_is(prompt: Conversation) -> Conversation:
    """Return the prompt unchanged."""
    return prompt


def ask_with_system_prompt(
    prompt: Conversation, text: str, place: Literal["replace", "add"] = "replace"
) -> Conversation:
    """Return the prompt with `text` as its system prompt, or added to the end of the one it has."""
    own, turns = _split(prompt)
    if place == "add" and own:
        last = own[-1]
        joined = "\n\n".join(words for words in (last.content, text) if words)
        return replace(prompt, messages=(*own[:-1], replace(last, content=joined), *turns))
    return replace(prompt, messages=(Message("system", text), *turns))


def ask_with_examples(prompt: Conversation, examples: Sequence[Conversation]) -> Conversation:
    """Return the prompt with the examples' turns between its instructions and its own turns.

    The examples' own system prompts are left out; the prompt's stays.
    """
    own, turns = _split(prompt)
    shown = tuple(message for example in examples for message in _split(example)[1])
    return replace(prompt, messages=(*own, *shown, *turns))


def choose_examples(
    rows: Sequence[Conversation], count: int, *, max_characters: int = 2000
) -> tuple[Conversation, ...]:
    """Choose training rows to show in a prompt: short ones that together look like all the others.

    Only rows that can be shown as plain turns are eligible: user and assistant take turns, from a user's turn to an
    assistant's, without tool calls. Among them, rows are taken greedily so that each row is as similar as can be to one
    of the chosen, at little cost in length (facility location with cost-scaled gains; Lin & Bilmes 2011, "A class of
    submodular functions for document summarization", P11-1052). No randomness: the same rows give the same choice.

    Args:
        rows: training rows; never pass test rows.
        count: how many to choose.
        max_characters: rows longer than this aren't eligible.

    Returns:
        At most `count` rows in the order of choice; fewer, or none, when not enough are eligible.
    """
    eligible = [row for row in rows if _is_plain(row) and len(_shown_text(row)) <= max_characters]
    thinned = min(len(eligible), _CANDIDATES)
    candidates = [eligible[i * len(eligible) // thinned] for i in range(thinned)]
    if not candidates or count < 1:
        return ()
    # Replies weigh as much as prompts: examples should show every kind of answer, not only every kind of question.
    asked = [_shown_text(candidate.prompt) for candidate in candidates]
    replies = [candidate.reference for candidate in candidates]
    alike = process.cdist(asked, asked, scorer=fuzz.token_sort_ratio, dtype=np.float32)
    alike = alike + process.cdist(replies, replies, scorer=fuzz.ratio, dtype=np.float32)
    lengths = np.array([len(_shown_text(candidate)) for candidate in candidates], dtype=np.float32)
    chosen: list[int] = []
    covered = np.zeros(len(candidates), dtype=np.float32)
    for _ in range(min(count, len(candidates))):
        gains = np.maximum(alike - covered, 0).sum(axis=1) / (1.0 + lengths) ** _LENGTH_COST
        gains[chosen] = -np.inf
        best = int(gains.argmax())
        chosen.append(best)
        covered = np.maximum(covered, alike[best])
    return tuple(candidates[i] for i in chosen)


def _ask_with_both(prompt: Conversation, examples: tuple[Conversation, ...], system: str | None) -> Conversation:
    """Replace the system prompt if one is given, then put the examples in."""
    asked = prompt if system is None else ask_with_system_prompt(prompt, system)
    return ask_with_examples(asked, examples)


def _split(conversation: Conversation) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Part the leading system or developer messages from the turns."""
    messages = conversation.messages
    start = next((i for i, message in enumerate(messages) if message.role not in _INSTRUCTIONS), len(messages))
    return messages[:start], messages[start:]


def _is_plain(row: Conversation) -> bool:
    """Whether the row can stand in another prompt as plain turns."""
    _, turns = _split(row)
    roles = [turn.role for turn in turns]
    return (
        len(turns) >= 2
        and roles[0] == "user"
        and roles[-1] == "assistant"
        and all({left, right} == {"user", "assistant"} for left, right in pairwise(roles))
        and all(turn.content and not turn.tool_calls for turn in turns)
    )


def _shown_text(conversation: Conversation) -> str:
    """Return the words of the turns, instructions left out."""
    return "\n".join(message.content or "" for message in _split(conversation)[1])
