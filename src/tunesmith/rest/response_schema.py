"""The schemas of stored responses for `/openapi.json`: they go out as they were stored, so no model describes them."""

from __future__ import annotations

from typing import Any

from tunesmith.rest.chat_schema import EVENT

_ITEMS = {"type": "array", "items": {"type": "object", "required": ["type"]}}
_OBJECT = {
    "title": "Response",
    "type": "object",
    "required": ["id", "object", "created_at", "model", "status", "output", "error", "usage"],
    "properties": {
        "id": {"type": "string", "pattern": "^resp_"},
        "object": {"const": "response"},
        "created_at": {"type": "integer"},
        "model": {"type": "string"},
        "status": {"enum": ["completed", "incomplete", "failed"]},
        "output": _ITEMS,
        "error": {"anyOf": [{"type": "object"}, {"type": "null"}]},
        "usage": {"anyOf": [{"type": "object"}, {"type": "null"}]},
    },
}
_LIST = {
    "title": "InputItems",
    "type": "object",
    "required": ["object", "data", "first_id", "last_id", "has_more"],
    "properties": {"object": {"const": "list"}, "data": _ITEMS, "has_more": {"type": "boolean"}},
}


def _json(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"schema": schema}}}}


RESPONSE = _json(_OBJECT)
#: A stream's events are JSON, each with its `type`.
RESPONSE_OR_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {**RESPONSE[200]["content"], "text/event-stream": {"schema": EVENT}}}
}
INPUT_ITEMS = _json(_LIST)
