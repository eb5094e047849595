"""Say in which form the rows of a file are, and why."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.data.rows import Row
from tunesmith.errors import DataError

Format = Literal["chat", "prompt_completion", "alpaca", "sharegpt", "columns", "documents"]

#: How many rows are looked at.
SAMPLE_ROWS = 100
CONVERSATION_KEYS = ("conversations", "conversation", "messages")

_WHAT = {
    "chat": "`messages`, a list of {role, content}",
    "sharegpt": "`conversations`, a list of {from, value} turns",
    "prompt_completion": "`prompt` and `completion`",
    "alpaca": "`instruction` and `output`",
    "documents": "a `text` and nothing beside it that could be an answer",
}
#: The column that holds a document.
TEXT_COLUMN = "text"
_USED = {
    "chat": {"messages", "tools", "functions", "parallel_tool_calls"},
    "sharegpt": {*CONVERSATION_KEYS, "system", "tools"},
    "prompt_completion": {"prompt", "completion", "tools"},
    "alpaca": {"instruction", "input", "output", "system"},
    "documents": {TEXT_COLUMN},
}
#: Likely names of columns, the likeliest first.
_INPUTS = (
    "question", "input", "inputs", "text", "prompt", "query", "instruction", "sentence", "message", "utterance",
    "user", "context", "document", "article", "source", "request", "statement", "review", "title",
)  # fmt: skip
_OUTPUTS = (
    "answer", "output", "completion", "response", "label", "category", "intent", "target", "reply", "sql", "summary",
    "slots", "chosen", "result", "class", "final_decision", "assistant", "translation", "sentiment",
)  # fmt: skip
#: Columns that say something about a document.
_ABOUT_TEXTS = {
    "id", "_id", "uuid", "url", "uri", "link", "source", "origin", "dataset", "subset", "title", "name", "author",
    "date", "timestamp", "time", "created", "added", "lang", "language", "license", "licence", "path", "file",
    "file_path", "dump", "meta", "metadata", "section", "chapter", "page",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recognition:
    """The form of a file's rows.

    `reason` says in words why; `columns` are those of the first rows in order of appearance; `mapping` names, for
    `columns`, the columns of the input, the output and perhaps the system prompt, for `documents` that of the `text`.
    """

    format: Format
    reason: str
    columns: tuple[str, ...]
    mapping: Mapping[str, str] = field(default_factory=dict)

    @property
    def unused_columns(self) -> tuple[str, ...]:
        """The columns that nothing is learnt from."""
        used = set(self.mapping.values()) if self.mapping else _USED[self.format]
        return tuple(column for column in self.columns if column not in used)


def recognise(
    rows: Sequence[Row], *, file: str, format: str = "auto", mapping: Mapping[Any, str] | None = None
) -> Recognition:
    """Return the form of `rows` (the file's first ones, at least one).

    A `mapping` or a `format` other than `auto` decides; else the form that most rows have. Rows that don't have it are
    refused one by one later, when they are converted.

    Raises:
        DataError: no form fits (`unrecognised_format`), or the mapping names a column that isn't there or lacks
            `input` or `output` (`bad_mapping`).
    """
    sample = rows[:SAMPLE_ROWS]
    columns = tuple(dict.fromkeys(column for row in sample for column in row.values))
    if format == "documents" or (mapping and "text" in mapping):
        return _documents(columns, dict(mapping or {}), file)
    if mapping or format == "columns":
        return _mapped(columns, dict(mapping or {}), file, format)
    if format in _WHAT:
        fitting = sum(format in forms_of(row.values) for row in sample)
        return Recognition(format, f"the spec says `{format}`; {_share(fitting, len(sample))} it", columns)  # type: ignore[arg-type]
    fits = [forms[0] for row in sample if (forms := forms_of(row.values))]
    best = max(dict.fromkeys(fits), key=fits.count, default=None)
    if best is None or fits.count(best) * 2 <= len(sample):
        raise _unrecognised(columns, sample, file)
    mapped = {"text": TEXT_COLUMN} if best == "documents" else {}
    return Recognition(best, f"{_share(fits.count(best), len(sample))} {_WHAT[best]}", columns, mapped)


def forms_of(values: Mapping[str, Any]) -> tuple[Format, ...]:
    """Return the forms that one row can be read in, judged by its columns, the likeliest first."""
    forms: list[Format] = []
    spoken = any(_is_sharegpt(key, values.get(key)) for key in CONVERSATION_KEYS)
    if spoken:
        forms.append("sharegpt")
    if "messages" in values and not spoken:
        forms.append("chat")
    if "prompt" in values and "completion" in values:
        forms.append("prompt_completion")
    if "instruction" in values and "output" in values:
        forms.append("alpaca")
    if not forms and _is_document(values):
        forms.append("documents")
    return tuple(forms)


def _is_document(values: Mapping[str, Any]) -> bool:
    """Whether a row is a text with nothing beside it that could be an answer to it."""
    beside = (name.lower() for name, value in values.items() if name != TEXT_COLUMN and isinstance(value, str))
    return isinstance(values.get(TEXT_COLUMN), str) and all(name in _ABOUT_TEXTS for name in beside)


def _is_sharegpt(key: str, turns: Any) -> bool:
    first = turns[0] if isinstance(turns, list) and turns else None
    if not isinstance(first, dict):
        return False
    return "from" in first or "value" in first or (key != "messages" and "role" in first)


def _share(fitting: int, total: int) -> str:
    if fitting < total:
        return f"{fitting} of the first {total} rows have"
    return f"every one of the first {total} rows has" if total > 1 else "the only row has"


def _mapped(columns: tuple[str, ...], mapping: dict[str, str], file: str, format: str) -> Recognition:
    if format not in ("auto", "columns"):
        raise DataError(
            f"A mapping of columns and the form {format!r} contradict each other.",
            where=file,
            fix="Leave out --map, or set data.format to `columns`.",
            code="bad_mapping",
            param="data.mapping",
        )
    missing = [part for part in ("input", "output") if part not in mapping]
    if missing:
        raise DataError(
            f"The mapping doesn't say which column is the {' and which the '.join(missing)}. "
            f"The columns are {_listed(columns)}.",
            where=file,
            fix=_map_command(columns, file, mapping),
            code="bad_mapping",
            param="data.mapping",
        )
    for part, column in mapping.items():
        if column not in columns:
            near = difflib.get_close_matches(column, columns, n=1)
            raise DataError(
                f"There is no column {column!r} for the {part}. The columns are {_listed(columns)}.",
                where=file,
                fix=f"Write --map {part}={near[0]}." if near else _map_command(columns, file, {}),
                code="bad_mapping",
                param=f"data.mapping.{part}",
            )
    reason = f"the mapping says that `{mapping['input']}` is the input and `{mapping['output']}` the output"
    return Recognition("columns", reason, columns, mapping)


def _documents(columns: tuple[str, ...], mapping: dict[str, str], file: str) -> Recognition:
    """Return the form of rows that the user calls documents.

    Raises:
        DataError: there is no such column, or the mapping says more than which is the text (`bad_mapping`).
    """
    column = mapping.get("text", TEXT_COLUMN)
    if set(mapping) - {"text"} or column not in columns:
        near = difflib.get_close_matches(column, columns, n=1)
        raise DataError(
            f"Documents have one column, the text; the columns are {_listed(columns)}.",
            where=file,
            fix=f"Say which it is: --map text={near[0] if near else 'COLUMN'}.",
            code="bad_mapping",
            param="data.mapping.text",
        )
    reason = f"the mapping says that `{column}` is the text" if mapping else f"the spec says so; `{column}` is the text"
    return Recognition("documents", reason, columns, {"text": column})


def _unrecognised(columns: tuple[str, ...], sample: Sequence[Row], file: str) -> DataError:
    known = "Recognised are chat `messages`, `prompt`/`completion`, Alpaca and ShareGPT."
    if {"chosen", "rejected"} <= set(columns) or "preferred_output" in columns:
        known = "These look like preference pairs, and supervised tuning learns one answer a row."
    return DataError(
        f"The rows' form isn't known. The columns are {_listed(columns)}. {known}",
        where=str(sample[0].place),
        fix=_map_command(columns, file, {}),
        code="unrecognised_format",
        param="data.format",
    )


def _map_command(columns: tuple[str, ...], file: str, mapping: Mapping[str, str]) -> str:
    """Return the command to try, with the likeliest columns filled in."""
    by_name = {column.lower(): column for column in reversed(columns)}
    output = mapping.get("output") or next((by_name[name] for name in _OUTPUTS if name in by_name), None)
    free = [column for column in columns if column != output]
    source = mapping.get("input") or next((by_name[n] for n in _INPUTS if by_name.get(n) in free), None)
    if output is None and source is not None and len(columns) == 2:
        output = next(column for column in columns if column != source)
    if source is None and output is not None and len(columns) == 2:
        source = free[0]
    maps = " ".join(
        f"--map {shlex.quote(f'{part}={column}')}" if column else f"--map {part}=COLUMN"
        for part, column in (("input", source), ("output", output))
    )
    return f"Say which columns to learn from: tunesmith tune {shlex.quote(file)} {maps}"


def _listed(columns: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{column}`" for column in columns[:20])
    return f"{shown} and {len(columns) - 20} more" if len(columns) > 20 else shown or "none"
