"""Small JSON schemas for hypothesis: bounded numbers and texts, patterns, enums, arrays, objects, anyOf, $ref."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

_WORDS = st.text('abc é"\\\n/{}<🙂', max_size=6)
_NAMES = st.sampled_from(["a", "b", "name", "über", 'q"uote', "with space", "$x", "a\\b"])


@st.composite
def _integers(draw: Any) -> dict[str, Any]:
    low = draw(st.integers(-1200, 1200))
    schema: dict[str, Any] = {"type": "integer", draw(st.sampled_from(["minimum", "exclusiveMinimum"])): low}
    if draw(st.booleans()):
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = low + draw(st.integers(20, 3000))
        if draw(st.booleans()):
            schema["multipleOf"] = draw(st.integers(2, 9))
    return schema


@st.composite
def _numbers(draw: Any) -> dict[str, Any]:
    low = draw(st.integers(-5000, 5000)) / 100
    return {"type": "number", "minimum": low, "maximum": low + draw(st.integers(1, 500)) / 10}


@st.composite
def _texts(draw: Any) -> dict[str, Any]:
    if draw(st.booleans()):
        patterns = ["^[a-c]{1,5}$", "^(yes|no|é+)$", "x", r"^\d{2}:\d{2}$", "^[^a]*$", '^"[a-z]\\\\$']
        return {"type": "string", "pattern": draw(st.sampled_from(patterns))}
    least = draw(st.integers(0, 4))
    return {"type": "string", "minLength": least, "maxLength": least + draw(st.integers(0, 6))}


def _objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    @st.composite
    def one(draw: Any) -> dict[str, Any]:
        properties = draw(st.dictionaries(_NAMES, inner, min_size=1, max_size=4))
        required = draw(st.lists(st.sampled_from(sorted(properties)), unique=True))
        schema = {"type": "object", "properties": properties, "required": required}
        further = draw(st.sampled_from([False, False, None, {"type": "boolean"}]))
        return schema if further is None else {**schema, "additionalProperties": further}

    return one()


@st.composite
def _arrays(draw: Any, inner: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    least = draw(st.integers(0, 2))
    schema: dict[str, Any] = {"type": "array", "items": draw(inner), "minItems": least}
    if draw(st.booleans()):
        schema["maxItems"] = least + draw(st.integers(0, 2))
    if draw(st.booleans()):
        schema["prefixItems"] = [draw(inner)]
    return schema


_LEAVES = st.one_of(
    _integers(),
    _numbers(),
    _texts(),
    st.just({"type": ["boolean", "null"]}),
    st.builds(lambda values: {"enum": values}, st.lists(st.one_of(_WORDS, st.integers(-9, 9), st.none()), min_size=1)),
    st.builds(lambda value: {"const": value}, st.one_of(_WORDS, st.lists(st.booleans(), max_size=2))),
)

_PLAIN = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        _objects(inner),
        _arrays(inner),
        st.builds(lambda kinds: {"anyOf": kinds}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


@st.composite
def schemas(draw: Any) -> dict[str, Any]:
    """A schema that has answers; some refer to a part of themselves, which may refer to itself in turn."""
    plain: dict[str, Any] = draw(_PLAIN)
    if draw(st.integers(0, 3)):
        return plain
    chain = {
        "type": "object",
        "properties": {"part": plain, "next": {"anyOf": [{"$ref": "#/$defs/chain"}, {"type": "null"}]}},
        "required": ["part", "next"],
        "additionalProperties": False,
    }
    return {"$defs": {"chain": chain}, "$ref": "#/$defs/chain"}
