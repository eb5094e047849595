"""Biases, penalties and forms change the logits by their formulas; log-probabilities stay the model's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from tunesmith.errors import RequestError
from tunesmith.generate.sampling import Sampler, choose
from tunesmith.specs.generation import SamplingSpec

SIZE = 75
IDS = st.lists(st.integers(0, SIZE - 1), max_size=12)


def edited(logits: torch.Tensor, *samplers: Sampler) -> torch.Tensor:
    """What choosing from logits (rows, V) made of them."""
    changed = logits.clone()
    choose(changed, samplers)
    return changed


def after(prompt: list[int], answer: list[int], **sampling) -> Sampler:
    """A sampler whose answer has begun."""
    sampler = Sampler(SamplingSpec(**sampling), prompt)
    for token_id in answer:
        sampler.accept(token_id)
    return sampler


@settings(max_examples=60, deadline=None)
@given(
    prompt=IDS, answer=IDS, presence=st.floats(-2, 2), frequency=st.floats(-2, 2), repetition=st.floats(0.5, 2),
    bias=st.dictionaries(st.integers(0, SIZE - 1), st.floats(-100, 100), max_size=4), seed=st.integers(0, 99),
)  # fmt: skip
def test_penalties_and_biases_follow_their_formulas(prompt, answer, presence, frequency, repetition, bias, seed):
    logits = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(seed)) * 3
    wishes = {"presence_penalty": presence, "frequency_penalty": frequency, "logit_bias": bias}
    changed = edited(
        logits,
        after(prompt, answer, repetition_penalty=repetition, **wishes),
        after([], []),
        after(prompt, answer, **wishes),
    )
    biased = logits.clone()
    for token_id, amount in bias.items():
        biased[:, token_id] += amount
    expected = biased.clone()
    context = torch.tensor([prompt + answer], dtype=torch.long)
    expected[0] = RepetitionPenaltyLogitsProcessor(repetition)(context, biased[:1].clone())[0]
    counts = torch.bincount(torch.tensor(answer, dtype=torch.long), minlength=SIZE)
    expected -= frequency * counts + presence * (counts > 0)
    torch.testing.assert_close(changed[0], expected[0])
    torch.testing.assert_close(changed[1], logits[1])
    torch.testing.assert_close(changed[2], expected[2])


def test_what_was_chosen_counts():
    """With the largest penalty, tokens of equal logits are each chosen once before one comes again."""
    sampler = Sampler(SamplingSpec(frequency_penalty=2.0))
    chosen = [choose(torch.zeros(1, 40), [sampler])[0].token_id for _ in range(80)]
    assert chosen == [*range(40), *range(40)]


def test_a_bias_forces_or_bans_a_token():
    logits = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(0))
    best = int(logits[1].argmax())
    forced = Sampler(SamplingSpec(temperature=1.0, logit_bias={7: 100}))
    banned = Sampler(SamplingSpec(logit_bias={best: -100, 10**6: 5.0}))  # the second isn't in the vocabulary
    one, other = choose(logits.clone(), [forced, banned])
    assert one.token_id == 7 and other.token_id == int(logits[1].topk(2).indices[1])


def test_ends_can_be_ignored():
    logits = torch.zeros(1, SIZE)
    logits[0, [3, 5]] = 20.0
    assert choose(logits.clone(), [Sampler(SamplingSpec(), end_ids=(3, 5))])[0].token_id == 3
    for temperature in (0.0, 2.0):
        sampler = Sampler(SamplingSpec(temperature=temperature, ignore_eos=True), end_ids=(3, 5))
        assert not {choose(logits.clone(), [sampler])[0].token_id for _ in range(30)} & {3, 5}


@pytest.mark.parametrize("size", [300, 9_001])
def test_log_probabilities_are_the_models_own(size):
    logits = (torch.randn(4, size, generator=torch.Generator().manual_seed(0)) * 3).bfloat16().float()
    logits[2, :100] = logits[2].max()  # more equal ones than are asked for
    true = torch.log_softmax(logits.double(), 1)
    asked = {"logprobs": True, "top_logprobs": 5}
    samplers = [
        Sampler(SamplingSpec(**asked, temperature=0.3, top_k=2, seed=1)),
        Sampler(SamplingSpec(**asked, logit_bias={9: 100})),
        Sampler(SamplingSpec(logprobs=True, top_logprobs=20)),
        Sampler(SamplingSpec(temperature=1.0)),
    ]
    choices = choose(logits.clone(), samplers)
    assert choices[1].token_id == 9
    for row, count in ((0, 5), (1, 5), (2, 20)):
        assert choices[row].logprob == pytest.approx(float(true[row, choices[row].token_id]), abs=1e-5)
        best = sorted(range(size), key=lambda i: (-float(logits[row, i]), i))[:count]
        assert [token_id for token_id, _ in choices[row].top] == best
        assert [value for _, value in choices[row].top] == pytest.approx([float(true[row, i]) for i in best], abs=1e-5)
    assert choices[2].top[0] == (choices[2].token_id, choices[2].logprob)
    assert choices[3].logprob == 0.0 and choices[3].top == ()


class Spelling:
    """A form that allows one sequence of tokens and nothing else."""

    def __init__(self, *token_ids: int) -> None:
        self.left = list(token_ids)

    @property
    def is_finished(self) -> bool:
        return not self.left

    def allowed(self, mask: torch.Tensor) -> None:
        mask.zero_()
        if self.left[0] >= 0:
            word, bit = divmod(self.left[0], 32)
            mask[word] = torch.tensor(1 << bit, dtype=torch.int64).to(torch.int32)

    def accept(self, token_id: int) -> None:
        assert token_id == self.left.pop(0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_form_is_followed_token_by_token_to_its_end(temperature):
    texts = [(30, 0, 74), (63, 64, 32), (5,)]
    spec = SamplingSpec(temperature=temperature, seed=0, ignore_eos=True, logprobs=True)
    samplers = [Sampler(spec, (), Spelling(*text), end_ids=(31, 70)) for text in texts]
    free = Sampler(SamplingSpec(), end_ids=(31, 70))
    random = torch.Generator().manual_seed(0)
    followed: list[list[int]] = [[], [], []]
    for _ in range(3):
        logits = torch.randn(4, SIZE, generator=random)
        choices = choose(logits.clone(), [*samplers[:2], free, samplers[2]])
        assert choices[2].token_id == int(logits[2].argmax())
        for ids, row in zip(followed, (0, 1, 3), strict=True):
            ids.append(choices[row].token_id)
            assert choices[row].logprob == pytest.approx(float(logits[row].log_softmax(0)[ids[-1]]), abs=1e-5)
    assert followed[:2] == [[30, 0, 74], [63, 64, 32]]
    assert followed[2][0] == 5 and set(followed[2][1:]) <= {31, 70}


def test_a_form_without_a_way_on_fails_its_own_row_alone():
    logits = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(0))
    stuck, free = choose(logits.clone(), [Sampler(SamplingSpec(), (), Spelling(-1)), Sampler(SamplingSpec())])
    assert isinstance(stuck.error, RequestError) and stuck.error.code == "form_dead_end"
    assert free.error is None and free.token_id == int(logits[1].argmax())
