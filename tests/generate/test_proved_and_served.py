"""A model says bit for bit the same with its adapter in it, as after training, and with the files of it beside it."""

from __future__ import annotations

import pytest
import torch

from tiny_models import save_tiny_model
from tunesmith.generate.exchange import PlainLayout
from tunesmith.generate.forward import AdapterRows, Forward
from tunesmith.models.adapters.attach import add_adapter
from tunesmith.models.adapters.served import read_served
from tunesmith.models.attention import use_layout_attention
from tunesmith.models.load import load_base
from tunesmith.models.quantised import Nf4
from tunesmith.models.resolve import resolve_base
from tunesmith.record.home import Home
from tunesmith.specs.tune import LoraSpec, QloraSpec

IDS = torch.tensor([5, 99, 7, 250, 31, 8, 77, 12, 301, 44])
SPECS = {
    "plain": LoraSpec(rank=3, alpha=5, rank_stabilised=True),
    "dora": LoraSpec(rank=3, dora=True),
    "pissa": LoraSpec(rank=3, initialisation="pissa"),
    "all": LoraSpec(rank=3, dora=True, initialisation="pissa", target_modules=("q_proj", "v_proj", "down_proj")),
    "qlora": QloraSpec(rank=3, dora=True),
}


class OneText(PlainLayout):
    """The layout of one text from its beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = torch.arange(len(IDS))


def logits(loaded, rows=()):
    use_layout_attention(loaded.model)
    forward = Forward.of(loaded, owned=False)
    return forward.logits(forward.hidden(IDS, OneText(), rows))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_beside_those_of_adapters_are_what_they_are_alone(dtype, tmp_path):
    """Only later tokens go through an adapter, which adapts few layers; the earlier ones don't see them."""
    source = resolve_base(str(save_tiny_model("smollm2", tmp_path / "base")), Home(tmp_path / "home"))
    tuned, loaded = (load_base(source, dtype) for _ in range(2))
    torch.manual_seed(3)
    adapter = add_adapter(tuned.model, LoraSpec(rank=3, target_modules=("q_proj",)))
    torch.nn.init.normal_(adapter.parameter_groups()[0].parameters[1], std=0.3)
    (tmp_path / "adapter").mkdir()
    adapter.save(tmp_path / "adapter", source)
    beside = read_served(tmp_path / "adapter", loaded.model, loaded.dtype, loaded.device)
    use_layout_attention(loaded.model)
    forward = Forward.of(loaded, owned=False)
    forward.expect_adapters()
    alone = forward.hidden(IDS, OneText())
    among = forward.hidden(IDS, OneText(), (AdapterRows(8, 10, beside),))
    assert torch.equal(among[:8], alone[:8]) and not torch.equal(among[8:], alone[8:])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SPECS)
def test_the_adapter_in_the_model_and_beside_it(name, dtype, tmp_path):
    spec = SPECS[name]
    source = resolve_base(str(save_tiny_model("qwen2", tmp_path / "base")), Home(tmp_path / "home"))
    quantisation = Nf4(double_quantisation=True) if isinstance(spec, QloraSpec) else None
    proved, served = (load_base(source, dtype, quantisation=quantisation) for _ in range(2))
    torch.manual_seed(3)
    adapter = add_adapter(proved.model, spec)
    with torch.no_grad():
        for parameter in adapter.parameter_groups()[0].parameters:
            parameter += torch.randn_like(parameter) * 0.1
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapter.save(folder, source)
    adapter.settle()
    untuned, expected = logits(served), logits(proved)
    beside = read_served(folder, served.model, served.dtype, served.device)
    found = logits(served, (AdapterRows(0, len(IDS), beside),))
    assert torch.equal(found, expected) and (found - untuned).abs().max() > 0.05
    with torch.no_grad():
        true = proved.model(IDS[None], use_cache=False, layout=OneText()).logits[0].float()
    assert (found - true).norm() < (1e-4 if dtype == "float32" else 0.05) * true.norm()
