"""The form of an answer on the wire: OpenAI's `response_format`, and vLLM's `structured_outputs` for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tunesmith.errors import RequestError
from tunesmith.rest.wire import ChatRequest, WireJsonSchema, WireStructuredOutputs
from tunesmith.specs.generation import (
    ChoiceSpec,
    GrammarSpec,
    JsonObjectSpec,
    JsonSchemaSpec,
    OutputSpec,
    RegexSpec,
)


def output_of(request: ChatRequest) -> OutputSpec | None:
    """Return the form that answers must have; None for free text.

    Raises:
        RequestError: what is asked for is incomplete, contradicts itself, or isn't what `strict` promises.
    """
    form, other = request.response_format, request.structured_outputs
    if form is None or form.type == "text":
        return None if other is None else _structured(other)
    if other is not None:
        raise _wrong("'structured_outputs' and 'response_format' can't be given together.", "structured_outputs")
    if form.type == "json_object":
        return JsonObjectSpec()
    if form.json_schema is None:
        raise _missing("response_format.json_schema")
    return _json_schema(form.json_schema)


def blame_form(error: RequestError, request: ChatRequest) -> None:
    """Put the field of the request to blame into an error that blames the form of the answer."""
    if error.param == "output":
        error.param = "response_format" if request.structured_outputs is None else "structured_outputs"


def _json_schema(wanted: WireJsonSchema) -> JsonSchemaSpec:
    schema = wanted.json_schema
    if schema is None:
        raise _missing("response_format.json_schema.schema")
    if wanted.strict:
        _check_strict(wanted.name, schema)
    return JsonSchemaSpec(json_schema=schema)


def _structured(wanted: WireStructuredOutputs) -> OutputSpec:
    given = [name for name in WireStructuredOutputs.model_fields if getattr(wanted, name)]
    if len(given) != 1:
        names = "'json', 'json_object', 'regex', 'choice' and 'grammar'"
        raise _wrong(f"'structured_outputs' takes exactly one of {names}.", "structured_outputs")
    if wanted.json_schema is not None:
        return JsonSchemaSpec(json_schema=wanted.json_schema)
    if wanted.regex:
        return RegexSpec(pattern=wanted.regex)
    if wanted.choice:
        return ChoiceSpec(choices=tuple(wanted.choice))
    return GrammarSpec(grammar=wanted.grammar) if wanted.grammar else JsonObjectSpec()


def _check_strict(name: str, schema: dict[str, Any]) -> None:
    """Refuse what OpenAI's service refuses of a strict schema: objects that may have other or fewer properties.

    Raises:
        RequestError: it isn't strict.
    """
    opening = f"Invalid schema for response_format '{name}': "
    if schema.get("type") != "object" and "$ref" not in schema:
        found = schema.get("type")
        raise _not_strict(f"""{opening}schema must be a JSON Schema of 'type: "object"', got 'type: "{found}"'.""")
    for path, node in _nodes(schema):
        properties = node.get("properties")
        if node.get("type") != "object" and not isinstance(properties, dict):
            continue
        context = f"{opening}In context=({', '.join(map(repr, path))}{',' if len(path) == 1 else ''}), "
        if node.get("additionalProperties") is not False:
            raise _not_strict(f"{context}'additionalProperties' is required to be supplied and to be false.")
        required = node.get("required")
        missing = [key for key in properties or {} if not isinstance(required, list) or key not in required]
        if missing:
            raise _not_strict(
                f"{context}'required' is required to be supplied and to be an array including every key in "
                f"properties. Missing '{missing[0]}'."
            )


def _nodes(schema: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Yield every schema inside a schema, itself included and outer ones first, with the way to it."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), schema)]
    while waiting:
        path, node = waiting.pop()
        if not isinstance(node, dict):
            continue
        yield path, node
        for key in ("$defs", "definitions", "properties"):
            inner = node.get(key)
            if isinstance(inner, dict):
                waiting += [((*path, key, name), value) for name, value in inner.items()]
        if "items" in node:
            waiting.append(((*path, "items"), node["items"]))
        for key in ("anyOf", "allOf", "oneOf", "prefixItems"):
            inner = node.get(key)
            if isinstance(inner, list):
                waiting += [((*path, key, str(i)), value) for i, value in enumerate(inner)]


def _missing(param: str) -> RequestError:
    return RequestError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)


def _wrong(message: str, param: str) -> RequestError:
    return RequestError(message, code="invalid_value", param=param)


def _not_strict(message: str) -> RequestError:
    return RequestError(message, code="invalid_schema", param="response_format")
