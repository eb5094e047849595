"""Tokens are drawn from the distribution that was asked for, by one uniform number each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tunesmith.errors import ModelError
from tunesmith.generate.drawing import Wishes, draw
from tunesmith.generate.sampling import Sampler, choose
from tunesmith.specs.generation import SamplingSpec

#: One that is sorted as a whole, and one of which only what leads is.
SIZES = (300, 9_001)
WISHES = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.95},
    {"temperature": 1.7, "top_p": 0.3},
    {"temperature": 1.0, "top_k": 50},
    {"temperature": 1.3, "top_k": 700},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.5, "min_p": 0.0002},
    {"temperature": 0.6, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 1.2, "top_k": 20, "top_p": 0.999},
]


def language_like(size: int, seed: int, rows: int = 1, spread: float = 2.0) -> torch.Tensor:
    """Logits (rows, size): a few tokens are likely, the tail is long."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, size, generator=random) * spread
    return logits + 8 * torch.rand(rows, size, generator=random).pow(30)


def by_transformers(logits: torch.Tensor, wish: dict[str, float], context: list[int] | None = None) -> torch.Tensor:
    """The distribution (V,) that transformers' own processors make of logits (V,)."""
    steps = LogitsProcessorList()
    if "repetition_penalty" in wish:
        steps.append(RepetitionPenaltyLogitsProcessor(wish["repetition_penalty"]))
    steps.append(TemperatureLogitsWarper(wish["temperature"]))
    if "top_k" in wish:
        steps.append(TopKLogitsWarper(wish["top_k"]))
    if "top_p" in wish:
        steps.append(TopPLogitsWarper(wish["top_p"]))
    if "min_p" in wish:
        steps.append(MinPLogitsWarper(wish["min_p"]))
    return torch.softmax(steps(torch.tensor([context or [0]]), logits[None].double())[0], 0)


def at(logits: torch.Tensor, wish: dict[str, float], uniform: float) -> int:
    row = [
        wish.get(name, default) for name, default in (("temperature", 1.0), ("top_k", 0), ("top_p", 1), ("min_p", 0))
    ]
    return draw(logits[None], Wishes.of([(*row, uniform)], logits.device))[0]


def by_hand(logits: np.ndarray, wish: dict[str, float], uniform: float) -> int:
    """The same draw, by sorting everything in float64."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    weights = np.exp((logits[order].astype(np.float64) - logits.max()) / wish["temperature"])
    kept = np.ones(len(weights), dtype=bool)
    kept[wish.get("top_k", 0) or len(weights) :] = False
    before = np.cumsum(weights * kept) - weights
    if wish.get("top_p", 1) < 1:
        kept &= (before < wish["top_p"] * (weights * kept).sum()) | (np.arange(len(weights)) == 0)
    kept &= weights >= wish.get("min_p", 0)
    sums = np.cumsum(weights * kept)
    return int(order[np.searchsorted(sums, uniform * sums[-1], side="right")])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_the_distribution_is_that_of_transformers(size, wish):
    """Each of its tokens is drawn from its very interval of uniform numbers, to one in a million."""
    logits = language_like(size, seed=size)[0]
    true = by_transformers(logits, wish)
    ordered, ids = true.sort(descending=True, stable=True)
    ends = ordered.cumsum(0).tolist()
    starts = [0.0, *ends[:-1]]
    kept = int((ordered > 0).sum())
    seen = 0
    for place in [*range(min(kept, 60)), *range(max(0, kept - 5), kept)]:
        if ordered[place] > 4e-6:
            assert at(logits, wish, starts[place] + 1e-6) == ids[place], place
            assert at(logits, wish, ends[place] - 1e-6) == ids[place], place
            seen += 1
    assert seen > 1
    assert true[at(logits, wish, 1 - 2**-53)] > 0


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    wish=st.sampled_from(WISHES),
    size=st.sampled_from([1, 2, 31, 64, 4_096, 4_127, 9_000]),
    kind=st.sampled_from(["bfloat16", "flat", "equal", "peaked", "masked"]),
)
def test_equal_logits_are_taken_in_the_order_of_their_ids(seed, wish, size, kind):
    """Logits in bfloat16 are full of equal ones; how far the order was worked out doesn't show."""
    logits = (
        language_like(size, seed, rows=4, spread={"flat": 0.2, "equal": 0.0, "peaked": 9.0}.get(kind, 2.0))
        .bfloat16()
        .float()
    )
    if kind == "equal":
        logits.clamp_(max=float(logits.median()))
    if kind == "masked":
        logits[:, torch.arange(size) % 7 != 0] = -torch.inf
    uniforms = np.random.default_rng(seed).random(4)
    columns = (wish["temperature"], wish.get("top_k", 0), wish.get("top_p", 1.0), wish.get("min_p", 0.0))
    together = draw(logits, Wishes.of([(*columns, uniform) for uniform in uniforms], logits.device))
    assert together == [by_hand(row.numpy(), wish, u) for row, u in zip(logits, uniforms, strict=True)]
    assert together == [at(row, wish, u) for row, u in zip(logits, uniforms, strict=True)]


