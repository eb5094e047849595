"""The plan from counts alone: what is counted, how passes are chosen, what each kind of adapter takes."""

from dataclasses import replace

import pytest
import torch

from tunesmith.chat.renderer import Rendered
from tunesmith.errors import RunError
from tunesmith.learn.passes import Passes
from tunesmith.models.size import LinearSize, ModelSize
from tunesmith.native.calls import kernels
from tunesmith.specs.tune import TuneSpec
from tunesmith.train.batches import rows_of_steps
from tunesmith.train.costs import Costs
from tunesmith.train.loads import Load, load_of
from tunesmith.train.loop import TrainingData
from tunesmith.train.plan import make_plan
from tunesmith.train.planner import Planner

CPU = torch.device("cpu")
LAYERS = 8
LINEARS = tuple(
    LinearSize(f"layers.{layer}.{name}", inputs, outputs)
    for layer in range(LAYERS)
    for name, inputs, outputs in (("q_proj", 512, 512), ("v_proj", 512, 128), ("up_proj", 512, 2048))
)
PARAMETERS = sum(linear.parameters for linear in LINEARS) + 1000 * 512


def model_size():
    fields = {
        "parameters": PARAMETERS, "layers": LAYERS, "layer_parameters": PARAMETERS // LAYERS, "linears": LINEARS,
        "vocabulary": 1000, "hidden": 512, "attention_heads": 8, "query_width": 512, "key_value_width": 128,
        "context_tokens": 4096,
    }  # fmt: skip
    known = ModelSize.__dataclass_fields__
    return ModelSize(**{name: fields[name] for name in known if name in fields})


def resolved(**settings):
    return TuneSpec.parse(
        {
            "base": "b",
            "data": {"path": "rows"},
            "adapter": settings.pop("adapter", "lora"),
            "optimisation": {
                "learning_rate": 0.001, "batch_size": 8, "epochs": 2, "validate_every_steps": 5,
                **settings.pop("optimisation", {}),
            },
            "limits": {"max_tokens": 4096, "tokens_per_microbatch": 2048, "dtype": "bfloat16", **settings},
        }
    )  # fmt: skip


def rows(count=40, length=300):
    """Rows behind one prompt of 100 tokens; the 7th is the longest."""
    lengths = [length + (n == 7) * 900 for n in range(count)]
    return [
        [Rendered((*range(100), *range(1000 * n, 1000 * n + size)), (False,) * 100 + (True,) * size)]
        for n, size in enumerate(lengths, start=1)
    ]


def planner(spec=None, **settings):
    spec = spec or resolved(**settings)
    schedule = rows_of_steps(40, 8, 2, seed=0)
    return Planner(Costs(model_size(), spec, CPU), rows(), rows(4), schedule, 5)


def test_shared_text_is_counted_once():
    load = load_of([row[0] for row in rows(5)])
    assert 100 + 5 * 300 <= load.tokens <= 100 + 5 * 300 + 4 * 7
    assert load.learnt == 5 * 300 + 0
    assert load.pairs > 5 * 300 * 100


def test_the_heaviest_pass_holds_the_longest_row():
    (heaviest,) = planner().heaviest_passes(Passes(512), 1)
    assert max(len(sequence.token_ids) for sequence in heaviest) == 1300


def test_less_memory_lowers_the_passes_step_by_step():
    plan = planner()
    first = Passes(2048)
    needed = plan.memory(first).total
    assert plan.fitting(first, needed) == first
    smaller = plan.fitting(first, int(needed * 0.97))
    assert smaller.tokens_per_pass < 2048
    assert smaller.recomputed_layers == 0
    frugal = plan.fitting(first, plan.memory(Passes(512, LAYERS, 64)).total)
    assert frugal.recomputed_layers > 0
    assert plan.memory(frugal).total < plan.memory(smaller).total < needed
    assert plan.operations(frugal) > plan.operations(first)


def test_what_is_measured_counts_more_than_what_was_expected():
    plan = planner()
    limit = plan.memory(Passes(2048)).total
    assert plan.fitting(Passes(2048), limit, factor=3.0) != Passes(2048)


def test_what_can_never_fit_is_refused_with_both_numbers():
    with pytest.raises(RunError) as caught:
        planner().fitting(Passes(2048), 100 << 20)
    assert caught.value.code == "out_of_memory"
    assert caught.value.param == "limits.memory_bytes"
    assert "0.1 GB" in caught.value.message


