"""Bases in llama.cpp's GGUF format, converted once to a folder that transformers loads in a moment.

The values are kept in float32: a quantised weight is scale times integer plus minimum, with scales in float16, which
bfloat16 can't hold (measured on SmolLM2-135M: log-probabilities move by up to 0.14). Casting happens at loading.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tunesmith.errors import ModelError
from tunesmith.models.quiet import quiet_libraries
from tunesmith.models.weights import weight_writing
from tunesmith.record.atomic import new_folder, write_json
from tunesmith.record.hashing import sha256_file, sha256_json

#: Raised when a conversion of the same file gives another folder, so that older folders aren't used any more.
CONVERSION = 1

#: `tokenizer.ggml.pre` of vocabularies that split text as GPT-2 does, after cutting out each single digit. llama.cpp
#: says so; transformers knows them as plain GPT-2, which splits "\n\n1" in the wrong place.
_DIGIT_SPLITTERS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_GPT2_SPLITTERS = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"}


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted base: its folder and the SHA-256 of the file it came from."""

    folder: Path
    sha256: str


def convert_gguf(file: Path, bases: Path, name: str) -> Converted:
    """Return the folder that `file` was converted to, converting it the first time.

    Two processes may convert the same file at once; both succeed. The folder is there whole or not at all.

    Args:
        file: the `.gguf` file.
        bases: the cache of converted bases.
        name: how the folder's name starts.

    Raises:
        ModelError: the file is missing, isn't GGUF, is cut short, or holds a model that can't be trained here.
        StorageError: the disk is full; nothing half-written remains.
    """
    _check_magic(file)
    sha256 = _known_sha256(file, bases)
    folder = bases / f"{name}-{sha256[:12]}-{CONVERSION}"
    if not folder.is_dir():
        with weight_writing(folder), new_folder(folder, if_exists="keep") as part:
            _convert(file, part, sha256)
    return Converted(folder, sha256)


def load_gguf(file: Path) -> tuple[Any, Any]:
    """Return the model in float32, on the CPU, and the tokenizer of a GGUF file.

    Raises:
        ModelError: see `convert_gguf`.
    """
    _check_magic(file)
    with quiet_libraries(), _quick_reading():
        facts = _facts(file)
        place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, "local_files_only": True}
        try:
            config = AutoConfig.from_pretrained(**place)
            tokenizer = AutoTokenizer.from_pretrained(**place)
            model, found = AutoModelForCausalLM.from_pretrained(
                **place, config=config, dtype=torch.float32, output_loading_info=True
            )
        except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
            raise ModelError(
                f"The {facts.architecture} model in this file can't be converted: {_first_line(error)}",
                where=str(file),
                fix="Use the model's original folder with config.json and *.safetensors instead.",
                code="unsupported_gguf",
            ) from error
        if found["missing_keys"]:
            # transformers would fill them with random numbers and only log it.
            raise ModelError(
                f"{len(found['missing_keys'])} of the model's weights aren't in this file, such as "
                f"{min(found['missing_keys'])}.",
                where=str(file),
                fix="Use a file that holds the whole model (split files must be joined first).",
                code="incomplete_gguf",
            )
        _mend_digits(tokenizer, facts, file)
    return _plain(model), tokenizer


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a GGUF file says about itself. `splitter` is the name of the rule that cuts text before merging."""

    architecture: str
    vocabulary: str
    splitter: str


def _facts(file: Path) -> _Facts:
    """Read the file's header and check what a conversion needs.

    Raises:
        ModelError: the file is cut short or damaged, or lacks an architecture or a tokenizer.
    """
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise ModelError(
            f"This GGUF file is cut short or damaged: {_first_line(error)}",
            where=str(file),
            fix="Download it again and compare its size with the original's.",
            code="damaged_gguf",
        ) from error
    architecture, vocabulary, splitter = (
        str(field.contents()) if (field := reader.get_field(key)) is not None else ""
        for key in ("general.architecture", "tokenizer.ggml.model", "tokenizer.ggml.pre")
    )
    if not architecture or reader.get_field("tokenizer.ggml.tokens") is None:
        missing = "tokenizer" if architecture else "architecture"
        raise ModelError(
            f"This GGUF file has no {missing}, so it isn't a whole language model.",
            where=str(file),
            fix="Use a file that holds the model with its tokenizer (not a projector or an adapter).",
            code="incomplete_gguf",
        )
    return _Facts(architecture, vocabulary, splitter)


def _convert(file: Path, folder: Path, sha256: str) -> None:
    """Fill `folder` with the converted base and a manifest of where it came from."""
    model, tokenizer = load_gguf(file)
    with quiet_libraries():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    write_json(
        folder / "manifest.json",
        {
            "source": {"file": file.name, "sha256": sha256, "bytes": file.stat().st_size},
            "conversion": CONVERSION,
            "dtype": "float32",
            "libraries": {name: version(name) for name in ("gguf", "safetensors", "torch", "transformers")},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _plain(model: Any) -> Any:
    """Take the marks of quantisation off a model whose weights are plain again; it refuses to be saved with them."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    # The file's own title; transformers takes it for a path.
    model.config._name_or_path = ""
    return model


