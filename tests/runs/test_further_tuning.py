"""A tuned model is tuned further: its own adapter goes on, with its own settings, on the same base."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from serving_models import register_tuned
from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import ModelError, SpecError
from tunesmith.models.adapters.full import train_fully
from tunesmith.models.load import load_base
from tunesmith.models.resolve import resolve_start
from tunesmith.models.versions import Candidate, delete_version, register
from tunesmith.runs.workshop import Base
from tunesmith.specs.tune import FullSpec, TuneSpec

ROWS = "\n".join(f'{{"prompt": "say {n}", "completion": "{n}"}}' for n in range(12))


@pytest.fixture
def spec(tmp_path, tiny_folder, home):
    def spec(base, **changes):
        rows = tmp_path / "rows.jsonl"
        rows.write_text(ROWS)
        limits = {"dtype": "float32", "max_tokens": 256}
        return TuneSpec.parse({"base": base, "data": str(rows), "limits": limits, **changes})

    return spec


def test_the_adapter_goes_on_as_it_is(home, tiny_folder, spec):
    version = register_tuned(tiny_folder("smollm2"), home, label="first", seed=5)
    base = Base.load(spec(version.name), home)
    resolved, _ = base.prepare(spec(version.name))
    # The resolved spec says what the model has, so that a run is repeated and resumed alike.
    assert (resolved.base, resolved.adapter.rank) == (version.name, 4)
    assert base.prepare(resolved)[0] == resolved
    with pytest.raises(SpecError) as refused:
        base.prepare(spec(version.name, adapter={"rank": 3}))
    assert refused.value.code == "adapter_is_given"
    adapter = base.add_adapter(resolved.adapter)
    kept = load_file(version.folder / "adapter_model.safetensors")
    now = adapter.tensors()
    assert now.keys() == kept.keys() and all(torch.equal(now[name], kept[name]) for name in kept)
    assert sum(p.numel() for group in adapter.parameter_groups() for p in group.parameters if p.requires_grad)
    assert base.loaded.source.name == str(tiny_folder("smollm2").resolve())


def test_a_model_that_was_trained_whole_is_a_base(home, tiny_folder, spec):
    source = resolve_start(str(tiny_folder("smollm2")), home).base
    loaded = load_base(source, "float32")
    adapter = train_fully(loaded.model, FullSpec())
    with torch.no_grad():
        for group in adapter.parameter_groups():
            for parameter in group.parameters:
                parameter.mul_(1.25)
    renderer = ChatRenderer(loaded.tokenizer)
    facts = {"run": "run-whole", "label": "whole", "spec_sha256": "5" * 64, "data_sha256": "d" * 64, "kind": "model"}
    whole = Candidate(source.name, source.sha256, "tiny", template_sha256=renderer.template_hash, **facts)
    version = register(whole, lambda folder: adapter.save(folder, source), renderer.template, home)
    base = Base.load(spec(version.name), home)
    assert base.start is None and base.loaded.source.short_name == version.made.base_short_name
    ours, theirs = (dict(model.named_parameters()) for model in (base.loaded.model, loaded.model))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_model_that_is_gone_or_was_changed_is_refused(home, tiny_folder, spec):
    version = register_tuned(tiny_folder("smollm2"), home, label="first", seed=5)
    weights = version.folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError) as refused:
        Base.load(spec(version.name), home)
    assert refused.value.code == "digest_mismatch"
    delete_version(version)
    with pytest.raises(ModelError) as refused:
        Base.load(spec(version.name), home)
    assert refused.value.code == "model_not_found"
