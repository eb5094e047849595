"""`PreparedData`: checked, split rows, and everything that was found out about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tunesmith.data.examples import Conversation, Example
from tunesmith.data.recognise import Recognition
from tunesmith.errors import DataError
from tunesmith.prepare.findings import Dropped, Finding
from tunesmith.prepare.fingerprint import content_hash
from tunesmith.specs.data import SourceSpec

#: Fewer rows than this aren't learnt from (as OpenAI's service has it).
MIN_ROWS = 10


#: One kind of row.
E = TypeVar("E", bound=Example)
#: The form of a file none of whose rows can be read.
UNREADABLE = Recognition("chat", "no row can be read", ())


@dataclass(frozen=True, slots=True)
class Source:
    """One file to learn from: how it was asked for, the form of its rows, and how many were read."""

    file: SourceSpec
    recognition: Recognition
    rows_read: int


@dataclass(frozen=True, slots=True)
class Replay:
    """General rows that are learnt along; `held_out` are never learnt, they show what the base could do.

    `share` is their part of each step's rows, `rows_read` counts those of the file at `path`.
    """

    path: str
    share: float
    rows: tuple[Conversation, ...]
    held_out: tuple[Conversation, ...]
    rows_read: int

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain data.

        Rows that are neither learnt nor held out were doubled, broken, or asked what validation or test ask.
        """
        counts = {"rows": self.rows_read, "learnt": len(self.rows), "held_out": len(self.held_out)}
        return {"path": self.path, "share": self.share, **counts}


@dataclass(frozen=True, slots=True)
class PreparedData(Generic[E]):
    """What training, validation and the final test work on.

    `rows_read` counts the rows of all files: each is in `train`, `validation`, `test` or `dropped` (duplicates have the
    code `duplicate`), or is one of the `left_out` rows beyond `max_train_rows`. The rows of `replay` aren't among them.
    """

    sources: tuple[Source, ...]
    train: tuple[E, ...]
    validation: tuple[E, ...]
    test: tuple[E, ...]
    rows_read: int
    dropped: tuple[Dropped, ...] = ()
    left_out: int = 0
    findings: tuple[Finding, ...] = ()
    replay: Replay | None = None

    @property
    def recognition(self) -> Recognition:
        """The form of the first file's rows."""
        return self.sources[0].recognition

    @property
    def rows(self) -> tuple[E, ...]:
        """All rows in use: train, validation, test."""
        return self.train + self.validation + self.test

    @property
    def duplicates(self) -> tuple[Dropped, ...]:
        """The rows dropped because an earlier row is exactly the same."""
        return tuple(row for row in self.dropped if row.code == "duplicate")

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) over the rows and their sides, whatever their order."""
        sides: list[tuple[str, tuple[Example, ...]]] = [
            ("train", self.train),
            ("validation", self.validation),
            ("test", self.test),
        ]
        if self.replay is not None:
            sides.append(("replay", self.replay.rows))
        return content_hash(sides)

    def summary(self) -> dict[str, Any]:
        """Return the counts as plain data: the `data` object of `tune --json`."""
        return {
            "format": self.recognition.format,
            "reason": self.recognition.reason,
            "rows": self.rows_read,
            "train": len(self.train),
            "validation": len(self.validation),
            "test": len(self.test),
            "dropped": len(self.dropped),
            "dropped_by_code": dict(Counter(row.code for row in self.dropped).most_common()),
            "duplicates": len(self.duplicates),
            "left_out": self.left_out,
            "sources": self._source_counts(),
            "replay": self.replay.to_json() if self.replay else None,
            "findings": [
                {"code": finding.code, "message": finding.message, "count": finding.count} for finding in self.findings
            ],
            "content_hash": self.content_hash,
        }

    def _source_counts(self) -> list[dict[str, Any]]:
        """Return what came of each file's rows."""
        sides = {side: Counter(row.source for row in getattr(self, side)) for side in ("train", "validation", "test")}
        dropped = Counter(row.place.file for row in self.dropped)
        return [
            {
                "path": source.file.path,
                "format": source.recognition.format,
                "reason": source.recognition.reason,
                "weight": source.file.weight,
                "rows": source.rows_read,
                **{side: counts[number] for side, counts in sides.items()},
                "dropped": dropped[source.file.path],
            }
            for number, source in enumerate(self.sources)
        ]


def refuse_too_few(usable: int, dropped: Sequence[Dropped], where: str) -> None:
    """Refuse a data set that is too small.

    Raises:
        DataError: `too_few_examples`, when fewer than `MIN_ROWS` rows are usable.
    """
    if usable >= MIN_ROWS:
        return
    raise DataError(
        f"{usable} usable {'row is' if usable == 1 else 'rows are'} too few to learn from: at least {MIN_ROWS} are "
        f"needed, some hundreds are better{f' ({len(dropped):,} were dropped)' if dropped else ''}.",
        where=where,
        fix="Add examples." if not dropped else "Add examples, or mend the rows that were dropped.",
        code="too_few_examples",
        param="data.path",
        problems=tuple(f"{row.place}: dropped: {row.reason}" for row in dropped[:20]),
    )