@pytest.mark.parametrize(
    ("adapter", "optimiser", "bytes_per_parameter"),
    [
        ("full", "adamw", 2 + 2 + 4 + 8),
        ({"kind": "full", "rounding": "stochastic"}, "adamw", 2 + 2 + 8),
        ("full", "adamw_8bit", 2 + 2 + 4 + 2),
    ],
)
def test_full_fine_tuning_takes_its_bytes_for_each_weight(adapter, optimiser, bytes_per_parameter):
    costs = Costs(model_size(), resolved(adapter=adapter, optimisation={"optimiser": optimiser}), CPU)
    memory = costs.memory(Load(100, 100, 100), Passes(2048))
    assert memory.weights + memory.trained == bytes_per_parameter * PARAMETERS
    assert costs.trained_parameters == PARAMETERS


def test_four_bits_take_a_quarter_of_the_linear_layers():
    sizes = {
        kind: Costs(model_size(), resolved(adapter=kind), CPU).memory(Load(9, 9, 9), Passes(2048)).weights
        for kind in ("lora", "qlora")
    }
    linear = sum(linear.parameters for linear in LINEARS)
    assert sizes["lora"] == 2 * PARAMETERS
    assert sizes["qlora"] == pytest.approx(2 * (PARAMETERS - linear) + 0.516 * linear, rel=0.01)


@pytest.mark.skipif(kernels() is None, reason="no C compiler, or a processor without AVX512-BF16")
def test_frozen_weights_are_copied_where_they_fit():
    linear = sum(linear.parameters for linear in LINEARS)
    copied = {"lora": 4 * (linear + 1000 * 512), "qlora": 4 * 1000 * 512, "full": 0}
    for kind, count in copied.items():
        costs = Costs(model_size(), resolved(adapter=kind), CPU)
        first = costs.first_passes()
        assert (costs.copied_bytes, first) == (count, Passes(2048, copied_weights=count > 0))
        assert costs.memory(Load(9, 9, 9), first).copies == count
        assert costs.memory(Load(9, 9, 9), Passes(2048)).copies == 0


@pytest.mark.skipif(kernels() is None, reason="no C compiler, or a processor without AVX512-BF16")
def test_a_large_model_does_without_copies_before_it_computes_layers_twice():
    linears = tuple(LinearSize(f"layers.{layer}.up_proj", 4096, 16384) for layer in range(LAYERS))
    parameters = sum(linear.parameters for linear in linears) + 1000 * 4096
    size = replace(model_size(), linears=linears, parameters=parameters, hidden=4096)
    plenty = make_plan(resolved(), size, TrainingData(rows(), rows(4)), CPU)
    assert plenty.copied_weights and plenty.memory_parts["copies"] == 4 * parameters
    scarce = resolved(memory_bytes=plenty.memory_bytes - 2 * parameters)
    without = make_plan(scarce, size, TrainingData(rows(), rows(4)), CPU)
    assert (without.copied_weights, without.recomputed_layers, without.memory_parts["copies"]) == (False, 0, 0)
    assert without.passes == Passes(without.tokens_per_pass)


def test_large_models_come_closer_to_the_rate_of_matrix_products():
    shares = []
    for width in (512, 1024, 2048, 4096):
        linears = tuple(LinearSize(f"layers.{layer}.up_proj", width, 4 * width) for layer in range(LAYERS))
        costs = Costs(replace(model_size(), linears=linears, hidden=width), resolved(), CPU)
        shares.append(costs.matrix_share(costs.first_passes()))
        assert costs.matrix_share(Passes(2048)) <= shares[-1]
    assert 0 < shares[0] < shares[1] < shares[2] < shares[3] < 1
    assert Costs(model_size(), resolved(), torch.device("cuda")).matrix_share(Passes(2048)) < 1


def test_only_chosen_layers_are_trained():
    costs = Costs(model_size(), resolved(adapter={"rank": 4, "target_modules": ["q_proj"]}), CPU)
    assert costs.trained_parameters == LAYERS * 4 * (512 + 512)


def test_the_plan_says_how_it_fits():
    data = TrainingData(rows(), rows(4))
    plan = make_plan(resolved(), model_size(), data, CPU)
    assert (plan.steps, plan.batch_size, plan.tokens_per_pass) == (10, 8, 2048)
    assert plan.memory_bytes == sum(plan.memory_parts.values())
    assert plan.seconds > 0
    tight = make_plan(resolved(memory_bytes=int(plan.memory_bytes * 0.97)), model_size(), data, CPU)
    assert tight.tokens_per_pass < 2048
    assert tight.memory_bytes < plan.memory_bytes
    assert make_plan(resolved(optimisation={"learning_rate": "find"}), model_size(), data, CPU).learning_rate == "find"
