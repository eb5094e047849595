"""A server with those who talk to it: waits for its start, sees to it that it lives, gives it adapters."""

from __future__ import annotations

import http
import itertools
import time
from pathlib import Path

from tunesmith.errors import ModelError
from tunesmith.generate.vllm.adapters import write_nothing
from tunesmith.generate.vllm.client import VllmClient, error_text
from tunesmith.generate.vllm.environment import ARGUMENTS_VARIABLE, VllmEnvironment
from tunesmith.generate.vllm.server import BASE_NAME, ServerSettings, VllmServer
from tunesmith.models.size import LinearSize

_POLL_SECONDS = 0.2
_HEALTH_SECONDS = 10.0
_ADAPTER_SECONDS = 300.0


class RunningServer:
    """A vLLM server and the connection to it. One thread at a time may use it; only `wait` takes long.

    Args:
        settings: what the server holds.
        environment: where vLLM is installed.
        linear: a layer of the base.
    """

    def __init__(self, settings: ServerSettings, environment: VllmEnvironment, linear: LinearSize) -> None:
        self._server = VllmServer(settings, environment)
        self._names = itertools.count()
        #: By our names (None: the base): the server's, and the files.
        self._adapters: dict[str | None, tuple[str, Path]] = {}
        if settings.max_adapters and environment.is_cpu:
            # vLLM's kernels for CPUs send the base's own rows through whatever adapter lies in the last place, if
            # there are rows with adapters in the batch; so the base goes through one that changes nothing.
            nothing = self._server.folder / "nothing"
            write_nothing(nothing, linear)
            self._adapters[None] = ("", nothing)
        self._deadline = 0.0
        self._next_poll = 0.0
        self._is_ready = False
        self.client: VllmClient
        self._launch()

    @property
    def pid(self) -> int:
        """Number of the process that keeps the server."""
        return self._server.pid

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            ModelError: it doesn't start; the message shows its log's end.
        """
        while not self.is_ready():
            time.sleep(_POLL_SECONDS)

    def is_ready(self) -> bool:
        """Whether the server answers; false while it starts.

        Raises:
            ModelError: it doesn't start, or its adapters can't be loaded again.
        """
        if self._is_ready:
            return True
        if not self._server.is_alive:
            raise self._server.failure("vLLM didn't start.")
        now = time.monotonic()
        if now > self._deadline:
            self._server.stop_process()
            raise self._server.failure("vLLM took too long to start.")
        if now < self._next_poll:
            return False
        self._next_poll = now + _POLL_SECONDS
        if not self._answers("/v1/models"):  # wants the key, so it is ours that answers
            return False
        self._is_ready = True
        for name, (_, folder) in list(self._adapters.items()):
            self._load(name, folder)
        return True

    def revive(self) -> bool:
        """See after a failure whether the server still lives, and launch it again if it doesn't.

        Returns:
            Whether it was launched again: then it isn't ready yet, and whatever it was asked is lost.

        Raises:
            ModelError: it ended too often.
        """
        if self._is_ready and self._server.is_alive and self._answers("/health"):
            return False
        self._server.note_restart()
        self._launch()
        return True

    def failure(self, message: str) -> ModelError:
        """Return an error with the end of the server's log."""
        return self._server.failure(message)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Let requests go through an adapter. While the server starts, it is loaded later.

        Raises:
            ModelError: vLLM refuses it.
        """
        if self._is_ready:
            self._load(name, folder)
        else:
            self._adapters[name] = ("", folder)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
        theirs, _ = self._adapters.pop(name)
        if self._is_ready:
            try:
                self.client.ask("POST", "/v1/unload_lora_adapter", {"lora_name": theirs}, _ADAPTER_SECONDS)
            except ConnectionError:
                return  # a server that is gone has forgotten it too

    def model_name(self, adapter: str | None) -> str:
        """Return the server's name of the base or an adapter."""
        if adapter is None and None not in self._adapters:
            return BASE_NAME
        return self._adapters[adapter][0]

    def stop(self) -> None:
        """End the server. Twice is fine."""
        self._is_ready = False
        self.client.close()
        self._server.stop()

    def _launch(self) -> None:
        self._is_ready = False
        if hasattr(self, "client"):
            self.client.close()
        self._server.launch()
        self.client = VllmClient(self._server.address, self._server.api_key)
        self._deadline = time.monotonic() + self._server.settings.start_seconds

    def _load(self, name: str | None, folder: Path) -> None:
        # A new name each time: vLLM would go on with what its prefix cache holds under an old one.
        theirs = f"adapter-{next(self._names)}"
        body = {"lora_name": theirs, "lora_path": str(folder.absolute())}
        try:
            status, reply = self.client.ask("POST", "/v1/load_lora_adapter", body, _ADAPTER_SECONDS)
        except ConnectionError as error:
            raise self.failure("vLLM ended while it was loading an adapter.") from error
        if status != http.HTTPStatus.OK:
            raise ModelError(
                f"vLLM can't load this adapter: {error_text(reply)}",
                where=name,
                fix=f"Use the backend torch for this model. (Of a higher rank than others? Open it by itself, or set "
                f"{ARGUMENTS_VARIABLE}='--max-lora-rank ...'.)",
                code="unsupported_adapter",
            )
        self._adapters[name] = (theirs, folder)

    def _answers(self, path: str) -> bool:
        try:
            return self.client.ask("GET", path, None, _HEALTH_SECONDS)[0] == http.HTTPStatus.OK
        except ConnectionError:
            return False
