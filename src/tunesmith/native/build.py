"""Compiling the kernels, once for each machine, and loading them.

They are compiled when they are first wanted, by the C compiler of the machine, and kept in the user's cache (or, where
that can't be written, in Tunesmith's home) under a name that holds the digest of everything that went in. Where there
is no compiler, or the processor lacks the instructions, PyTorch's own operations do the same work in more steps.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tunesmith.errors import TunesmithError
from tunesmith.record.atomic import write_bytes
from tunesmith.record.home import Home

_log = logging.getLogger(__name__)

_VARIABLE = "TUNESMITH_NATIVE"
_SOURCES = (
    *("bf16.h", "parts.h", "attention.h"),
    *("product.c", "rows.c", "attention.c", "layers.c", "outer.c", "tree.c", "loss.c", "likeliest.c"),
)
_FLAGS = (
    *("-O3", "-std=c11", "-shared", "-fPIC", "-fopenmp", "-mfma"),
    *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "bf16")),
)
_COMPILE_SECONDS = 120


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None where they can't be had; `TUNESMITH_NATIVE=0` does without them."""
    if os.environ.get(_VARIABLE, "").strip() == "0" or not _is_right_processor():
        return None
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        _log.info("there is no C compiler, so computing in bf16 goes through PyTorch's operations, which is slower")
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError, TunesmithError) as error:
        said = getattr(error, "stderr", None) or error
        _log.warning("the kernels can't be compiled here, so computing in bf16 is slower: %s", said)
        return None


def _is_right_processor() -> bool:
    """Whether the processor multiplies bf16 in vectors. Where it has whole tiles of them (AMX), oneDNN is faster."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    return torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def _compiled(compiler: str) -> Path:
    """Return the compiled file, made now if it isn't there."""
    sources = {name: resources.files(__package__).joinpath(name).read_bytes() for name in _SOURCES}
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=_COMPILE_SECONDS).stdout
    digest = hashlib.sha256(repr((sorted(sources.items()), _FLAGS, version)).encode()).hexdigest()
    name = f"bf16-{digest[:32]}.so"
    for folder in _folders():
        if (folder / name).exists():
            return folder / name
    with TemporaryDirectory(prefix="tunesmith-kernels-") as scratch:
        for source, content in sources.items():
            Path(scratch, source).write_bytes(content)
        files = [source for source in _SOURCES if source.endswith(".c")]
        command = [compiler, *_FLAGS, *files, "-o", "kernels.so"]
        subprocess.run(command, check=True, capture_output=True, cwd=scratch, timeout=_COMPILE_SECONDS, text=True)
        return _kept(name, Path(scratch, "kernels.so").read_bytes())


def _folders() -> tuple[Path, ...]:
    """Return where compiled kernels may lie: they are the machine's, whatever home is in use."""
    cache = os.environ.get("XDG_CACHE_HOME", "").strip()
    user = Path(cache) if cache else Path("~/.cache").expanduser()
    return user / "tunesmith" / "kernels", Home.from_environment().root / "kernels"


def _kept(name: str, compiled: bytes) -> Path:
    """Write the compiled file to the first folder that takes it.

    Raises:
        StorageError: none does.
    """
    first, last = _folders()
    for folder in (first, last):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_bytes(folder / name, compiled)
        except (OSError, TunesmithError):
            if folder == last:
                raise
        else:
            return folder / name
    raise AssertionError("the last folder's refusal was raised")
