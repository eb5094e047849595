"""From a request's bytes to a `ChatRequest`, or the error in the words that OpenAI's service uses."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from tunesmith.data.strict_json import JsonFault, parse_json
from tunesmith.errors import RequestError
from tunesmith.rest.tools import check_parameters, tool_choice_of
from tunesmith.rest.wire import IGNORED, UNSUPPORTED, ChatRequest

_TYPES = {
    str: "a string", bool: "a boolean", int: "an integer", float: "a decimal", list: "an array", dict: "an object",
    type(None): "null",
}  # fmt: skip
_EXPECTED = {
    "string_type": "a string",
    "bool_type": "a boolean",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a decimal",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("gt", "below_min_value", "below minimum", ">"),
    "greater_than_equal": ("ge", "below_min_value", "below minimum", ">="),
    "less_than_equal": ("le", "above_max_value", "above maximum", "<="),
    "less_than": ("lt", "above_max_value", "above maximum", "<"),
}

_TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")


def read_chat_request(body: bytes) -> ChatRequest:
    """Return the request that a body holds.

    Raises:
        RequestError: it isn't JSON, lacks a field, or holds one that is wrong, unknown or not offered here.
    """
    values = _read_object(body)
    unknown = sorted(values.keys() - ChatRequest.model_fields.keys() - IGNORED - UNSUPPORTED.keys())
    if unknown:
        raise RequestError(
            f"Unknown parameter: '{unknown[0][:100]}'.", code="unknown_parameter", param=unknown[0][:100]
        )
    given = {key: value for key, value in values.items() if value is not None}
    for name, harmless in UNSUPPORTED.items():
        if name in given and not any(given[name] == value for value in harmless):
            raise unsupported(name, f"'{name}' isn't supported by this server.")
    try:
        request = ChatRequest.model_validate({key: given[key] for key in given if key in ChatRequest.model_fields})
    except ValidationError as error:
        raise _invalid(error.errors()[0]) from error
    _check_together(request)
    return request


def unsupported(param: str, message: str) -> RequestError:
    """Return the error for something that OpenAI's service can do and this server can't."""
    return RequestError(message, fix=f"Leave '{param}' out.", code="unsupported_parameter", param=param)


def _read_object(body: bytes) -> dict[str, Any]:
    try:
        values = parse_json(body)
    except JsonFault as fault:
        raise RequestError(
            f"We could not parse the JSON body of your request. {fault.message}", code=fault.code
        ) from fault
    if not isinstance(values, dict):
        raise RequestError("The body of this request must be a JSON object.", code="invalid_type")
    return values


def _check_together(request: ChatRequest) -> None:
    """Refuse fields that contradict each other.

    Raises:
        RequestError: they do.
    """
    if request.top_logprobs and not request.logprobs:
        raise RequestError("'top_logprobs' needs 'logprobs' to be true.", code="invalid_value", param="top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise RequestError(
            "'stream_options' is only allowed when 'stream' is true.", code="invalid_value", param="stream_options"
        )
    _check_stop(request.stop)
    _check_logit_bias(request.logit_bias)
    check_parameters(request)
    tool_choice_of(request)


def _check_stop(stop: Any) -> None:
    """Refuse what isn't a text or up to four texts.

    Raises:
        RequestError: it isn't.
    """
    texts = [stop] if isinstance(stop, str) else [] if stop is None else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestError(
            "Invalid type for 'stop': expected a string or an array of strings.", code="invalid_type", param="stop"
        )
    if len(texts) > 4:
        raise RequestError(
            f"Invalid 'stop': array too long. Expected at most 4 texts, but got {len(texts)} instead.",
            code="array_above_max_length",
            param="stop",
        )
    if "" in texts:
        raise RequestError("Invalid 'stop': a stop text can't be empty.", code="empty_string", param="stop")


def _check_logit_bias(biases: dict[str, float]) -> None:
    """Refuse keys that can't be token ids.

    Raises:
        RequestError: one isn't a number as JSON writes it.
    """
    for key in biases:
        if not _TOKEN_ID.fullmatch(key):
            raise RequestError(
                f"Invalid key in 'logit_bias': '{key[:100]}'. Expected the id of a token.",
                code="invalid_value",
                param="logit_bias",
            )


def _invalid(found: ErrorDetails) -> RequestError:
    """Return pydantic's finding as OpenAI's service would put it."""
    param = _path(found["loc"])
    kind, value = found["type"], found["input"]
    if kind == "missing":
        return RequestError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)
    if kind == "extra_forbidden":
        return RequestError(f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
    if kind in _BOUNDS:
        bound, code, words, sign = _BOUNDS[kind]
        number = "integer" if isinstance(value, int) and "." not in str(found["ctx"][bound]) else "decimal"
        return RequestError(
            f"Invalid '{param}': {number} {words} value. "
            f"Expected a value {sign} {found['ctx'][bound]:g}, but got {value} instead.",
            code=f"{number}_{code}",
            param=param,
        )
    if kind in _EXPECTED:
        got = _TYPES.get(type(value), "something else")
        return RequestError(
            f"Invalid type for '{param}': expected {_EXPECTED[kind]}, but got {got} instead.",
            code="invalid_type",
            param=param,
        )
    if kind == "literal_error":
        shown = f"'{value[:100]}'" if isinstance(value, str) else _TYPES.get(type(value), "something else")
        return RequestError(
            f"Invalid value: {shown}. Supported values are: {found['ctx']['expected'].replace(' or ', ', ')}.",
            code="invalid_value",
            param=param,
        )
    if kind in ("too_short", "string_too_short"):
        what = "array" if kind == "too_short" else "string"
        return RequestError(
            f"Invalid '{param}': empty {what}. Expected at least one element.", code=f"empty_{what}", param=param
        )
    if kind == "too_long":
        what = "object" if isinstance(value, dict) else "array"
        return RequestError(
            f"Invalid '{param}': {what} too long. Expected at most {found['ctx']['max_length']} elements.",
            code=f"{what}_above_max_length",
            param=param,
        )
    if kind == "string_too_long":
        most = found["ctx"]["max_length"]
        return RequestError(
            f"Invalid '{param}': string too long. Expected a string with maximum length {most}, but got a string with "
            f"length {len(value)} instead.",
            code="string_above_max_length",
            param=param,
        )
    if kind == "string_pattern_mismatch":
        return RequestError(
            f"Invalid '{param}': string does not match pattern. Expected a string that matches the pattern "
            f"'{found['ctx']['pattern']}'.",
            code="invalid_value",
            param=param,
        )
    return RequestError(f"Invalid '{param}': {found['msg']}.", code="invalid_value", param=param)


def _path(location: tuple[int | str, ...]) -> str:
    """Return a place in the request as `messages[0].role`."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path[:200]
