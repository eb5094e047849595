"""Embeddings: one thread computes what many ask for, with encoders that are loaded when they are first asked.

Encoders are small, so they stay in memory; a base is hundreds of times as large.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from tunesmith.errors import ModelError, RequestError, TunesmithError
from tunesmith.models.encoder import Encoder, Vectors
from tunesmith.serve.turns import Turns
from tunesmith.serve.used import UsedTokens

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Order:
    """Rows that somebody waits for, as far as they are computed."""

    passes: Iterator[tuple[list[int], Vectors]]
    vectors: Vectors
    sizes: list[int]  # tokens of each row
    on_computed: Callable[[int], None] | None
    done: Future[Vectors] = field(default_factory=Future)


class Embedder:
    """Computes embeddings until it is closed.

    Args:
        load: loads the encoder of a name.
        turns: shared with the workers of other models.
        max_waiting: requests that may wait.
        used: where tokens are counted.
    """

    def __init__(
        self, load: Callable[[str], Encoder], *, turns: Turns, max_waiting: int, used: UsedTokens | None = None
    ) -> None:
        self._load = load
        self._turns = turns
        self._max_waiting = max_waiting
        self._used = used or UsedTokens()
        self._encoders: dict[str, Encoder] = {}
        self._loading = threading.Lock()
        self._wake = threading.Condition()
        self._orders: deque[_Order] = deque()
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def encoder(self, name: str) -> Encoder:
        """Return an encoder; the first who asks waits until it is loaded.

        Raises:
            ModelError: it can't be loaded.
        """
        with self._loading:
            found = self._encoders.get(name)
            if found is None:
                try:
                    found = self._encoders[name] = self._load(name)
                except ModelError as error:
                    _log.error("%s can't be loaded: %s", name, error)
                    raise
            return found

    def submit(
        self, encoder: Encoder, rows: Sequence[Sequence[int]], on_computed: Callable[[int], None] | None = None
    ) -> Future[Vectors]:
        """Queue rows of tokens. Requests take turns, so that a small one needn't wait for the whole of a large one.

        Args:
            encoder: computes them.
            rows: marked tokens.
            on_computed: told of tokens as they are computed, wanted still or not; called in the embedder's thread, so
                it must return at once and never raise.

        Returns:
            What will give the rows' vectors; cancel it if nobody wants them any more.

        Raises:
            RequestError: too many wait already (`code="overloaded"`), or the server is being stopped.
        """
        vectors = np.empty((len(rows), encoder.dimensions), np.float32)
        order = _Order(encoder.passes(rows), vectors, list(map(len, rows)), on_computed)
        with self._wake:
            if self._is_closing:
                raise _stopping()
            if len(self._orders) > self._max_waiting:
                raise RequestError(
                    f"{len(self._orders)} requests for embeddings are waiting already.",
                    fix="Try again shortly.",
                    code="overloaded",
                )
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="embed", daemon=True)
                self._thread.start()
            self._orders.append(order)
            self._wake.notify()
        return order.done

    def close(self) -> None:
        """Fail what isn't finished, and end the thread."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._orders or self._is_closing):
                    self._wake.wait()
                if self._is_closing:
                    waiting = list(self._orders)
                    break
                order = self._orders.popleft()
            if not self._advance(order):
                with self._wake:
                    self._orders.append(order)
        for one in waiting:
            if one.done.set_running_or_notify_cancel():
                one.done.set_exception(_stopping())

    def _advance(self, order: _Order) -> bool:
        """Compute some of an order; return whether that was the last of it."""
        if order.done.cancelled():
            return True
        try:
            with self._turns.take():
                computed = next(order.passes, None)
        # Whatever went wrong, the others must be answered; the fault is logged and told.
        except Exception as error:
            _log.error("embeddings failed", exc_info=error)
            fault = TunesmithError("The model failed while it was answering.", fix="See the log.", code="answer_failed")
            fault.__cause__ = error
            if order.done.set_running_or_notify_cancel():
                order.done.set_exception(fault)
            return True
        if computed is not None:
            places, vectors = computed
            order.vectors[places] = vectors
            self._count(order, sum(order.sizes[place] for place in places))
            return False
        if order.done.set_running_or_notify_cancel():
            order.done.set_result(order.vectors)
        return True

    def _count(self, order: _Order, tokens: int) -> None:
        self._used.add(prompt_tokens=tokens)
        if order.on_computed is not None:
            order.on_computed(tokens)


def _stopping() -> RequestError:
    return RequestError("The server is being stopped.", fix="Try again later.", code="stopping")
