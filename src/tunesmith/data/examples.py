"""What there is to learn from: one row of any data set, as a conversation or as a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Role = Literal["system", "developer", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row came from: the file as the user named it and its 1-based physical line.

    Rows of Parquet files and JSON arrays have no line of their own; they are counted (`unit="row"`), from 1.
    """

    file: str
    line: int
    unit: Literal["line", "row"] = "line"

    def __str__(self) -> str:
        """Return `file, line n` or `file, row n`."""
        return f"{self.file}, {self.position}"

    @property
    def position(self) -> str:
        """The place inside its file: `line n` or `row n`."""
        return f"{self.unit} {self.line}"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """An assistant's call of a function; `arguments` is the JSON text exactly as written."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    `weight` is OpenAI's per-message weight: 0 keeps an assistant's turn out of the loss, None and 1 leave it in.
    """

    role: Role
    content: str | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    weight: int | None = None

    @property
    def is_learnt(self) -> bool:
        """Whether training learns this turn's words."""
        return self.role == "assistant" and self.weight != 0


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, with the tools that the assistant may call (OpenAI's `tools` objects).

    `source` is the place of its file among those of the spec, from 0.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    place: Place | None = field(default=None, compare=False)
    source: int = field(default=0, compare=False)

    @property
    def prompt(self) -> Conversation:
        """The conversation up to, without, its last assistant turn: what a model is asked in evaluation."""
        last = max(i for i, message in enumerate(self.messages) if message.role == "assistant")
        return Conversation(self.messages[:last], self.tools, self.place)

    @property
    def reference(self) -> str:
        """The words of the last assistant turn: what a good answer looks like."""
        reply = next(message for message in reversed(self.messages) if message.role == "assistant")
        return reply.content or ""


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text, all of which is learnt.

    `continues` says that more of the same text follows elsewhere, so that its end isn't the text's end. `source` is the
    place of its file among those of the spec, from 0.
    """

    text: str
    continues: bool = False
    place: Place | None = field(default=None, compare=False)
    source: int = field(default=0, compare=False)


#: One row of any data set.
Example = Conversation | Document
