"""Layers in one call of the kernels give, bit for bit, what their parts give one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tiny_models import CONTEXT_TOKENS, tiny_model, tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.engine import Engine
from tunesmith.generate.lean_layer import LeanLayer
from tunesmith.generate.request import Request
from tunesmith.models.adapters.lora import add_lora
from tunesmith.models.adapters.served import LowRank, ServedAdapter, low_rank_of
from tunesmith.models.load import LoadedModel
from tunesmith.native.calls import kernels
from tunesmith.specs.generation import SamplingSpec
from tunesmith.specs.tune import LoraSpec

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C compiler, or a processor without AVX512-BF16")

#: Wide enough for the kernels, whose heads are of 32 numbers at least.
WIDE = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}


def engine(family: str, model: Any = None) -> Engine:
    model = tiny_model(family, **WIDE).bfloat16() if model is None else model
    loaded = LoadedModel(
        model=model, tokenizer=tiny_tokenizer(family), source=None,
        dtype=torch.bfloat16, device=torch.device("cpu"), context_tokens=CONTEXT_TOKENS, end_of_turn_ids=(),
        family=family,
    )  # fmt: skip
    return Engine(loaded, ChatRenderer(tiny_tokenizer(family)), cache_bytes=1 << 24, max_prefill_tokens=50)


def adapter(family: str, rank: int, seed: int, *, leaves: str = "", dora: bool = False) -> ServedAdapter:
    """A random adapter of all linear layers but those whose name holds `leaves`."""
    random = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).mul_(0.2).bfloat16()

    model = tiny_model(family, **WIDE)
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return ServedAdapter(
        {
            name: LowRank(
                numbers(rank, module.in_features),
                numbers(module.out_features, rank),
                1 + numbers(module.out_features) if dora else None,
            )
            for name, module in linear.items()
            if "lm_head" not in name and not (leaves and leaves in name)
        }
    )


def layers(made: Engine) -> list[LeanLayer]:
    return list(made._forward._exchanged.layers.values())


def requests(adapters: Sequence[str | None] = (None,)) -> list[Request]:
    spec = SamplingSpec(max_completion_tokens=30, ignore_eos=True, logprobs=True, top_logprobs=3)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(20, 300, (count,), generator=generator).tolist() for count in (3, 70, 130, 64, 1, 20)]
    return [
        Request(tuple(prompt), spec, name) for prompt, name in zip(prompts, itertools.cycle(adapters), strict=False)
    ]


@pytest.mark.parametrize("family", ["smollm2", "llama", "qwen2", "qwen3", "mistral"])
def test_a_chain_gives_what_its_layers_give(family):
    whole, apart = engine(family), engine(family)
    assert [lean.is_first for lean in layers(whole)] == [True, False, False]
    assert len({id(lean.chain) for lean in layers(whole)}) == 1
    for lean in layers(apart):
        lean.chain = None
    found, expected = whole.generate(requests()), apart.generate(requests())
    assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert [one.logprobs for one in found] == [one.logprobs for one in expected]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_rows_of_several_adapters_are_what_they_are_layer_by_layer_and_alone(family):
    names = (None, "one", "two", "up")
    whole, apart, alone = (engine(family) for _ in range(3))
    for made in (whole, apart, alone):
        made.add_adapter("one", adapter(family, 4, 1))
        made.add_adapter("two", adapter(family, 3, 2, leaves="layers.1"))
        made.add_adapter("up", adapter(family, 16, 3, leaves="gate_proj"))
    for lean in layers(apart):
        lean.chain = None
    found, expected = whole.generate(requests(names)), apart.generate(requests(names))
    assert all(lean.chain is None or lean.chain.result is not None for lean in layers(whole))
    assert len({one.token_ids for one in found}) == len(found)
    assert [one.logprobs for one in found] == [one.logprobs for one in expected]
    by_one = [alone.generate([one])[0] for one in requests(names)]
    assert [one.logprobs for one in by_one] == [one.logprobs for one in found]


def test_an_adapter_that_scales_takes_its_company_out_of_the_chain_and_changes_none_of_it():
    company, alone = engine("llama"), engine("llama")
    for made in (company, alone):
        made.add_adapter("plain", adapter("llama", 4, 1))
        made.add_adapter("scaling", adapter("llama", 4, 2, dora=True))
    names = ("plain", "scaling", None)
    found = company.generate(requests(names))
    assert [one.logprobs for one in found] == [alone.generate([one])[0].logprobs for one in requests(names)]


def test_a_lora_in_the_model_is_computed_as_when_it_is_served():
    model = tiny_model("llama", **WIDE).bfloat16()
    made = add_lora(model, LoraSpec(rank=4))
    for layer in made.layers.values():
        torch.nn.init.normal_(layer.lora_b, std=0.3)
    inside = engine("llama", model)
    served = engine("llama")
    served.add_adapter(
        "it", ServedAdapter({name: low_rank_of(one, torch.bfloat16) for name, one in made.layers.items()})
    )
    found = inside.generate(requests())
    assert layers(inside)[0].chain.result is not None
    assert [one.logprobs for one in found] == [one.logprobs for one in served.generate(requests(["it"]))]
    assert found != engine("llama").generate(requests())


@pytest.mark.parametrize("family", ["gemma3", "phi3"])
def test_layers_with_parts_of_another_kind_are_computed_apart(family):
    assert [lean.chain for lean in layers(engine(family))] == [None] * 3


def test_one_chain_serves_engines_that_take_turns():
    """Each engine keeps keys and values of its own."""
    first = engine("qwen3")
    loaded = LoadedModel(
        model=first._forward._model, tokenizer=tiny_tokenizer("qwen3"), source=None, dtype=torch.bfloat16,
        device=torch.device("cpu"), context_tokens=CONTEXT_TOKENS, end_of_turn_ids=(), family="qwen3",
    )  # fmt: skip
    second = Engine(loaded, ChatRenderer(tiny_tokenizer("qwen3")), cache_bytes=1 << 24)
    second._forward = first._forward
    asked = requests()[1]
    alone = engine("qwen3").generate([asked])[0]
    for made in (first, second):
        made.add(asked)
        made.step()
    got = []
    while first.has_work or second.has_work:
        got += [delta.completion for made in (first, second) for delta in made.step() if delta.completion is not None]
    assert [one.token_ids for one in got] == [alone.token_ids] * 2
