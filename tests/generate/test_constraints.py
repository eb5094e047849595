"""Whatever is drawn from the tokens that a matcher allows has the form that was asked for."""

from __future__ import annotations

import json
import random
import re
import threading
from functools import cache

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from json_schemas import schemas
from tiny_models import tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import RequestError
from tunesmith.generate.constraints import Constraints, TokenMatcher
from tunesmith.generate.text import TextStream
from tunesmith.specs.generation import (
    ChoiceSpec,
    GrammarSpec,
    JsonObjectSpec,
    JsonSchemaSpec,
    OutputSpec,
    RegexSpec,
    SamplingSpec,
)

KINDS = ("byte level", "sentencepiece")
#: Rows of the vocabulary that no token uses, as models have them.
PADDING = 37


@cache
def renderer(kind: str) -> ChatRenderer:
    if kind == "byte level":
        return ChatRenderer(tiny_tokenizer("qwen3"))
    words = [*'_aesy{"', "_y", "es", "_yes", "_{", "_n", "no", "__"]
    words = [word.replace("_", "\u2581") for word in words]
    vocabulary = {name: i for i, name in enumerate(["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words])}
    merges = [("\u2581", "y"), ("e", "s"), ("\u2581y", "es"), ("\u2581", "{"), ("\u2581", "\u2581")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "</s>")])
    return ChatRenderer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


@cache
def constraints(kind: str) -> Constraints:
    words = renderer(kind)
    return Constraints(words, len(words.tokenizer) + PADDING, words.end_of_turn_ids)


def allowed(matcher: TokenMatcher, kind: str) -> list[int]:
    """The ids that may come next."""
    size = len(renderer(kind).tokenizer) + PADDING
    mask = torch.full((-(-size // 32),), -1, dtype=torch.int32)
    matcher.allowed(mask)
    bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")
    assert not bits[size:].any()
    return [int(i) for i in np.flatnonzero(bits)]


def spoken(spec: OutputSpec, seed: int, kind: str = "byte level", most_tokens: int = 300) -> str | None:
    """A text drawn from the allowed tokens, ends and closing signs more often than others; None if it gets long."""
    words, matcher = renderer(kind), constraints(kind).compile(spec)
    chance, stream = random.Random(seed), TextStream(words, ())
    for _ in range(most_tokens):
        ids = allowed(matcher, kind)
        ends = [i for i in ids if i in words.end_of_turn_ids]
        texts = [i for i in ids if i not in words.end_of_turn_ids]
        assert not set(texts) & words.special_ids
        assert all(i < len(words.tokenizer) for i in texts)
        assert matcher.is_finished <= (not texts)
        assert not ends or set(ends) == words.end_of_turn_ids
        if not texts or (ends and chance.random() < 0.5):
            return stream.text + stream.finish()
        closing = [i for i in texts if words.token_bytes(i)[:1] in (b'"', b"}", b"]")]
        chosen = chance.choice(closing if closing and chance.random() < 0.4 else texts)
        matcher.accept(chosen)
        stream.add(chosen)
    return None


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120)
@given(schema=schemas(), seed=st.integers(0, 2**32))
def test_json_validates(kind, schema, seed):
    text = spoken(JsonSchemaSpec(json_schema=schema), seed, kind)
    if text is not None:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def test_most_answers_come_to_an_end():
    """Else the test above would test nothing."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"type": "number"}}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    texts = [spoken(JsonSchemaSpec(json_schema=schema), seed) for seed in range(20)]
    assert sum(text is not None for text in texts) > 15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(10))
def test_a_json_object_is_an_object(kind, seed):
    text = spoken(JsonObjectSpec(), seed, kind)
    assert text is None or isinstance(json.loads(text), dict)


PATTERNS = [
    "a*",
    "^(foo|foobar)$",
    r"\d{3}-[a-z]+",
    "é+|日本",
    r" ?x{2,5} ",
    '"[^"]*"',
    r"(a|b)*c\\/",
    "(?i)yes|no",
    "x{0}",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_whole_answer_matches_a_regex(kind, pattern):
    texts = [spoken(RegexSpec(pattern=pattern), seed, kind) for seed in range(12)]
    assert any(text is not None for text in texts)
    for text in filter(lambda text: text is not None, texts):
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(
    choices=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
)
def test_an_answer_is_one_of_the_choices(kind, choices, seed):
    assert spoken(ChoiceSpec(choices=tuple(choices)), seed, kind) in choices


@pytest.mark.parametrize("kind", KINDS)
def test_every_choice_can_be_made(kind):
    choices = ("foo", "foobar", " foo", "", "fo\no", '"', "<|im_end|>", "日本", "yes")
    said = {spoken(ChoiceSpec(choices=choices), seed, kind) for seed in range(400)}
    assert said == set(choices)


def test_where_the_first_space_is_dropped_words_may_begin_with_it():
    """The usual token for a first word begins with a space there; without it, the model would have to spell."""
    words = renderer("sentencepiece").tokenizer
    matcher = constraints("sentencepiece").compile(ChoiceSpec(choices=("yes", "no")))
    names = set(words.convert_ids_to_tokens(allowed(matcher, "sentencepiece")))
    assert {"\u2581yes", "\u2581y", "y", "\u2581n"} <= names
    one = constraints("sentencepiece").compile(ChoiceSpec(choices=("yes",)))
    assert {"\u2581yes", "\u2581y"} <= set(words.convert_ids_to_tokens(allowed(one, "sentencepiece")))
    one.accept(words.convert_tokens_to_ids("\u2581yes"))
    assert one.is_finished


def test_a_grammar_is_followed():
    grammar = 'start: sum\nsum: NUMBER ("+" NUMBER)*\nNUMBER: /[1-9][0-9]{0,2}/\n'
    for seed in range(10):
        text = spoken(GrammarSpec(grammar=grammar), seed)
        assert text is None or re.fullmatch(r"[1-9][0-9]{0,2}(\+[1-9][0-9]{0,2})*", text)


def test_a_grammar_may_name_a_special_token():
    words = renderer("byte level")
    matcher = constraints("byte level").compile(GrammarSpec(grammar='start: <|im_start|> "a"'))
    (only,) = allowed(matcher, "byte level")
    assert words.tokenizer.convert_ids_to_tokens(only) == "<|im_start|>"


def test_spaces_in_json_are_bounded():
    words = renderer("byte level")
    matcher = constraints("byte level").compile(JsonObjectSpec())
    matcher.accept(words.tokenizer.encode("{")[0])
    spaces = 0
    for _ in range(200):
        blank = [i for i in allowed(matcher, "byte level") if not words.token_bytes(i).strip()]
        blank = [i for i in blank if i not in words.end_of_turn_ids]
        if not blank:
            break
        spaces += len(words.token_bytes(blank[0]))
        matcher.accept(blank[0])
    assert 1 <= spaces <= 41


def test_json_is_written_as_models_write_it():
    """Compact, with single spaces, or indented."""
    words = renderer("byte level")
    for indent in (None, 2, 4):
        text = json.dumps({"a": [1, {"b": "c"}], "d": None}, indent=indent)
        matcher = constraints("byte level").compile(JsonObjectSpec())
        for token_id in words.tokenizer.encode(text, add_special_tokens=False):
            matcher.accept(token_id)
        assert matcher.is_finished


def test_a_token_that_isnt_allowed_is_a_fault():
    matcher = constraints("byte level").compile(ChoiceSpec(choices=("yes",)))
    with pytest.raises(ValueError, match="allowed"):
        matcher.accept(renderer("byte level").tokenizer.encode("no")[0])


def test_a_form_that_the_tokens_cant_write_is_refused():
    """This tokenizer has no bytes above 127."""
    vocabulary = {"</s>": 0, "a": 1, "b": 2}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    words = ChatRenderer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    made = Constraints(words, 3, words.end_of_turn_ids)
    with pytest.raises(RequestError) as refused:
        made.compile(ChoiceSpec(choices=("é",)))
    assert refused.value.code == "invalid_choice"
    matcher = made.compile(ChoiceSpec(choices=("aé", "aü")))
    matcher.accept(1)
    with pytest.raises(RequestError) as dead:
        matcher.allowed(torch.zeros(1, dtype=torch.int32))
    assert dead.value.code == "form_dead_end"


def test_a_model_without_ends_can_be_held_to_a_form():
    words = renderer("byte level")
    matcher = Constraints(words, len(words.tokenizer), ()).compile(ChoiceSpec(choices=("yes",)))
    for token_id in words.tokenizer.encode("yes"):
        assert not matcher.is_finished
        matcher.accept(token_id)
    assert matcher.is_finished


def test_matchers_of_one_form_are_independent():
    made = constraints("byte level")
    spec = ChoiceSpec(choices=("aa", "ab"))
    one, other = made.compile(spec), made.compile(spec)
    a = renderer("byte level").tokenizer.encode("a")[0]
    before = allowed(other, "byte level")
    one.accept(a)
    assert allowed(other, "byte level") == before != allowed(one, "byte level")


def test_compiled_forms_are_kept(monkeypatch):
    words = renderer("byte level")
    made = Constraints(words, len(words.tokenizer), words.end_of_turn_ids, max_kept=2)
    large = ChoiceSpec(choices=tuple(f"choice {i}" for i in range(5_000)))
    compiled = []
    compile_one = made._compiled
    monkeypatch.setattr(made, "_compiled", lambda spec: compiled.append(spec) or compile_one(spec))
    for _ in range(10):
        made.compile(large)
    assert compiled == [large]
    for i in range(4):
        made.compile(ChoiceSpec(choices=(str(i),)))
    assert len(made._kept) == 2


def test_the_order_of_properties_is_part_of_a_form():
    schema = {"type": "object", "required": ["a", "b"], "additionalProperties": False}
    for first, second in ("ab", "ba"):
        properties = {first: {"const": 1}, second: {"const": 1}}
        text = spoken(JsonSchemaSpec(json_schema={**schema, "properties": properties}), 0)
        assert list(json.loads(text)) == [first, second]


def test_threads_may_compile_at_once():
    words = renderer("byte level")
    made = Constraints(words, len(words.tokenizer), words.end_of_turn_ids)
    faults = []

    def work(seed: int) -> None:
        try:
            for i in range(20):
                made.compile(RegexSpec(pattern=f"[a-z]{{{i + 1}}}{seed % 2}"))
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_the_sampling_settings_read_forms():
    spec = SamplingSpec.parse({"output": {"kind": "regex", "pattern": "a"}})
    assert spec.output == RegexSpec(pattern="a")
