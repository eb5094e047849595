"""Noise, smoothing, general rows, the search for a rate, scores that choose, and signs of learning by heart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny_models import tiny_model
from training_bench import ROWS, Bench, same, stop_after
from tunesmith.chat.renderer import ChatRenderer, Rendered
from tunesmith.learn.greedy import greedy_hits
from tunesmith.learn.noise import embedding_noise
from tunesmith.learn.passes import Passes
from tunesmith.learn.randomness import random_state
from tunesmith.learn.step import TreeModel
from tunesmith.learn.tree import build_tree
from tunesmith.models.adapters.lora import add_lora
from tunesmith.specs.tune import LoraSpec, SftSpec
from tunesmith.train.checkpoints import LoopState
from tunesmith.train.loop import Loop, Records, TrainingData
from tunesmith.train.rate_finder import choose_rate, find_rate
from tunesmith.train.row_losses import hardest
from tunesmith.train.sft import encode
from tunesmith.train.stepping import Stepper
from tunesmith.train.validation import Scoring, Validation, judge
from tunesmith.train.watch import find_overfitting, probe_memory


@pytest.fixture
def tiny(tiny_folder):
    return tiny_folder("smollm2")


class GoodBench(Bench):
    """A bench with a method's settings, general rows and a score."""

    def __init__(self, folder, tiny, method=None, scoring=None, share=0.0, **settings):
        super().__init__(folder, tiny, **settings)
        self.spec = self.spec.model_copy(update={"method": SftSpec(**(method or {}))})
        self.scoring = scoring
        self.share = share

    def loop(self, should_stop=lambda: False):
        torch.manual_seed(self.spec.seed)
        renderer = ChatRenderer(self.loaded.tokenizer)
        self.adapter = add_lora(self.loaded.model, self.spec.adapter)
        rows = encode(ROWS, renderer, 256)
        data = TrainingData(rows[:12], rows[18:], replay=rows[12:18], replay_share=self.share)
        records = Records(self.events, self.metrics, self.checkpoints, self.observer, self.row_losses)
        model = TreeModel.of(self.loaded.model)
        return Loop(model, self.adapter, data, self.spec, records, should_stop, self.scoring)


def test_a_resumed_run_draws_the_same_noise_and_general_rows(tmp_path, tiny):
    settings = {"method": {"embedding_noise": 5, "label_smoothing": 0.1}, "share": 0.3, "part_tokens": 60}
    whole = GoodBench(tmp_path / "a", tiny, dropout=0.2, **settings)
    whole.loop().run()
    first = GoodBench(tmp_path / "b", tiny, dropout=0.2, **settings)
    assert first.loop(stop_after(5)).run().is_interrupted
    torch.manual_seed(999)
    second = GoodBench(tmp_path / "b", tiny, dropout=0.2, **settings)
    loop = second.loop()
    loop.resume(second.checkpoints.newest())
    loop.run()
    assert same(whole.weights(), second.weights())
    assert whole.steps() == second.steps()
    seen = [row["row"] for row in whole.row_losses.rows()]
    assert sum(row >= 12 for row in seen) / len(seen) == pytest.approx(0.3, abs=0.02)


def test_measuring_has_neither_noise_nor_smoothing(tmp_path, tiny):
    plain, noisy = (
        GoodBench(tmp_path / name, tiny, method=method, dropout=0.5)
        for name, method in (("a", {}), ("b", {"embedding_noise": 50, "label_smoothing": 0.5}))
    )
    for bench in (plain, noisy):
        bench.loop(stop_after(1)).run()
    first = [
        next(row["validation_loss"] for row in b.metrics.rows() if "validation_loss" in row) for b in (plain, noisy)
    ]
    assert first[0] == first[1]
    losses = [next(row["loss"] for row in b.metrics.rows() if "loss" in row) for b in (plain, noisy)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_smoothed_gradients_are_torchs(smoothing):
    torch.manual_seed(0)
    model = tiny_model("smollm2").double()
    adapter = add_lora(model, LoraSpec(rank=2, dropout=0.0))
    for layer in adapter.layers.values():
        layer.double()
        torch.nn.init.normal_(layer.lora_b, std=0.2)
    row = Rendered(tuple(range(5, 25)), (False,) * 8 + (True,) * 12)
    tree = build_tree([row])
    wrapped = TreeModel.of(model)
    total, singles = wrapped.loss(tree, label_smoothing=smoothing)
    total.backward()
    parameters = adapter.parameter_groups()[0].parameters
    found = [parameter.grad.clone() for parameter in parameters]
    model.zero_grad()
    logits = wrapped.projection.logits(wrapped.hidden_states(tree)[7:19])
    targets = torch.tensor(row.token_ids[8:])
    true = torch.nn.functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    true.backward()
    assert total.item() == pytest.approx(true.item(), rel=1e-9)
    assert singles.sum().item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    )
    for grad, parameter in zip(found, parameters, strict=True):
        assert torch.allclose(grad, parameter.grad, rtol=1e-7, atol=1e-9)


