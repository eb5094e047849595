"""Tensors on disk: `safetensors` only, whole or not at all, with errors that a person can act on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tunesmith.errors import ModelError, storage_errors
from tunesmith.record.atomic import new_part, sync_folder

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def weight_writing(path: Path) -> Iterator[None]:
    """Turn a failure to write a model at `path` into a `StorageError`, also where a library hides its cause.

    Raises:
        StorageError: the disk is full or the folder can't be written.
    """
    with storage_errors(path):
        try:
            yield
        except Exception as error:
            # safetensors and tokenizers tell the operating system's number in their messages only.
            match = None if isinstance(error, OSError) else _OS_ERROR.search(str(error))
            if match is None:
                raise
            raise OSError(int(match[1]), str(error)) from error


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as one safetensors file, on the disk when this returns.

    Args:
        path: the final name.
        tensors: by name; they may lie on any device and needn't be contiguous.
        metadata: short texts kept in the file's header.

    Raises:
        StorageError: the disk is full or the folder can't be written; an older file of this name is untouched.
    """
    part = new_part(path)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with weight_writing(path):
        try:
            save_file(plain, part, {"format": "pt", **(metadata or {})})
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        ModelError: the file is missing, cut short or damaged.
    """
    try:
        return load_file(path, device=str(device))
    except FileNotFoundError as error:
        raise ModelError("This weights file is missing.", where=str(path), code="missing_weights") from error
    except (SafetensorError, OSError) as error:
        raise damaged_weights(path, error) from error


def damaged_weights(path: Path, error: Exception) -> ModelError:
    """Return the error that says that a weights file can't be read."""
    return ModelError(
        f"The weights can't be read: {error}.",
        where=str(path),
        fix="The file is cut short or damaged; download or make it again.",
        code="damaged_weights",
    )
