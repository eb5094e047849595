"""`prepare`: from the files that a spec names to checked, split rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.convert import Converter
from tunesmith.data.examples import Conversation, Place
from tunesmith.data.problems import RowProblem, refusal
from tunesmith.data.readers import read_rows
from tunesmith.data.recognise import Recognition, recognise
from tunesmith.data.rows import Row
from tunesmith.prepare.findings import Dropped
from tunesmith.prepare.fingerprint import row_hash
from tunesmith.prepare.inspection import inspect_rows, unlearnt_findings
from tunesmith.prepare.prepared import PreparedData, refuse_too_few
from tunesmith.prepare.split import split_rows
from tunesmith.specs.tune import DataSpec


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The rows of one file; `recognition` is None where no row could be read at all."""

    recognition: Recognition | None
    rows: tuple[Conversation, ...]
    rows_read: int
    problems: tuple[RowProblem, ...]
    duplicates: tuple[Dropped, ...]
    ignored: Counter[str]


def prepare(spec: DataSpec) -> PreparedData:
    """Read, recognise, check, deduplicate and split the rows of `spec.path` (and of its validation and test files).

    Raises:
        DataError: a file can't be read (see `read_rows`), its rows' form isn't known (see `recognise`), rows are broken
            and `on_problem` is `error` (the first problem's code; the others in `problems`), or fewer than 10 rows
            are usable (`too_few_examples`).
    """
    main = _load(spec.path, spec)
    validation = _load(spec.validation_path, spec) if spec.validation_path is not None else None
    test = _load(spec.test_path, spec) if spec.test_path is not None else None
    files = [loaded for loaded in (main, validation, test) if loaded is not None]
    problems = [problem for loaded in files for problem in loaded.problems]
    if problems and spec.on_problem == "error":
        raise refusal(problems)
    dropped = [*_dropped(problems), *(row for loaded in files for row in loaded.duplicates)]
    refuse_too_few(len(main.rows), dropped, spec.path)
    split = split_rows(
        main.rows, spec, validation=validation.rows if validation else None, test=test.rows if test else None
    )
    dropped += split.dropped
    refuse_too_few(len(split.train) + len(split.validation) + len(split.test), dropped, spec.path)
    recognition = main.recognition
    assert recognition is not None  # there are rows, so a form was recognised
    findings = (*unlearnt_findings(recognition, main.ignored), *inspect_rows(main.rows), *split.findings)
    return PreparedData(
        recognition=recognition,
        train=split.train,
        validation=split.validation,
        test=split.test,
        rows_read=sum(loaded.rows_read for loaded in files),
        dropped=tuple(dropped),
        left_out=split.left_out,
        findings=findings,
    )


def _load(path: str, spec: DataSpec) -> _Loaded:
    found = list(read_rows(path))
    good = [row for row in found if isinstance(row, Row)]
    problems = [row for row in found if isinstance(row, RowProblem)]
    if not good:
        return _Loaded(None, (), len(found), tuple(problems), (), Counter())
    recognition = recognise(good, file=path, format=spec.format, mapping=spec.mapping)
    converter = Converter(recognition, system=spec.system)
    rows: list[Conversation] = []
    for row in good:
        result = converter.convert(row)
        if isinstance(result, Conversation):
            rows.append(result)
        else:
            problems.extend(result)
    problems.sort(key=lambda problem: problem.place.line)
    kept, duplicates = _without_duplicates(rows)
    return _Loaded(recognition, kept, len(found), tuple(problems), duplicates, converter.ignored)


def _dropped(problems: Sequence[RowProblem]) -> list[Dropped]:
    """Return one entry for each broken row, with all its reasons."""
    by_place: dict[Place, list[RowProblem]] = {}
    for problem in problems:
        by_place.setdefault(problem.place, []).append(problem)
    return [
        Dropped(place, found[0].code, "; ".join(problem.reason for problem in found))
        for place, found in by_place.items()
    ]


def _without_duplicates(rows: Sequence[Conversation]) -> tuple[tuple[Conversation, ...], tuple[Dropped, ...]]:
    first: dict[str, Conversation] = {}
    duplicates = []
    for row in rows:
        earlier = first.setdefault(row_hash(row), row)
        if earlier is not row:
            assert row.place is not None and earlier.place is not None  # rows read from files have places
            reason = f"is exactly the same as {earlier.place.unit} {earlier.place.line}"
            duplicates.append(Dropped(row.place, "duplicate", reason))
    return tuple(first.values()), tuple(duplicates)
