"""What every spec is: frozen, closed to unknown keys, explained field by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from tunesmith.errors import SpecError, storage_errors

#: What pydantic calls the branches of unions: types, and the kinds of methods and adapters.
_BRANCHES = {"int", "float", "str", "bool", "tuple", "sft", "pretrain", "lora", "qlora", "full"}


class Spec(BaseModel):
    """A group of settings. Unknown keys are refused, values never change after creation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    #: The page of `docs/reference/` that lists the settings.
    reference_page: ClassVar[str] = "spec.md"

    @classmethod
    def parse(cls, values: dict[str, Any], *, where: str | None = None) -> Self:
        """Build the spec from plain values.

        Raises:
            SpecError: naming the first wrong field by its dotted path, and listing the others.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise spec_error(error, where=where, page=cls.reference_page) from error

    @classmethod
    def from_yaml(cls, path: Path) -> Self:
        """Read the spec from a YAML file.

        Raises:
            SpecError: the file is missing, isn't YAML, or holds a wrong setting.
        """
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise SpecError("There is no such spec file.", where=str(path), fix="Check the path.") from error
        except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
            raise SpecError(
                f"This spec file can't be read as YAML: {error}", where=str(path), fix="Mend the file."
            ) from error
        if not isinstance(values, dict):
            raise SpecError("A spec file holds settings by name.", where=str(path), fix="Start it with `base: ...`.")
        return cls.parse(values, where=str(path))

    def to_yaml(self) -> str:
        """Return the complete spec as YAML, every default spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def write_yaml(self, path: Path) -> None:
        """Write the complete spec to `path`.

        Raises:
            StorageError: the file can't be written.
        """
        with storage_errors(path):
            path.write_text(self.to_yaml(), encoding="utf-8")


def spec_error(error: ValidationError, *, where: str | None = None, page: str = "spec.md") -> SpecError:
    """Turn pydantic's findings into one `SpecError`: the first setting's as the message, the others' as problems.

    Args:
        error: what pydantic found.
        where: the file that holds the settings, if there is one.
        page: the page of `docs/reference/` that lists the settings.
    """
    found: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for item in error.errors():
        # A setting that may be `auto` or a number is refused once for each: one line says both.
        path = ".".join(str(part) for part in item["loc"] if not _names_a_choice(part))
        found.setdefault(path, []).append(_finding(item))
        values[path] = item.get("input")
    problems = []
    for path, messages in found.items():
        said = " or ".join([messages[0], *(message.removeprefix("Input should be ") for message in messages[1:])])
        value = values[path]
        shown = f" (it is {value!r})" if isinstance(value, str | int | float | bool) else ""
        problems.append((path, f"{said}{shown}."))
    path, message = problems[0]
    return SpecError(
        f"{path}: {message}" if path else message,
        where=where,
        fix=f"docs/reference/{page} lists every setting with its limits; so does the command's --help.",
        code="invalid_spec",
        param=path or None,
        problems=tuple(f"{p}: {m}" for p, m in problems[1:]),
    )


def _finding(item: ErrorDetails) -> str:
    """Return what is wrong, without a full stop: our own checks' words as they are, pydantic's for the others."""
    match item["type"]:
        case "extra_forbidden":
            return "There is no such setting"
        case "value_error":
            return str(item["ctx"]["error"]).removesuffix(".")
        case _:
            return item["msg"]


def _names_a_choice(part: str | int) -> bool:
    """Whether a part of pydantic's path names a branch of a union (`constrained-float`, `lora`) instead of a field."""
    return isinstance(part, str) and (not part.isidentifier() or part in _BRANCHES)
