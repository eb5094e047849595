"""A form that is wrong, not supported, too large or hostile is refused with a reason, and quickly."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tiny_models import tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import RequestError
from tunesmith.generate.constraints import Constraints
from tunesmith.specs.generation import ChoiceSpec, GrammarSpec, JsonSchemaSpec, OutputSpec, RegexSpec


@cache
def constraints() -> Constraints:
    words = ChatRenderer(tiny_tokenizer("qwen3"))
    made = Constraints(words, len(words.tokenizer), words.end_of_turn_ids)
    made.compile(ChoiceSpec(choices=("a",)))
    return made


def refused(spec: OutputSpec) -> RequestError:
    with pytest.raises(RequestError) as error:
        constraints().compile(spec)
    assert error.value.param == "output"
    assert "\n" not in error.value.message
    assert len(error.value.message) < 500
    return error.value


def schema(**keys: Any) -> JsonSchemaSpec:
    return JsonSchemaSpec(json_schema=keys)


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        found = {"type": "array", "items": found}
    return found


def chain(length: int, **link: Any) -> JsonSchemaSpec:
    """Definitions of which each refers to the next."""
    names = {f"d{i}": {**link, "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(length)}
    return schema(**{"$defs": {**names, f"d{length}": {"type": "null"}}, "$ref": "#/$defs/d0"})


SCHEMAS = {
    "uniqueItems": schema(type="array", uniqueItems=True),
    "not": schema(**{"not": {"type": "string"}}),
    "dependentRequired": schema(type="object", dependentRequired={"a": ["b"]}),
    "unevaluatedProperties": schema(type="object", unevaluatedProperties=False),
    "strin": schema(type="strin"),
    "format": schema(type="string", format="credit-card"),
    "look-ahead": schema(type="string", pattern="(?=a)b"),
    "nullable": schema(properties={"a": {"type": "string", "nullable": True}}),
    "prefixItems": schema(type="array", items=[{"type": "string"}]),
    "minProperties": schema(type="object", minProperties=3),
    "multipleOf": schema(type="number", multipleOf=1234.5678),
    "greater than": schema(type="integer", minimum=5, maximum=3),
    "does not exist": schema(**{"$ref": "#/$defs/a"}),
    "http://a/b": schema(**{"$ref": "http://a/b"}),
    "no text": schema(**{"$ref": "#"}),
    "levels deep": JsonSchemaSpec(json_schema=nested(60)),
    "bytes": schema(enum=["x" * 1000 + str(i) for i in range(200)]),
    "places": chain(1000, type="array"),
    "surrogate": schema(const="\ud800"),
    "JSON": schema(minimum=float("inf")),
}


@pytest.mark.parametrize("told", SCHEMAS)
def test_a_schema_that_cant_be_kept_is_refused(told):
    error = refused(SCHEMAS[told])
    assert error.code == "invalid_schema"
    assert told in f"{error.message} {error.fix}"


@pytest.mark.parametrize("pattern", ["(abc", "(?=a)abc", r"(a)\1", r"\bab\b", "a$b", r"[^\s\S]", "(" * 400 + ")" * 400])
def test_a_regex_that_cant_be_kept_is_refused(pattern):
    assert refused(RegexSpec(pattern=pattern)).code == "invalid_regex"


@pytest.mark.parametrize(
    "grammar",
    ["hello", "start: foo", "start: <nope>", "start: a\na: a", "start: " + "(" * 5000 + '"a"' + ")" * 5000,
     "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(3000)) + 'r3000: "a"'],
)  # fmt: skip
def test_a_grammar_that_cant_be_followed_is_refused(grammar):
    assert refused(GrammarSpec(grammar=grammar)).code == "invalid_grammar"


def test_choices_that_are_too_large_are_refused():
    assert refused(ChoiceSpec(choices=tuple("x" * 1000 + str(i) for i in range(200)))).code == "invalid_choice"


def test_what_harms_nothing_is_no_reason_to_refuse():
    spec = schema(
        title="T", description="d", examples=[1], default={}, readOnly=True, type="object",
        properties={"nullable": {"type": "boolean"}, "items": {"type": "array", "items": {"type": "null"}}},
        required=["nullable"], minProperties=1, additionalProperties=False,
        **{"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "x", "x-vendor": 1},
    )  # fmt: skip
    constraints().compile(spec)


HOSTILE = {
    "deepest chain": chain(195, type="array", prefixItems=[nested(44)]),
    "chain of all": schema(
        **{"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)} | {"d60": {}}},
        **{"$ref": "#/$defs/d0"},
    ),
    "product of choices": schema(
        allOf=[{"anyOf": [{"properties": {f"k{i}": {"const": j}}} for j in range(6)]} for i in range(14)]
    ),
    "patterns together": schema(allOf=[{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(15)]),
    "largest multiple": schema(type="integer", multipleOf=9_973),
    "many properties": schema(type="object", properties={f"p{i}": {"type": "string"} for i in range(1500)}),
    "exponential regex": RegexSpec(pattern="(a|b)*a(a|b){400}c"),
    "repeated repetition": RegexSpec(pattern="((a{1,1000}){1,1000}){1,1000}"),
    "any letters": RegexSpec(pattern=r"[\p{L}\p{N}]{1,5000}\w{1000}"),
    "ambiguous grammar": GrammarSpec(grammar='start: start start | "a" | start start start'),
    "doubled rules": GrammarSpec(
        grammar="start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40: "a"'
    ),
    "doubled terminals": GrammarSpec(
        grammar="start: R0\n" + "".join(f"R{i}: R{i + 1} R{i + 1}\n" for i in range(40)) + 'R40: "a"'
    ),
    "long chain of rules": GrammarSpec(
        grammar="start: r0\n" + "".join(f'r{i}: r{i + 1} | "x" r{i + 1}\n' for i in range(990)) + 'r990: "a"'
    ),
    "long chain of terminals": GrammarSpec(
        grammar="start: R0\n" + "".join(f'R{i}: R{i + 1} | "x" R{i + 1}\n' for i in range(990)) + 'R990: "a"'
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_forms_are_bounded_in_time(name):
    """Compiled or refused; and if compiled, each step is quick or ends the answer with a reason."""
    made = constraints()
    started = time.process_time()
    try:
        matcher = made.compile(HOSTILE[name])
    except RequestError:
        assert time.process_time() - started < 8
        return
    assert time.process_time() - started < 8
    words = tiny_tokenizer("qwen3")
    ends = set(ChatRenderer(words).end_of_turn_ids)
    mask = torch.zeros(-(-len(words) // 32), dtype=torch.int32)
    for step in range(60):
        started = time.process_time()
        try:
            matcher.allowed(mask)
            ids = np.flatnonzero(np.unpackbits(mask.numpy().view(np.uint8), bitorder="little"))
            texts = [int(i) for i in ids if i not in ends]
            if texts:
                matcher.accept(texts[step * 7919 % len(texts)])
        except RequestError as error:
            assert error.code == "form_dead_end"
            break
        finally:
            assert time.process_time() - started < 2


def test_the_commands_start_without_the_compiler():
    code = "import sys, tunesmith.cli.main, tunesmith.rest.wire; sys.exit('llguidance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
