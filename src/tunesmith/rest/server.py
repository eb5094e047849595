"""The server process: a socket, uvicorn on it, and a clean stop."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import cast

import uvicorn

from tunesmith.errors import SpecError
from tunesmith.record.home import Home
from tunesmith.rest.app import create_app
from tunesmith.rest.connection import Connection
from tunesmith.rest.descriptors import most_connections
from tunesmith.rest.platform import open_platform
from tunesmith.rest.traffic import Traffic
from tunesmith.runs.worker_process import worker_processes
from tunesmith.serve.answering import EngineLimits
from tunesmith.serve.catalogue import Catalogue
from tunesmith.serve.pool import ModelPool
from tunesmith.specs.serving import ServeSpec

#: How long an idle connection is kept: longer than clients keep theirs, so that none sends into a closing one.
_KEEP_ALIVE_SECONDS = 75
#: How long the last words to callers may take, once their answers were ended.
_FAREWELL_SECONDS = 5
_LOOK_SECONDS = 0.05


def run_server(spec: ServeSpec, home: Home, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM); answers in progress get time to finish.

    Args:
        spec: what to serve, where, and to whom.
        home: where models are kept.
        on_ready: called with the server's address (`http://127.0.0.1:8000`) once it answers.

    Raises:
        ModelError: a model that the spec names can't be found.
        SpecError: the address can't be listened on (`code="port_in_use"`, `"bad_host"`), or the database's
            URL isn't one.
        StorageError: the record can't be opened.
    """
    # First the address: finding out takes no time, loading models does.
    with _listen(spec.host, spec.port) as listening:
        pool = ModelPool(
            Catalogue(home, spec.models, spec.alias_table),
            home,
            dtype=spec.dtype,
            limits=EngineLimits(
                spec.max_batch,
                None if spec.cache_bytes == "auto" else spec.cache_bytes,
                spec.backend,
                max_adapters=spec.max_loaded_adapters,
                lookahead_rows=spec.lookahead_rows,
            ),
            max_loaded=spec.max_loaded_models,
            max_adapters=spec.max_loaded_adapters,
            max_waiting=spec.max_waiting,
        )
        app = create_app(pool, spec, open_platform(spec, home, pool))
        config = uvicorn.Config(
            app,
            loop="asyncio",
            # uvicorn calls what it is given here for each connection, class or not.
            http=cast("type[Connection]", partial(Connection, most=most_connections())),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=spec.shutdown_seconds + _FAREWELL_SECONDS,
        )
        with _signals_stop_cleanly(), worker_processes(spec.workers, spec.log_format) as stop_workers:
            server = _Server(
                config,
                app.state.traffic,
                on_started=lambda: on_ready and on_ready(address_of(listening)),
                on_stop=stop_workers,
                on_late=pool.close,
            )
            server.run(sockets=[listening])


def address_of(listening: socket.socket) -> str:
    """Return the address under which a listening socket can be called from this machine."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  (compared, not bound)
        host = "127.0.0.1" if listening.family == socket.AF_INET else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Tells when it answers; at the end, finishes what it has begun.

    While answers still grow, new requests are refused with a word on when to come back. Answers that take too long are
    ended with a word to their callers.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        traffic: Traffic,
        *,
        on_started: Callable[[], object],
        on_stop: Callable[[], object],
        on_late: Callable[[], object],
    ) -> None:
        super().__init__(config)
        self._traffic = traffic
        self._on_started = on_started
        self._on_stop = on_stop
        self._on_late = on_late

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._traffic.is_stopping = True
        loop = asyncio.get_running_loop()
        # Workers keep their jobs' work meanwhile.
        stopping = loop.run_in_executor(None, self._on_stop)
        patience_seconds = (self.config.timeout_graceful_shutdown or 0) - _FAREWELL_SECONDS
        give_up = time.monotonic() + patience_seconds + _FAREWELL_SECONDS
        if not await self._drained(patience_seconds):
            late = loop.run_in_executor(None, self._on_late)
            await self._drained(_FAREWELL_SECONDS)
            await asyncio.wait({late}, timeout=max(0.0, give_up - time.monotonic()))
        await stopping
        # For connections whose callers are slow to read the last words.
        self.config.timeout_graceful_shutdown = max(1, round(give_up - time.monotonic()))
        await super().shutdown(sockets)

    async def _drained(self, patience_seconds: float) -> bool:
        """Wait until nothing is being answered; a second Ctrl-C ends the wait."""
        give_up = time.monotonic() + patience_seconds
        while self._traffic.in_flight and time.monotonic() < give_up and not self.force_exit:
            await asyncio.sleep(_LOOK_SECONDS)
        return not self._traffic.in_flight


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        SpecError: the port is taken or not allowed, or the host isn't this machine.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # `localhost` may be both; callers try 127.0.0.1 in any case.
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1024)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SpecError(
                f"Port {port} is in use by another program.",
                where=f"{host}:{port}",
                fix="Stop that program, or choose another port; port 0 takes a free one.",
                code="port_in_use",
                param="port",
            ) from error
        if error.errno == errno.EACCES:
            raise SpecError(
                f"This user may not listen on port {port}.",
                where=f"{host}:{port}",
                fix="Choose a port from 1024 on.",
                code="port_not_allowed",
                param="port",
            ) from error
        raise SpecError(
            f"This address can't be listened on: {error.strerror or error}.",
            where=f"{host}:{port}",
            fix="Use an address of this machine, such as 127.0.0.1 or 0.0.0.0.",
            code="bad_host",
            param="host",
        ) from error
    return listening


@contextmanager
def _signals_stop_cleanly() -> Iterator[None]:
    """Let the process live on after uvicorn has stopped for a signal: uvicorn raises the signal again at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def live_on(_: int, __: FrameType | None) -> None:
        return

    before = {one: signal.signal(one, live_on) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
