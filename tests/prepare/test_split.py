"""The split is disjoint, keeps near-identical rows together, and depends on content alone."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.examples import Conversation, Message, Place
from tunesmith.prepare.fingerprint import row_hash, user_words, words_of
from tunesmith.prepare.grouping import group_rows
from tunesmith.prepare.likeness import groups_of_near_identical, jaccard, shingles_of
from tunesmith.prepare.split import split_rows
from tunesmith.specs.tune import DataSpec

SPEC = DataSpec(path="rows.jsonl")


def row(prompt, answer="ok", line=1, system=None):
    start = (Message("system", system),) if system else ()
    return Conversation(
        (*start, Message("user", prompt), Message("assistant", answer)), place=Place("rows.jsonl", line)
    )


def rows_of(prompts):
    return [row(prompt, f"answer {line}", line) for line, prompt in enumerate(prompts, start=1)]


def random_prompts(count, words=12, seed=0):
    draw = random.Random(seed)
    return [" ".join(draw.choices([f"w{i}" for i in range(400)], k=words)) for _ in range(count)]


def sides(split):
    return split.train, split.validation, split.test


# A few words make many near-identical and equal prompts.
LETTERS = st.lists(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=1, max_size=14)
PROMPTS = st.lists(LETTERS.map(" ".join), min_size=10, max_size=60)


@settings(deadline=None)
@given(PROMPTS)
def test_sides_are_disjoint_complete_and_without_near_duplicates_across(prompts):
    rows = rows_of(prompts)
    split = split_rows(rows, SPEC)
    assert sorted(map(row_hash, itertools.chain(*sides(split)))) == sorted(map(row_hash, rows))
    if any(finding.code in ("template", "near_identical_data", "one_prompt") for finding in split.findings):
        return  # said openly
    shingles = [[shingles_of(user_words(r)) for r in side] for side in sides(split)]
    for left, right in itertools.combinations(shingles, 2):
        assert all(jaccard(a, b) < 0.8 for a in left for b in right)


@settings(deadline=None)
@given(PROMPTS, st.randoms(use_true_random=False))
def test_order_does_not_matter(prompts, draw):
    rows = rows_of(prompts)
    shuffled = list(rows)
    draw.shuffle(shuffled)
    assert sides(split_rows(shuffled, SPEC)) == sides(split_rows(rows, SPEC))


def test_most_rows_keep_their_side_when_some_are_added():
    prompts = random_prompts(400)
    before = split_rows(rows_of(prompts[:380]), SPEC)
    after = split_rows(rows_of(prompts), SPEC)
    side_before = {row_hash(r): side for side, rows in enumerate(sides(before)) for r in rows}
    side_after = {row_hash(r): side for side, rows in enumerate(sides(after)) for r in rows}
    moved = sum(side_after[key] != side for key, side in side_before.items())
    assert moved <= 12


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (10, {}, (8, 1, 1)),
        (100, {}, (80, 10, 10)),
        (100, {"test_fraction": 0.0}, (90, 10, 0)),
        (100, {"max_test_rows": 5, "max_validation_rows": 3}, (92, 3, 5)),
        (100, {"max_train_rows": 30}, (30, 10, 10)),
    ],
)
def test_sizes(count, options, expected):
    split = split_rows(rows_of(random_prompts(count)), DataSpec(path="x", **options))
    assert tuple(map(len, sides(split))) == expected
    assert split.left_out == count - sum(expected)
    assert ("train_rows_left_out" in {f.code for f in split.findings}) == bool(split.left_out)


def test_short_texts_are_not_lumped():
    texts = [
        words_of(text) for text in ("6th", "7th", "6 people", "7 people", "table for 6", "table for 7", "6th!", " 6TH ")
    ]
    assert [group for group in groups_of_near_identical(texts, 0.8) if len(group) > 1] == [[0, 6, 7]]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("I'm still waiting on my card?", "im still  waiting on my CARD"),
        ("你好，世界！今天天气很好", "你好 世界 今天天气很好"),
        ("ｆｕｌｌ width", "full width"),
        ("🙂", " 🙂 "),
    ],
)
def test_case_punctuation_and_spacing_do_not_make_a_difference(left, right):
    assert words_of(left) == words_of(right)


def test_different_texts_without_words_differ():
    assert words_of("🙂") != words_of("🙃")


def test_near_identical_prompts_stay_together():
    base = random_prompts(60, words=20)
    prompts = [text for prompt in base for text in (prompt, prompt.upper() + "!", prompt + " please")]
    split = split_rows(rows_of(prompts), SPEC)
    for side in sides(split):
        held = {" ".join(user_words(r)[:20]) for r in side}
        assert len(side) == 3 * len(held)


def test_a_pasted_instruction_does_not_make_rows_alike():
    pasted = (
        "classify the following message into exactly one of the intents that are listed below and say nothing else "
    )
    rows = rows_of([pasted + prompt for prompt in random_prompts(200, words=2)])
    split = split_rows(rows, SPEC)
    assert len(split.test) == 20
    assert [(f.code, f.count) for f in split.findings] == [("template", 200)]


def test_the_same_question_about_other_documents_is_told_apart():
    rows = [row("Summarise it.", f"a{i}", i, system=text) for i, text in enumerate(random_prompts(100))]
    assert len(split_rows(rows, SPEC).test) == 10


def test_a_chain_of_rows_does_not_swallow_the_data():
    words = [f"w{i}" for i in range(130)]
    rows = rows_of([" ".join(words[i : i + 30]) for i in range(100)])  # each is like its neighbours
    split = split_rows(rows, SPEC)
    assert len(split.test) == 10
    assert split.findings


def test_one_prompt_for_all_rows_still_splits_and_says_so():
    split = split_rows([row("Write a poem", f"poem {i}", i) for i in range(50)], SPEC)
    assert len(split.test) == 5
    assert [f.code for f in split.findings] == ["one_prompt"]


def test_equal_prompts_are_one_group_whatever_the_answer():
    rows = [row("same question", "yes"), row("Same question?", "no"), row("another one", "yes")]
    assert group_rows(rows, 0.8).groups == ((0, 1), (2,))


def test_given_test_rows_keep_their_side_and_drive_twins_out():
    prompts = random_prompts(60)
    rows, test, validation = rows_of(prompts[:50]), rows_of(prompts[45:55]), rows_of(prompts[53:60])
    split = split_rows(rows, SPEC, test=test, validation=validation)
    assert len(split.test) == 10
    assert [r.code for r in split.dropped] == ["near_test_row"] * 7
    assert (len(split.train), len(split.validation)) == (45, 5)
    assert all("near-identical to the test row at rows.jsonl, line" in r.reason for r in split.dropped)
