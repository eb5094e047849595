"""Perplexity as a score: over all tokens, paired like any other, read the other way round."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.evaluate.comparison import compare
from tunesmith.evaluate.likelihood import PassageLoss, score_passages
from tunesmith.evaluate.verdict import decide

passages = st.lists(
    st.builds(
        PassageLoss,
        nats=st.floats(1, 2000),
        tokens=st.integers(1, 256),
        bytes=st.integers(1, 2000),
        context_tokens=st.integers(1, 768),
        seconds=st.floats(0, 1),
    ),
    min_size=1,
    max_size=12,
)


@given(passages)
def test_the_score_is_the_mean_over_all_tokens(losses):
    arm = score_passages("base", "", losses)
    nats, tokens = sum(loss.nats for loss in losses), sum(loss.tokens for loss in losses)
    assert np.mean(arm.row_scores) == pytest.approx(arm.score.value) == pytest.approx(-nats / tokens)
    read = arm.score_as_read
    assert read.low <= read.value * (1 + 1e-9) and read.value <= read.high * (1 + 1e-9)
    bits = arm.secondary["bits per byte"].value
    assert bits == pytest.approx(nats / math.log(2) / sum(loss.bytes for loss in losses))


def arms(factor: float):
    rng = np.random.default_rng(1)
    before = [PassageLoss(float(n), 256, 1000, 100, 0.1) for n in rng.normal(900, 60, 40)]
    after = [PassageLoss(loss.nats * factor + float(rng.normal(0, 1)), 256, 1000, 100, 0.1) for loss in before]
    return score_passages("the base", "", before), score_passages("the tuned model", "", after)


def test_a_lower_perplexity_ships():
    base, tuned = arms(0.9)
    verdict = decide(tuned, [base])
    change = math.expm1(-compare(base, tuned).difference)
    assert verdict.kind == "ship" and change < 0
    assert f"{-100 * change:.1f} % lower than that of the base" in verdict.reasons[0]
    assert f"perplexity of {tuned.score_as_read.value:.1f} on 40 unseen passages" in verdict.sentence
    assert tuned.to_json()["score"] == pytest.approx(tuned.score_as_read.value)


@pytest.mark.parametrize(("factor", "kind"), [(1.1, "dont_ship"), (0.9995, "tuning_not_needed")])
def test_no_gain_doesnt(factor, kind):
    base, tuned = arms(factor)
    assert decide(tuned, [base]).kind == kind
