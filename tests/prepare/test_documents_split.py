"""Documents are split as wholes, or, where they are few, in consecutive parts that lose nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.errors import DataError
from tunesmith.prepare.documents import prepare_documents
from tunesmith.prepare.pipeline import prepare
from tunesmith.prepare.report import data_report
from tunesmith.specs.data import DataSpec

WORDS = tuple(f"{start}{end}" for start in ("sal", "mer", "tin", "cor", "bel") for end in ("o", "an", "ix", "ume"))


def story(seed: int, words: int = 60) -> str:
    return " ".join(f"{WORDS[(seed * 7 + i * i) % len(WORDS)]}{(seed * 31 + i) % 97}" for i in range(words))


def corpus(tmp_path, texts):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    return DataSpec(path=str(path))


def test_many_documents_are_split_as_wholes(tmp_path):
    texts = [story(seed) for seed in range(60)]
    prepared = prepare_documents(corpus(tmp_path, [*texts, texts[0], "", "  \n", "Hm!", texts[1] + " indeed"]))
    assert (len(prepared.validation), len(prepared.test)) == (6, 6)
    assert sorted(row.text for row in prepared.rows) == sorted([*texts, texts[1] + " indeed"])
    assert {row.code for row in prepared.dropped} == {"duplicate", "empty_document", "short_document"}
    assert prepared.rows_read == len(prepared.rows) + len(prepared.dropped)
    # A near-identical pair stands on one side.
    sides = [{row.text for row in side} for side in (prepared.train, prepared.validation, prepared.test)]
    assert any({texts[1], texts[1] + " indeed"} <= side for side in sides)
    report = data_report(prepared)
    assert report["characters"]["test"] == sum(len(row.text) for row in prepared.test)


@given(
    paragraphs=st.lists(st.integers(20, 200), min_size=40, max_size=80),
    validation=st.sampled_from([0.0, 0.1, 0.3]),
    test=st.sampled_from([0.0, 0.1, 0.3]),
)
@settings(deadline=None, max_examples=25)
def test_one_document_is_cut_into_consecutive_parts(tmp_path_factory, paragraphs, validation, test):
    text = "\n\n".join(story(seed, words) for seed, words in enumerate(paragraphs))
    path = tmp_path_factory.mktemp("texts") / "book.txt"
    path.write_text(text, encoding="utf-8")
    spec = DataSpec(path=str(path), validation_fraction=validation, test_fraction=test)
    prepared = prepare_documents(spec)
    parts = prepared.rows
    assert "".join(part.text for part in parts) == text
    assert [part.continues for part in parts] == [True] * (len(parts) - 1) + [False]
    for side, share in (("validation", validation), ("test", test)):
        characters = sum(len(part.text) for part in getattr(prepared, side))
        assert characters == pytest.approx(share * len(text), abs=0.025 * len(text))
    for part in parts:
        assert part.place is not None
        assert text.splitlines()[part.place.line - 1 :][:1] == part.text.splitlines()[:1] or share_of_line(part, text)


def share_of_line(part, text):
    """A part may begin inside a line."""
    return part.text.splitlines()[0] in text.splitlines()[part.place.line - 1]


def test_of_few_near_identical_documents_one_is_learnt(tmp_path):
    book = story(3, 3000)
    prepared = prepare_documents(corpus(tmp_path, [book, book + " and so on", story(5, 3000)]))
    assert [row.code for row in prepared.dropped] == ["near_duplicate"]
    assert (len(prepared.train), len(prepared.validation), len(prepared.test)) == (2, 2, 2)
    assert prepared.findings[0].code == "split_within_documents"


def test_a_test_file_of_its_own_leaves_the_text_whole(tmp_path):
    (tmp_path / "test.txt").write_text(story(9, 900), encoding="utf-8")
    spec = corpus(tmp_path, [story(1, 3000)])
    spec = spec.model_copy(update={"test_path": str(tmp_path / "test.txt"), "validation_fraction": 0.0})
    prepared = prepare_documents(spec)
    assert [row.text for row in prepared.train] == [story(1, 3000)]
    assert [row.text for row in prepared.test] == [story(9, 900)]


def test_too_little_text_and_the_wrong_method_are_told(tmp_path):
    with pytest.raises(DataError) as caught:
        prepare_documents(corpus(tmp_path, [story(1)]))
    assert caught.value.code == "too_few_examples"
    with pytest.raises(DataError) as caught:
        prepare(corpus(tmp_path, [story(1)]))
    assert caught.value.code == "documents_need_pretrain"
    assert "--method pretrain" in (caught.value.fix or "")
