"""A way to a server that cuts connections: what was asked arrives, and what is answered gets lost."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit


class _Cutter:
    """Listens, passes connections on, and closes the first ones once the server has begun to answer."""

    def __init__(self, url: str, cuts: int) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._path = parts.path
        self._cuts = cuts
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}{self._path}"

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listening.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            threading.Thread(target=self._pass_on, args=(caller, server), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, caller), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                target.sendall(piece)
        _close(target)

    def _answer(self, server: socket.socket, caller: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := server.recv(1 << 16):
                with self._lock:
                    self._cuts -= 1
                    if self._cuts >= 0:
                        break
                caller.sendall(piece)
        _close(caller)
        _close(server)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextlib.contextmanager
def cut_connections(url: str, *, cuts: int = 1) -> Iterator[str]:
    """Return an address that leads to a server; its first answers are lost."""
    cutter = _Cutter(url, cuts)
    try:
        yield cutter.url
    finally:
        cutter.close()
