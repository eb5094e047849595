"""From what stands on the command line to specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith.cli.options import nested, of_chosen_kinds, parse_assignments, parse_pairs
from tunesmith.errors import SpecError
from tunesmith.specs.data import DataSpec, data_values
from tunesmith.specs.tune import TuneSpec

_ROLES = ("input", "output", "system", "text")
#: Where rows come from: one of these is given.
_ORIGINS = {"data.path": None, "data.sources": ()}

Data = Annotated[
    str | None, typer.Argument(metavar="DATA", help="JSONL, JSON, CSV or Parquet (each also .gz), or documents.")
]
SpecFile = Annotated[
    Path | None, typer.Option("--spec", help="A YAML file with settings, such as the spec.yaml of an earlier run.")
]
Mapped = Annotated[
    list[str],
    typer.Option("--map", metavar="ROLE=COLUMN", help="Which column is what: --map input=question --map output=answer"),
]
Assigned = Annotated[
    list[str],
    typer.Option("--set", metavar="PATH=VALUE", help="Any setting by its path: --set optimisation.schedule=cosine"),
]
DropBad = Annotated[bool, typer.Option("--drop-bad-rows", help="Leave broken rows out, counted and listed.")]

#: Options of every command that reads rows.
DATA_FLAGS = {"data.format": "--format", "data.system": "--system"}
#: Options of every command that plans or trains.
TUNE_FLAGS = {
    "base": "--base",
    "method.kind": "--method",
    "adapter.kind": "--adapter",
    "adapter.rank": "--rank",
    "optimisation.epochs": "--epochs",
    "optimisation.batch_size": "--batch-size",
    "optimisation.learning_rate": "--learning-rate",
    "limits.max_tokens": "--max-tokens",
    "seed": "--seed",
}


@dataclass(frozen=True)
class Asked:
    """What was given besides single settings."""

    data: str | None
    spec_file: Path | None = None
    mapping: Sequence[str] = ()
    assignments: Sequence[str] = ()
    drop_bad_rows: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it was given."""
        return not (self.data or self.spec_file or self.mapping or self.assignments or self.drop_bad_rows)


def tune_spec(asked: Asked, settings: Mapping[str, Any]) -> TuneSpec:
    """Return the spec that a command line means: the file's settings, then options, then `--set`.

    Raises:
        SpecError: no data, or a wrong setting.
    """
    file = TuneSpec.from_yaml(asked.spec_file).model_dump(mode="json") if asked.spec_file else {}
    given = _all(asked, settings)
    if not file and not given.keys() & _ORIGINS:
        raise _nothing_given()
    if given.keys() & _ORIGINS:  # the command line's files take the place of the spec file's
        given = {name: empty for name, empty in _ORIGINS.items() if file} | given
    return TuneSpec.parse(nested(given, of_chosen_kinds(file, given, TuneSpec)))


def data_spec(asked: Asked, settings: Mapping[str, Any]) -> DataSpec:
    """Return how rows are read.

    Raises:
        SpecError: no data, a wrong setting, or one that has nothing to do with reading rows.
    """
    given = _all(asked, settings)
    if not given.keys() & _ORIGINS:
        raise _nothing_given()
    values = nested(given)
    extra = [name for name in values if name != "data"]
    if extra:
        raise SpecError(
            f"This command only reads rows; it has no use for '{extra[0]}'.",
            where="--set",
            fix="Settings here begin with `data.`.",
            code="unknown_setting",
            param=extra[0],
        )
    return DataSpec.parse(values.get("data", {}))


def _nothing_given() -> SpecError:
    return SpecError(
        "There is nothing to learn from.",
        fix="Name a file of examples (tunesmith tune examples.jsonl) or a spec (--spec spec.yaml).",
        code="missing_data",
        param="data.path",
    )


def _all(asked: Asked, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting by its path; the later ones win."""
    found: dict[str, Any] = {"data.path": asked.data} if asked.data else {}
    found |= settings
    if asked.mapping:
        found["data.mapping"] = parse_pairs(asked.mapping, "--map", _ROLES)
    if asked.drop_bad_rows:
        found["data.on_problem"] = "drop"
    assigned = parse_assignments(asked.assignments, TuneSpec)
    data = data_values(assigned.get("data"))
    if isinstance(data, dict):  # `data` as a whole (a path, a list of files): it names the files, the rest may stay
        del assigned["data"]
        found.pop("data.path", None)
        assigned = {f"data.{name}": value for name, value in data.items()} | assigned
    return found | assigned
