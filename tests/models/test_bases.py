"""Every family loads from a user's folder; what can't be used is refused with a reason."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

from tiny_models import CONTEXT_TOKENS, FAMILIES, save_tiny_model, tiny_model, tiny_tokenizer
from tunesmith.errors import ModelError
from tunesmith.models.load import choose_dtype, load_base
from tunesmith.models.resolve import resolve_base, short_name
from tunesmith.models.size import model_size


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of a tiny llama to spoil."""
    return shutil.copytree(tiny_folder("llama"), tmp_path / "base")


def refusal(name, home) -> ModelError:
    with pytest.raises(ModelError) as refused:
        resolve_base(str(name), home)
    assert refused.value.fix
    return refused.value


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_loads_from_a_folder(family, tiny_folder, home):
    source = resolve_base(str(tiny_folder(family)), home)
    loaded = load_base(source, "float32", "cpu")
    tokenizer = tiny_tokenizer(family)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "A table for 4?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(prompt).logits, tiny_model(family)(prompt).logits, rtol=0, atol=0)
    assert (source.origin, source.short_name) == ("folder", f"tiny-{family}".replace("_", "-"))
    assert loaded.context_tokens == CONTEXT_TOKENS
    assert loaded.tokenizer.chat_template == tokenizer.chat_template
    assert loaded.end_of_turn_ids == tuple(sorted(tokenizer.convert_tokens_to_ids(list(FAMILIES[family].ends))))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_loaded_model(family, tiny_folder):
    size, model = model_size(tiny_folder(family)), tiny_model(family)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    layers = model.transformer.h if family == "gpt2" else model.model.layers
    linears = [m for m in layers.modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    assert size.layer_parameters == sum(parameter.numel() for parameter in layers[0].parameters())
    assert size.linear_parameters == sum(m.weight.numel() for m in linears)
    assert size.lora_parameters(4) == sum(4 * sum(m.weight.shape) for m in linears)
    # Two of four experts of each layer.
    stacks = [weight for name, weight in layers.named_parameters() if ".experts." in name]
    assert size.active_expert_parameters == sum(weight.numel() // 2 for weight in stacks)
    assert size.weight_bytes(torch.bfloat16) == 2 * size.parameters
    cache = model(torch.zeros(1, 3, dtype=torch.long)).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert size.cache_bytes_per_token(torch.float32) * 3 == held


def test_dtype_is_as_asked_and_auto_follows_the_hardware(tiny_folder, home):
    source = resolve_base(str(tiny_folder("llama")), home)
    assert load_base(source, "bfloat16", "cpu").model.dtype == torch.bfloat16
    flags = Path("/proc/cpuinfo")
    quick = flags.exists() and "bf16" in flags.read_text()
    assert choose_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if quick else torch.float32)


def test_loading_says_nothing(tiny_folder, tmp_path):
    script = (
        "import sys; from pathlib import Path; from tunesmith.record.home import Home\n"
        "from tunesmith.models.resolve import resolve_base; from tunesmith.models.load import load_base\n"
        "load_base(resolve_base(sys.argv[1], Home(Path(sys.argv[2]))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_folder("gemma3")), str(tmp_path)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


def test_shards_load_and_a_missing_one_is_named(tmp_path, home):
    folder = tmp_path / "sharded"
    tiny_model("llama").save_pretrained(folder, max_shard_size="50KB")
    tiny_tokenizer("llama").save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    load_base(resolve_base(str(folder), home), "float32")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    error = refusal(folder, home)
    assert error.code == "missing_weights" and shard.name in error.message


def test_an_index_that_points_outside_is_refused(folder, home):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert refusal(folder, home).code == "damaged_model"


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_weights_cut_short_are_refused(size, folder, home):
    weights = folder / "model.safetensors"
    os.truncate(weights, size if size >= 0 else weights.stat().st_size + size)
    assert refusal(folder, home).code == "damaged_model"


def test_a_git_lfs_pointer_is_refused(folder, home):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 538\n")
    assert refusal(folder, home).code == "damaged_model"


def test_pickled_weights_are_refused(folder, home):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = refusal(folder, home)
    assert error.code == "pickled_weights" and "pytorch_model.bin" in error.message


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_the_models_own_is_refused_at_any_depth(file, folder, home):
    config = json.loads((folder / file).read_text())
    config["nested"] = [{"deep": {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}}]
    (folder / file).write_text(json.dumps(config))
    error = refusal(folder, home)
    assert error.code == "remote_code" and error.where.endswith(file)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(name, folder, home):
    (folder / name).unlink()
    error = refusal(folder, home)
    assert error.code == "incomplete_model" and name in error.message


def test_an_adapter_is_not_a_base(tmp_path, home):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert refusal(tmp_path, home).code == "adapter_not_base"


def test_missing_tensors_are_an_error_not_random_numbers(folder, home):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError) as refused:
        load_base(resolve_base(str(folder), home), "float32")
    assert refused.value.code == "missing_weights" and "layers.1.mlp.up_proj" in refused.value.message


@pytest.mark.parametrize("kind", ["not-a-model", "vit"])
def test_an_architecture_that_is_no_decoder_is_refused(kind, folder, home):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": kind, "architectures": []}))
    source = resolve_base(str(folder), home)
    for use in (load_base, lambda source: model_size(source.folder)):
        with pytest.raises(ModelError) as refused:
            use(source)
        assert refused.value.code == "unsupported_model"


def test_a_damaged_tokenizer_is_refused(folder, home):
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    with pytest.raises(ModelError) as refused:
        load_base(resolve_base(str(folder), home))
    assert refused.value.code == "damaged_tokenizer"


def test_other_weights_are_another_base(tmp_path, home):
    one, same, other = (
        resolve_base(str(save_tiny_model("llama", tmp_path / name, seed=seed)), home)
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one.sha256 == same.sha256 != other.sha256


def test_unknown_words_get_near_names(home):
    error = refusal("smollm2-135", home)
    assert error.code == "model_not_found" and "Did you mean smollm2-135m?" in error.fix
    assert "There is no such folder" in refusal("./nothing/here", home).message


def test_short_names_are_plain():
    assert short_name("SmolLM2_135M Instruct.Q4:1") == "smollm2-135m-instruct.q4-1"
    assert short_name("模型") == "model"
    assert len(short_name("a" * 99)) == 40


def test_the_hub_without_a_network_fails_fast_and_says_how(tmp_path):
    script = (
        "import sys; from pathlib import Path; from tunesmith.errors import ModelError\n"
        "from tunesmith.record.home import Home; from tunesmith.models.resolve import resolve_base\n"
        "import time; start = time.monotonic()\n"
        "try:\n    resolve_base('org/some-model', Home(Path(sys.argv[1])))\n"
        "except ModelError as error:\n    print(error.code, round(time.monotonic() - start), error.fix)\n"
    )
    # A port that refuses, and one that takes the call and never answers.
    silent = socket.create_server(("127.0.0.1", 0))
    for setting in (
        {"HF_HUB_OFFLINE": "1"},
        {"HF_ENDPOINT": "http://127.0.0.1:9"},
        {"HF_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"},
    ):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            check=True, capture_output=True, text=True, env={**environment, "HF_HOME": str(tmp_path), **setting},
        )  # fmt: skip
        code, seconds, fix = done.stdout.split(maxsplit=2)
        assert code == "hub_unreachable" and int(seconds) <= 60, done.stdout  # without short time-outs: minutes
        assert "hf download org/some-model --local-dir ./some-model" in fix and "--base ./some-model" in fix


def test_a_model_in_the_hubs_cache_needs_no_network(tiny_folder, tmp_path, home):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(tiny_folder("qwen3"), cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    script = (
        "import sys; from pathlib import Path\n"
        "from tunesmith.record.home import Home; from tunesmith.models.resolve import resolve_base\n"
        "for name in ('org/tiny', sys.argv[2]):\n"
        "    base = resolve_base(name, Home(Path(sys.argv[1]))); print(base.name, base.short_name, base.origin)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(home.root), f"org/tiny@{commit}"],
        check=True, capture_output=True, text=True, env={**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub")},
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"org/tiny@{commit} tiny hub"] * 2
