"""`DataSpec`: which rows to learn from, and how they are read, mixed, checked and split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tunesmith.specs.base import Spec

FormatName = Literal["auto", "chat", "prompt_completion", "alpaca", "sharegpt", "columns", "documents"]
Role = Literal["input", "output", "system", "text"]


class _File(Spec):
    """A file of rows. Its path alone stands for it too."""

    path: str = Field(min_length=1, description="A file, or a folder of documents.")
    format: FormatName | None = Field(None, description="The rows' form; without it `data.format`.")
    mapping: dict[Role, str] = Field(
        default_factory=dict, description="Which column is what; without it `data.mapping`."
    )
    system: str | None = Field(None, description="The system prompt of rows without one; without it `data.system`.")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return file_values(value)


class SourceSpec(_File):
    """One of several files to learn from, and how much it counts."""

    weight: float = Field(
        1.0, gt=0.0, le=1e6, description="How much a row of this file counts against a row of the others."
    )


class ReplaySpec(_File):
    """General rows that are learnt along, to guard what the base could do before."""

    share: float = Field(0.1, ge=0.0, le=0.9, description="Share of the rows learnt from that are general ones.")


class DataSpec(Spec):
    """Which rows to learn from, and how they are read, mixed, checked and split.

    A path alone stands for `{path: ...}`, a list of files for `{sources: [...]}`.
    """

    path: str | None = Field(
        None,
        min_length=1,
        description="A file with the rows to learn from (JSONL, JSON, CSV, Parquet, each also .gz), or documents: a "
        "text file, a folder of them.",
    )
    sources: tuple[SourceSpec, ...] = Field(
        (), description="Several files to learn from, in place of `path`; each may have a weight."
    )
    mixing_temperature: float = Field(
        1.0,
        gt=0.0,
        le=1000.0,
        description="How sources share an epoch: in proportion to (weight x rows)^(1 / temperature). 1 counts every "
        "row by its weight, more lifts small files (arXiv:1910.10683, section 3.5.2).",
    )
    replay: ReplaySpec | None = Field(
        None, description="General rows that are learnt along, to guard what the base could do before."
    )
    format: FormatName = Field(
        "auto", description="The rows' form. `auto` recognises it and says why; `columns` uses `mapping`."
    )
    mapping: dict[Role, str] = Field(
        default_factory=dict,
        description="For `columns`: which column is the input, the output, the system prompt. For `documents`: which "
        "is the text.",
    )
    system: str | None = Field(None, description="A system prompt put before every row that has none of its own.")
    validation_path: str | None = Field(
        None, description="A file of rows for validation. Without it, rows are set aside from those to learn from."
    )
    test_path: str | None = Field(
        None, description="A file of rows for the final test. Without it, rows are set aside from those to learn from."
    )
    validation_fraction: float = Field(
        0.1, ge=0.0, le=0.5, description="Share of the rows set aside for validation during training."
    )
    test_fraction: float = Field(0.1, ge=0.0, le=0.5, description="Share of the rows locked away for the final test.")
    max_validation_rows: int = Field(
        200, ge=1, description="At most this many rows (of documents: passages of 256 tokens) are used for validation."
    )
    max_test_rows: int = Field(
        200, ge=1, description="At most this many rows (of documents: passages of 256 tokens) are used for the test."
    )
    max_train_rows: int | None = Field(
        None,
        ge=1,
        description="Learn from at most this many rows, chosen by the split's stable hash; of documents: from at most "
        "this many windows of `limits.max_tokens` tokens, the first ones.",
    )
    near_duplicate_similarity: float = Field(
        0.8,
        gt=0.0,
        le=1.0,
        description="Rows whose prompts' word shingles are at least this alike (Jaccard) never stand on both sides of "
        "the split.",
    )
    too_long: Literal["drop", "cut", "error"] = Field(
        "drop",
        description="What happens to a row longer than `limits.max_tokens`: dropped, cut at the end, refused. "
        "Documents are cut into pieces, and nothing of them is lost.",
    )
    on_problem: Literal["error", "drop"] = Field(
        "error", description="What happens to broken rows: refuse the file, or drop them, counted and listed."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_files(cls, value: Any) -> Any:
        return data_values(value)

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.path is None) == (not self.sources):
            given = "both a path and sources are" if self.path else "no file is"
            raise ValueError(f"Rows come from `path` (one file) or from `sources` (several); {given} given")
        return self

    @property
    def files(self) -> tuple[SourceSpec, ...]:
        """The files to learn from, at least one, each with its form, mapping and system prompt filled in."""
        files = self.sources or (SourceSpec(path=str(self.path)),)
        return tuple(
            file.model_copy(
                update={
                    "format": file.format or self.format,
                    "mapping": file.mapping or self.mapping,
                    "system": self.system if file.system is None else file.system,
                }
            )
            for file in files
        )

    @property
    def where(self) -> str:
        """The files' names, for errors and lists."""
        return ", ".join(file.path for file in self.files)

    def with_absolute_paths(self) -> DataSpec:
        """Return the same with absolute paths, so that it can be used from anywhere."""
        changes: dict[str, Any] = {
            name: _absolute(value)
            for name in ("path", "validation_path", "test_path")
            if (value := getattr(self, name)) is not None
        }
        changes["sources"] = tuple(file.model_copy(update={"path": _absolute(file.path)}) for file in self.sources)
        if self.replay is not None:
            changes["replay"] = self.replay.model_copy(update={"path": _absolute(self.replay.path)})
        return self.model_copy(update=changes)


def data_values(data: Any) -> Any:
    """Return what names the data as the values of a `DataSpec`: a path, a list of files, or the values themselves."""
    return {"sources": list(data)} if isinstance(data, list | tuple) else file_values(data)


def file_values(file: Any) -> Any:
    """Return what names one file as the values of its spec: a path, or the values themselves."""
    if isinstance(file, str | Path):
        return {"path": str(file)}
    if not isinstance(file, Mapping):
        return file
    path = file.get("path")
    return {**file, "path": str(path)} if isinstance(path, Path) else dict(file)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