def embedded(model, tree, alpha):
    """What the layers get for a tree's tokens, with noise."""
    seen = []
    handle = (
        model.model.get_decoder()
        .layers[0]
        .register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    )
    with embedding_noise(model, tree, alpha):
        model.hidden_states(tree)
    handle.remove()
    return seen[0][0].detach()


def test_noise_has_the_papers_size_and_shared_tokens_the_mean_of_their_rows():
    model = TreeModel.of(tiny_model("smollm2"))
    short, long = Rendered((7,) * 20, (True,) * 20), Rendered((7,) * 12 + (9,) * 68, (True,) * 80)
    tree = build_tree([short, long])
    width, alpha = 32, 5.0
    torch.manual_seed(3)
    noisy = embedded(model, tree, alpha)
    torch.manual_seed(3)
    again = embedded(model, tree, alpha)
    plain = embedded(model, tree, 0.0)
    assert torch.equal(noisy, again)
    noise = noisy - plain
    for segment, inverse in zip(tree.segments, tree.inverse_lengths, strict=True):
        part = noise[segment.start : segment.start + segment.length]
        bound = alpha * math.sqrt(inverse / width)
        assert part.abs().max() <= bound * 1.0001
        assert part.square().mean().sqrt() == pytest.approx(bound / math.sqrt(3), rel=0.12)
    assert tree.inverse_lengths[0] == pytest.approx((1 / 20 + 1 / 80) / 2)


def test_without_noise_no_random_number_is_drawn():
    model = TreeModel.of(tiny_model("smollm2"))
    before = torch.get_rng_state()
    embedded(model, build_tree([Rendered((5, 6, 7), (True,) * 3)]), 0.0)
    assert torch.equal(before, torch.get_rng_state())


def test_each_rows_loss_is_its_own(tmp_path, tiny):
    bench = GoodBench(tmp_path, tiny, part_tokens=40)
    bench.loop(stop_after(1)).run()
    rows = list(bench.row_losses.rows())
    assert len(rows) == 5
    fresh = GoodBench(tmp_path / "fresh", tiny)
    fresh.loop()
    model = TreeModel.of(fresh.loaded.model)
    encoded = encode(ROWS, ChatRenderer(fresh.loaded.tokenizer), 256)
    for row in rows:
        (sequence,) = encoded[row["row"]]
        alone = model.loss_sum(build_tree([sequence])) / sequence.learnt_tokens
        assert row["loss"] == pytest.approx(alone, rel=1e-3)


def test_the_hardest_rows_of_the_last_pass_are_found():
    losses = [(1, 0, 9.0), (1, 1, 1.0), (2, 2, 2.0), (3, 0, 0.5), (4, 1, 4.0)]
    found = hardest([{"step": s, "row": r, "loss": loss} for s, r, loss in losses], 2)
    assert (found.rows, found.losses, found.median) == ((1, 2), (4.0, 2.0), 2.0)


def test_a_search_leaves_no_trace(tmp_path, tiny):
    bench = GoodBench(tmp_path, tiny, dropout=0.1, method={"embedding_noise": 5})
    bench.loop()
    model = TreeModel.of(bench.loaded.model)
    model.model.train()
    groups = bench.adapter.parameter_groups()
    stepper = Stepper(model, groups[0].parameters, Passes(4096), lambda *_: None, bench.spec.method)
    rows = encode(ROWS, ChatRenderer(bench.loaded.tokenizer), 256)
    weights, random = bench.weights(), random_state(stepper.device)
    progress = []
    found = find_rate(stepper, groups, rows, bench.spec, 1e-2, lambda *counts: progress.append(counts))
    assert same(weights, bench.weights())
    assert same(random, random_state(stepper.device))
    assert all(parameter.grad is None for parameter in groups[0].parameters)
    assert 1e-4 <= found.rate < 1.0
    assert list(found.rates) == sorted(found.rates)
    assert len(found.rates) == len(found.losses)
    assert all(done <= total for done, total in progress)