@pytest.mark.parametrize("wish", [{"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9}, WISHES[7]], ids=str)
def test_frequencies_are_the_probabilities(wish):
    logits = language_like(80, seed=1)[0]
    true = by_transformers(logits, wish).numpy()
    samplers = [Sampler(SamplingSpec(seed=seed, **wish)) for seed in range(500)]
    drawn = [choice.token_id for _ in range(40) for choice in choose(logits.repeat(500, 1), samplers)]
    counts = np.bincount(drawn, minlength=80)
    assert (counts[true == 0] == 0).all()
    # Rare tokens count together, as the test wants at least five of each.
    expected = true * len(drawn)
    often = expected >= 5
    observed, awaited = [*counts[often], counts[~often].sum()], [*expected[often], expected[~often].sum()]
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, awaited, strict=True) if e > 0)
    assert statistic < chi2.ppf(0.9999, sum(e > 0 for e in awaited) - 1)


def test_a_seed_gives_the_same_tokens_whatever_else_is_in_the_batch():
    specs = [SamplingSpec(seed=seed, **wish) for seed, wish in enumerate(WISHES)]
    specs += [SamplingSpec(), SamplingSpec(temperature=1.0, seed=-3, presence_penalty=1.0, logprobs=True)]
    steps = [language_like(9_001, seed, rows=len(specs)) for seed in range(6)]
    together = [Sampler(spec) for spec in specs]
    chosen = [[choice.token_id for choice in choose(logits.clone(), together)] for logits in steps]
    for row, spec in enumerate(specs):
        alone = Sampler(spec)
        assert [choose(logits[row : row + 1].clone(), [alone])[0].token_id for logits in steps] == [
            ids[row] for ids in chosen
        ]
    # Some leave, others come.
    few = [Sampler(specs[1]), Sampler(specs[4])]
    for number, logits in enumerate(steps):
        rows = [1, 4] if number < 3 else [4]
        found = choose(logits[rows].clone(), few if number < 3 else few[1:])
        assert [choice.token_id for choice in found] == [chosen[number][row] for row in rows]


def test_without_a_seed_answers_differ():
    samplers = [Sampler(SamplingSpec(temperature=1.0)) for _ in range(8)]
    assert len({choice.token_id for choice in choose(torch.zeros(8, 10_000), samplers)}) > 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=20), st.sampled_from([1e-300, 1e-30, 1e-3]), st.integers())
def test_a_temperature_near_zero_takes_the_likeliest(logits, temperature, seed):
    row = torch.tensor(logits)
    chosen = choose(row[None].clone(), [Sampler(SamplingSpec(temperature=temperature, seed=seed))])[0].token_id
    assert row[chosen] >= row.max() - 0.1


def test_greedy_takes_the_first_of_equal_ones():
    logits = torch.tensor([[1.0, 5.0, 5.0], [7.0, 5.0, 7.0]])
    assert [choice.token_id for choice in choose(logits, [Sampler(SamplingSpec())] * 2)] == [1, 0]


@pytest.mark.parametrize("spec", [{}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 1.0, "min_p": 0.1}])
@pytest.mark.parametrize("size", SIZES)
def test_broken_logits_fail_their_own_row_alone(spec, size):
    logits = language_like(size, seed=0, rows=6)
    fine = [
        choice.token_id for choice in choose(logits.clone(), [Sampler(SamplingSpec(seed=1, **spec)) for _ in range(6)])
    ]
    logits[0, 17] = math.nan
    logits[2, 5] = math.inf
    logits[3] = -math.inf
    logits[5] = -math.nan
    choices = choose(logits.clone(), [Sampler(SamplingSpec(seed=1, **spec), end_ids=[9]) for _ in range(6)])
    for row in (0, 2, 3, 5):
        assert isinstance(choices[row].error, ModelError) and choices[row].error.code == "logits_not_finite"
        assert choices[row].token_id == 9
    for row in (1, 4):
        assert choices[row].error is None and choices[row].token_id == fine[row]
