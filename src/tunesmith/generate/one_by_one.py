"""Answers one after the other, for architectures whose layers can't compute several texts side by side.

State-space layers, convolutions, attention sinks (see `models.side_by_side`): the model runs as transformers wrote it,
with transformers' own cache.
"""

from __future__ import annotations

import inspect
from collections import deque
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.answer import Answer
from tunesmith.generate.decoder import Decoder, DecoderStatus, busy_adapter, known_adapter, unknown_adapter
from tunesmith.generate.request import Delta, Request, Score, ScoreDone, ScoreRequest
from tunesmith.generate.sampling import choose
from tunesmith.generate.scoring import token_scores
from tunesmith.models.adapters.served import ServedAdapter, beside
from tunesmith.models.load import LoadedModel
from tunesmith.models.projection import Projection

#: What the architectures of transformers call their cache.
_CACHE_NAMES = ("past_key_values", "cache_params")


class _Waiting(NamedTuple):
    """A request that hasn't begun."""

    request_id: int
    asked: Answer | ScoreRequest
    tokens: tuple[int, ...]
    adapter: str | None


class OneByOne(Decoder):
    """Decodes one request at a time, in the order in which they came.

    Args:
        loaded: the model; its attention is its own.
        renderer: decodes tokens and knows which ones end a turn.
    """

    def __init__(self, loaded: LoadedModel, renderer: ChatRenderer) -> None:
        self._projection = Projection.of(loaded.model)
        super().__init__(loaded, renderer, loaded.context_tokens, self._projection.weight.shape[0])
        known = inspect.signature(self._model.get_decoder().forward).parameters
        self._cache_name = next((name for name in _CACHE_NAMES if name in known), None)
        self._waiting: deque[_Waiting] = deque()
        self._answer: Answer | None = None
        self._adapter: str | None = None
        #: What the cache doesn't hold yet; without a cache, all tokens so far.
        self._tokens: list[int] = []
        self._cache: Any = None

    @property
    def has_work(self) -> bool:
        """See `Decoder`."""
        return self._answer is not None or bool(self._waiting)

    @property
    def status(self) -> DecoderStatus:
        """See `Decoder`; there are no pages."""
        return DecoderStatus(running=int(self._answer is not None), waiting=len(self._waiting))

    def cancel(self, request_id: int) -> None:
        """See `Decoder`."""
        self._waiting = deque(item for item in self._waiting if item.request_id != request_id)
        if self._answer is not None and self._answer.request_id == request_id:
            self._finish()

    def add_adapter(self, name: str, adapter: ServedAdapter) -> None:
        """See `Decoder`."""
        if name in self._adapters:
            raise known_adapter(name)
        self._adapters[name] = adapter

    def remove_adapter(self, name: str) -> None:
        """See `Decoder`."""
        if name not in self._adapters:
            raise unknown_adapter(name)
        if (self._answer is not None and self._adapter == name) or any(item.adapter == name for item in self._waiting):
            raise busy_adapter(name)
        del self._adapters[name]

    @torch.inference_mode()
    def step(self) -> list[Delta | ScoreDone]:
        """See `Decoder`; the first step of an answer computes its prompt too, a score takes one step."""
        if self._answer is None:
            if not self._waiting:
                return []
            request_id, asked, tokens, self._adapter = self._waiting.popleft()
            if isinstance(asked, ScoreRequest):
                return [ScoreDone(request_id, self._score(asked))]
            asked.begin()
            self._answer, self._tokens = asked, list(tokens)
            self._cache = DynamicCache(config=self._model.config)
        answer, new = self._answer, self._tokens
        if self._cache_name is not None:
            self._tokens = []
        hidden = self._hidden(new, self._cache)
        (choice,) = choose(self._projection.logits(hidden[-1:]), [answer.sampler])
        self._tokens.append(choice.token_id)
        delta = answer.take(choice)
        if delta.completion is not None:
            self._finish()
        return [delta]

    def _queue_answer(self, request: Request, answer: Answer) -> None:
        self._waiting.append(_Waiting(answer.request_id, answer, request.prompt_ids, request.adapter))

    def _queue_score(self, request_id: int, request: ScoreRequest) -> None:
        self._waiting.append(_Waiting(request_id, request, request.prompt_ids, request.adapter))

    def _score(self, request: ScoreRequest) -> Score:
        count = len(request.continuation_ids)
        if count == 0:
            return Score((), ())
        hidden = self._hidden([*request.prompt_ids, *request.continuation_ids[:-1]], None)[-count:]
        vocabulary = self._projection.weight.shape[0]
        logprobs, is_likeliest, top = token_scores(
            hidden, request.continuation_ids, self._projection.logits, vocabulary, request.top
        )
        return Score(tuple(logprobs), tuple(is_likeliest), tuple(top))

    def _hidden(self, tokens: list[int], cache: Any) -> Tensor:
        """Return the last hidden states (T, H) of tokens behind those in `cache`, which may be None.

        They go through the adapter of the request that is at work.
        """
        uses_cache = cache is not None and self._cache_name is not None
        known: dict[str, Any] = {self._cache_name: cache} if uses_cache and self._cache_name is not None else {}
        new = torch.tensor([tokens], device=self._device)
        with nullcontext() if self._adapter is None else beside(self._model, self._adapters[self._adapter]):
            output = self._model.get_decoder()(input_ids=new, use_cache=uses_cache, **known)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _finish(self) -> None:
        self._answer = self._cache = None