@given(st.floats(1e-4, 1e-2), st.integers(0, 10))
def test_the_chosen_rate_is_a_tenth_of_the_best(best, seed):
    """A valley at `best` with a little noise: the choice is within a factor of 2.5 of a tenth of it."""
    generator = torch.Generator().manual_seed(seed)
    rates = [1e-5 * 10 ** (step / 8) for step in range(33)]
    losses = [
        1 - 0.6 * math.exp(-(math.log10(rate / best) ** 2)) + 0.01 * torch.randn((), generator=generator).item()
        for rate in rates
    ]
    assert best / 25 <= choose_rate(rates, losses, 1e-3).rate <= best / 4


def test_without_any_gain_the_usual_rate_stays():
    assert choose_rate([1e-4, 1e-3], [1.1, math.inf], 2e-3).rate == 2e-3


def test_a_score_chooses_the_weights(tmp_path, tiny):
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.2, 0.3])
    bench = GoodBench(tmp_path, tiny, scoring=Scoring("accuracy", lambda: next(scores)), optimisation={"epochs": 7})
    outcome = bench.loop().run()
    said = [event for event in bench.events.events() if event.type == "validation"]
    assert [event.data["validation_score"] for event in said][:3] == [0.1, 0.5, 0.4]
    by_step = {event.data["step"]: event.data for event in said}
    best = max(by_step.values(), key=lambda data: (data["validation_score"], -data["validation_loss"]))
    assert outcome.state.best_step == best["step"]
    assert outcome.state.best_score == 0.5


def test_equal_scores_are_told_apart_by_the_loss():
    state = judge(LoopState(Passes(1), step=4), Validation(2.0, 0.5))
    better = judge(LoopState(Passes(1), step=8, best_step=4, best_loss=2.0, best_score=0.5), Validation(1.5, 0.5))
    worse = judge(LoopState(Passes(1), step=8, best_step=4, best_loss=2.0, best_score=0.5), Validation(1.0, 0.4))
    assert (state.best_step, better.best_step, worse.best_step) == (4, 8, 4)
    assert worse.worse_validations == 1


def metrics(train, validation):
    rows = [{"step": 0, "validation_loss": validation[0]}]
    for number, (loss, held_out) in enumerate(zip(train, validation[1:], strict=True), start=1):
        rows += [{"step": number, "loss": loss}, {"step": number, "validation_loss": held_out}]
    return rows


def test_overfitting_is_seen_and_not_imagined():
    found = find_overfitting(metrics([2.0, 1.0, 0.3], [2.0, 1.5, 1.2, 1.4]))
    assert (found.best_step, found.best, found.now) == (2, 1.2, 1.4)
    assert "1.200 (step 2) to 1.400" in found.message
    assert find_overfitting(metrics([2.0, 1.0, 0.9], [2.0, 1.5, 1.2, 1.21])) is None  # within the noise
    assert find_overfitting(metrics([2.0, 1.0, 3.0], [2.0, 1.5, 1.2, 5.0])) is None  # diverging is another matter


def test_overfitting_is_told_once(tmp_path, tiny):
    settings = {"learning_rate": 0.01, "schedule": "constant", "epochs": 40, "validate_every_steps": 8}
    bench = GoodBench(tmp_path, tiny, optimisation=settings)
    bench.loop().run()
    said = [event for event in bench.events.events() if event.type == "overfitting"]
    assert len(said) == 1
    assert said[0].level == "warning"


def test_rows_by_heart_are_told_from_new_ones():
    """A model trained on random answers knows them; random answers that it never saw it can't know."""
    torch.manual_seed(0)
    model = tiny_model("smollm2")
    adapter = add_lora(model, LoraSpec(rank=16, dropout=0.0))
    wrapped = TreeModel.of(model)
    random = torch.Generator().manual_seed(1)

    def rows():
        ids = torch.randint(3, 300, (12, 22), generator=random).tolist()
        return [[Rendered(tuple(row), (False,) * 10 + (True,) * 12)] for row in ids]

    known, new = rows(), rows()
    tree = build_tree([row[0] for row in known])
    optimiser = torch.optim.Adam(adapter.parameter_groups()[0].parameters, lr=0.02)
    for _ in range(150):
        (wrapped.loss(tree)[0] / tree.learnt_tokens).backward()
        optimiser.step()
        optimiser.zero_grad()
    found = probe_memory(wrapped, known, new, seed=0)
    assert found.is_by_heart
    assert found.train.answer_share > 0.9
    assert found.validation.answer_share == 0
    assert "by heart" in found.message
    logits = wrapped.projection.logits(wrapped.hidden_states(tree).index_select(0, tree.target_source))
    assert torch.equal(greedy_hits(wrapped, tree), logits.argmax(-1) == tree.target_ids)
    assert probe_memory(wrapped, [[Rendered((5, 6, 7), (True,) * 3)]], new, seed=0) is None
