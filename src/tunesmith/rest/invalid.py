"""What pydantic finds wrong with a request, in the words that OpenAI's service uses."""

from __future__ import annotations

from pydantic_core import ErrorDetails

from tunesmith.errors import RequestError

_TYPES = {
    str: "a string", bool: "a boolean", int: "an integer", float: "a decimal", list: "an array", dict: "an object",
    type(None): "null",
}  # fmt: skip
_EXPECTED = {
    "string_type": "a string",
    "bool_type": "a boolean",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "bool_parsing": "a boolean",
    "float_parsing": "a decimal",
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


def invalid_value(found: ErrorDetails) -> RequestError:
    """Return pydantic's finding as OpenAI's service would put it."""
    param = path_of(found["loc"])
    kind, value = found["type"], found["input"]
    if kind == "missing":
        return RequestError(f"Missing required parameter: '{param}'.", code="missing_required_parameter", param=param)
    if kind == "extra_forbidden":
        return RequestError(f"Unknown parameter: '{param}'.", code="unknown_parameter", param=param)
    if kind in _BOUNDS:
        bound, code, words, sign = _BOUNDS[kind]
        number = "integer" if _is_whole(value) and "." not in str(found["ctx"][bound]) else "decimal"
        return RequestError(
            f"Invalid '{param}': {number} {words} value. "
            f"Expected a value {sign} {_shown(found['ctx'][bound])}, but got {value} instead.",
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


def _is_whole(value: object) -> bool:
    """Whether a value is a whole number, also as the text that stands in a path or a query."""
    return isinstance(value, int) or (isinstance(value, str) and value.lstrip("+-").isdigit())


def _shown(bound: float) -> str:
    """Return a bound as people write it: whole numbers in full, 2.0 as 2."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def path_of(location: tuple[int | str, ...]) -> str:
    """Return a place in the request as `messages[0].role`."""
    path = ""
    for step in location:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path[:200]
