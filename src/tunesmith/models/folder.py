"""Checks of a model folder before anything in it is loaded: whole, safe, and of a kind that can be trained."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.record.hashing import sha256_bytes, sha256_json

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")
_COMPANIONS = (
    *_TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt",
    "generation_config.json", "chat_template.jinja",
)  # fmt: skip
_INDEX = "model.safetensors.index.json"
_LARGEST_HEADER_BYTES = 100_000_000

#: Weight files above this size are fingerprinted by samples: hashing 16 GB at each start would take a minute.
_HASHED_WHOLE_BYTES = 64 << 20
_SAMPLES = 64
_SAMPLE_BYTES = 256 << 10


def check_folder(folder: Path) -> dict[str, Any]:
    """Return the folder's config after checking that the model is whole and runs no code of its own.

    Raises:
        ModelError: a file is missing, damaged or pickled, or the model asks for its own Python code.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                "This folder holds an adapter, not a base model.",
                where=str(folder),
                fix="Give the base that the adapter was trained on, or register the adapter's run as a model.",
                code="adapter_not_base",
            )
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        if ggufs:
            raise ModelError(
                f"This folder holds GGUF files ({ggufs[0]}), not a model folder.",
                where=str(folder),
                fix=f"Give the file itself: {folder / ggufs[0]}",
                code="incomplete_model",
            )
        raise _missing(folder, "config.json")
    config = _read_json(folder / "config.json")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file():
            _refuse_code(folder / name)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise _missing(folder, "tokenizer.json")
    for file in weight_files(folder):
        _check_safetensors(file)
    return config


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the model's weights, in order.

    Raises:
        ModelError: there are none, or one that the index names is missing.
    """
    if (folder / _INDEX).is_file():
        shards = _read_json(folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise _damaged(folder / _INDEX, "it names no weights")
        names = sorted({str(name) for name in shards.values()})
        for name in names:
            if Path(name).name != name:
                raise _damaged(folder / _INDEX, f"it names a file outside its folder ({name})")
            if not (folder / name).is_file():
                raise ModelError(
                    f"A part of the weights is missing: {name} (of {len(names)} parts).",
                    where=str(folder),
                    fix="Download the missing file, or the whole model again.",
                    code="missing_weights",
                )
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"The weights are pickled ({pickled[0]}); reading them could run any code, so Tunesmith never does.",
            where=str(folder),
            fix="Get the model's *.safetensors files, or convert it where you trust its source.",
            code="pickled_weights",
        )
    raise _missing(folder, "model.safetensors")


def companion_files(folder: Path) -> list[Path]:
    """Return the files beside the weights that say how text becomes tokens and where answers end, in order."""
    return sorted(folder / name for name in _COMPANIONS if (folder / name).is_file())


def fingerprint(folder: Path) -> str:
    """Return a hash of config, tokenizer and weights, in hexadecimal.

    Weight files above 64 MiB count with their header, size and 64 samples of 256 KiB spread evenly: two models that
    were trained apart differ everywhere, and a start takes no time.
    """
    parts = {}
    small = {"config.json", "chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json", *_TOKENIZERS}
    for name in sorted(small):
        if (folder / name).is_file():
            parts[name] = sha256_bytes((folder / name).read_bytes())
    for file in weight_files(folder):
        parts[file.name] = _sampled_sha256(file)
    return sha256_json(parts)


def _sampled_sha256(file: Path) -> str:
    """Return the hash of a weight file, or of its samples where it is large."""
    size_bytes = file.stat().st_size
    digest = hashlib.sha256(str(size_bytes).encode())
    with file.open("rb") as opened:
        if size_bytes <= _HASHED_WHOLE_BYTES:
            digest.update(opened.read())
        else:
            for i in range(_SAMPLES):
                opened.seek(i * (size_bytes - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _refuse_code(file: Path) -> None:
    """Refuse a config that names Python code of the model's own, at any depth.

    Raises:
        ModelError: it does.
    """
    todo: list[Any] = [_read_json(file)]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            if "auto_map" in value:
                raise ModelError(
                    "This model asks to run Python code of its own (auto_map); Tunesmith never runs code from a model.",
                    where=str(file),
                    fix="Use a version of the model that the transformers library supports without remote code.",
                    code="remote_code",
                )
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)


def _check_safetensors(file: Path) -> None:
    """Check that a safetensors file is as long as its header says, without reading its tensors.

    Raises:
        ModelError: it is cut short or isn't a safetensors file.
    """
    size_bytes = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else size_bytes
        if 8 + header_bytes > size_bytes or header_bytes > _LARGEST_HEADER_BYTES:
            raise _damaged(file, "it is cut short, or isn't a safetensors file")
        try:
            header = json.loads(opened.read(header_bytes))
            end = max((row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"), default=0)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise _damaged(file, "it isn't a safetensors file") from error
    if 8 + header_bytes + end != size_bytes:
        raise _damaged(file, f"it has {size_bytes} bytes, its header says {8 + header_bytes + end}")


def _read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelError: it can't be read as one.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, f"it can't be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise _damaged(file, "it isn't a JSON object")
    return value


def _missing(folder: Path, name: str) -> ModelError:
    """Return the error for a file that a model folder lacks."""
    return ModelError(
        f"This folder has no {name}, so it isn't a whole model.",
        where=str(folder),
        fix="A model folder holds config.json, the tokenizer's files and *.safetensors.",
        code="incomplete_model",
    )


def _damaged(file: Path, why: str) -> ModelError:
    """Return the error for a file of a model that can't be used."""
    return ModelError(
        f"This file of the model is damaged: {why}.",
        where=str(file),
        fix="Download it again.",
        code="damaged_model",
    )
