"""`prepare`: from the files that a spec names to checked, split rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.data.convert import Converter
from tunesmith.data.documents import holds_texts, read_documents
from tunesmith.data.examples import Conversation, Place
from tunesmith.data.problems import RowProblem, refusal
from tunesmith.data.readers import read_rows
from tunesmith.data.recognise import Recognition, recognise
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.prepare.findings import Dropped
from tunesmith.prepare.fingerprint import row_hash
from tunesmith.prepare.inspection import inspect_rows, unlearnt_of_files
from tunesmith.prepare.prepared import UNREADABLE, E, PreparedData, Source, refuse_too_few
from tunesmith.prepare.split import split_rows
from tunesmith.specs.data import DataSpec, SourceSpec


@dataclass(frozen=True, slots=True)
class LoadedFile:
    """The rows of one file."""

    file: SourceSpec
    recognition: Recognition
    rows: tuple[Conversation, ...]
    rows_read: int
    problems: tuple[RowProblem, ...]
    ignored: Counter[str]


def prepare(spec: DataSpec) -> PreparedData[Conversation]:
    """Read, recognise, check, deduplicate and split the rows of a spec's files (those for validation and test too).

    Doubled and near-identical rows are looked for across all files.

    Raises:
        DataError: a file can't be read (see `read_rows`), its rows' form isn't known (see `recognise`), rows are broken
            and `on_problem` is `error` (the first problem's code; the others in `problems`), or fewer than 10 rows
            are usable (`too_few_examples`).
    """
    sources = [load_file(file, number) for number, file in enumerate(spec.files)]
    validation = load_file(beside(spec, spec.validation_path)) if spec.validation_path is not None else None
    test = load_file(beside(spec, spec.test_path)) if spec.test_path is not None else None
    files = [*sources, *(loaded for loaded in (validation, test) if loaded is not None)]
    problems = [problem for loaded in files for problem in loaded.problems]
    if problems and spec.on_problem == "error":
        raise refusal(problems)
    rows, duplicates = without_duplicates([row for loaded in sources for row in loaded.rows])
    aside = {}
    for side, loaded in (("validation", validation), ("test", test)):
        if loaded is not None:
            aside[side], more = without_duplicates(loaded.rows)
            duplicates += more
    dropped = [*dropped_problems(problems), *duplicates]
    refuse_too_few(len(rows), dropped, spec.where)
    split = split_rows(rows, spec, **aside)
    dropped += split.dropped
    refuse_too_few(len(split.train) + len(split.validation) + len(split.test), dropped, spec.where)
    unlearnt = unlearnt_of_files([(loaded.file.path, loaded.recognition, loaded.ignored) for loaded in sources])
    findings = (*unlearnt, *inspect_rows(rows), *split.findings)
    return PreparedData(
        sources=tuple(Source(loaded.file, loaded.recognition, loaded.rows_read) for loaded in sources),
        train=split.train,
        validation=split.validation,
        test=split.test,
        rows_read=sum(loaded.rows_read for loaded in files),
        dropped=tuple(dropped),
        left_out=split.left_out,
        findings=findings,
    )


def beside(spec: DataSpec, path: str) -> SourceSpec:
    """Return how a file of validation or test rows is read: as the first one to learn from."""
    return spec.files[0].model_copy(update={"path": path})


def documents_refused(where: str, recognition: Recognition) -> DataError:
    """Return the error for documents where rows with answers are wanted."""
    columns = " ".join(f"`{column}`" for column in recognition.columns)
    rows = f" If its rows have answers ({columns}): --map input=COLUMN --map output=COLUMN." if columns else ""
    return DataError(
        f"This holds documents ({recognition.reason}), and supervised fine-tuning learns answers.",
        where=where,
        fix=f"To learn the texts themselves, add --method pretrain.{rows}",
        code="documents_need_pretrain",
        param="method.kind",
    )


def load_file(file: SourceSpec, number: int = 0) -> LoadedFile:
    """Read one file of rows with answers; `number` is its place among the sources.

    Raises:
        DataError: it can't be read, its rows' form isn't known, or it holds documents.
    """
    if holds_texts(file.path):
        raise documents_refused(file.path, read_documents(file).recognition)
    found = list(read_rows(file.path))
    good = [row for row in found if isinstance(row, Row)]
    problems = [row for row in found if isinstance(row, RowProblem)]
    if not good:
        return LoadedFile(file, UNREADABLE, (), len(found), tuple(problems), Counter())
    recognition = recognise(good, file=file.path, format=file.format or "auto", mapping=file.mapping)
    if recognition.format == "documents":
        raise documents_refused(file.path, recognition)
    converter = Converter(recognition, system=file.system)
    rows: list[Conversation] = []
    for row in good:
        result = converter.convert(row)
        if isinstance(result, Conversation):
            rows.append(dataclasses.replace(result, source=number))
        else:
            problems.extend(result)
    problems.sort(key=lambda problem: problem.place.line)
    return LoadedFile(file, recognition, tuple(rows), len(found), tuple(problems), converter.ignored)


def dropped_problems(problems: Sequence[RowProblem]) -> list[Dropped]:
    """Return one entry for each broken row, with all its reasons."""
    by_place: dict[Place, list[RowProblem]] = {}
    for problem in problems:
        by_place.setdefault(problem.place, []).append(problem)
    return [
        Dropped(place, found[0].code, "; ".join(problem.reason for problem in found))
        for place, found in by_place.items()
    ]


def without_duplicates(rows: Sequence[E]) -> tuple[tuple[E, ...], tuple[Dropped, ...]]:
    """Return the rows, each once, and those that are exactly the same as an earlier one."""
    first: dict[str, E] = {}
    duplicates = []
    for row in rows:
        earlier = first.setdefault(row_hash(row), row)
        if earlier is not row:
            assert row.place is not None and earlier.place is not None  # rows read from files have places
            same_file = earlier.place.file == row.place.file
            reason = f"is exactly the same as {earlier.place.position if same_file else earlier.place}"
            duplicates.append(Dropped(row.place, "duplicate", reason))
    return tuple(first.values()), tuple(duplicates)
