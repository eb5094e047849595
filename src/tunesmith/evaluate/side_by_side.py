"""A few test rows with every arm's answer, chosen so that wins and failures both show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from tunesmith.data.examples import Conversation, Message
from tunesmith.evaluate.comparison import ArmResult


@dataclass(frozen=True, slots=True)
class Answer:
    """One arm's answer to one row with its primary score (0 to 1)."""

    arm: str
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class ShownRow:
    """One test row as people compare it.

    Attributes:
        number: the row's place among the test rows, from 1.
        place: where the row came from, if known.
        prompt: what was asked, as (role, words) pairs, without the system prompt.
        reference: the right answer.
        answers: one for each arm, in the arms' order.
    """

    number: int
    place: str | None
    prompt: tuple[tuple[str, str], ...]
    reference: str
    answers: tuple[Answer, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "number": self.number,
            "place": self.place,
            "prompt": [{"role": role, "content": words} for role, words in self.prompt],
            "reference": self.reference,
            "answers": {answer.arm: {"text": answer.text, "score": answer.score} for answer in self.answers},
        }


def show_rows(rows: Sequence[Conversation], arms: Sequence[ArmResult], picks: Sequence[int]) -> list[ShownRow]:
    """Return the picked rows (0-based) with every arm's answer."""
    return [
        ShownRow(
            number=pick + 1,
            place=str(rows[pick].place) if rows[pick].place else None,
            prompt=tuple(
                (m.role, _words(m)) for m in rows[pick].prompt.messages if m.role not in ("system", "developer")
            ),
            reference=rows[pick].reference,
            answers=tuple(Answer(arm.name, arm.answers[pick], arm.row_scores[pick]) for arm in arms),
        )
        for pick in picks
    ]


def pick_rows(candidate: ArmResult, baseline: ArmResult | None = None, *, count: int = 12) -> list[int]:
    """Pick rows (0-based, in the rows' order) that tell the story of one arm against another.

    Right/wrong scores: rows are taken in turn from those that only the candidate has right, both have wrong, only the
    baseline has right, both have right, evenly spread over each group. Graded scores: evenly spread over the
    candidate's scores, the worst and the best row among them. No randomness.
    """
    if not candidate.measure.is_binary:
        order = sorted(range(candidate.rows), key=lambda i: (candidate.row_scores[i], i))
        return sorted(_spread(order, count))
    before = baseline.row_scores if baseline else (0.0,) * candidate.rows
    groups: dict[tuple[bool, bool], list[int]] = {
        (True, False): [],
        (False, False): [],
        (False, True): [],
        (True, True): [],
    }
    for i, (after, was) in enumerate(zip(candidate.row_scores, before, strict=True)):
        groups[after == 1.0, was == 1.0].append(i)
    turns = zip_longest(*(_spread(group, count) for group in groups.values()))
    picked = [i for i in chain.from_iterable(turns) if i is not None]
    return sorted(picked[:count])


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Return at most `count` items, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def _words(message: Message) -> str:
    """Return what a turn says, its tool calls written out."""
    calls = [f"{call.name}({call.arguments})" for call in message.tool_calls]
    return "\n".join(part for part in (message.content, *calls) if part)
