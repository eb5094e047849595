"""What is refused of a form before it is compiled: what would be ignored, and what would take too long.

Unsupported keywords that the compiler itself refuses by name aren't repeated here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from tunesmith.errors import RequestError
from tunesmith.specs.generation import ChoiceSpec, GrammarSpec, JsonObjectSpec, JsonSchemaSpec, OutputSpec, RegexSpec

#: Largest schema, as compact JSON in UTF-8, and largest list of choices.
MAX_FORM_BYTES = 131_072
#: Deepest nesting of objects and arrays in a schema's own JSON.
MAX_SCHEMA_DEPTH = 50
#: Most different places that `$ref` may point to; compiling takes time by the square of a chain of them.
MAX_SCHEMA_REFERENCES = 200
#: Largest `multipleOf`, its decimal point left out: telling multiples of N takes N states.
MAX_MULTIPLE = 10_000
#: Most rules and terminals of a grammar.
MAX_GRAMMAR_RULES = 1_000

#: Keywords that hold one schema, several, or several by name.
_ONE = ("items", "additionalProperties")
_SEVERAL = ("prefixItems", "anyOf", "oneOf", "allOf")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")

_RULE = re.compile(r"^\s*[?!]*[A-Za-z_][\w-]*\s*[:\[{.]", re.MULTILINE)


def check_form(spec: OutputSpec) -> None:
    """Refuse a form that can't be kept to the letter, or only by taking very long.

    Raises:
        RequestError: its code says which kind of form it is (`invalid_schema`, `invalid_regex`, `invalid_grammar`,
            `invalid_choice`).
    """
    match spec:
        case JsonSchemaSpec():
            _check_schema(spec.json_schema)
        case GrammarSpec():
            rules = len(_RULE.findall(spec.grammar))
            if rules > MAX_GRAMMAR_RULES:
                raise form_error(
                    f"The grammar has {rules:,} rules; {MAX_GRAMMAR_RULES:,} are allowed.", code=form_code(spec)
                )
        case ChoiceSpec():
            size_bytes = sum(len(choice.encode()) for choice in spec.choices)
            if size_bytes > MAX_FORM_BYTES:
                raise form_error(
                    f"The choices have {size_bytes:,} bytes together; {MAX_FORM_BYTES:,} are allowed.",
                    code=form_code(spec),
                )
        case JsonObjectSpec() | RegexSpec():
            pass  # a regular expression's length is limited where it is read


def form_code(spec: OutputSpec) -> str:
    """Return the stable word for what is wrong with a form of this kind."""
    return {
        "json_object": "invalid_schema",
        "json_schema": "invalid_schema",
        "regex": "invalid_regex",
        "grammar": "invalid_grammar",
        "choice": "invalid_choice",
    }[spec.kind]


def form_error(message: str, *, code: str, fix: str | None = None) -> RequestError:
    """Return what a caller is told about a form that can't be used; the field to blame is `output`."""
    return RequestError(message, fix=fix, code=code, param="output")


def _check_schema(schema: dict[str, Any]) -> None:
    code = "invalid_schema"
    _check_depth(schema)
    try:
        size_bytes = len(json.dumps(schema, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())
    except UnicodeEncodeError as error:
        raise form_error("The schema holds half a character (an unpaired surrogate).", code=code) from error
    except (TypeError, ValueError) as error:
        raise form_error(f"The schema isn't JSON: {error}.", code=code) from error
    if size_bytes > MAX_FORM_BYTES:
        raise form_error(f"The schema has {size_bytes:,} bytes; {MAX_FORM_BYTES:,} are allowed.", code=code)
    references: set[str] = set()
    for place, node in _schemas(schema):
        _check_node(place, node)
        if "$ref" in node:
            references.add(str(node["$ref"]))
    if len(references) > MAX_SCHEMA_REFERENCES:
        raise form_error(
            f"The schema refers to {len(references):,} places by $ref; {MAX_SCHEMA_REFERENCES:,} are allowed.",
            code=code,
        )


def _check_depth(schema: dict[str, Any]) -> None:
    """Refuse deep nesting level by level: whatever calls itself would overrun the stack."""
    level: list[Any] = [schema]
    for _ in range(MAX_SCHEMA_DEPTH + 1):
        level = [
            inner
            for node in level
            for inner in (node.values() if isinstance(node, dict) else node)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise form_error(f"The schema is nested more than {MAX_SCHEMA_DEPTH} levels deep.", code="invalid_schema")


def _schemas(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every schema inside a schema, itself included, with its place."""
    waiting: list[tuple[str, Any]] = [("", schema)]
    while waiting:
        place, node = waiting.pop()
        if not isinstance(node, dict):
            continue
        yield place or "the top", node
        waiting += [(f"{place}/{key}", node[key]) for key in _ONE if key in node]
        for key in _SEVERAL:
            if isinstance(node.get(key), list):
                waiting += [(f"{place}/{key}/{i}", inner) for i, inner in enumerate(node[key])]
        for key in _NAMED:
            if isinstance(node.get(key), dict):
                waiting += [(f"{place}/{key}/{name}", inner) for name, inner in node[key].items()]


def _check_node(place: str, node: dict[str, Any]) -> None:
    """Refuse keywords whose meaning would be lost.

    Raises:
        RequestError: there is one.
    """
    code = "invalid_schema"
    if node.get("nullable") is True:
        raise form_error(
            f"The schema has 'nullable' at {place}, which isn't JSON Schema's.", code=code,
            fix='Write {"type": ["string", "null"]} or an anyOf with {"type": "null"}.',
        )  # fmt: skip
    if isinstance(node.get("items"), list):
        raise form_error(
            f"The schema has a list as 'items' at {place}, as in old drafts.", code=code,
            fix="Write 'prefixItems', as in draft 2020-12.",
        )  # fmt: skip
    least = node.get("minProperties")
    required = node.get("required")
    needed = len(required) if isinstance(required, list) else 0
    # Keys that aren't under "properties" may come twice, so that fewer different ones are left.
    if isinstance(least, int) and least > max(1, needed):
        raise form_error(
            f"The schema has 'minProperties' at {place}, which can't be guaranteed above 1.", code=code,
            fix="Name the properties in 'required'.",
        )  # fmt: skip
    multiple = node.get("multipleOf")
    if isinstance(multiple, int | float) and not isinstance(multiple, bool):
        digits = Decimal(str(multiple)).normalize().as_tuple()
        scale = 10**digits.exponent if isinstance(digits.exponent, int) and 0 < digits.exponent < 20 else 1
        if int("".join(map(str, digits.digits))) * scale > MAX_MULTIPLE:
            raise form_error(
                f"The schema has a 'multipleOf' at {place} that is too large or too exact.", code=code,
                fix=f"Numbers of up to {MAX_MULTIPLE:,}, the decimal point left out, are supported.",
            )  # fmt: skip
