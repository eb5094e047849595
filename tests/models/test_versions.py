"""Tuned models are listed whole or not at all, found by any of their names, and never used when changed."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from small_disk import small_disk  # noqa: F401
from tiny_models import save_tiny_model
from tunesmith.errors import ModelError, StorageError
from tunesmith.models.resolve import resolve_base, resolve_model
from tunesmith.models.versions import (
    Candidate,
    damaged_versions,
    delete_version,
    find_version,
    list_versions,
    register,
    verify,
)
from tunesmith.models.weights import load_tensors, save_tensors
from tunesmith.record.home import Home

MADE = Candidate(
    base="smollm2-135m",
    base_sha256="b" * 64,
    base_short_name="smollm2-135m",
    run="run-20260101-1",
    label="bookings",
    spec_sha256="5" * 64,
    data_sha256="d" * 64,
    template_sha256="7" * 64,
    summary={
        "data": {"rows": 1200, "train": 1000, "validation": 100, "test": 100, "dropped": 0},
        "evaluation": {
            "measure": "exact match",
            "rows": 100,
            "base": {"score": 0.02, "low": 0.0, "high": 0.05},
            "tuned": {"score": 0.87, "low": 0.8, "high": 0.93},
        },
        "verdict": {"kind": "ship", "sentence": "The tuned model is better."},
        "system": "Be brief.",
    },
)


def filler(value: float = 1.0, elements: int = 16):
    def fill(folder: Path) -> None:
        save_tensors(folder / "adapter_model.safetensors", {"a": torch.full((elements,), value)})
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))

    return fill


def add(home, value=1.0, **changes):
    return register(replace(MADE, **changes), filler(value), "{{ messages }}", home)


def test_a_registered_model_holds_what_it_is_made_of(home):
    version = add(home)
    assert version.name == f"ft:smollm2-135m:local:bookings:{version.id}"
    assert len(version.id) == 8 and version.folder.parent == home.models
    names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"}
    assert set(version.files) == names
    assert {path.name for path in version.folder.iterdir()} == {*names, "manifest.json"}
    assert version.made == MADE
    card = (version.folder / "README.md").read_text()
    for said in (
        version.name,
        "smollm2-135m",
        "| train | 1,000 |",
        "| tuned | 0.87 | 0.8 | 0.93 |",
        "Apache-2.0",
        "openai",
        "Verdict: The tuned model is better.",
        '{"role": "system", "content": "Be brief."}',
    ):
        assert said in card
    verify(version)
    assert list_versions(home) == [version]
    assert torch.equal(load_tensors(version.folder / "adapter_model.safetensors")["a"], torch.ones(16))


def test_a_run_without_a_label_lends_its_id(home):
    version = add(home, label=None)
    assert version.name == f"ft:smollm2-135m:local:run-20260101-1:{version.id}"


def test_registering_again_gives_the_same_version(home):
    assert add(home) == add(home)
    assert len(list_versions(home)) == 1


def test_a_model_is_found_by_any_of_its_names(home):
    old, new = add(home, 1.0), add(home, 2.0)
    other = add(home, 3.0, label="weather")
    assert list_versions(home) == [other, new, old]
    for name in (old.id, old.name, old.folder.name, old.id[:7], old.name[:-1]):
        assert find_version(name, home) == old
    assert find_version("bookings", home) == new
    assert find_version("weath", home) == other
    with pytest.raises(ModelError) as refused:
        find_version("book", home)
    assert refused.value.code == "ambiguous_model" and old.name in refused.value.message
    for unknown in ("", "nothing"):
        with pytest.raises(ModelError) as refused:
            find_version(unknown, home)
        assert refused.value.code == "model_not_found" and other.name in refused.value.fix


def test_an_empty_registry_says_how_to_fill_it(home):
    assert list_versions(home) == []
    with pytest.raises(ModelError, match="no tuned model") as refused:
        find_version("bookings", home)
    assert "tunesmith tune" in refused.value.fix


def test_a_deleted_model_is_gone(home):
    kept, gone = add(home, 1.0), add(home, 2.0)
    delete_version(gone)
    assert list_versions(home) == [kept] and list(home.models.iterdir()) == [kept.folder]


@given(
    st.sampled_from(["adapter_model.safetensors", "chat_template.jinja", "README.md", "adapter_config.json"]), st.data()
)
def test_a_changed_byte_is_noticed(tmp_path_factory, name, data):
    version = add(Home(tmp_path_factory.mktemp("home")))
    file = version.folder / name
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(content))
    with pytest.raises(ModelError) as refused:
        verify(version)
    assert refused.value.code == "digest_mismatch" and refused.value.where == str(file)


def test_a_swapped_adapter_with_a_mended_manifest_is_noticed(home):
    version, other = add(home, 1.0), add(home, 2.0)
    manifest = json.loads((version.folder / "manifest.json").read_text())
    (version.folder / "adapter_model.safetensors").write_bytes(
        (other.folder / "adapter_model.safetensors").read_bytes()
    )
    manifest["files"] = dict(other.files) | {"README.md": version.files["README.md"]}
    (version.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError) as refused:
        verify(find_version(version.id, home))
    assert refused.value.code == "digest_mismatch"


def test_a_missing_file_is_noticed(home):
    version = add(home)
    (version.folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError) as refused:
        verify(version)
    assert refused.value.code == "digest_mismatch"


@pytest.mark.parametrize("content", ['{"id": ', "[" * 100_000, "[]", '{"id": 1}'])
def test_a_damaged_manifest_hides_one_model_only(home, content):
    good, bad = add(home, 1.0), add(home, 2.0)
    (bad.folder / "manifest.json").write_text(content)
    assert list_versions(home) == [good]
    (error,) = damaged_versions(home)
    assert error.where == str(bad.folder / "manifest.json")
    with pytest.raises(ModelError) as refused:
        find_version(bad.folder.name, home)
    assert refused.value.code == "damaged_manifest"


def test_a_full_disk_lists_nothing(small_disk):  # noqa: F811
    home = Home(small_disk)
    with pytest.raises(StorageError) as full:
        register(MADE, filler(elements=1_000_000), "{{ messages }}", home)
    assert full.value.code == "disk_full"
    assert list(home.models.iterdir()) == [] and list_versions(home) == []


def test_a_failure_while_filling_lists_nothing(home):
    def fail(folder: Path) -> None:
        filler()(folder)
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        register(MADE, fail, "", home)
    assert list(home.models.iterdir()) == []


def _register_in_process(root: str, value: float) -> str:
    return add(Home(Path(root)), value).id


def test_processes_register_at_once(home):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        ids = pool.starmap(_register_in_process, [(str(home.root), 1.0), (str(home.root), 1.0)])
    assert ids[0] == ids[1] and [version.id for version in list_versions(home)] == ids[:1]


def test_a_tuned_model_brings_its_base(tmp_path, home):
    base = resolve_base(str(save_tiny_model("llama", tmp_path / "base")), home)
    version = add(home, base=base.name, base_sha256=base.sha256, base_short_name=base.short_name)
    for name in ("bookings", version.name, version.id):
        found = resolve_model(name, home)
        assert (found.base, found.version) == (base, version)
    assert resolve_model(base.name, home).version is None
    with pytest.raises(ModelError) as refused:
        resolve_model("bokings", home)
    assert "Did you mean bookings?" in refused.value.fix and "smollm2-135m" in refused.value.fix
    with pytest.raises(ModelError) as refused:
        resolve_model("ft:smollm2-135m:local:nothing:00000000", home)
    assert refused.value.code == "model_not_found"
    save_tiny_model("llama", tmp_path / "base", seed=5)
    with pytest.raises(ModelError) as refused:
        resolve_model("bookings", home)
    assert refused.value.code == "base_changed"


def test_damaged_tensors_are_named(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"a": torch.arange(6).view(2, 3).T}, {"step": "3"})
    assert torch.equal(load_tensors(tmp_path / "a.safetensors")["a"], torch.arange(6).view(2, 3).T)
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    for name, code in (("a", "damaged_weights"), ("b", "missing_weights")):
        with pytest.raises(ModelError) as refused:
            load_tensors(tmp_path / f"{name}.safetensors")
        assert refused.value.code == code


def test_a28_a_second_registration_under_an_id_changes_nothing(home):
    first = add(home)
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    assert add(home) == first and list_versions(home) == [first]
    (first.folder / "adapter_model.safetensors").write_bytes(b"another")
    again = add(home)
    assert again.id == first.id and (first.folder / "manifest.json").read_bytes() == before["manifest.json"]
    # Whatever lies there is hashed again before it is used.
    with pytest.raises(ModelError) as refused:
        verify(again)
    assert refused.value.code == "digest_mismatch"


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "A" * 64, "../" + "0" * 61, "0" * 63 + "\n", 7, None])
def test_a28_a_digest_that_is_none_hides_the_model(home, digest):
    good, bad = add(home, 1.0), add(home, 2.0)
    manifest = json.loads((bad.folder / "manifest.json").read_text())
    manifest["files"]["README.md"] = digest
    (bad.folder / "manifest.json").write_text(json.dumps(manifest))
    assert list_versions(home) == [good] and len(damaged_versions(home)) == 1
    with pytest.raises(ModelError):
        find_version(bad.name, home)
