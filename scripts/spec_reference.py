"""Reference tables in Markdown from pydantic models: what can be set, and what commands answer with."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.specs.base import Spec

_TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}


@dataclass(frozen=True)
class _Field:
    """A field by its dotted path; `groups` are the definitions that it may hold, empty for a plain value."""

    path: str
    schema: dict[str, Any]
    groups: tuple[str, ...]
    is_required: bool


def settings_reference(spec: type[Spec]) -> str:
    """Return a section for each group of settings, with type, limits, default and description of each."""
    schema = spec.model_json_schema()
    parts = []
    own = list(_fields(schema, ""))
    parts.append(_settings_table([field for field in own if not field.groups]))
    parts += _sections(own, schema)
    return "\n".join(parts)


def _sections(fields: list[_Field], schema: dict[str, Any]) -> Iterator[str]:
    """Yield a section for each group that the fields may hold, and for the groups inside it."""
    for field in fields:
        for name in field.groups:
            group = schema["$defs"][name]
            inner = list(_fields(group, f"{field.path}{'[]' if field.schema.get('type') == 'array' else ''}."))
            yield f"## `{field.path}`\n\n{_first_line(group)}\n\n{_settings_table(inner)}"
            yield from _sections(inner, schema)


def figures_table(spec: type[Spec]) -> str:
    """Return one table of all fields by their dotted paths, for what a command answers with."""
    schema = spec.model_json_schema(mode="serialization")
    rows = ["| field | type | what it is |", "|---|---|---|"]
    rows += [
        f"| `{field.path}` | {_type(field.schema)} | {_cell(field.schema.get('description', ''))} |"
        for field in _all_fields(schema, schema, "")
    ]
    return "\n".join(rows) + "\n"


def json_schema(spec: type[Spec]) -> str:
    """Return the JSON Schema as a fenced block."""
    schema = spec.model_json_schema(mode="serialization")
    return f"```json\n{json.dumps(schema, indent=2, ensure_ascii=False)}\n```\n"


def _fields(group: dict[str, Any], prefix: str) -> Iterator[_Field]:
    """Yield the fields of one group."""
    required = group.get("required", ())
    for name, field in group["properties"].items():
        yield _Field(f"{prefix}{name}", field, tuple(_references(field)), name in required)


def _all_fields(group: dict[str, Any], schema: dict[str, Any], prefix: str) -> Iterator[_Field]:
    """Yield the fields of a group and of the groups inside it."""
    for field in _fields(group, prefix):
        yield field
        for name in field.groups:
            yield from _all_fields(schema["$defs"][name], schema, f"{field.path}.")


def _references(field: dict[str, Any]) -> Iterator[str]:
    """Yield the names of the definitions that a field may hold."""
    if "$ref" in field:
        yield field["$ref"].rpartition("/")[2]
    for option in (*field.get("anyOf", ()), *field.get("oneOf", ()), *field.get("allOf", ())):
        yield from _references(option)
    if "items" in field:
        yield from _references(field["items"])


def _settings_table(fields: list[_Field]) -> str:
    rows = ["| setting | type | limits | default | what it does |", "|---|---|---|---|---|"]
    rows += [
        f"| `{field.path}` | {_type(field.schema)} | {_limits(field.schema)} | {_default(field)} "
        f"| {_cell(field.schema.get('description', ''))} |"
        for field in fields
    ]
    return "\n".join(rows) + "\n"


def _type(field: dict[str, Any]) -> str:
    """Return a field's type in words."""
    if "$ref" in field:
        return "object"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in field:
            return " or ".join(dict.fromkeys(_type(option) for option in field[key]))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_plural(_type(field.get('items', {})))}"
    if field.get("type") == "object":
        names = field.get("propertyNames", {}).get("enum")
        return f"texts by {', '.join(f'`{name}`' for name in names)}" if names else "object"
    return "secret text" if field.get("writeOnly") else _TYPES.get(field.get("type", ""), "any value")


def _plural(kind: str) -> str:
    return {"text": "texts", "secret text": "secret texts", "integer": "integers", "number": "numbers"}.get(kind, kind)


def _limits(field: dict[str, Any]) -> str:
    """Return a field's limits in words; empty where there are none."""
    found = []
    for part in (field, *field.get("anyOf", ())):
        low, high = part.get("minimum"), part.get("maximum")
        words = []
        if low is not None and high is not None:
            words.append(f"{_number(low)} to {_number(high)}")
        elif low is not None:
            words.append(f"at least {_number(low)}")
        elif high is not None:
            words.append(f"at most {_number(high)}")
        if (above := part.get("exclusiveMinimum")) is not None:
            words.insert(0, f"above {_number(above)}")
        if (below := part.get("exclusiveMaximum")) is not None:
            words.append(f"below {_number(below)}")
        if (longest := part.get("maxLength")) is not None:
            words.append(f"at most {longest} characters")
        if (most := part.get("maxItems")) is not None:
            words.append(f"at most {most} of them")
        if words:
            found.append(", ".join(words))
    return "; ".join(found)


def _default(field: _Field) -> str:
    if field.is_required:
        return "must be given"
    value = field.schema.get("default")
    if value is None or value in ([], {}, ""):
        return "none"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"


def _number(value: float) -> str:
    """Return a limit as people read it: no needless `.0`, separators in large numbers."""
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"


def _first_line(group: dict[str, Any]) -> str:
    return inspect.cleandoc(group.get("description", "")).partition("\n\n")[0].replace("\n", " ")


def _cell(text: str) -> str:
    """Return a text that can stand in a table's cell."""
    return text.replace("|", "\\|").replace("\n", " ")
