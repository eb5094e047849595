"""Streamed text is whole characters, never part of a stop text, and in the end exactly what the tokens say."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from tiny_models import tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.text import TextStream


@cache
def renderer(kind: str) -> ChatRenderer:
    if kind == "byte level":
        return ChatRenderer(tiny_tokenizer("qwen3"))
    vocabulary = {
        name: i for i, name in enumerate(["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "\u2581", "a"])
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "</s>")])
    return ChatRenderer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


_TEXT = st.text(st.one_of(st.sampled_from(" \naé🙂日<"), st.characters(exclude_categories=["Cs", "Cn"])), max_size=20)


def streamed(kind: str, token_ids, stop=()) -> tuple[list[str], TextStream]:
    stream = TextStream(renderer(kind), stop)
    parts = []
    for token_id in token_ids:
        parts.append(stream.add(token_id))
        if stream.is_stopped:
            break
    return [*parts, stream.finish()], stream


@pytest.mark.parametrize("kind", ["byte level", "sentencepiece"])
@settings(max_examples=150, deadline=None)
@given(text=_TEXT)
def test_a_stream_says_what_its_tokens_say(kind, text):
    ids = renderer(kind).tokenizer.encode(text, add_special_tokens=False)
    parts, stream = streamed(kind, ids)
    assert "".join(parts) == stream.text == text == renderer(kind).decode(ids)
    assert not any("\ufffd" in part for part in parts) or "\ufffd" in text


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 380), max_size=20))
def test_any_tokens_at_all_give_the_text_of_their_bytes(ids):
    """Random tokens are mostly broken characters; the stream agrees with decoding them at once."""
    parts, stream = streamed("byte level", ids)
    assert "".join(parts) == stream.text == renderer("byte level").decode(ids)


@settings(max_examples=200, deadline=None)
@given(_TEXT, st.lists(st.text("aé🙂 <", max_size=3), max_size=4).map(tuple))
def test_stop_texts_are_never_given_out(text, stop):
    ids = renderer("byte level").tokenizer.encode(text, add_special_tokens=False)
    parts, stream = streamed("byte level", ids, stop)
    found = [text.index(s) for s in stop if s and s in text]
    assert stream.is_stopped == bool(found)
    assert "".join(parts) == stream.text
    assert not any(s and s in stream.text for s in stop)
    # Nothing is lost either, up to the stop text that was complete first.
    assert text.startswith(stream.text)
    if not found:
        assert stream.text == text


def test_text_is_held_back_only_while_it_could_become_a_stop_text():
    ids = renderer("byte level").tokenizer.encode("a <b <<END> c", add_special_tokens=False)
    parts, stream = streamed("byte level", ids, ("<END>",))
    assert stream.text == "a <b <"
    assert parts[0].startswith("a")
