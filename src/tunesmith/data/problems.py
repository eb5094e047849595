"""What is wrong with one row: found while reading and checking, gathered before anything is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.examples import Place
from tunesmith.errors import DataError

#: More problems than this are counted, not listed.
MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One reason why a row can't be used.

    `field` is the path inside the row (`messages[2].role`), empty when the row as a whole is to blame; `code` is a
    stable word for programs.
    """

    place: Place
    field: str
    message: str
    fix: str
    code: str

    @property
    def reason(self) -> str:
        """The field and what is wrong with it."""
        return f"{self.field}: {self.message}" if self.field else self.message

    def __str__(self) -> str:
        """Return place, field and message in one line."""
        return f"{self.place}: {self.reason}"


def refusal(problems: Sequence[RowProblem]) -> DataError:
    """Return one error for all the `problems` of a data set (at least one): the first in full, 19 more listed."""
    first = problems[0]
    rows = len({problem.place for problem in problems})
    others = [str(problem) for problem in problems[1:MAX_LISTED]]
    if len(problems) > MAX_LISTED:
        others.append(f"... and {len(problems) - MAX_LISTED:,} more ({len(problems):,} problems in {rows:,} rows).")
    message = first.reason if len(problems) == 1 else f"{first.reason} ({len(problems):,} problems in {rows:,} rows.)"
    return DataError(
        message,
        where=str(first.place),
        fix=f"{first.fix} Or leave broken rows out, counted and listed: --drop-bad-rows (data.on_problem=drop).",
        code=first.code,
        param=first.field or None,
        problems=tuple(others),
    )
