"""A vLLM server of our own: started as a child, watched, started again within limits, and never left behind."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import ModelError, TunesmithError
from tunesmith.generate.vllm import keeper
from tunesmith.generate.vllm.environment import VllmEnvironment

#: The name under which the server knows the base.
BASE_NAME = "base"

_LOG_BYTES = 4 << 20
_LOG_LINES = 12
_HOST = "127.0.0.1"
_ADAPTERS_IN_BATCH = 8
#: Ranks that vLLM lays its adapters' memory out for.
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server holds and how much.

    Attributes:
        folder: the base: config, tokenizer and safetensors.
        dtype: number format of weights and activations.
        context_tokens: longest prompt and answer together.
        cache_bytes: memory for keys and values; None: vLLM takes what it finds.
        max_batch: answers computed side by side.
        max_adapters: LoRA adapters in memory; 0 for none at all, which is faster.
        max_adapter_rank: the largest rank among them.
        adapted_layers: names (their last parts) of the layers that adapters may change.
        start_seconds: how long a start may take.
        max_restarts: how often a server that ended by itself is started again within `restart_window_seconds`.
        restart_window_seconds: see `max_restarts`.
    """

    folder: Path
    dtype: str
    context_tokens: int
    cache_bytes: int | None
    max_batch: int = 32
    max_adapters: int = 0
    max_adapter_rank: int = 64
    adapted_layers: tuple[str, ...] = ()
    start_seconds: float = 900.0
    max_restarts: int = 3
    restart_window_seconds: float = 600.0

    def command(self, environment: VllmEnvironment, port: int) -> list[str]:
        """Return the command that starts the server on a port of this machine."""
        command = [
            # Not the command `vllm`, which looks for a package of that name and so fails with the build for CPUs.
            *(environment.python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(self.folder), "--served-model-name", BASE_NAME, "--host", _HOST, "--port", str(port)),
            *("--dtype", self.dtype, "--load-format", "safetensors"),
            *("--max-model-len", str(self.context_tokens), "--max-num-seqs", str(self.max_batch)),
            # Requests say all of their settings; the base's own recommendations would change them.
            *("--generation-config", "vllm"),
            *("--max-logprobs", "20", "--logprobs-mode", "raw_logprobs"),
            # The library that the torch engine keeps answers in form with, so that both accept the same.
            *("--structured-outputs-config", json.dumps({"backend": "guidance"})),
            *("--disable-uvicorn-access-log", "--uvicorn-log-level", "warning", "--disable-log-stats"),
        ]
        if self.cache_bytes is not None:
            command += ["--kv-cache-memory-bytes", str(self.cache_bytes)]
        if environment.is_cpu:
            command.append("--enforce-eager")  # compiling takes minutes, and with adapters vLLM leaves it out anyway
        if self.max_adapters:
            # Each that may be in one batch has its room laid out from the start, on the GPU.
            in_memory = self.max_adapters + environment.is_cpu  # one that stands for the base, see `RunningServer`
            in_batch = min(in_memory, _ADAPTERS_IN_BATCH)
            command += ["--enable-lora", "--max-loras", str(in_batch), "--max-cpu-loras", str(in_memory)]
            command += ["--max-lora-rank", str(lora_rank(self.max_adapter_rank))]
            # Not the output layer: where vLLM lets adapters change it, scores of several requests at once stop it.
            command += ["--lora-target-modules", *self.adapted_layers]
        return command + list(environment.arguments)


def lora_rank(rank: int) -> int:
    """Return the smallest rank that vLLM lays memory out for and that holds `rank`.

    Raises:
        ModelError: there is none.
    """
    for known in _RANKS:
        if rank <= known:
            return known
    raise ModelError(
        f"vLLM takes adapters up to rank {_RANKS[-1]}; this one has {rank}.",
        fix="Fold it into a copy of the base, or use the backend torch.",
        code="unsupported_adapter",
    )


class VllmServer:
    """One vLLM server. `launch` it before it is used and `stop` it at the end; it never outlives this process.

    Args:
        settings: what it holds.
        environment: where vLLM is installed.
    """

    def __init__(self, settings: ServerSettings, environment: VllmEnvironment) -> None:
        self.settings = settings
        self.environment = environment
        self.port = 0
        self.api_key = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts: deque[float] = deque()
        #: For its log and the like, as long as it lives.
        self.folder = Path(tempfile.mkdtemp(prefix="tunesmith-vllm-"))
        self._clean = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """The server's address."""
        return f"http://{_HOST}:{self.port}"

    @property
    def log(self) -> Path:
        """The file that its output goes to."""
        return self.folder / "vllm.log"

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Number of the process that keeps it; 0 if it doesn't run."""
        return self._process.pid if self._process is not None else 0

    def launch(self) -> None:
        """Start the process; it takes a while until it answers. A running one is stopped first."""
        self.stop_process()
        self.port = _free_port()
        self.api_key = secrets.token_urlsafe(32)
        keeping = [sys.executable, "-I", keeper.__file__, str(self.log), str(_LOG_BYTES)]
        self._process = subprocess.Popen(
            keeping + self.settings.command(self.environment, self.port),
            stdin=subprocess.PIPE,  # held open: the keeper ends the server when this end is closed
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            env=self.environment.variables(self.api_key),
            start_new_session=True,
        )
        self._end = weakref.finalize(self, _end, self._process)

    def wait_for_end(self) -> None:
        """Wait until the process ends by itself."""
        if self._process is not None:
            self._process.wait()

    def note_restart(self) -> None:
        """Count a start after the server ended by itself.

        Raises:
            ModelError: it ended too often; the message shows its log's end.
        """
        now = time.monotonic()
        while self._restarts and now - self._restarts[0] > self.settings.restart_window_seconds:
            self._restarts.popleft()
        if len(self._restarts) >= self.settings.max_restarts:
            raise self.failure(f"vLLM ended by itself {len(self._restarts) + 1} times; it isn't started again.")
        self._restarts.append(now)

    def failure(self, message: str) -> ModelError:
        """Return an error with the end of the server's log."""
        lines = self.log_lines()
        problems = tuple(lines[-_LOG_LINES:])
        memory = any("memory" in line.lower() for line in problems)
        return ModelError(
            message,
            where=f"vLLM {self.environment.version}",
            fix="Lower cache_bytes or max_batch, or free some memory."
            if memory
            else "Read the lines of its log below; the backend torch needs no vLLM.",
            code="vllm_failed",
            problems=problems,
        )

    def log_lines(self) -> list[str]:
        """Return the last lines of its output, the informing ones left out where others are."""
        try:
            text = self.log.read_bytes()[-65_536:].decode("utf-8", "replace")
        except OSError:
            return []
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        return [line for line in lines if " INFO " not in line] or lines

    def stop(self) -> None:
        """End the server and all its processes, and remove its files. Twice is fine."""
        self.stop_process()
        self._clean()

    def stop_process(self) -> None:
        """End the server and all its processes; its log stays."""
        if self._process is not None:
            self._end()
            self._process = None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Have the keeper end the server; wait for it."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=3 * keeper.GRACE_SECONDS)
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise TunesmithError("The process that ends vLLM hangs; it was killed.", code="vllm_failed") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
