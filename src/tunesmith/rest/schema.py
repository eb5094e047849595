"""What the server says about itself at `/openapi.json`, kept true where the framework can't know it.

Bodies that routes read themselves are described by `json_body`; every route tells of its errors and its key.
"""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from tunesmith.rest.guard import OPEN_PATHS

_COMPONENTS = "#/components/schemas/"
_LOCAL = "#/$defs/"


class ErrorFacts(BaseModel):
    """What went wrong; `code` is a stable word, `param` the part of the request that is at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every refusal."""

    error: ErrorFacts


#: The responses that every route may give beside its own.
ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request can't be answered as it is."},
    "5XX": {"model": ErrorBody, "description": "The server can't answer now."},
}


def json_body(model: type[BaseModel], *, is_required: bool = True) -> dict[str, Any]:
    """Return the `openapi_extra` of a route that reads its JSON body itself."""
    return {"requestBody": {"required": is_required, "content": {"application/json": {"schema": _schema_of(model)}}}}


def with_nulls(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an object's schema in which every property that may be left out may be null as well."""
    required = schema.get("required", ())
    properties = {
        name: one if name in required or _takes_null(one) else {"anyOf": [one, {"type": "null"}]}
        for name, one in schema["properties"].items()
    }
    return {**schema, "properties": properties}


class DescribedApp(FastAPI):
    """An application whose schema tells of keys and of bodies with parts of their own."""

    def openapi(self) -> dict[str, Any]:
        """Return the schema."""
        schema = super().openapi()
        components = schema.setdefault("components", {})
        if "securitySchemes" in components:
            return schema
        components["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "Needed once the server has a key."}
        }
        schema["security"] = [{"key": []}]
        for path, operations in schema["paths"].items():
            for operation in operations.values():
                if path in OPEN_PATHS:
                    operation["security"] = []
                _move_parts(operation, components.setdefault("schemas", {}))
        return schema


def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(ref_template=_LOCAL + "{model}")


def _takes_null(schema: dict[str, Any]) -> bool:
    # An empty schema takes anything.
    return (
        not schema or schema.get("type") == "null" or any(one.get("type") == "null" for one in schema.get("anyOf", ()))
    )


def _move_parts(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Give the parts of a body's schema a place where references find them, under names of their own."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content.get("schema", {})
        if "$defs" not in schema:
            continue
        # The route's own description stays as it is.
        schema = copy.deepcopy(schema)
        owner = schema.get("title", operation["operationId"])
        parts = schema.pop("$defs")
        _rename(schema, owner, parts.keys())
        for name, part in parts.items():
            _rename(part, owner, parts.keys())
            schemas[f"{owner}.{name}"] = part
        content["schema"] = schema


def _rename(node: Any, owner: str, names: Any) -> None:
    """Let references to a body's parts lead to where they are now."""
    if isinstance(node, list):
        for one in node:
            _rename(one, owner, names)
    elif isinstance(node, dict):
        name = node["$ref"].rpartition("/")[2] if isinstance(node.get("$ref"), str) else None
        if name in names:
            node["$ref"] = f"{_COMPONENTS}{owner}.{name}"
        for one in node.values():
            _rename(one, owner, names)
