"""Tokens are drawn from the distribution that was asked for."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.generate.sampling import Sampler, choose
from tunesmith.specs.generation import SamplingSpec

_LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])


def drawn(sampler: Sampler, logits: torch.Tensor = _LOGITS) -> int:
    return choose(logits[None].clone(), [sampler])[0].token_id


def counts(draws: int = 4000, **sampling) -> torch.Tensor:
    """Shares of tokens over many rows of one step."""
    samplers = [Sampler(SamplingSpec(seed=seed, **sampling)) for seed in range(draws)]
    ids = [choice.token_id for choice in choose(_LOGITS.repeat(draws, 1), samplers)]
    return torch.bincount(torch.tensor(ids), minlength=5) / draws


def test_temperature_shapes_the_distribution():
    for temperature in (0.5, 1.0, 2.0):
        torch.testing.assert_close(
            counts(temperature=temperature), torch.softmax(_LOGITS / temperature, 0), atol=0.03, rtol=0
        )


def test_only_the_nucleus_is_drawn_from():
    """The two likeliest hold 0.87 of the mass: below 0.9 three are needed, below 0.8 two."""
    for top_p, stay in ((0.9, [4, 0, 1]), (0.8, [4, 0]), (0.1, [4])):
        true = torch.zeros(5)
        true[stay] = torch.softmax(_LOGITS, 0)[stay]
        torch.testing.assert_close(counts(temperature=1.0, top_p=top_p), true / true.sum(), atol=0.03, rtol=0)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=20), st.sampled_from([1e-30, 1e-3, 0.5]), st.integers())
def test_a_temperature_near_zero_takes_the_likeliest(logits, temperature, seed):
    row = torch.tensor(logits)
    spec = SamplingSpec(temperature=temperature, top_p=1e-6 if temperature > 1e-3 else 1.0, seed=seed)
    assert row[drawn(Sampler(spec), row)] >= row.max() - 0.1


def test_a_seed_repeats_its_draws():
    spec = SamplingSpec(temperature=1.0, seed=-3)
    one, other = Sampler(spec), Sampler(spec)
    draws = [drawn(one) for _ in range(50)]
    assert draws == [drawn(other) for _ in range(50)]
    unseeded = [drawn(Sampler(SamplingSpec(temperature=1.0)), torch.zeros(1000)) for _ in range(8)]
    assert len(set(unseeded)) > 1
