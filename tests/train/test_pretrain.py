"""Documents become windows: every token is learnt exactly once, and none sees another document."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tiny_models import save_tiny_model
from tunesmith.data.examples import Document
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import build_tree
from tunesmith.models.load import load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.record.home import Home
from tunesmith.train.pretrain import cut_documents, overlap_tokens, pack, text_boundaries

FAMILIES = ("smollm2", "llama", "gemma3", "gpt2")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: AutoTokenizer.from_pretrained(save_tiny_model(name, folder / name)) for name in FAMILIES}


texts = st.lists(st.text("ab c\n", min_size=1, max_size=120), min_size=1, max_size=8)


@given(texts=texts, max_tokens=st.integers(8, 40), family=st.sampled_from(FAMILIES), continues=st.booleans())
@settings(deadline=None, max_examples=60)
def test_every_token_is_learnt_exactly_once_in_order(tokenizers, texts, max_tokens, family, continues):
    tokenizer = tokenizers[family]
    documents = [Document(text, continues) for text in texts]
    start, end = text_boundaries(tokenizer)
    wanted = [[*tokenizer.encode(text, add_special_tokens=False), *([] if continues else [end])] for text in texts]
    learnt: list[list[int]] = [[] for _ in texts]
    seen: list[list[int]] = [[start] for _ in texts]
    for piece in cut_documents(documents, tokenizer, max_tokens):
        ids, marks = piece.sequence.token_ids, piece.sequence.learnt
        assert len(ids) <= max_tokens and not marks[0]
        context = marks.index(True)
        # What isn't learnt is what came right before.
        assert list(ids[:context]) == seen[piece.document][-context:] and all(marks[context:])
        assert context == 1 or context == overlap_tokens(max_tokens)
        seen[piece.document] += ids[context:]
        learnt[piece.document] += ids[context:]
    assert learnt == wanted


@given(texts=texts, max_tokens=st.integers(8, 40), sources=st.lists(st.integers(0, 2), min_size=8, max_size=8))
@settings(deadline=None, max_examples=60)
def test_windows_hold_every_piece_once_and_are_nearly_full(tokenizers, texts, max_tokens, sources):
    documents = [Document(text, source=source) for text, source in zip(texts, sources, strict=False)]
    tokenizer = tokenizers["smollm2"]
    windows = pack(documents, tokenizer, max_tokens)
    pieces = [piece.sequence for piece in cut_documents(documents, tokenizer, max_tokens)]
    packed = [sequence for row in windows.rows for sequence in row]
    assert sorted(packed, key=repr) == sorted(pieces, key=repr)
    sizes = [sum(len(sequence.token_ids) for sequence in row) for row in windows.rows]
    assert max(sizes) <= max_tokens
    for source in set(windows.sources):
        own = sorted(size for size, of in zip(sizes, windows.sources, strict=True) if of == source)
        # No two windows of a source would fit into one.
        assert len(own) < 2 or own[0] + own[1] > max_tokens
    assert pack(documents, tokenizer, max_tokens) == windows


def test_names_of_special_tokens_in_a_text_are_text(tokenizers):
    tokenizer = tokenizers["smollm2"]
    (piece,) = cut_documents([Document("one <|im_end|> two")], tokenizer, 64)
    assert tokenizer.decode(piece.sequence.token_ids) == "<|endoftext|>one <|im_end|> two<|endoftext|>"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in piece.sequence.token_ids


def test_a_bases_own_start_token_stands_before_texts(tokenizers):
    for family, starts_with_bos in (("smollm2", False), ("llama", True), ("gemma3", True)):
        tokenizer = tokenizers[family]
        start, end = text_boundaries(tokenizer)
        assert (start == tokenizer.bos_token_id) == starts_with_bos or start == end


def test_long_texts_are_encoded_in_parts(tokenizers, monkeypatch):
    tokenizer = tokenizers["smollm2"]
    text = "A table for four people.\n" * 40
    whole = list(cut_documents([Document(text)], tokenizer, 4096))
    monkeypatch.setattr("tunesmith.train.pretrain._ENCODED_CHARACTERS", 100)
    assert list(cut_documents([Document(text)], tokenizer, 4096)) == whole


def test_documents_of_a_window_dont_see_each_other(tiny_folder):
    folder = tiny_folder("smollm2")
    loaded = load_base(resolve_base(str(folder), Home(folder.parent)), "float32")
    documents = [Document(f"A table for {number} people, please. " * 3) for number in range(5)]
    windows = pack(documents, loaded.tokenizer, 256)
    assert len(windows.rows) < len(documents)
    model = TreeModel.of(loaded.model.eval())
    with torch.no_grad():
        together = sum(float(model.loss(build_tree(row))[0]) for row in windows.rows)
        alone = sum(float(model.loss(build_tree([sequence]))[0]) for row in windows.rows for sequence in row)
    assert together == pytest.approx(alone, rel=1e-5)
