"""The schema of chat requests for `/openapi.json`: what `reading.py` takes, which the model alone doesn't say."""

from __future__ import annotations

from typing import Any

from tunesmith.rest.schema import with_nulls
from tunesmith.rest.wire import IGNORED, UNSUPPORTED, ChatRequest

_STOP = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 4},
    ]
}
_TOOL_CHOICE = {"anyOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]}


def chat_body() -> dict[str, Any]:
    """Return the `openapi_extra` of the route that answers chats. Null stands for the default everywhere."""
    schema = ChatRequest.model_json_schema()
    properties = schema["properties"]
    properties |= {"stop": _STOP, "tool_choice": _TOOL_CHOICE}
    properties["logit_bias"]["propertyNames"] = {"pattern": "^(0|[1-9][0-9]{0,9})$"}
    properties |= {name: {"description": "Accepted, and without effect."} for name in sorted(IGNORED)}
    properties |= {name: {"enum": list(values)} for name, values in UNSUPPORTED.items() if values}
    properties |= {name: {"type": "null"} for name, values in UNSUPPORTED.items() if not values}
    schema = with_nulls(schema)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


#: The schema of one event of a stream; its data is JSON in a text.
EVENT: dict[str, Any] = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
#: A whole answer is JSON; a stream is events.
STREAM_RESPONSE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": EVENT}}}}
