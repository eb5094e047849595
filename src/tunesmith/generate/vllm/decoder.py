"""Answers through a vLLM server: the same tokens go in as into the torch engine, the same text is made of what comes.

Rendering, the growth of the text, stop texts and the ends of turns are the generator's own; vLLM computes and chooses.
"""

from __future__ import annotations

import http
import queue
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import ModelError, RequestError, TunesmithError
from tunesmith.generate.answer import Answer
from tunesmith.generate.decoder import Decoder, DecoderStatus, busy_adapter, known_adapter, unknown_adapter
from tunesmith.generate.request import Delta, Request, Score, ScoreDone, ScoreRequest
from tunesmith.generate.room import cache_bytes_by_default
from tunesmith.generate.sampling import Choice
from tunesmith.generate.vllm.adapters import AdapterFiles
from tunesmith.generate.vllm.calls import completion_body, continuation_scores, score_body
from tunesmith.generate.vllm.client import Event, Failure, Result, Tokens
from tunesmith.generate.vllm.environment import VllmEnvironment, find_environment
from tunesmith.generate.vllm.running import RunningServer
from tunesmith.generate.vllm.server import ServerSettings
from tunesmith.models.adapters.served import ServedAdapter
from tunesmith.models.adapters.targets import last_part
from tunesmith.models.load import LoadedModel
from tunesmith.models.size import ModelSize, model_size

#: How long a step waits for something to come in.
_WAIT_SECONDS = 0.02
#: Requests that vLLM has at once, by the size of its batch: it never waits for the next one.
_BATCHES_AHEAD = 2
#: vLLM keeps keys and values in blocks of up to this many tokens, and never uses one of them.
_BLOCK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class VllmLimits:
    """Bounds of a server.

    Attributes:
        max_batch: answers computed side by side.
        cache_bytes: memory for keys and values; None: on GPUs what vLLM takes, on CPUs a share of what is free.
        max_adapters: adapters in memory; vLLM loads others again when they are asked for. 0: none at all, which is
            faster.
        max_adapter_rank: the largest rank among them.
    """

    max_batch: int = 32
    cache_bytes: int | None = None
    max_adapters: int = 0
    max_adapter_rank: int = 64


@dataclass(frozen=True, slots=True)
class _Cache:
    """Memory for keys and values (None: vLLM knows), and the longest text that it holds."""

    bytes: int | None
    context_tokens: int


@dataclass(frozen=True, slots=True)
class _Job:
    """A request with what becomes of it: `answer` grows, or a score is asked for."""

    request: Request | ScoreRequest
    answer: Answer | None


