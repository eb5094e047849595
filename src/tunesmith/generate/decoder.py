"""What everything that answers requests with one loaded model has in common."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import RequestError
from tunesmith.generate.completion import Completion
from tunesmith.generate.request import Delta, Request
from tunesmith.models.load import LoadedModel
from tunesmith.models.projection import Projection


class Decoder(ABC):
    """Answers requests with one model, a token at a time. One thread at a time may use it.

    Args:
        loaded: the model.
        renderer: decodes tokens and knows which ones end a turn.
        most_tokens: bound on a request's prompt and answer together, besides the model's context.
    """

    def __init__(self, loaded: LoadedModel, renderer: ChatRenderer, most_tokens: int) -> None:
        self.renderer = renderer
        self._model = loaded.model
        self._device = loaded.device
        # The base's own configs may know ends that its chat template never writes.
        self._end_ids = renderer.end_of_turn_ids | frozenset(loaded.end_of_turn_ids)
        self._context_tokens = loaded.context_tokens
        self._most_tokens = min(loaded.context_tokens, most_tokens)
        self._projection = Projection.of(loaded.model)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._ids = itertools.count()

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """Whether a request waits or is in flight."""

    @abstractmethod
    def step(self) -> list[Delta]:
        """Compute one step; return what it added. Without work, nothing happens."""

    @abstractmethod
    def cancel(self, request_id: int) -> None:
        """Forget a request; it gives no further deltas. An unknown or finished id is fine."""

    def check(self, request: Request) -> None:
        """Refuse a request that can't be answered.

        Raises:
            RequestError: the prompt is empty or longer than the model's context, or more than one answer is asked.
        """
        count = len(request.prompt_ids)
        if count == 0:
            raise RequestError("The prompt is empty.", fix="Write at least one token.", code="empty_prompt")
        if request.sampling.n != 1:
            raise RequestError("The engine takes one answer a request.", fix="Use Request.expand().", param="n")
        if count >= self._most_tokens:
            raise RequestError(
                f"The prompt has {count:,} tokens; this model takes {self._context_tokens:,} with the answer.",
                fix="Shorten the messages.",
                code="context_length_exceeded",
                param="messages",
            )

    def add(self, request: Request) -> int:
        """Queue a request; return its id, which its deltas carry.

        Raises:
            RequestError: see `check`.
        """
        self.check(request)
        request_id = next(self._ids)
        self._waiting.append((request_id, request))
        return request_id

    def generate(
        self, requests: Sequence[Request], on_done: Callable[[int, Completion], None] | None = None
    ) -> list[Completion]:
        """Answer all requests; completions in their order.

        Args:
            requests: one answer each.
            on_done: called with a request's index and completion as soon as it is finished.

        Raises:
            RequestError: see `check`; nothing is generated then.
        """
        for request in requests:
            self.check(request)
        index_of = {self.add(request): index for index, request in enumerate(requests)}
        done: dict[int, Completion] = {}
        try:
            while len(done) < len(requests):
                for delta in self.step():
                    index = index_of.get(delta.request_id)
                    if index is not None and delta.completion is not None:
                        done[index] = delta.completion
                        if on_done is not None:
                            on_done(index, delta.completion)
        finally:  # after Ctrl-C or a failing `on_done`, nothing is left to compute for nobody
            for request_id in index_of:
                self.cancel(request_id)
        return [done[index] for index in range(len(requests))]
