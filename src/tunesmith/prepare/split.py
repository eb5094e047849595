"""Split rows into train, validation and test, the same way whatever their order in the file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from tunesmith.data.examples import Example, Place
from tunesmith.prepare.findings import Dropped, Finding
from tunesmith.prepare.fingerprint import row_hash
from tunesmith.prepare.grouping import group_rows
from tunesmith.specs.data import DataSpec

Side = Literal["train", "validation", "test"]
#: One kind of row.
E = TypeVar("E", bound=Example)
_SET_ASIDE: tuple[Side, ...] = ("test", "validation")


@dataclass(frozen=True, slots=True)
class Split(Generic[E]):
    """The three sides, each in the order of its rows' hashes.

    `dropped` are rows too like a row of a test or validation file of their own; `left_out` counts the rows beyond
    `max_train_rows`.
    """

    train: tuple[E, ...]
    validation: tuple[E, ...]
    test: tuple[E, ...]
    dropped: tuple[Dropped, ...]
    left_out: int
    findings: tuple[Finding, ...]


def split_rows(
    rows: Sequence[E],
    spec: DataSpec,
    *,
    validation: Sequence[E] | None = None,
    test: Sequence[E] | None = None,
) -> Split[E]:
    """Split `rows`; the test first, then validation, the rest is for training.

    Rows are set aside from each source in proportion to its rows.

    Groups of near-identical rows stay on one side (`group_rows`). Groups are ranked by a hash of their content, so
    that the order of the rows doesn't matter and most rows keep their side when some are added. Rows given as
    `validation` or `test` keep theirs; the rows that are near-identical to them leave the other sides.
    """
    everything = [*rows, *(validation or ()), *(test or ())]
    fixed: list[Side | None] = [None for _ in rows]
    fixed.extend("validation" for _ in validation or ())
    fixed.extend("test" for _ in test or ())
    grouping = group_rows(everything, spec.near_duplicate_similarity)
    sides: dict[Side, list[E]] = {"train": [], "validation": [], "test": []}
    dropped: list[Dropped] = []
    free: list[list[E]] = []
    for group in grouping.groups:
        if any(fixed[index] for index in group):
            _place_fixed(group, everything, fixed, sides, dropped)
        else:
            free.append([everything[index] for index in group])
    targets: dict[Side, int] = {
        "test": 0 if test is not None else _target(spec.test_fraction, spec.max_test_rows, len(rows)),
        "validation": (
            0 if validation is not None else _target(spec.validation_fraction, spec.max_validation_rows, len(rows))
        ),
    }
    _fill(free, targets, sides, Counter(row.source for row in rows))
    train = _by_hash(sides["train"])
    used = train[: spec.max_train_rows]
    findings = [*grouping.findings, *_size_findings(sides, targets, len(train) - len(used))]
    near = sum(len(group) for group in grouping.groups if len(group) > 1)
    if near > 0.2 * len(everything):
        share = near / len(everything)
        message = f"{share:.0%} of the rows are near-identical to another one; each such group is on one side only."
        findings.append(Finding("near_duplicates", message, near))
    return Split(
        used,
        _by_hash(sides["validation"]),
        _by_hash(sides["test"]),
        tuple(dropped),
        len(train) - len(used),
        tuple(findings),
    )


def _target(fraction: float, limit: int, rows: int) -> int:
    return min(limit, max(1, round(fraction * rows))) if fraction > 0 else 0


def _fill(
    groups: list[list[E]], targets: dict[Side, int], sides: dict[Side, list[E]], source_rows: Counter[int]
) -> None:
    """Give whole groups, in the order of their ranks, to the first side that still has room for them.

    Each source has its own room, in proportion to its rows.
    """
    room = {side: _proportions(targets[side], source_rows) for side in _SET_ASIDE}
    for group in sorted(groups, key=_rank):
        rows = Counter(row.source for row in group)
        for side in _SET_ASIDE:
            if all(count <= room[side][source] for source, count in rows.items()):
                for source, count in rows.items():
                    room[side][source] -= count
                sides[side].extend(group)
                break
        else:
            sides["train"].extend(group)


def _proportions(target: int, source_rows: Counter[int]) -> dict[int, int]:
    """Divide a side's rows among the sources by their rows: largest remainders, so that the parts add up."""
    total = max(1, source_rows.total())
    rooms = {source: target * rows // total for source, rows in source_rows.items()}
    by_remainder = sorted(source_rows, key=lambda source: (-(target * source_rows[source] % total), source))
    for source in by_remainder[: target - sum(rooms.values())]:
        rooms[source] += 1
    return rooms


def _rank(group: Iterable[Example]) -> str:
    # The smallest hash names the group, so that a row more rarely renames it; hashed once more, because the smallest
    # of many is small, and large groups would always come first.
    return hashlib.sha256(min(row_hash(row) for row in group).encode()).hexdigest()


def _by_hash(rows: Iterable[E]) -> tuple[E, ...]:
    return tuple(sorted(rows, key=row_hash))


def _place_fixed(
    group: tuple[int, ...],
    rows: Sequence[E],
    fixed: Sequence[Side | None],
    sides: dict[Side, list[E]],
    dropped: list[Dropped],
) -> None:
    """Keep the group's rows of the strictest side that it touches, and drop the others."""
    side: Side = "test" if any(fixed[index] == "test" for index in group) else "validation"
    twin = next(rows[index] for index in group if fixed[index] == side)
    for index in group:
        if fixed[index] == side:
            sides[side].append(rows[index])
        else:
            place = rows[index].place or Place("(memory)", index + 1, "row")
            reason = f"is near-identical to the {side} row at {twin.place}"
            dropped.append(Dropped(place, f"near_{side}_row", reason))


def _size_findings(sides: dict[Side, list[E]], targets: dict[Side, int], left_out: int) -> list[Finding]:
    findings = []
    for side in _SET_ASIDE:
        rows = len(sides[side])
        if rows * 2 < targets[side]:
            message = (
                f"Only {rows} of {targets[side]} rows could be set aside for {side}: the others hang together in "
                "groups of near-identical rows."
            )
            findings.append(Finding(f"small_{side}", message, rows))
    if left_out:
        message = f"{left_out:,} rows aren't used, because at most {len(sides['train']) - left_out:,} are to be learnt."
        findings.append(Finding("train_rows_left_out", message, left_out))
    return findings