class VllmDecoder(Decoder):
    """Decodes with a vLLM server of its own. One thread at a time may use it; `close` ends the server.

    A server that ends by itself is started again, a few times: answers that it was giving end with an error, those that
    wait go on. It never outlives this process, however that ends.

    Args:
        loaded: the base; its weights aren't needed, see `load.describe_base`.
        renderer: decodes tokens and knows which ones end a turn.
        limits: of the server.
        environment: where vLLM is installed; by default what `TUNESMITH_VLLM_PYTHON` names.

    Raises:
        ModelError: vLLM isn't there, or doesn't start with this model.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        renderer: ChatRenderer,
        limits: VllmLimits | None = None,
        environment: VllmEnvironment | None = None,
    ) -> None:
        limits = limits or VllmLimits()
        if loaded.quantisation is not None:
            raise ModelError(
                "The backend vllm doesn't keep weights in 4 bits as they were when this model was trained.",
                where=loaded.source.name,
                fix="Use the backend torch for this model.",
                code="unsupported_model",
            )
        environment = environment or find_environment()
        size = model_size(loaded.source.folder)
        cache = _cache(loaded, size, limits, environment)
        vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
        super().__init__(loaded, renderer, cache.context_tokens, vocabulary)
        self._limits = limits
        settings = ServerSettings(
            folder=loaded.source.folder,
            dtype=str(loaded.dtype).removeprefix("torch."),
            context_tokens=self._most_tokens,
            cache_bytes=cache.bytes,
            max_batch=limits.max_batch,
            max_adapters=limits.max_adapters,
            max_adapter_rank=limits.max_adapter_rank,
            adapted_layers=tuple(sorted({last_part(linear.name) for linear in size.linears})),
        )
        self._jobs: dict[int, _Job] = {}
        self._waiting: deque[int] = deque()
        self._flying: set[int] = set()
        self._is_suspect = False
        self._server = RunningServer(settings, environment, size.linears[0])
        self._end = weakref.finalize(self, self._server.stop)
        try:
            self._server.wait()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the server. Twice is fine."""
        self._end()

    @property
    def server_pid(self) -> int:
        """Number of the process that keeps the server; all of the server's processes are below it."""
        return self._server.pid

    @property
    def has_work(self) -> bool:
        """See `Decoder`."""
        return bool(self._jobs)

    @property
    def status(self) -> DecoderStatus:
        """See `Decoder`; vLLM keeps its pages to itself."""
        return DecoderStatus(running=len(self._flying), waiting=len(self._waiting))

    def cancel(self, request_id: int) -> None:
        """See `Decoder`; vLLM stops computing when its stream is closed."""
        if self._jobs.pop(request_id, None) is None:
            return
        if request_id in self._flying:
            self._flying.discard(request_id)
            self._server.client.cancel(request_id)
        else:
            self._waiting.remove(request_id)

    def add_adapter(self, name: str, adapter: ServedAdapter) -> None:
        """See `Decoder`; vLLM reads the adapter's folder itself."""
        if name in self._adapters:
            raise known_adapter(name)
        if not self._limits.max_adapters or not isinstance(adapter, AdapterFiles):
            raise ModelError(
                "This decoder was made without room for adapters from files.", where=name, code="unsupported_adapter"
            )
        self._server.load_adapter(name, adapter.folder)
        self._adapters[name] = adapter

    def remove_adapter(self, name: str) -> None:
        """See `Decoder`."""
        if name not in self._adapters:
            raise unknown_adapter(name)
        if any(job.request.adapter == name for job in self._jobs.values()):
            raise busy_adapter(name)
        del self._adapters[name]
        self._server.unload_adapter(name)

    def step(self) -> list[Delta | ScoreDone]:
        """See `Decoder`: send what waits, then wait briefly for what comes in."""
        if not self._jobs:
            return []
        try:
            if self._is_suspect:
                failure = self._server.failure("vLLM failed while it was answering.")
                has_restarted = self._server.revive()
                self._is_suspect = False
                if has_restarted and self._flying:
                    return self._fail(self._flying, failure)
            is_ready = self._server.is_ready()
        except ModelError as error:
            # The next request tries again, as far as the limits allow.
            self._is_suspect = True
            return self._fail(self._jobs, error)
        while is_ready and self._waiting and len(self._flying) < _BATCHES_AHEAD * self._limits.max_batch:
            self._send(self._waiting.popleft())
        return [told for event in self._arrived() for told in self._take(event)]

    def _queue_answer(self, request: Request, answer: Answer) -> None:
        self._jobs[answer.request_id] = _Job(request, answer)
        self._waiting.append(answer.request_id)

    def _queue_score(self, request_id: int, request: ScoreRequest) -> None:
        self._jobs[request_id] = _Job(request, None)
        self._waiting.append(request_id)

    def _send(self, request_id: int) -> None:
        request = self._jobs[request_id].request
        model = self._server.model_name(request.adapter)
        self._flying.add(request_id)
        if isinstance(request, ScoreRequest):
            body = score_body(model, request.prompt_ids, request.continuation_ids, request.top)
            self._server.client.call(request_id, body)
            return
        limit = min(request.sampling.max_completion_tokens, self._most_tokens - len(request.prompt_ids))
        body = completion_body(model, request.prompt_ids, request.sampling, limit_tokens=limit, end_ids=self._end_ids)
        self._server.client.stream(request_id, body)

    def _arrived(self) -> list[Event]:
        """Return what has come in, after a short wait if nothing has."""
        events: list[Event] = []
        try:
            events.append(self._server.client.events.get(timeout=_WAIT_SECONDS))
            while True:
                events.append(self._server.client.events.get_nowait())
        except queue.Empty:
            return events

    def _take(self, event: Event) -> list[Delta | ScoreDone]:
        """Return what an event tells; nothing of requests that were cancelled."""
        job = self._jobs.get(event.key)
        if job is None:
            return []
        match event:
            case Failure():
                return [self._failed(event.key, self._error(event, job.request))]
            case Tokens():
                assert job.answer is not None
                return self._grown(event, job.answer)
            case Result():
                assert isinstance(job.request, ScoreRequest)
                self._forget(event.key)
                found = event.body["choices"][0]["prompt_logprobs"]
                continuation_ids, top = job.request.continuation_ids, job.request.top
                return [ScoreDone(event.key, Score(*continuation_scores(found, continuation_ids, top)))]

    def _grown(self, event: Tokens, answer: Answer) -> list[Delta | ScoreDone]:
        """Let an answer grow by what came."""
        deltas: list[Delta | ScoreDone] = []
        for choice in event.choices:
            delta = answer.take(choice)
            deltas.append(delta)
            if delta.completion is not None:
                if event.is_last:
                    self._forget(event.key)
                else:  # vLLM doesn't know of stop texts
                    self.cancel(event.key)
                return deltas
        if event.is_last:
            error = TunesmithError("vLLM ended an answer before its end.", code="vllm_failed")
            deltas.append(self._failed(event.key, error))
        return deltas

    def _failed(self, request_id: int, error: TunesmithError) -> Delta:
        """End a request with an error.

        Raises:
            TunesmithError: it asked for a score, which can't tell of an error.
        """
        job = self._jobs[request_id]
        self._forget(request_id)
        if job.answer is None:
            raise error
        return job.answer.take(Choice(0, error=error))

    def _fail(self, request_ids: Iterable[int], error: TunesmithError) -> list[Delta | ScoreDone]:
        return [self._failed(request_id, error) for request_id in list(request_ids)]

    def _forget(self, request_id: int) -> None:
        del self._jobs[request_id]
        if request_id in self._flying:
            self._flying.discard(request_id)
        else:
            self._waiting.remove(request_id)

    def _error(self, failure: Failure, request: Request | ScoreRequest) -> TunesmithError:
        """Return what a failure means: the request is to blame, or the server."""
        if failure.status in (http.HTTPStatus.BAD_REQUEST, http.HTTPStatus.UNPROCESSABLE_ENTITY):
            has_form = isinstance(request, Request) and request.sampling.output is not None
            return RequestError(
                f"vLLM refuses this request: {failure.message}",
                fix="Ask for another form, or for free text." if has_form else "Change its settings.",
                code="unsupported_form" if has_form else "invalid_request",
            )
        self._is_suspect = True
        error = self._server.failure("vLLM failed while it was answering.")
        error.problems = (failure.message, *error.problems)
        return error


def _cache(loaded: LoadedModel, size: ModelSize, limits: VllmLimits, environment: VllmEnvironment) -> _Cache:
    """Return how large the cache is to be.

    Raises:
        ModelError: it holds no text at all.
    """
    token_bytes = size.cache_bytes_per_token(loaded.dtype)
    cache_bytes = limits.cache_bytes
    if cache_bytes is None:
        if not environment.is_cpu:
            return _Cache(None, loaded.context_tokens)
        # All of it is taken at once, so never more than the answers of a few batches can fill.
        most = _BATCHES_AHEAD * limits.max_batch * loaded.context_tokens * token_bytes
        cache_bytes = min(cache_bytes_by_default(torch.device("cpu")), most)
    tokens = cache_bytes // token_bytes // _BLOCK_TOKENS * _BLOCK_TOKENS - _BLOCK_TOKENS
    if tokens <= 0:
        raise ModelError(
            f"{cache_bytes:,} bytes for keys and values hold no answer of this model.",
            where=loaded.source.name,
            fix="Give it more (cache_bytes).",
            code="cache_too_small",
        )
    return _Cache(cache_bytes, min(tokens, loaded.context_tokens))
