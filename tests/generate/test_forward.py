"""Lean layers, packed weights and adapters beside them give what transformers and PEFT give."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from tiny_models import FAMILIES, save_tiny_model
from tunesmith.generate.exchange import PlainLayout
from tunesmith.generate.forward import AdapterRows, Forward
from tunesmith.models.adapters.lora import add_lora
from tunesmith.models.adapters.served import read_served
from tunesmith.models.attention import use_layout_attention
from tunesmith.models.load import LoadedModel, load_base
from tunesmith.models.resolve import resolve_base
from tunesmith.record.home import Home
from tunesmith.specs.tune import LoraSpec

#: Architectures whose layers have lean forms.
LEAN = ("smollm2", "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "mixtral", "qwen3_moe")
IDS = torch.tensor([5, 99, 7, 250, 31, 8, 77, 12, 301, 44])
#: Largest difference of float32 logits and hidden states, both of the order of 1.
TOLERANCE = 2e-5


class OneText(PlainLayout):
    """The layout of one text from its beginning."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.positions = torch.arange(tokens)


def opened(family: str, folder: Path, dtype: str = "float32") -> LoadedModel:
    return load_base(resolve_base(str(save_tiny_model(family, folder / family)), Home(folder / "home")), dtype)


def reference(loaded: LoadedModel, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        logits: Tensor = loaded.model(input_ids=ids[None], use_cache=False).logits[0]
    return logits


def computed(forward: Forward, ids: Tensor = IDS, rows: tuple[AdapterRows, ...] = ()) -> Tensor:
    return forward.logits(forward.hidden(ids, OneText(len(ids)), rows))


@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family: str, owned: bool, tmp_path: Path) -> None:
    loaded = opened(family, tmp_path)
    expected = reference(loaded)
    use_layout_attention(loaded.model)
    forward = Forward.of(loaded, owned=owned)
    assert (forward.lean_layers == loaded.model.config.num_hidden_layers) == (family in LEAN)
    assert (computed(forward) - expected).abs().max() < TOLERANCE


def test_a_borrowed_model_is_as_it_was_during_and_after(tmp_path: Path) -> None:
    loaded = opened("qwen3", tmp_path)
    use_layout_attention(loaded.model)
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}

    def plain() -> Tensor:
        with torch.no_grad():
            hidden: Tensor = loaded.model.get_decoder()(
                input_ids=IDS[None], position_ids=torch.arange(len(IDS))[None], layout=OneText(len(IDS))
            ).last_hidden_state
        return hidden

    expected = plain()
    forward = Forward.of(loaded, owned=False)
    computed(forward)
    assert torch.equal(plain(), expected)
    del forward
    gc.collect()
    assert torch.equal(plain(), expected)
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())


def test_an_owned_model_gives_up_its_weights_and_still_names_them(tmp_path: Path) -> None:
    loaded = opened("qwen2", tmp_path)
    name = "model.layers.1.self_attn.k_proj"
    expected = loaded.model.get_submodule(name).weight.clone()
    use_layout_attention(loaded.model)
    forward = Forward.of(loaded, owned=True)
    assert loaded.model.get_submodule(name).weight.numel() == 0
    assert torch.equal(forward.weight(name), expected)
    assert Forward.of(loaded, owned=True) is forward  # it can't be made again


def trained_adapter(family: str, folder: Path, base: Path, spec: LoraSpec, seed: int) -> Path:
    """Save an adapter with random matrices."""
    loaded = load_base(resolve_base(str(base), Home(folder / "home")), "float32")
    adapter = add_lora(loaded.model, spec)
    torch.manual_seed(seed)
    for layer in adapter.layers.values():
        torch.nn.init.normal_(layer.lora_a, std=0.3)
        torch.nn.init.normal_(layer.lora_b, std=0.3)
    target = folder / f"{family}-{seed}"
    target.mkdir()
    adapter.save(target, loaded.source)
    return target


@pytest.mark.parametrize("family", ["smollm2", "qwen2", "phi3", "gemma3", "gpt2", "mixtral"])
@pytest.mark.parametrize("dora", [False, True])
def test_rows_of_several_adapters_equal_peft_one_by_one(family: str, dora: bool, tmp_path: Path) -> None:
    loaded = opened(family, tmp_path)
    base = tmp_path / family
    specs = [LoraSpec(rank=4, dora=dora), LoraSpec(rank=3, alpha=5, rank_stabilised=True)]
    folders = [trained_adapter(family, tmp_path, base, spec, seed) for seed, spec in enumerate(specs)]
    expected = [reference(loaded)]
    for folder in folders:
        tuned = opened(family, tmp_path / folder.name)
        wrapped = PeftModel.from_pretrained(tuned.model, folder)
        with torch.no_grad():
            expected.append(wrapped(input_ids=IDS[None], use_cache=False).logits[0])
    use_layout_attention(loaded.model)
    forward = Forward.of(loaded, owned=True)
    adapters = [read_served(folder, loaded.model, torch.float32, loaded.device, forward.weight) for folder in folders]
    tokens = len(IDS)
    for adapter, wanted in zip([None, *adapters], expected, strict=True):
        rows = () if adapter is None else (AdapterRows(0, tokens, adapter),)
        assert (computed(forward, rows=rows) - wanted).abs().max() < 10 * TOLERANCE
    # The three side by side, as three texts.
    layout = ThreeTexts(tokens)
    rows = (AdapterRows(tokens, 2 * tokens, adapters[0]), AdapterRows(2 * tokens, 3 * tokens, adapters[1]))
    together = forward.logits(forward.hidden(IDS.repeat(3), layout, rows))
    for got, wanted in zip(together.split(tokens), expected, strict=True):
        assert (got - wanted).abs().max() < 10 * TOLERANCE


class ThreeTexts(PlainLayout):
    """Three texts of one length, one after the other."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.positions = torch.arange(tokens).repeat(3)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **settings: object) -> Tensor:
        parts = zip(*(x.chunk(3, dim=2) for x in (query, key, value)), strict=True)
        return torch.cat([super(ThreeTexts, self).attend(layer, *part, **settings) for part in parts], dim=1)  # type: ignore[arg-type]


def test_a_trained_adapter_in_the_model_itself_counts(tmp_path: Path) -> None:
    loaded = opened("llama", tmp_path)
    adapter = add_lora(loaded.model, LoraSpec(rank=4))
    for layer in adapter.layers.values():
        torch.nn.init.normal_(layer.lora_b, std=0.3)
    expected = reference(loaded)
    use_layout_attention(loaded.model)
    assert (computed(Forward.of(loaded, owned=False)) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_does_not_depend_on_its_neighbours(dtype: str, tmp_path: Path) -> None:
    """Two rows or more give each row the same numbers as any other batch; attention aside."""
    loaded = opened("llama", tmp_path, dtype)
    use_layout_attention(loaded.model)
    forward = Forward.of(loaded, owned=True)
    mapped = forward._exchanged.layers["model.layers.0"].maps
    width = loaded.model.config.hidden_size
    x = torch.randn(40, width, generator=torch.Generator().manual_seed(0)).to(loaded.dtype)
    with torch.inference_mode():
        for one in (mapped[0], mapped[2]):
            whole = one(x)
            for size in (2, 3, 8, 17, 32):
                assert torch.equal(one(x[:size]), whole[:size])
