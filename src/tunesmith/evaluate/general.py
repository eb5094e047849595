"""What the base could do before: the loss on general instructions, and how far it went up by training."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from tunesmith.data.examples import Conversation, Message

#: Training has made the model forget when the loss on general instructions grew by more than this share.
_FORGOTTEN = 0.1


def bundled_instructions(count: int) -> tuple[Conversation, ...]:
    """Return the first `count` of the bundled general instructions, or all there are (some fifty)."""
    text = files(__package__).joinpath("general_rows/instructions.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line)["messages"] for line in text.splitlines()[:count]]
    return tuple(
        Conversation(tuple(Message(message["role"], message["content"]) for message in messages)) for messages in rows
    )


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The mean loss on general rows before and after training, in nats a token.

    `rows` counts them; `is_bundled` says whether they are those that come with Tunesmith.
    """

    before: float
    after: float
    rows: int
    is_bundled: bool

    @property
    def growth(self) -> float:
        """How much the loss grew, as a share of what it was; negative where it fell."""
        return self.after / self.before - 1 if self.before else math.inf

    @property
    def is_forgetting(self) -> bool:
        """Whether it grew so much that people should know."""
        return not self.growth <= _FORGOTTEN

    @property
    def message(self) -> str:
        """A sentence for people, and what to do."""
        which = "general instructions" if self.is_bundled else "the held-out general rows"
        told = f"On {which} the loss went from {self.before:.2f} to {self.after:.2f} ({self.growth:+.0%})"
        if not self.is_forgetting:
            return f"{told}."
        return (
            f"{told}: the model has forgotten some of what the base could do. If it should keep that, mix general rows "
            "in (data.replay), or train with a lower learning rate or fewer epochs."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "before": self.before,
            "after": self.after,
            "growth": self.growth,
            "rows": self.rows,
            "bundled": self.is_bundled,
        }
