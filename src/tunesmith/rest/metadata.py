"""`metadata`: pairs of texts that callers put on what they make, and find it by later."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from tunesmith.errors import RequestError

MOST_PAIRS = 16
MOST_KEY_CHARACTERS = 64
MOST_VALUE_CHARACTERS = 512

#: `metadata` in the schema of a body.
METADATA_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "maxProperties": MOST_PAIRS,
            "propertyNames": {"maxLength": MOST_KEY_CHARACTERS},
            "additionalProperties": {"type": "string", "maxLength": MOST_VALUE_CHARACTERS},
        },
        {"type": "null"},
    ]
}

#: How a query filters by metadata: `metadata[key]=value`, several of them all at once.
METADATA_PARAMETER: dict[str, Any] = {
    "name": "metadata",
    "in": "query",
    "required": False,
    "style": "deepObject",
    "explode": True,
    "description": "`metadata[key]=value`: those that have this pair; `metadata=null`: those without any.",
    "schema": {
        "type": "object",
        "propertyNames": {"pattern": r"^[^\[\]]+$"},
        "additionalProperties": {"type": "string"},
    },
}
#: `metadata[a][b]` would be an object in an object, `metadata[]` a list.
_KEY = re.compile(r"metadata\[([^\[\]]+)\]")


def check_metadata(said: Any) -> dict[str, str] | None:
    """Return a request's `metadata`; None where it has none.

    Raises:
        RequestError: they are no texts, too many or too long, or hold a character that can't be stored.
    """
    if said is None:
        return None
    if not isinstance(said, dict):
        raise RequestError("Invalid type for 'metadata': expected an object.", code="invalid_type", param="metadata")
    if len(said) > MOST_PAIRS:
        raise RequestError(
            f"Invalid 'metadata': too many properties. Expected an object with at most {MOST_PAIRS} properties, "
            f"but got an object with {len(said)} properties instead.",
            code="object_above_max_properties",
            param="metadata",
        )
    for key, value in said.items():
        _check_pair(key, value)
    return said


@dataclass(frozen=True, slots=True)
class MetadataFilter:
    """What a query says of metadata: pairs that must be there, or that there may be none at all."""

    pairs: Mapping[str, str]
    without: bool = False


def metadata_filter(http: Request) -> MetadataFilter:
    """Return what a query says of metadata: `metadata[key]=value`, or `metadata=null`.

    Raises:
        RequestError: it is written in another way.
    """
    pairs: dict[str, str] = {}
    without = False
    for name, value in http.query_params.multi_items():
        found = _KEY.fullmatch(name)
        if found is not None and found[1] not in pairs:
            pairs[found[1]] = value
        elif name == "metadata" and value == "null":
            without = True
        elif name == "metadata" or name.startswith("metadata["):
            raise RequestError("Invalid 'metadata': write metadata[key]=value.", code="invalid_value", param="metadata")
    if without and pairs:
        raise RequestError(
            "'metadata=null' and 'metadata[key]=value' contradict each other.", code="invalid_value", param="metadata"
        )
    _check_storable(pairs)
    return MetadataFilter(pairs, without)


def _check_pair(key: str, value: Any) -> None:
    param = f"metadata.{key[:MOST_KEY_CHARACTERS]}"
    if not isinstance(value, str):
        raise RequestError(f"Invalid type for '{param}': expected a string.", code="invalid_type", param=param)
    for what, text, most in (("key", key, MOST_KEY_CHARACTERS), ("value", value, MOST_VALUE_CHARACTERS)):
        if len(text) > most:
            raise RequestError(
                f"Invalid '{param}': string too long. Expected a {what} with maximum length {most}, but got one with "
                f"length {len(text)} instead.",
                code="string_above_max_length",
                param=param,
            )
    _check_storable({key: value})


def _check_storable(pairs: Mapping[str, str]) -> None:
    if any("\0" in text for pair in pairs.items() for text in pair):
        raise RequestError(
            "Invalid 'metadata': the character NUL can't be stored.", code="invalid_text", param="metadata"
        )
