"""Read documents: text files (one document each), folders of them, and rows that hold a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith.data.examples import Document, Place
from tunesmith.data.jsonl import without_mark
from tunesmith.data.problems import RowProblem
from tunesmith.data.readers import MAX_WHOLE_BYTES, open_file, read_errors, read_rows
from tunesmith.data.recognise import Recognition, recognise
from tunesmith.data.rows import Row
from tunesmith.data.strict_json import JsonFault, decode_text
from tunesmith.errors import DataError
from tunesmith.specs.data import SourceSpec

#: Endings of text files, each also with .gz.
TEXT_SUFFIXES = (".txt", ".md", ".markdown", ".text")
_SAMPLE_ROWS = 100


@dataclass(frozen=True, slots=True)
class ReadDocuments:
    """The documents of one file or folder, empty ones included; `recognition` says how they were found."""

    recognition: Recognition
    documents: tuple[Document, ...]
    problems: tuple[RowProblem, ...]


def holds_documents(file: SourceSpec) -> bool:
    """Whether a file holds documents rather than rows with answers, judged by its name and its first rows.

    Raises:
        DataError: the file can't be read, or its rows' form isn't known.
    """
    if file.format not in (None, "auto"):
        return file.format == "documents"
    if file.mapping:
        return "text" in file.mapping
    if holds_texts(file.path):
        return True
    rows = [row for row, _ in zip(read_rows(file.path), range(_SAMPLE_ROWS), strict=False) if isinstance(row, Row)]
    return bool(rows) and recognise(rows, file=file.path).format == "documents"


def holds_texts(path: str) -> bool:
    """Whether the path is a text file's or a folder."""
    file = Path(path).expanduser()
    return file.is_dir() or _is_text(file)


def read_documents(file: SourceSpec, source: int = 0) -> ReadDocuments:
    """Read the documents of a text file, a folder (all text files in it, at any depth), or a file of rows.

    Args:
        file: the path, and for rows perhaps which column is the text.
        source: the place of this file among those of the spec.

    Raises:
        DataError: there is nothing to read (`file_not_found`, `no_documents`), it can't be read (see `read_rows`), or
            its rows are no documents (`not_documents`).
    """
    path = Path(file.path).expanduser()
    if path.is_dir():
        files = sorted(inner for inner in path.rglob("*") if _is_text(inner) and _is_visible(inner, path))
        if not files:
            raise DataError(
                "This folder holds no text files.",
                where=file.path,
                fix=f"Put documents into it, as {', '.join(TEXT_SUFFIXES)} (each also .gz).",
                code="no_documents",
            )
        names = [str(Path(file.path) / inner.relative_to(path)) for inner in files]
        found = tuple(_text_file(inner, name, source) for inner, name in zip(files, names, strict=True))
        return ReadDocuments(Recognition("documents", "it is a folder of text files", ()), found, ())
    if _is_text(path):
        document = _text_file(path, file.path, source)
        return ReadDocuments(Recognition("documents", "it is a text file", ()), (document,), ())
    return _rows(file, source)


def _is_text(path: Path) -> bool:
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return plain.suffix.lower() in TEXT_SUFFIXES


def _is_visible(path: Path, folder: Path) -> bool:
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)


def _text_file(path: Path, name: str, source: int) -> Document:
    if not path.exists():
        raise DataError("There is no such file.", where=name, fix="Check the path.", code="file_not_found")
    with read_errors(name), open_file(path) as stream:
        raw = stream.read(MAX_WHOLE_BYTES + 1)
    if len(raw) > MAX_WHOLE_BYTES:
        raise DataError(
            f"This file is larger than {MAX_WHOLE_BYTES // 2**30} GiB and can't be held in memory.",
            where=name,
            fix="Split it into several files in one folder, and name the folder.",
            code="file_too_large",
        )
    try:
        text = decode_text(without_mark(raw, name))
    except JsonFault as fault:
        raise DataError(fault.message, where=f"{name}, line {fault.line}", fix=fault.fix, code=fault.code) from fault
    return Document(text.replace("\r\n", "\n"), place=Place(name, 1), source=source)


def _rows(file: SourceSpec, source: int) -> ReadDocuments:
    found = list(read_rows(file.path))
    rows = [row for row in found if isinstance(row, Row)]
    problems = [row for row in found if isinstance(row, RowProblem)]
    if not rows:
        return ReadDocuments(Recognition("documents", "no row can be read", ()), (), tuple(problems))
    recognition = recognise(rows, file=file.path, format=file.format or "auto", mapping=file.mapping)
    if recognition.format != "documents":
        raise DataError(
            f"These rows are no documents: {recognition.reason}.",
            where=file.path,
            fix="Leave out --method pretrain to learn the answers, or say which column is a text to learn: "
            "--map text=COLUMN.",
            code="not_documents",
            param="method.kind",
        )
    documents = []
    for document in _converted(rows, recognition.mapping["text"], source):
        if isinstance(document, Document):
            documents.append(document)
        else:
            problems.append(document)
    problems.sort(key=lambda problem: problem.place.line)
    return ReadDocuments(recognition, tuple(documents), tuple(problems))


def _converted(rows: list[Row], column: str, source: int) -> Iterator[Document | RowProblem]:
    for row in rows:
        text = row.values.get(column)
        if text is None:
            fix = "Fill it in, or leave the row out."
            yield RowProblem(row.place, column, "is missing or null", fix, "missing_value")
        elif not isinstance(text, str):
            yield RowProblem(row.place, column, "isn't a text", "Write a text in quotes.", "wrong_type")
        else:
            yield Document(text, place=row.place, source=source)
