"""The real thing: SmolLM2 behind a vLLM server, and the torch engine to compare with. Run by `make test-vllm`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.choice import decoder_for
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.vllm.adapters import adapter_files
from tunesmith.generate.vllm.decoder import VllmDecoder, VllmLimits
from tunesmith.models.adapters.lora import add_lora, load_lora
from tunesmith.models.load import describe_base, load_base
from tunesmith.models.resolve import BaseSource, resolve_base
from tunesmith.models.weights import save_tensors
from tunesmith.record.home import Home
from tunesmith.specs.tune import LoraSpec

ADAPTERS = ("pirate", "poet")


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> BaseSource:
    return resolve_base("smollm2-135m", Home(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def renderer(source: BaseSource) -> ChatRenderer:
    return ChatRenderer(load_base(source, "float32").tokenizer)


@pytest.fixture(scope="session")
def adapters(source: BaseSource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters that change every answer; one has ranks of its own for some layers."""
    folders = {}
    for seed, name in enumerate(ADAPTERS):
        adapter = add_lora(load_base(source, "float32").model, LoraSpec(rank=4 + 8 * seed, alpha=8))
        generator = torch.Generator().manual_seed(seed)
        for parameter in adapter.parameter_groups()[0].parameters:
            parameter.data.normal_(0.0, 0.04, generator=generator)
        folder = folders[name] = tmp_path_factory.mktemp(name)
        save_tensors(folder / "adapter_model.safetensors", adapter.tensors())
        (folder / "adapter_config.json").write_text(json.dumps(adapter.peft_config(source.name)))
    return folders


@pytest.fixture(scope="session")
def torch_decoders(source: BaseSource, renderer: ChatRenderer, adapters: dict[str, Path]) -> dict[str | None, Decoder]:
    """The torch engine with the base (None), and with each adapter folded in."""
    decoders: dict[str | None, Decoder] = {}
    for name in (None, *ADAPTERS):
        loaded = load_base(source, "float32")
        if name is not None:
            load_lora(loaded.model, adapters[name]).merge()
        decoders[name] = decoder_for(loaded, renderer)
    return decoders


@pytest.fixture(scope="session")
def vllm(source: BaseSource, renderer: ChatRenderer, adapters: dict[str, Path]) -> Iterator[VllmDecoder]:
    limits = VllmLimits(max_batch=8, cache_bytes=1 << 30, max_adapters=2, max_adapter_rank=12)
    decoder = VllmDecoder(describe_base(source, "float32"), renderer, limits)
    try:
        for name, folder in adapters.items():
            decoder.add_adapter(name, adapter_files(folder))
        yield decoder
    finally:
        decoder.close()
