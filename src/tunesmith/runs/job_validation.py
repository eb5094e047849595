"""The look at a job's files before it is queued: form, number of examples, and what `auto` means for so many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.chat_rows import RowCheck, check_learnable, read_chat
from tunesmith.data.problems import MAX_LISTED, RowProblem
from tunesmith.data.readers import read_rows
from tunesmith.data.rows import Row
from tunesmith.errors import DataError

FEWEST_EXAMPLES = 10
#: OpenAI's rule for `n_epochs`: about three, more for small files, fewer for large ones.
_EPOCHS, _FEWEST_SEEN, _MOST_SEEN, _MOST_EPOCHS = 3, 100, 25_000, 25
_BATCH_SHARE, _LARGEST_BATCH = 0.002, 256


@dataclass(frozen=True, slots=True)
class JobFile:
    """A file of a job: its id, its content here, and the field of the request that named it."""

    id: str
    path: Path
    param: str


def check_file(file: JobFile, method: str) -> int:
    """Return how many examples a file holds.

    Raises:
        DataError: it can't be used for the method; the message names the first line, `problems` further ones.
    """
    count = 0
    problems: list[str] = []
    forms = set()
    for row in read_rows(file.path):
        count += 1
        if isinstance(row, Row):
            forms.add(_form(row.values))
            found = _problems(row)
        else:
            found = [row]
        problems += [f"Line {one.place.line or count}: {one.reason}" for one in found]
        if len(problems) >= MAX_LISTED:
            break
    if method == "supervised" and forms == {"preference"}:
        raise _refused(
            file,
            f"Input file {file.id} is in the fine-tune-preference format, but the specified fine-tuning job is not "
            f"using 'dpo' as the training method (provided method={method}).",
        )
    if len(forms) > 1:
        raise _refused(
            file,
            "Unexpected file format, expected either prompt/completion pairs or chat messages, one form in a file.",
        )
    if problems:
        kind = "training" if file.param == "training_file" else "validation"
        first = f"The job failed due to an invalid {kind} file. Invalid file format. {problems[0]}"
        raise _refused(file, first, tuple(problems[1:MAX_LISTED]))
    if file.param == "training_file" and count < FEWEST_EXAMPLES:
        raise DataError(
            f"Training file has {count} example(s), but must have at least {FEWEST_EXAMPLES} examples",
            fix="Add examples.",
            code="invalid_n_examples",
            param=file.param,
        )
    return count


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


def _form(values: Mapping[str, Any]) -> str:
    if "messages" in values:
        return "chat"
    return "preference" if "input" in values or "preferred_output" in values else "prompt"


def _problems(row: Row) -> list[RowProblem]:
    """Return what is wrong with an example."""
    check = RowCheck(row.place)
    if _form(row.values) == "prompt" and {"prompt", "completion"} <= row.values.keys():
        for key in ("prompt", "completion"):
            if not isinstance(row.values[key], str):
                check.refuse(key, "isn't a text", "Write a text.", "wrong_type")
        return check.problems
    if "messages" not in row.values:
        check.refuse("", "missing key 'messages'", "Write a list of messages.", "no_messages")
        return check.problems
    conversation = read_chat(row.values, check)
    if conversation is not None:
        check_learnable(conversation.messages, "messages", check)
    return check.problems


def _refused(file: JobFile, message: str, problems: tuple[str, ...] = ()) -> DataError:
    kind = "training" if file.param == "training_file" else "validation"
    return DataError(message, fix="Mend the file.", code=f"invalid_{kind}_file", param=file.param, problems=problems)
