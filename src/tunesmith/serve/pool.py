"""The models that a server offers, and those of them that are in memory."""

from __future__ import annotations

import gc
import logging
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tunesmith.errors import ModelError, RequestError
from tunesmith.models.load import DtypeName
from tunesmith.record.home import Home
from tunesmith.serve.answering import EngineLimits, open_model
from tunesmith.serve.catalogue import Catalogue, ServedModel
from tunesmith.serve.turns import Turns
from tunesmith.serve.worker import Worker

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Entry:
    """A model that is loaded, or about to be. `ready` can't be cancelled: several callers wait for it."""

    ready: Future[Worker] = field(default_factory=Future)
    leases: int = 0

    def __post_init__(self) -> None:
        self.ready.set_running_or_notify_cancel()


class Lease:
    """Keeps a model in memory until it is released. `ready` gives its worker, or the error of its loading."""

    def __init__(self, pool: ModelPool, entry: _Entry) -> None:
        self._pool = pool
        self._entry: _Entry | None = entry
        self.ready: Future[Worker] = entry.ready

    def release(self) -> None:
        """Let the model go; twice is fine."""
        entry, self._entry = self._entry, None
        if entry is not None:
            self._pool.give_back(entry)


class ModelPool:
    """Loads models when they are first asked for, one at a time; unloads the least recently used one beyond a limit.

    Args:
        catalogue: which models there are.
        home: where they are kept.
        dtype: number format of all of them.
        limits: of each model's engine.
        max_loaded: models in memory at once.
        max_waiting: requests that may wait for one model.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        home: Home,
        *,
        dtype: DtypeName = "auto",
        limits: EngineLimits | None = None,
        max_loaded: int = 2,
        max_waiting: int = 256,
    ) -> None:
        self.catalogue = catalogue
        self._home = home
        self._dtype: DtypeName = dtype
        self._limits = limits or EngineLimits()
        self._max_loaded = max_loaded
        self._max_waiting = max_waiting
        self._turns = Turns()
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._is_closed = False
        # One thread: two models that load at once would need the memory of both, and take as long.
        self._loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load model")

    @property
    def loaded(self) -> list[str]:
        """Names of the models that are in memory or about to be, the least recently used first."""
        with self._lock:
            return list(self._entries)

    def lease(self, model: ServedModel) -> Lease:
        """Ask for a model to be in memory. Doesn't wait; release the lease in any case.

        Raises:
            RequestError: all models that may be in memory are answering (`code="overloaded"`).
        """
        with self._lock:
            if self._is_closed:
                raise _stopping()
            entry = self._entries.get(model.name)
            if entry is None:
                unused = self._make_room()
                entry = self._entries[model.name] = _Entry()
                self._loader.submit(self._load, model, entry, unused)
            self._entries.move_to_end(model.name)
            entry.leases += 1
        return Lease(self, entry)

    def give_back(self, entry: _Entry) -> None:
        """Count one lease less."""
        with self._lock:
            entry.leases -= 1

    def close(self) -> None:
        """Fail what isn't answered and free all models."""
        with self._lock:
            self._is_closed = True
        self._loader.shutdown(wait=True)
        with self._lock:
            entries = list(self._entries.values())
            self._entries.clear()
        for entry in entries:
            _unload(entry)

    def _make_room(self) -> _Entry | None:
        """Take the least recently used idle model off the list if there are too many; called with the lock held.

        Raises:
            RequestError: none is idle.
        """
        if len(self._entries) < self._max_loaded:
            return None
        for name, entry in self._entries.items():
            if entry.leases == 0 and entry.ready.done():
                return self._entries.pop(name)
        raise RequestError(
            "All models that fit in memory are busy answering with others.",
            fix="Try again shortly, or let the server hold more models (max_loaded_models).",
            code="overloaded",
        )

    def _load(self, model: ServedModel, entry: _Entry, unused: _Entry | None) -> None:
        """Free one model, load another; runs in the loader's thread."""
        try:
            if unused is not None:
                _unload(unused)
            if self._is_closed:
                raise _stopping()
            opened = open_model(model.source, self._home, dtype=self._dtype, limits=self._limits)
            worker = Worker(opened, max_waiting=self._max_waiting, turns=self._turns)
        # Told to everybody who waits for the model; the next request tries again.
        except Exception as error:
            with self._lock:
                if self._entries.get(model.name) is entry:
                    del self._entries[model.name]
            if not isinstance(error, RequestError):
                _log.error("%s can't be loaded: %s", model.name, error, exc_info=not isinstance(error, ModelError))
            entry.ready.set_exception(error)
        else:
            entry.ready.set_result(worker)


def _unload(entry: _Entry) -> None:
    """End a model's worker and give its memory back."""
    if entry.ready.exception() is None:
        entry.ready.result().close()
    entry.ready = Future()
    # Models hold themselves in circles; without this their memory would wait for the next collection.
    gc.collect()


def _stopping() -> RequestError:
    return RequestError("The server is being stopped.", fix="Try again later.", code="stopping")
