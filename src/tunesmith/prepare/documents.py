"""`prepare_documents`: from text files, folders and rows of texts to checked, split documents."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate

from tunesmith.data.documents import ReadDocuments, read_documents
from tunesmith.data.examples import Document, Place
from tunesmith.data.problems import refusal
from tunesmith.errors import DataError
from tunesmith.prepare.findings import Dropped, Finding
from tunesmith.prepare.fingerprint import user_words, words_of
from tunesmith.prepare.inspection import unlearnt_of_files
from tunesmith.prepare.likeness import groups_of_near_identical
from tunesmith.prepare.pipeline import beside, dropped_problems, without_duplicates
from tunesmith.prepare.prepared import PreparedData, Source
from tunesmith.prepare.split import Side, Split, split_rows
from tunesmith.specs.data import DataSpec

#: A document of fewer words than this says nothing.
MIN_WORDS = 3
#: Fewer characters than this aren't learnt from.
MIN_CHARACTERS = 2000
#: Fewer documents than this, or one that holds more than this share of the text, can't be split as wholes.
_FEW_DOCUMENTS = 10
_LARGE_SHARE = 0.3
#: A shorter document isn't cut; a cut may move by this share of the document to find the end of a paragraph.
_MIN_CUT_CHARACTERS = 2000
_CUT_REACH = 0.01
_ENDS = ("\n\n", "\n", " ")


def prepare_documents(spec: DataSpec) -> PreparedData[Document]:
    """Read, check, deduplicate and split the documents of a spec's files (those for validation and test too).

    Documents are split as wholes. Where there are fewer than 10 of them, or one holds much of the text, each long one
    is cut in three instead: its beginning is learnt, validation and test are consecutive pieces at its end.
    `max_train_rows` isn't looked at here: it counts windows of tokens.

    Raises:
        DataError: a file can't be read (see `read_documents`), rows are broken and `on_problem` is `error`, or there is
            too little text (`too_few_examples`).
    """
    sources = [read_documents(file, number) for number, file in enumerate(spec.files)]
    aside = {
        side: read_documents(beside(spec, path))
        for side, path in (("validation", spec.validation_path), ("test", spec.test_path))
        if path is not None
    }
    everything = [*sources, *aside.values()]
    problems = [problem for read in everything for problem in read.problems]
    if problems and spec.on_problem == "error":
        raise refusal(problems)
    dropped = dropped_problems(problems)
    documents = _usable([document for read in sources for document in read.documents], dropped)
    others = {side: _usable(read.documents, dropped) for side, read in aside.items()}
    _refuse_too_little(documents, dropped, spec.where)
    split = _split(documents, spec, others)
    dropped += split.dropped
    files = zip(spec.files, sources, strict=True)
    unlearnt = unlearnt_of_files([(file.path, read.recognition, {}) for file, read in files])
    return PreparedData(
        sources=tuple(
            Source(file, read.recognition, _count(read)) for file, read in zip(spec.files, sources, strict=True)
        ),
        train=split.train,
        validation=split.validation,
        test=split.test,
        rows_read=sum(_count(read) for read in everything),
        dropped=tuple(dropped),
        findings=(*unlearnt, *split.findings),
    )


def _count(read: ReadDocuments) -> int:
    return len(read.documents) + len({problem.place for problem in read.problems})


def _usable(documents: Sequence[Document], dropped: list[Dropped]) -> list[Document]:
    """Return the documents that say something, each once; note the others in `dropped`."""
    told = []
    for document in documents:
        # Counting all words of a long document would take long, and say nothing new.
        words = len(words_of(document.text.lstrip()[:1000]))
        if words >= MIN_WORDS:
            told.append(document)
            continue
        assert document.place is not None  # documents read from files have places
        if words:
            dropped.append(Dropped(document.place, "short_document", f"holds fewer than {MIN_WORDS} words"))
        else:
            dropped.append(Dropped(document.place, "empty_document", "holds no words"))
    kept, duplicates = without_duplicates(told)
    dropped += duplicates
    return list(kept)


def _split(documents: Sequence[Document], spec: DataSpec, others: dict[str, list[Document]]) -> Split[Document]:
    whole = spec.model_copy(update={"max_train_rows": None})
    characters = [len(document.text) for document in documents]
    wants_cuts = ("validation" not in others and spec.validation_fraction) or (
        "test" not in others and spec.test_fraction
    )
    is_few = len(documents) < _FEW_DOCUMENTS or max(characters) > _LARGE_SHARE * sum(characters)
    if not (wants_cuts and is_few):
        return split_rows(documents, whole, **others)
    nothing_aside = whole.model_copy(update={"validation_fraction": 0.0, "test_fraction": 0.0})
    split = split_rows(documents, nothing_aside, **others)
    dropped = list(split.dropped)
    parts: dict[Side, list[Document]] = {"train": [], "validation": [*split.validation], "test": [*split.test]}
    for document in _told_apart(split.train, spec.near_duplicate_similarity, dropped):
        for side, part in _cut(document, spec, others.keys()):
            parts[side].append(part)
    message = (
        "There are too few documents to set whole ones aside, so each long one is cut: its beginning is learnt, its "
        "end kept for validation and test. The test then tells about more of the same texts, not about new ones."
    )
    return Split(
        tuple(parts["train"]),
        tuple(parts["validation"]),
        tuple(parts["test"]),
        tuple(dropped),
        0,
        (Finding("split_within_documents", message), *split.findings),
    )


def _told_apart(documents: Sequence[Document], similarity: float, dropped: list[Dropped]) -> list[Document]:
    """Return one of each group of near-identical documents: the end of one must not stand in another's beginning."""
    kept = []
    for group in groups_of_near_identical([user_words(document) for document in documents], similarity):
        first, *others = (documents[index] for index in group)
        kept.append(first)
        for other in others:
            assert other.place is not None
            dropped.append(Dropped(other.place, "near_duplicate", f"is near-identical to {first.place}"))
    return kept


