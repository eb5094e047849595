"""Options that say what form answers must have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith.data.strict_json import JsonFault, parse_json
from tunesmith.errors import SpecError

_PANEL = "Form of the answers"

JsonSchemaFile = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="JSON that this schema describes.", rich_help_panel=_PANEL),
]
JsonObject = Annotated[bool, typer.Option("--json-object", help="A JSON object.", rich_help_panel=_PANEL)]
Regex = Annotated[
    str | None,
    typer.Option("--regex", metavar="TEXT", help="A text that matches, as a whole.", rich_help_panel=_PANEL),
]
GrammarFile = Annotated[
    Path | None,
    typer.Option("--grammar", metavar="FILE", help="A text of this grammar, in Lark's form.", rich_help_panel=_PANEL),
]
Choices = Annotated[
    list[str] | None,
    typer.Option("--choice", metavar="TEXT", help="One of these texts; repeat the option.", rich_help_panel=_PANEL),
]


def form_settings(
    json_schema: Path | None, json_object: bool, regex: str | None, grammar: Path | None, choice: list[str] | None
) -> dict[str, Any]:
    """Return the setting `output` that the options ask for, by name; nothing for free text.

    Raises:
        SpecError: two forms are asked for at once, or a file can't be read.
    """
    asked = {
        "--json-schema": json_schema,
        "--json-object": json_object,
        "--regex": regex,
        "--grammar": grammar,
        "--choice": choice,
    }
    given = [name for name, value in asked.items() if value]
    if len(given) > 1:
        raise SpecError(
            f"Answers have one form, not two: {' and '.join(given)}.", fix="Leave one out.", code="two_forms"
        )
    if json_schema is not None:
        return {"output": {"kind": "json_schema", "json_schema": _schema(json_schema)}}
    if json_object:
        return {"output": {"kind": "json_object"}}
    if regex:
        return {"output": {"kind": "regex", "pattern": regex}}
    if grammar is not None:
        return {"output": {"kind": "grammar", "grammar": _read(grammar).decode(errors="replace")}}
    return {"output": {"kind": "choice", "choices": choice}} if choice else {}


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SpecError(
            "This file can't be read.", where=str(file), fix="Check the path.", code="unreadable_file"
        ) from error


def _schema(file: Path) -> Any:
    try:
        schema = parse_json(_read(file))
    except JsonFault as fault:
        raise SpecError(fault.message, where=f"{file}, line {fault.line}", fix=fault.fix, code=fault.code) from fault
    if not isinstance(schema, dict):
        raise SpecError(
            "A JSON schema is an object.", where=str(file), fix='Write {"type": ...}.', code="invalid_schema"
        )
    return schema