def _mend_digits(tokenizer: Any, facts: _Facts, file: Path) -> None:
    """Make the tokenizer cut text as the model's own does, or refuse a rule that nobody here knows.

    Raises:
        ModelError: the rule is unknown; training would see other tokens than the model was made for.
    """
    backend = tokenizer.backend_tokenizer
    split = json.loads(backend.to_str())["pre_tokenizer"]
    is_plain_gpt2 = facts.vocabulary == "gpt2" and split is not None and split["type"] == "ByteLevel"
    if not is_plain_gpt2 or facts.splitter in _GPT2_SPLITTERS:
        return
    if facts.splitter not in _DIGIT_SPLITTERS:
        raise ModelError(
            f"The file's tokenizer splits text by the rule '{facts.splitter or 'unnamed'}', which isn't known here.",
            where=str(file),
            fix="Use the model's original folder with tokenizer.json and *.safetensors instead.",
            code="unsupported_gguf",
        )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _check_magic(file: Path) -> None:
    """Refuse what isn't a GGUF file before anything reads it.

    Raises:
        ModelError: there is no such file, or it doesn't start as a GGUF file does.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
    except OSError as error:
        raise ModelError(
            "This file can't be read.", where=str(file), fix="Check the path.", code="model_not_found"
        ) from error
    if start != b"GGUF":
        raise ModelError(
            "This isn't a GGUF file: it doesn't start with the letters GGUF.",
            where=str(file),
            fix="Check that the download is complete and isn't a web page or a Git LFS pointer.",
            code="not_gguf",
        )


def _known_sha256(file: Path, bases: Path) -> str:
    """Return the file's SHA-256; it is computed once for each path, size and time of change."""
    state = file.stat()
    key = sha256_json([str(file.resolve()), state.st_size, state.st_mtime_ns])
    note = bases / "hashes" / f"{key}.json"
    try:
        return str(json.loads(note.read_text(encoding="utf-8"))["sha256"])
    except (OSError, ValueError, KeyError):
        sha256 = sha256_file(file)
    with weight_writing(note):
        note.parent.mkdir(parents=True, exist_ok=True)
    write_json(note, {"file": str(file), "sha256": sha256})
    return sha256


@contextmanager
def _quick_reading() -> Iterator[None]:
    """Read the file's header once, and quickly.

    transformers parses the header three times with slices of a memory map (3 s each for a vocabulary of 49,152), and
    builds the table of tensor names once for each module (4 s). Both give the same every time, so they are kept for
    the length of one conversion: 17 s become 6. Were transformers to stop calling them, it would be slower, not wrong.
    """
    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map

    read = functools.cache(_PlainReader)
    gguf.GGUFReader = lambda path: read(str(path))
    gguf.get_tensor_name_map = functools.cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names


class _PlainReader(gguf.GGUFReader):  # type: ignore[misc]  # the library is untyped
    """Reads through a plain array: slicing a `numpy.memmap` costs three times as much."""

    data: Any

    def _get(self, *arguments: Any, **named: Any) -> Any:
        if isinstance(self.data, np.memmap):
            self.data = self.data.view(np.ndarray)
        return super()._get(*arguments, **named)


def _first_line(error: Exception) -> str:
    """Return what an error says, without the pages that some libraries add."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