def _cut(document: Document, spec: DataSpec, given: Collection[str]) -> list[tuple[Side, Document]]:
    """Cut a long document into consecutive parts: train, validation, test; sides that are `given` need none."""
    text = document.text
    if len(text) < _MIN_CUT_CHARACTERS:
        return [("train", document)]
    shares: dict[Side, float] = {
        "validation": 0.0 if "validation" in given else spec.validation_fraction,
        "test": 0.0 if "test" in given else spec.test_fraction,
    }
    asked: list[tuple[Side, float]] = [("train", 1.0 - sum(shares.values())), *shares.items()]
    sides = [(side, share) for side, share in asked if share > 0]
    edges = [0, *(_near_end(text, round(end * len(text))) for end in accumulate(share for _, share in sides[:-1]))]
    edges.append(len(text))
    parts: list[tuple[Side, Document]] = []
    for (side, _), start, end in zip(sides, edges, edges[1:], strict=False):
        place = document.place
        if place is not None and place.unit == "line":
            place = Place(place.file, place.line + text.count("\n", 0, start))
        part = Document(text[start:end], document.continues or end < len(text), place, document.source)
        if part.text.strip():
            parts.append((side, part))
    return parts


def _near_end(text: str, position: int) -> int:
    """Return where to cut near `position`: behind a paragraph, else a line, else a word."""
    reach = max(1, round(_CUT_REACH * len(text)))
    for end in _ENDS:
        found = text.find(end, position, position + reach)
        if found >= 0:
            return found + len(end)
    return position


def _refuse_too_little(documents: Sequence[Document], dropped: Sequence[Dropped], where: str) -> None:
    characters = sum(len(document.text) for document in documents)
    if characters >= MIN_CHARACTERS:
        return
    raise DataError(
        f"{characters:,} characters are too little text to learn from: at least {MIN_CHARACTERS:,} are needed, "
        "hundreds of thousands are better.",
        where=where,
        fix="Add documents." if not dropped else "Add documents, or mend those that were dropped.",
        code="too_few_examples",
        param="data.path",
        problems=tuple(f"{row.place}: dropped: {row.reason}" for row in dropped[:20]),
    )
