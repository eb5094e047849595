"""The sides of the training benchmark: their environments, and one run of one side as a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from peers.clock import Job

_PEERS = Path(__file__).parent / "peers"

#: Chat rows as a user has them; token rows in the order of Tunesmith's steps; token rows of like length together.
Order = Literal["chat", "steps", "length"]


@dataclass(frozen=True)
class Side:
    """Who trains, and how.

    Attributes:
        name: a short word for options and results.
        title: what the page calls it.
        script: under `bench/peers`.
        package: the peer's name in PyPI and of its environment; None is Tunesmith, in this environment.
        order: which rows it gets.
        settings: what its script is told besides the job.
    """

    name: str
    title: str
    script: str
    package: str | None
    order: Order
    settings: dict[str, Any] = field(default_factory=dict)


OURS = Side("tunesmith", "Tunesmith", "tunesmith_tune.py", None, "chat")
#: TRL at its best speed: this is what the bars compare with.
BEST_PEER = Side("trl_best", "TRL, rows by length", "trl_sft.py", "trl", "length", {"gradient_checkpointing": False})
#: TRL as it comes, with Tunesmith's steps, so that the losses can be compared step by step.
SAME_STEPS_PEER = Side(
    "trl_default", "TRL as it comes, the same steps", "trl_sft.py", "trl", "steps", {"gradient_checkpointing": True}
)
#: The same steps in float32: what both sides' losses should be, were nothing rounded.
EXACT_PEER = Side(
    "trl_float32",
    "TRL in float32, the same steps",
    "trl_sft.py",
    "trl",
    "steps",
    {"gradient_checkpointing": True, "autocast": False, "dtype": "float32"},
)
#: Run once each, to show that no other setting or peer is better; the page says so if one can't be installed or fails.
OTHER_PEERS = (
    Side("trl_lean", "TRL, rows by length, lean", "trl_sft.py", "trl", "length", {"gradient_checkpointing": True}),
    Side(
        "trl_plain",
        "TRL, rows by length, no autocast",
        "trl_sft.py",
        "trl",
        "length",
        {"gradient_checkpointing": False, "autocast": False},
    ),
    Side("litgpt", "LitGPT, rows by length", "litgpt_lora.py", "litgpt", "length"),
    Side("llamafactory", "LLaMA-Factory, rows by length", "llamafactory_sft.py", "llamafactory", "length"),
)
SIDES = {side.name: side for side in (OURS, BEST_PEER, SAME_STEPS_PEER, EXACT_PEER, *OTHER_PEERS)}


class SideFailure(Exception):
    """A side can't be installed or its run failed; the message's first line is for the page."""


@dataclass(frozen=True)
class SideRun:
    """One run of one side.

    Attributes:
        step_seconds: of each optimiser step.
        losses: of each step, in nats a learnt token.
        startup_seconds: from the command to the first step.
        peak_memory_bytes: highest resident memory of the process up to the end of its last step.
        versions: of its libraries.
        further: what only this side tells.
    """

    step_seconds: list[float]
    losses: list[float]
    startup_seconds: float
    peak_memory_bytes: int
    versions: dict[str, str]
    further: dict[str, Any]


class Environments:
    """The peers' virtual environments, one folder each below `root`; a missing one is made with pip."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._failures: dict[str, str] = {}

    def found(self, package: str) -> Path | None:
        """Return the Python of a peer's environment if it is there; nothing is installed."""
        python = self._root / package / "bin" / "python"
        return python if python.exists() else None

    def python(self, package: str | None) -> Path:
        """Return the Python of a peer's environment, or this one for None.

        Raises:
            SideFailure: it can't be installed.
        """
        if package is None:
            return Path(sys.executable)
        if package in self._failures:
            raise SideFailure(self._failures[package])
        folder = self._root / package
        python = folder / "bin" / "python"
        if not python.exists():
            requirements = _PEERS / "requirements" / f"{package}.txt"
            print(f"installing {package} into {folder}", file=sys.stderr)
            try:
                subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
                subprocess.run(
                    [str(python), "-m", "pip", "install", "-q", "-r", str(requirements)],
                    check=True,
                    capture_output=True,
                    text=True,
                )
            except subprocess.CalledProcessError as error:
                self._failures[package] = f"can't be installed: {_last_line(error.stderr)}"
                raise SideFailure(self._failures[package]) from error
        return python


def run_side(side: Side, job: Job, environments: Environments, home: Path) -> SideRun:
    """Run one side in a process of its own and return what it measured.

    Args:
        side: who trains.
        job: what; its `result`, `work` and `settings` are set here.
        environments: where peers live.
        home: Tunesmith's home.

    Raises:
        SideFailure: it can't be installed, or failed.
    """
    python = environments.python(side.package)
    with tempfile.TemporaryDirectory() as work:
        values = {**vars(job), "work": work, "settings": {**side.settings, **job.settings}}
        started = time.time()
        return read_result(run_script(python, side.script, values, home), started)


def run_script(
    python: Path, script: str, values: dict[str, Any], home: Path, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a script of `bench/peers` with a job, in a process of its own; return the result that it writes.

    Args:
        python: of its environment.
        script: its file's name.
        values: the job; `result` is set here.
        home: Tunesmith's home.
        environment: further environment variables.

    Raises:
        SideFailure: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        job_file = Path(folder) / "job.json"
        job_file.write_text(json.dumps({**values, "result": str(result)}), encoding="utf-8")
        done = subprocess.run(
            [str(python), str(_PEERS / script), str(job_file)],
            cwd=folder,
            env={**side_environment(home), **(environment or {})},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0 or not result.exists():
            raise SideFailure(f"failed: {_last_line(done.stderr)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found


def side_environment(home: Path) -> dict[str, str]:
    """Return a side's environment variables: it sees no GPU and no network, as this is the benchmark of the CPU."""
    return {**os.environ, "TUNESMITH_HOME": str(home), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def read_result(result: dict[str, Any], started: float) -> SideRun:
    """Return a side's result (see `peers.clock.StepClock.write`); `started` is when the command was, in Unix time."""
    known = {"first_step_at", "steps", "peak_memory_bytes", "versions"}
    return SideRun(
        step_seconds=[step["seconds"] for step in result["steps"]],
        losses=[step["loss"] for step in result["steps"]],
        startup_seconds=result["first_step_at"] - started,
        peak_memory_bytes=result["peak_memory_bytes"],
        versions=result["versions"],
        further={name: value for name, value in result.items() if name not in known},
    )


def _last_line(text: str) -> str:
    """Return the last line of an error's output, with file names in place of this machine's paths."""
    line = (text.strip().splitlines() or ["it said nothing"])[-1]
    return re.sub(r"(?<![\w.:/])/(?:[^\s/]+/)+", "", line)[:300]
