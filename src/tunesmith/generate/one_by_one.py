"""Answers one after the other, for architectures whose layers can't compute several texts side by side.

State-space layers, convolutions, attention sinks (see `models.side_by_side`): the model runs as transformers wrote it,
with transformers' own cache.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.generate.answer import Answer
from tunesmith.generate.decoder import Decoder
from tunesmith.generate.request import Delta
from tunesmith.generate.sampling import choose
from tunesmith.models.load import LoadedModel

#: What the architectures of transformers call their cache.
_CACHE_NAMES = ("past_key_values", "cache_params")


class OneByOne(Decoder):
    """Decodes one request at a time, in the order in which they came.

    Args:
        loaded: the model; its attention is its own.
        renderer: decodes tokens and knows which ones end a turn.
        most_tokens: bound on a request's prompt and answer together, besides the model's context.
    """

    def __init__(self, loaded: LoadedModel, renderer: ChatRenderer, most_tokens: int = 131_072) -> None:
        super().__init__(loaded, renderer, most_tokens)
        known = inspect.signature(self._model.get_decoder().forward).parameters
        self._cache_name = next((name for name in _CACHE_NAMES if name in known), None)
        self._answer: Answer | None = None
        self._tokens: list[int] = []
        self._cache: Any = None

    @property
    def has_work(self) -> bool:
        """See `Decoder`."""
        return self._answer is not None or bool(self._waiting)

    def cancel(self, request_id: int) -> None:
        """See `Decoder`."""
        self._waiting = type(self._waiting)(item for item in self._waiting if item[0] != request_id)
        if self._answer is not None and self._answer.request_id == request_id:
            self._finish()

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        """See `Decoder`; the first step of a request computes its prompt too."""
        if self._answer is None:
            if not self._waiting:
                return []
            self._start()
        assert self._answer is not None
        new = torch.tensor([self._tokens], device=self._device)
        cache: dict[str, Any] = {}
        if self._cache_name is not None:
            cache = {self._cache_name: self._cache}
            self._tokens = []
        output = self._model.get_decoder()(input_ids=new, use_cache=self._cache_name is not None, **cache)
        (choice,) = choose(self._projection.logits(output.last_hidden_state[0, -1:]), [self._answer.sampler])
        self._tokens.append(choice.token_id)
        delta = self._answer.take(choice)
        if delta.completion is not None:
            self._finish()
        return [delta]

    def _start(self) -> None:
        request_id, request = self._waiting.popleft()
        limit = min(request.sampling.max_completion_tokens, self._most_tokens - len(request.prompt_ids))
        self._answer = Answer(request_id, request, self.renderer, self._end_ids, limit)
        #: What the cache doesn't hold yet; without a cache, all tokens so far.
        self._tokens = list(request.prompt_ids)
        self._cache = DynamicCache(config=self._model.config)

    def _finish(self) -> None:
        self._answer = self._cache = None
