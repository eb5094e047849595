"""Layers in one call of the kernels give, bit for bit, what their parts give one after the other."""

from __future__ import annotations

import pytest
import torch

from tiny_models import CONTEXT_TOKENS, tiny_model, tiny_tokenizer
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.engine import Engine
from tunesmith.generate.lean_layer import LeanLayer
from tunesmith.generate.request import Request
from tunesmith.models.load import LoadedModel
from tunesmith.native.calls import kernels
from tunesmith.specs.generation import SamplingSpec

pytestmark = pytest.mark.skipif(kernels() is None, reason="no C compiler, or a processor without AVX512-BF16")

#: Wide enough for the kernels, whose heads are of 32 numbers at least.
WIDE = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}


def engine(family: str) -> Engine:
    loaded = LoadedModel(
        model=tiny_model(family, **WIDE).bfloat16(), tokenizer=tiny_tokenizer(family), source=None,
        dtype=torch.bfloat16, device=torch.device("cpu"), context_tokens=CONTEXT_TOKENS, end_of_turn_ids=(),
        family=family,
    )  # fmt: skip
    return Engine(loaded, ChatRenderer(tiny_tokenizer(family)), cache_bytes=1 << 24, max_prefill_tokens=50)


def layers(made: Engine) -> list[LeanLayer]:
    return list(made._forward._exchanged.layers.values())


def requests() -> list[Request]:
    spec = SamplingSpec(max_completion_tokens=30, ignore_eos=True, logprobs=True, top_logprobs=3)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(20, 300, (count,), generator=generator).tolist() for count in (3, 70, 130, 64, 1, 20)]
    return [Request(tuple(prompt), spec) for prompt in prompts]


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
