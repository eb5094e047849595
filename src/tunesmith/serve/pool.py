"""The models that a server offers, and those of them that are in memory.

A base is in memory once; tuned versions bring their adapters to it (see `serve.opened`). A version that can't share a
base counts as one.
"""

from __future__ import annotations

import gc
import json
import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from tunesmith.errors import ModelError, RequestError
from tunesmith.models.encoder import load_embedded_encoder
from tunesmith.models.load import DtypeName
from tunesmith.models.quantised import Nf4
from tunesmith.models.resolve import resolve_base
from tunesmith.models.versions import find_version
from tunesmith.record.home import Home
from tunesmith.serve.answering import EngineLimits, OpenModel, open_base, open_model, open_version
from tunesmith.serve.catalogue import Catalogue, ServedModel, Weights
from tunesmith.serve.embedding import Embedder
from tunesmith.serve.shelf import Place, Shelf
from tunesmith.serve.turns import Turns
from tunesmith.serve.used import UsedTokens
from tunesmith.serve.worker import Worker

#: How long somebody waits for room before something that is in use is closed to new users.
_PATIENCE_SECONDS = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seat:
    """A model that is in memory, and the worker that answers with it."""

    opened: OpenModel
    worker: Worker


_Base = Place[Weights, Worker]
_Version = Place[ServedModel, Seat]
_Versions = Shelf[ServedModel, Seat]


@dataclass(eq=False, slots=True)
class _Held:
    """What a lease keeps in memory."""

    base: _Base
    versions: _Versions
    version: _Version | None


class Lease:
    """Keeps a model in memory until it is released. `ready` gives its seat, or the error of its loading."""

    def __init__(self, pool: ModelPool, held: _Held, ready: Future[Seat]) -> None:
        self.ready = ready
        self._pool = pool
        self._held: _Held | None = held

    def release(self) -> None:
        """Let the model go; twice is fine."""
        held, self._held = self._held, None
        if held is not None:
            self._pool.give_back(held)


