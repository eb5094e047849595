"""The look at a job's files before it is queued: form, number of examples, and what `auto` means for so many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.problems import MAX_LISTED, RowProblem
from tunesmith.data.readers import read_rows
from tunesmith.data.rows import Row
from tunesmith.errors import DataError
from tunesmith.runs.job_examples import EXTRA_KEY, Fault, Form, Looked, form_of, look_at

FEWEST_EXAMPLES = 10
#: What a job by a grader takes at most: each of its examples is answered and scored many times.
_MOST_GRADED = {"training_file": 50_000, "validation_file": 1_000}
#: OpenAI's rule for `n_epochs`: about three, more for small files, fewer for large ones.
_EPOCHS, _FEWEST_SEEN, _MOST_SEEN, _MOST_EPOCHS = 3, 100, 25_000, 25
_BATCH_SHARE, _LARGEST_BATCH = 0.002, 256


#: Forms that a method learns from, and how the service calls each form and the method that it is for.
_FORMS: Mapping[str, tuple[Form, ...]] = {
    "supervised": ("chat", "prompt"),
    "dpo": ("preference",),
    "reinforcement": ("chat",),
}
_FORM_NAMES: Mapping[Form, tuple[str, str]] = {
    "chat": ("fine-tune-chat", "supervised"),
    "preference": ("fine-tune-preference", "dpo"),
    "prompt": ("fine-tune-prompt", "supervised"),
}


@dataclass(frozen=True, slots=True)
class JobFile:
    """A file of a job: its id, its content here, and the field of the request that named it."""

    id: str
    path: Path
    param: str


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file that is good: how many examples it holds, and what its user should know."""

    examples: int
    notes: tuple[str, ...] = ()


def check_file(file: JobFile, method: str) -> CheckedFile:
    """Look at all examples of a file.

    Raises:
        DataError: it can't be used for the method; the message names the first example, `problems` further ones.
    """
    count = without_question = 0
    problems: list[tuple[str, str | None]] = []
    forms: dict[Form, str] = {}
    for row in _rows(file):
        count += 1
        if isinstance(row, Row):
            place = f"Example {count} (line {row.place.line})"
            form = form_of(row.values)
            forms.setdefault(form, place)
            looked = look_at(row, method) if form in _FORMS[method] else Looked([])
        else:
            place = f"Example {count} (line {row.place.line or count})"
            looked = Looked([Fault(f" cannot be parsed. Error: {row.reason}")])
        problems += [(place + fault.text, fault.code) for fault in looked.faults]
        without_question += not looked.has_a_question
        if len(problems) >= MAX_LISTED or len(forms) > 1:
            break
    _check_forms(file, method, forms)
    if problems:
        raise _refused(file, problems)
    if file.param == "training_file" and count < FEWEST_EXAMPLES:
        raise _too_few(count)
    if method == "reinforcement" and count > _MOST_GRADED[file.param]:
        raise _too_many(count, file.param)
    notes = []
    if without_question:
        notes.append(f"{without_question:,} example(s) in {file.id} have no system or user message")
    return CheckedFile(count, tuple(notes))


def _rows(file: JobFile) -> Iterator[Row | RowProblem]:
    """Yield the rows of a file.

    Raises:
        DataError: it can't be read as rows at all, or holds none.
    """
    try:
        yield from read_rows(file.path)
    except DataError as error:
        if error.code == "too_few_examples":
            raise _too_few(0, file.param) from error
        raise _refused(file, [(error.message, None)]) from error


def _check_forms(file: JobFile, method: str, forms: Mapping[Form, str]) -> None:
    """Refuse a file of several forms, or of one that the method doesn't learn from.

    Raises:
        DataError: it is one.
    """
    if len(forms) > 1:
        first, other = forms
        told = (
            "Unexpected file format, expected either prompt/completion pairs or chat messages. "
            f"{forms[other]} is in the {_FORM_NAMES[other][0]} format, unlike those before it ({_FORM_NAMES[first][0]})"
        )
        raise _refused(file, [(told, None)])
    for form in forms:
        if form not in _FORMS[method]:
            name, wanted = _FORM_NAMES[form]
            raise DataError(
                f"Input file {file.id} is in the {name} format, but the specified fine-tuning job is not using "
                f"'{wanted}' as the training method (provided method={method}).",
                fix="Give a file for the method.",
                code=f"invalid_{file.param}",
                param=file.param,
            )


def resolved(hyperparameters: Mapping[str, Any] | None, examples: int) -> dict[str, Any]:
    """Return the hyperparameters with a number in place of each `auto`, by OpenAI's rules.

    Args:
        hyperparameters: as asked.
        examples: in the training file.
    """
    epochs = _EPOCHS
    if _EPOCHS * examples < _FEWEST_SEEN:
        epochs = min(_MOST_EPOCHS, _FEWEST_SEEN // max(1, examples))
    elif _EPOCHS * examples > _MOST_SEEN:
        epochs = max(1, _MOST_SEEN // examples)
    usual = {
        "n_epochs": epochs,
        "batch_size": min(_LARGEST_BATCH, max(1, math.floor(_BATCH_SHARE * examples))),
        "learning_rate_multiplier": 1.0,
    }
    asked = {name: value for name, value in (hyperparameters or {}).items() if value not in ("auto", None)}
    return {**usual, **asked}


def _refused(file: JobFile, problems: Sequence[tuple[str, str | None]]) -> DataError:
    """Return the error for what is wrong with examples: texts, with the service's codes where it has one."""
    kind = "training" if file.param == "training_file" else "validation"
    first, code = problems[0]
    if code == EXTRA_KEY:
        why = f"a file format error in the {kind} file"
    else:
        why = f"an invalid {kind} file. Invalid file format"
    if code is None or file.param != "training_file":
        code = f"invalid_{file.param}"
    return DataError(
        f"The job failed due to {why}. {first}",
        fix="Mend the file.",
        code=code,
        param=file.param,
        problems=tuple(text for text, _ in problems[1:MAX_LISTED]),
    )


def _too_few(count: int, param: str = "training_file") -> DataError:
    kind = "Training" if param == "training_file" else "Validation"
    fewest = FEWEST_EXAMPLES if param == "training_file" else 1
    return DataError(
        f"{kind} file has {count} example(s), but must have at least {fewest} examples",
        fix="Add examples.",
        code="invalid_n_examples",
        param=param,
    )


def _too_many(count: int, param: str) -> DataError:
    kind = "Training" if param == "training_file" else "Validation"
    return DataError(
        f"{kind} file has {count} example(s), but must have at most {_MOST_GRADED[param]} examples",
        fix="Choose some of the examples.",
        code="invalid_n_examples",
        param=param,
    )
