"""Scores are the log-probabilities that transformers gives; classification is arithmetic on them."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny_models import SPEAKING_FAMILIES
from tunesmith.data.prompts import as_conversation
from tunesmith.errors import RequestError
from tunesmith.model import Model
from tunesmith.models.load import load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.serve.answering import open_model
from tunesmith.serve.scoring import ScoredContinuation, classification

PROMPTS = ["What is the capital of France?", [{"role": "user", "content": "Good or bad? I loved every page."}]]
REPLIES = ["Paris", "The capital of France is Paris.", "good", "bad", "19:30"]


def opened(name, home):
    return Model(open_model(str(name), home, dtype="float32"))


def from_transformers(model, prompt_ids, continuation_ids):
    """Return (log-probability, whether it is the likeliest) of each token by transformers' own forward pass."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt_ids, *continuation_ids]])).logits[0, len(prompt_ids) - 1 : -1]
    found = logits.float().log_softmax(-1)
    chosen = found[torch.arange(len(continuation_ids)), torch.tensor(continuation_ids)]
    return chosen.tolist(), (found.argmax(-1) == torch.tensor(continuation_ids)).tolist()


def check_scores(name, home):
    reference = load_base(resolve_base(str(name), home), "float32").model
    with opened(name, home) as model:
        for prompt in PROMPTS:
            prompt_ids = model.opened.renderer.for_generation(as_conversation(prompt))
            for scored in model.score(prompt, REPLIES):
                logprobs, likeliest = from_transformers(reference, prompt_ids, scored.token_ids)
                assert list(scored.logprobs) == pytest.approx(logprobs, abs=1e-4)
                assert list(scored.is_likeliest) == likeliest
                assert scored.logprob == pytest.approx(sum(logprobs), abs=1e-3)
                assert scored.token_ids[-1] in model.opened.renderer.end_of_turn_ids


@pytest.mark.parametrize("family", SPEAKING_FAMILIES)
def test_scores_are_those_of_transformers(family, tiny_folder, home):
    check_scores(tiny_folder(family), home)


@pytest.mark.slow
def test_scores_of_the_real_base_are_those_of_transformers(home_with_base):
    check_scores("smollm2-135m", home_with_base)


def test_what_the_model_says_is_likeliest_all_along(tiny_folder, home):
    with opened(tiny_folder("smollm2"), home) as model:
        answer = model.generate("Hello", max_completion_tokens=5, logprobs=True)
        (scored,) = model.score("Hello", [answer.text], with_end=False)
        if scored.token_ids == answer.token_ids:  # what a random model writes may be cut differently as a text
            assert all(scored.is_likeliest)
            assert list(scored.logprobs) == pytest.approx([token.logprob for token in answer.logprobs], abs=1e-4)


def test_many_classifications_at_once(tiny_folder, home):
    choices = ["good", "bad", "The capital"]
    with opened(tiny_folder("smollm2"), home) as model:
        alone = [model.classify(prompt, choices, normalise="bytes") for prompt in PROMPTS]

        async def everybody():
            tasks = [model.aclassify(prompt, choices, normalise="bytes") for prompt in PROMPTS]
            return await asyncio.gather(
                *tasks, model.agenerate("Hello", max_completion_tokens=9), model.ascore("a", ["b"])
            )

        *together, answer, _ = asyncio.run(everybody())
        assert answer.text == model.generate("Hello", max_completion_tokens=9).text
        for one, other in zip(
            [*together, *model.classify(PROMPTS, choices, normalise="bytes")], alone * 2, strict=True
        ):
            assert one.choice == other.choice
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_what_cannot_be_scored_is_refused(tiny_folder, home):
    with opened(tiny_folder("smollm2"), home) as model:
        for refused in (
            lambda: model.score("Hello", []),
            lambda: model.score("Hello", "yes"),
            lambda: model.score("Hello", ["yes", "a long answer " * 1000]),
            lambda: model.score("Hello", [""], with_end=False),
            lambda: model.classify("Hello", ["yes", "yes"]),
            lambda: model.classify("Hello", ["yes", "no"], normalise="letters"),
        ):
            with pytest.raises(RequestError):
                refused()


@given(
    st.dictionaries(st.text(max_size=5), st.lists(st.floats(-50, 0), min_size=1, max_size=6), min_size=1, max_size=5),
    st.sampled_from(["none", "tokens", "bytes"]),
)
def test_probabilities_are_a_softmax(logprobs, normalise):
    scores = [
        ScoredContinuation(text, (1,) * len(one), tuple(one), (False,) * len(one)) for text, one in logprobs.items()
    ]
    found = classification(scores, normalise)
    divisor = {
        "none": lambda text: 1,
        "tokens": lambda text: len(logprobs[text]),
        "bytes": lambda text: max(1, len(text.encode())),
    }[normalise]
    weights = {text: math.exp(sum(one) / divisor(text)) for text, one in logprobs.items()}
    total = sum(weights.values())
    assert math.isclose(sum(found.probabilities.values()), 1.0)
    assert found.probabilities[found.choice] == max(found.probabilities.values())
    for text, weight in weights.items():
        assert found.probabilities[text] == pytest.approx(weight / total, abs=1e-9)
