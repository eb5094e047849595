"""What an answer gives out: text without stop texts, the log-probabilities of that text's tokens, and why it ended."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tiny_models import tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import ModelError
from tunesmith.generate.answer import Answer
from tunesmith.generate.request import Delta, Request
from tunesmith.generate.sampling import Choice, choose
from tunesmith.specs.generation import SamplingSpec

_LETTERS = "ab<é🙂日 "


@cache
def renderer(kind: str) -> ChatRenderer:
    """A tokenizer of single bytes, or one with pieces of words and bytes for what has no piece (Llama 2, Gemma)."""
    if kind == "byte level":
        return ChatRenderer(tiny_tokenizer("qwen3"))
    pieces = ["\u2581", "a", "b", "ab", "aba", "\u2581a", "b<", "<", "é", "<a"]
    if kind == "gemma":
        pieces += ["\u2581\u2581", "🙂a"]
    names = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    backend = Tokenizer(
        models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind == "llama":
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "</s>")])
    return ChatRenderer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


@st.composite
def spelt(draw, kind: str) -> tuple[str, list[int]]:
    """A text, and tokens that spell it in one of the many ways that there are."""
    chat = renderer(kind)
    text = draw(st.text(_LETTERS, max_size=14))
    left, ids = text.encode(), []
    pieces = {chat.token_bytes(i): i for i in range(len(chat.tokenizer)) if i not in chat.special_ids}
    if chat.drops_first_space:
        left = b" " + left
    while left:
        fitting = sorted(piece for piece in pieces if piece and left.startswith(piece))
        if bytes([left[0]]) not in fitting:  # the byte's own token goes by another name
            fitting.append(bytes([left[0]]))
        chosen = draw(st.sampled_from(fitting))
        ids.append(pieces[chosen] if chosen in pieces else chat.tokenizer.convert_tokens_to_ids(f"<0x{left[0]:02X}>"))
        left = left[len(chosen) :]
    return text, ids


def answered(kind: str, ids: list[int], stop: tuple[str, ...], limit: int | None = None) -> list[Delta]:
    """The deltas of an answer whose tokens are `ids`, then an end."""
    chat = renderer(kind)
    (end,) = sorted(chat.end_of_turn_ids)[:1]
    sampling = SamplingSpec(stop=stop, logprobs=True)
    answer = Answer(3, Request((5, 6), sampling), chat, chat.end_of_turn_ids, limit or 1000)
    deltas = []
    for place, token_id in enumerate([*ids, end]):
        deltas.append(answer.take(Choice(token_id, -float(place))))
        if deltas[-1].completion is not None:
            break
    return deltas


def before_stop(text: str, stop: tuple[str, ...]) -> str:
    """What comes before the stop text that ends first; of two that end together, before the longer one."""
    found = [(text.index(one) + len(one), text.index(one)) for one in stop if one in text]
    return text[: min(found)[1]] if found else text


STOPS = st.lists(st.text(_LETTERS, min_size=1, max_size=4), max_size=4).map(tuple)


@pytest.mark.parametrize("kind", ["byte level", "llama", "gemma"])
@settings(max_examples=150, deadline=None)
@given(data=st.data(), stop=STOPS)
def test_stop_texts_and_their_tokens_are_never_given_out(kind, data, stop):
    """However the text is cut into tokens: characters in pieces, several stop texts, one inside the other."""
    text, ids = data.draw(spelt(kind))
    deltas = answered(kind, ids, stop)
    completion = deltas[-1].completion
    assert completion.text == before_stop(text, stop)
    # No piece, nor any number of them together, holds more than that.
    assert "".join(delta.text for delta in deltas) == completion.text
    assert sum((delta.logprobs for delta in deltas), ()) == completion.logprobs
    assert completion.finish_reason == "stop"
    # A token's log-probability is there if any of its text is, and nothing else's.
    tokens = [token.token_id for token in completion.logprobs]
    assert tokens == ids[: len(tokens)]
    assert [token.logprob for token in completion.logprobs] == [-float(place) for place in range(len(tokens))]
    spelling = b"".join(token.text_bytes for token in completion.logprobs)
    said = (b" " if renderer(kind).drops_first_space and tokens else b"") + completion.text.encode()
    assert spelling.startswith(said)
    if completion.text == text:
        assert tokens == ids
    elif tokens:
        assert len(spelling) - len(completion.logprobs[-1].text_bytes) < len(said)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), stop=STOPS, limit=st.integers(1, 12))
def test_the_longest_answer_gives_what_was_held_back(data, stop, limit):
    _, ids = data.draw(spelt("byte level"))
    deltas = answered("byte level", ids, stop, limit)
    completion = deltas[-1].completion
    whole = renderer("byte level").decode(ids[:limit])
    assert completion.text == "".join(delta.text for delta in deltas) == before_stop(whole, stop)
    stopped = any(one in whole for one in stop)
    assert completion.finish_reason == ("stop" if stopped or len(ids) < limit else "length")
    assert completion.completion_tokens == len(deltas) <= limit
    if not stopped:
        assert [token.token_id for token in completion.logprobs] == ids[:limit]


def test_an_answer_that_cant_go_on_says_why_and_keeps_what_there_is():
    chat = renderer("byte level")
    answer = Answer(0, Request((1,), SamplingSpec(stop=("bus",))), chat, chat.end_of_turn_ids, 9)
    (a, b) = chat.tokenizer.encode("a", add_special_tokens=False) + chat.tokenizer.encode("b", add_special_tokens=False)
    assert answer.take(Choice(a)).text == "a"
    assert answer.take(Choice(b)).text == ""
    fault = ModelError("No.", code="logits_not_finite")
    last = answer.take(Choice(0, error=fault))
    assert last.text == "b" and last.completion.text == "ab" and last.completion.token_ids == (a, b)
    assert last.completion.finish_reason == "error" and last.completion.error is fault


class Once:
    """A form of one token, whichever it is."""

    is_finished = False

    def allowed(self, mask: torch.Tensor) -> None:
        mask.fill_(-1)

    def accept(self, token_id: int) -> None:
        self.is_finished = True


@pytest.mark.parametrize("has_end", [True, False])
def test_a_complete_form_ends_with_an_end_token_where_there_is_one(has_end):
    chat = renderer("byte level")
    ends = frozenset({7, 999}) if has_end else frozenset()  # the second isn't in the vocabulary
    answer = Answer(0, Request((1,), SamplingSpec(temperature=1.0)), chat, ends, 50, Once())
    completion = None
    while completion is None:
        (choice,) = choose(torch.zeros(1, 64), [answer.sampler])
        completion = answer.take(choice).completion
    assert completion.finish_reason == "stop"
    assert completion.completion_tokens == (2 if has_end and completion.token_ids[0] != 7 else 1)
