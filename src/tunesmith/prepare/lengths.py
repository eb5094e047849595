"""Keep rows within the longest length that training takes; whatever is dropped or cut is listed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.data.examples import Conversation, Place
from tunesmith.data.problems import MAX_LISTED
from tunesmith.errors import DataError
from tunesmith.prepare.findings import Dropped, Finding
from tunesmith.prepare.prepared import PreparedData, refuse_too_few

LengthPolicy = Literal["drop", "cut", "error"]


@dataclass(frozen=True, slots=True)
class RowLength:
    """A row in tokens, and how many of its first `max_tokens` tokens training learns."""

    tokens: int
    learnt_tokens_within_limit: int


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What happens to one row: `drop` says why it goes, `cut` that its end isn't seen."""

    drop: Dropped | None = None
    cut: bool = False


def limit_lengths(
    prepared: PreparedData[Conversation],
    measure: Callable[[Conversation], RowLength],
    max_tokens: int,
    policy: LengthPolicy,
) -> PreparedData[Conversation]:
    """Return the data without the rows that are longer than `max_tokens`, or with them to be cut there.

    Args:
        prepared: the data; a row without any learnt token within the limit is always dropped (`nothing_to_learn`).
        measure: gives a row's length under the base's tokenizer and template.
        max_tokens: the longest row, in tokens.
        policy: `drop` leaves long rows out (`too_long`); `cut` keeps those of training and validation, whose end the
            training then doesn't see (finding `cut`), and drops those of the test, whose answer must be whole;
            `error` refuses.

    Raises:
        DataError: `row_too_long` under the policy `error`; `too_few_examples` when fewer than 10 rows remain.
    """
    dropped: list[Dropped] = []
    cut: list[Conversation] = []
    kept: dict[str, tuple[Conversation, ...]] = {}
    for side, rows in (("train", prepared.train), ("validation", prepared.validation), ("test", prepared.test)):
        side_policy = "drop" if policy == "cut" and side == "test" else policy
        staying = []
        for index, row in enumerate(rows):
            place = row.place or Place(f"({side})", index + 1, "row")
            verdict = _judge(place, measure(row), max_tokens, side_policy)
            if verdict.drop is not None:
                dropped.append(verdict.drop)
                continue
            staying.append(row)
            if verdict.cut:
                cut.append(row)
        kept[side] = tuple(staying)
    dropped.sort(key=lambda row: (row.place.file, row.place.line))
    too_long = [row for row in dropped if row.code == "too_long"]
    if policy == "error" and too_long:
        raise _refusal(too_long, max_tokens)
    limited = dataclasses.replace(
        prepared,
        train=kept["train"],
        validation=kept["validation"],
        test=kept["test"],
        dropped=(*prepared.dropped, *dropped),
        findings=(*prepared.findings, *_findings(dropped, cut, max_tokens)),
    )
    if dropped:
        refuse_too_few(len(limited.rows) if limited.train else 0, dropped, dropped[0].place.file)
    return limited


def _judge(place: Place, length: RowLength, max_tokens: int, policy: str) -> _Verdict:
    is_long = length.tokens > max_tokens
    if is_long and policy != "cut":
        reason = f"is {length.tokens:,} tokens long, and the limit is {max_tokens:,}"
        return _Verdict(Dropped(place, "too_long", reason))
    if length.learnt_tokens_within_limit == 0:
        where = f" within the first {max_tokens:,} of its {length.tokens:,} tokens" if is_long else ""
        return _Verdict(Dropped(place, "nothing_to_learn", f"has nothing to learn{where}"))
    return _Verdict(cut=is_long)


def _findings(dropped: Sequence[Dropped], cut: Sequence[Conversation], max_tokens: int) -> list[Finding]:
    findings = []
    for code, what in (
        ("too_long", f"longer than {max_tokens:,} tokens"),
        ("nothing_to_learn", "without anything to learn"),
    ):
        places = _ordered([row.place for row in dropped if row.code == code])
        if places:
            message = f"{len(places):,} {_rows(len(places))} {what} {_were(len(places))} dropped."
            findings.append(Finding(code, message, len(places), places[:MAX_LISTED]))
    if cut:
        places = _ordered([row.place for row in cut if row.place is not None])
        message = (
            f"{len(cut):,} {_rows(len(cut))} {_were(len(cut))} cut at {max_tokens:,} tokens; the rest isn't learnt."
        )
        findings.append(Finding("cut", message, len(cut), places[:MAX_LISTED]))
    return findings


def _ordered(places: Sequence[Place]) -> tuple[Place, ...]:
    return tuple(sorted(places, key=lambda place: (place.file, place.line)))


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _refusal(too_long: Sequence[Dropped], max_tokens: int) -> DataError:
    more = f" ({len(too_long):,} rows are too long.)" if len(too_long) > 1 else ""
    return DataError(
        f"This row {too_long[0].reason}.{more}",
        where=str(too_long[0].place),
        fix=f"Shorten it, raise limits.max_tokens (now {max_tokens:,}), or set data.too_long to `drop` or `cut`.",
        code="row_too_long",
        param="data.too_long",
        problems=tuple(f"{row.place}: {row.reason}" for row in too_long[1:MAX_LISTED]),
    )
