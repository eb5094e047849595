"""The HTTP side of the vLLM backend: streams read in one thread of their own, and what came in as a queue."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from tunesmith.generate.sampling import Choice
from tunesmith.generate.vllm.calls import choices_of

_PREFIX = "data:"
_LAST = "[DONE]"
_COMPLETIONS = "/v1/completions"
#: A server that says nothing for this long while it should answer hangs.
_SILENCE_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Tokens:
    """What came for one answer; `is_last` if vLLM has ended it."""

    key: int
    choices: tuple[Choice, ...]
    is_last: bool


@dataclass(frozen=True, slots=True)
class Result:
    """The whole reply to a request that wasn't streamed."""

    key: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed. `status` is HTTP's; None: the connection broke or the server stopped in the middle."""

    key: int
    message: str
    status: int | None


Event = Tokens | Result | Failure


class VllmClient:
    """Asks one server. All methods return at once but `ask`; any thread may call them.

    Args:
        address: the server's.
        api_key: what it wants to be sent.
    """

    def __init__(self, address: str, api_key: str) -> None:
        #: What came in, in order.
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._tasks: dict[int, asyncio.Task[None]] = {}  # used in the loop's thread alone
        self._http = httpx.AsyncClient(
            base_url=address,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(_SILENCE_SECONDS, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            trust_env=False,  # no proxy between us and this machine
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm client", daemon=True)
        self._thread.start()

    def stream(self, key: int, body: dict[str, Any]) -> None:
        """Start an answer; `events` gives its tokens under `key`."""
        self._start(key, self._stream(key, body))

    def call(self, key: int, body: dict[str, Any]) -> None:
        """Start a completion that isn't streamed; `events` gives the reply under `key`."""
        self._start(key, self._call(key, body))

    def cancel(self, key: int) -> None:
        """Close a request's connection: vLLM then stops computing it. What came before may still be in `events`."""
        self._loop.call_soon_threadsafe(self._cancel, key)

    def ask(self, method: str, path: str, body: dict[str, Any] | None, timeout_seconds: float) -> tuple[int, str]:
        """Send a request and wait; return HTTP's status and the reply's text.

        Raises:
            ConnectionError: there is no answer.
        """
        reply = asyncio.run_coroutine_threadsafe(self._ask(method, path, body, timeout_seconds), self._loop)
        return reply.result()

    def close(self) -> None:
        """Close all connections and end the thread. Twice is fine."""
        if self._loop.is_closed():
            return
        if threading.current_thread() is self._thread:  # where unused objects may be collected
            self._loop.stop()
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _start(self, key: int, work: Coroutine[Any, Any, None]) -> None:
        self._loop.call_soon_threadsafe(self._begin, key, work)

    def _begin(self, key: int, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[key] = self._loop.create_task(self._guarded(key, work))
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    def _cancel(self, key: int) -> None:
        if key in self._tasks:
            self._tasks[key].cancel()

    async def _close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._http.aclose()

    async def _guarded(self, key: int, work: Coroutine[Any, Any, None]) -> None:
        """Do `work`; what breaks it becomes a `Failure`."""
        try:
            await work
        except (httpx.HTTPError, httpx.StreamError, orjson.JSONDecodeError, KeyError, ValueError) as error:
            self.events.put(Failure(key, f"{type(error).__name__}: {error}", None))

    async def _stream(self, key: int, body: dict[str, Any]) -> None:
        async with self._http.stream("POST", _COMPLETIONS, **_json(body)) as reply:
            if reply.status_code != httpx.codes.OK:
                text = (await reply.aread()).decode("utf-8", "replace")
                self.events.put(Failure(key, error_text(text), reply.status_code))
                return
            is_over = False
            async for line in reply.aiter_lines():  # to its end, so that the connection can be used again
                data = line.removeprefix(_PREFIX).strip()
                is_over = is_over or data == _LAST
                if is_over or not line.startswith(_PREFIX):
                    continue
                piece = orjson.loads(data)
                if "error" in piece:
                    self.events.put(Failure(key, error_text(data), None))
                    return
                for choice in piece["choices"]:
                    reason = choice.get("finish_reason")
                    if reason not in (None, "stop", "length"):
                        self.events.put(Failure(key, f"vLLM ended the answer: {reason}", None))
                        return
                    self.events.put(Tokens(key, tuple(choices_of(choice, body.get("logprobs", 0))), reason is not None))
        if not is_over:  # a server that stops cuts its streams
            self.events.put(Failure(key, "The stream ended early.", None))

    async def _call(self, key: int, body: dict[str, Any]) -> None:
        reply = await self._http.post(_COMPLETIONS, **_json(body))
        if reply.status_code == httpx.codes.OK:
            self.events.put(Result(key, orjson.loads(reply.content)))
        else:
            self.events.put(Failure(key, error_text(reply.text), reply.status_code))

    async def _ask(
        self, method: str, path: str, body: dict[str, Any] | None, timeout_seconds: float
    ) -> tuple[int, str]:
        sent = {} if body is None else _json(body)
        try:
            reply = await self._http.request(method, path, timeout=timeout_seconds, **sent)
        except httpx.HTTPError as error:
            raise ConnectionError(f"{type(error).__name__}: {error}") from error
        return reply.status_code, reply.text


def _json(body: dict[str, Any]) -> dict[str, Any]:
    return {"content": orjson.dumps(body), "headers": {"Content-Type": "application/json"}}


def error_text(reply: str) -> str:
    """Return what an error reply of vLLM says."""
    try:
        message = orjson.loads(reply)["error"]["message"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message = reply
    return (str(message).strip().splitlines() or ["no reason was given"])[0]