class ModelPool:
    """Loads bases and adapters when they are first asked for; the least recently used make room for others.

    Args:
        catalogue: which models there are.
        home: where they are kept.
        dtype: number format of all of them.
        limits: of each base's engine.
        max_loaded: bases in memory at once.
        max_adapters: adapters in memory at once, for each base.
        max_waiting: requests that may wait for one base's answers, and that may wait for room in memory.
        patience_seconds: how long those wait before something that is in use is closed to new requests.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        home: Home,
        *,
        dtype: DtypeName = "auto",
        limits: EngineLimits | None = None,
        max_loaded: int = 2,
        max_adapters: int = 32,
        max_waiting: int = 256,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        self.catalogue = catalogue
        self._home = home
        self._dtype: DtypeName = dtype
        self._limits = limits or EngineLimits()
        self._max_adapters = max_adapters
        self._max_waiting = max_waiting
        self._patience_seconds = patience_seconds
        self._turns = Turns()
        #: Tokens that all models together have read and written.
        self.used = UsedTokens()
        #: Computes embeddings, with encoders that stay in memory.
        self.embedder = Embedder(load_embedded_encoder, turns=self._turns, max_waiting=max_waiting, used=self.used)
        self._lock = threading.Lock()
        self._bases: Shelf[Weights, Worker] = Shelf(
            max_loaded,
            self._start_base,
            full=partial(_full, "models", "max_loaded_models"),
            max_waiting=max_waiting,
            patience_seconds=patience_seconds,
        )
        self._versions: dict[_Base, _Versions] = {}
        self._is_closed = False
        # One thread each: two bases that load at once would need the memory of both, and take as long; but adapters
        # needn't wait for other bases.
        self._base_loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load base")
        self._adapter_loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="load adapter")

    @property
    def loaded(self) -> list[str]:
        """Names of the bases in memory or about to be, and of versions that count as one; least recently used first."""
        with self._lock:
            return [weights.name for weights in self._bases.keys]

    @property
    def adapters(self) -> list[str]:
        """The versions in memory beside their bases, or about to be; of each base, the least recently used first."""
        with self._lock:
            return [model.name for versions in self._versions.values() for model in versions.keys]

    @property
    def unfinished(self) -> int:
        """Answers that wait or grow, of all models in memory."""
        with self._lock:
            ready = [base.ready for base in self._versions if base.ready.done() and base.ready.exception() is None]
        return sum(one.result().unfinished for one in ready)

    def lease(self, model: ServedModel) -> Lease:
        """Ask for a model to be in memory. Doesn't wait; release the lease in any case.

        Raises:
            RequestError: too many wait for room in memory already (`code="overloaded"`), or the pool is closed.
        """
        with self._lock:
            if self._is_closed:
                raise _stopping()
            base = self._bases.take(model.weights)
            versions = self._versions.get(base) or self._new_versions(base)
            if not model.is_tuned or model.weights.version:
                return Lease(self, _Held(base, versions, None), _seat_of(base))
            try:
                version = versions.take(model)
            except RequestError:
                self._bases.give_back(base)
                raise
            return Lease(self, _Held(base, versions, version), version.ready)

    def give_back(self, held: _Held) -> None:
        """Count one lease less."""
        with self._lock:
            if held.version is not None:
                held.versions.give_back(held.version)
            self._bases.give_back(held.base)

    def close(self) -> None:
        """Fail what isn't answered and free all models."""
        with self._lock:
            self._is_closed = True
        self.embedder.close()
        self._base_loader.shutdown(wait=True)
        self._adapter_loader.shutdown(wait=True)
        with self._lock:
            bases, waiting_bases = self._bases.clear()
            waiting_versions = [place for versions in self._versions.values() for place in versions.clear()[1]]
        for waiting_base in waiting_bases:
            waiting_base.ready.set_exception(_stopping())
        for waiting_version in waiting_versions:
            waiting_version.ready.set_exception(_stopping())
        for base in bases:
            self._unload(base)

    def _new_versions(self, base: _Base) -> _Versions:
        made: _Versions = Shelf(
            self._max_adapters,
            lambda version, evicted: self._start_version(base, made, version, evicted),
            full=partial(_full, "adapters", "max_loaded_adapters"),
            max_waiting=self._max_waiting,
            patience_seconds=self._patience_seconds,
        )
        self._versions[base] = made
        return made

    def _start_base(self, base: _Base, evicted: _Base | None) -> None:
        """See `Shelf`."""
        if self._is_closed:
            base.ready.set_exception(_stopping())
        else:
            self._base_loader.submit(self._load_base, base, evicted)

    def _load_base(self, base: _Base, evicted: _Base | None) -> None:
        """Free one base, load another; runs in the bases' loader."""
        try:
            if evicted is not None:
                self._unload(evicted)
            if self._is_closed:
                raise _stopping()
            opened = self._open(base.key)
            worker = Worker(opened, max_waiting=self._max_waiting, turns=self._turns, used=self.used)
        # Told to everybody who waits for the model; the next request tries again.
        except Exception as error:
            _note(base.key.name, error)
            with self._lock:
                self._versions.pop(base, None)
                self._bases.failed(base)
            base.ready.set_exception(error)
        else:
            base.ready.set_result(worker)
            with self._lock:  # everybody may have left meanwhile
                self._bases.arrange()

    def _open(self, weights: Weights) -> OpenModel:
        if weights.version:
            return open_model(weights.source, self._home, dtype=self._dtype, limits=self._limits)
        kept = None if weights.quantisation is None else Nf4.from_json(json.loads(weights.quantisation), weights.name)
        source = resolve_base(weights.source, self._home)
        return open_base(source, dtype=self._dtype, limits=self._limits, quantisation=kept)

    def _start_version(self, base: _Base, versions: _Versions, version: _Version, evicted: _Version | None) -> None:
        """See `Shelf`."""
        if self._is_closed:
            version.ready.set_exception(_stopping())
        else:
            load = partial(self._load_version, base, versions, version, evicted)
            base.ready.add_done_callback(lambda _: self._adapter_loader.submit(load))

    def _load_version(self, base: _Base, versions: _Versions, version: _Version, evicted: _Version | None) -> None:
        """Free one adapter, load another; runs in the adapters' loader, so that the base goes on answering."""
        try:
            worker = base.ready.result()
            shared = worker.opened.base
            if evicted is not None:
                worker.send(partial(shared.remove_adapter, evicted.key.name)).result()
            opened, adapter = open_version(find_version(version.key.source, self._home), shared)
            worker.send(partial(shared.add_adapter, version.key.name, adapter)).result()
        # Told to everybody who waits for this version; others on the base don't notice.
        except Exception as error:
            _note(version.key.name, error)
            with self._lock:
                versions.failed(version)
            version.ready.set_exception(error)
        else:
            version.ready.set_result(Seat(opened, worker))
            with self._lock:
                versions.arrange()

    def _unload(self, base: _Base) -> None:
        """End a base's worker and give its memory back."""
        if base.ready.exception() is None:
            base.ready.result().close()
        with self._lock:
            versions = self._versions.pop(base, None)
        for place in versions.clear()[0] if versions is not None else ():
            place.ready = Future()
        base.ready = Future()
        # Models hold themselves in circles; without this their memory would wait for the next collection.
        gc.collect()


def _seat_of(base: _Base) -> Future[Seat]:
    """Return what gives a base's own seat, once it is loaded."""
    seat: Future[Seat] = Future()
    seat.set_running_or_notify_cancel()

    def pass_on(ready: Future[Worker]) -> None:
        error = ready.exception()
        if error is None:
            seat.set_result(Seat(ready.result().opened, ready.result()))
        else:
            seat.set_exception(error)

    base.ready.add_done_callback(pass_on)
    return seat


def _note(name: str, error: Exception) -> None:
    """Log why something couldn't be loaded; what is our own fault, with its trace."""
    if not isinstance(error, RequestError):
        _log.error("%s can't be loaded: %s", name, error, exc_info=not isinstance(error, ModelError))


def _full(what: str, setting: str) -> RequestError:
    return RequestError(
        f"All {what} that fit in memory are busy answering others, and too many requests wait for room.",
        fix=f"Try again shortly, or let the server hold more ({setting}).",
        code="overloaded",
    )


def _stopping() -> RequestError:
    return RequestError("The server is being stopped.", fix="Try again later.", code="stopping")
