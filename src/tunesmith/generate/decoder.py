"""What everything that answers requests with one loaded model has in common."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tunesmith.chat.renderer import ChatRenderer
from tunesmith.errors import ModelError, RequestError
from tunesmith.generate.answer import Answer
from tunesmith.generate.completion import Completion
from tunesmith.generate.constraints import Constraints, Matcher
from tunesmith.generate.request import Delta, Request, Score, ScoreDone, ScoreRequest
from tunesmith.models.adapters.frozen import weight_of
from tunesmith.models.adapters.served import ServedAdapter
from tunesmith.models.load import LoadedModel


@dataclass(frozen=True, slots=True)
class DecoderStatus:
    """What a decoder is doing, and has done since it was made.

    Attributes:
        running: requests in flight.
        waiting: requests that haven't begun, or were put back.
        pages: pages of keys and values that there is room for, of 64 tokens each.
        held_pages: those that requests in flight hold.
        cached_pages: those that are kept for texts that begin alike, and held by nobody else.
        found_tokens: tokens of prompts whose keys and values were found in the prefix cache.
        computed_tokens: those that were computed.
        preemptions: how often a request had to give its pages up and wait.
        guessed_tokens: tokens of answers that were computed before they were chosen.
        accepted_tokens: those that were chosen then.
    """

    running: int
    waiting: int
    pages: int = 0
    held_pages: int = 0
    cached_pages: int = 0
    found_tokens: int = 0
    computed_tokens: int = 0
    preemptions: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0


class Decoder(ABC):
    """Answers requests with one model, a token at a time. One thread at a time may use it; any may call `check`.

    Args:
        loaded: the model.
        renderer: decodes tokens and knows which ones end a turn.
        most_tokens: bound on a request's prompt and answer together, besides the model's context.
        vocabulary: number of logits, where the decoder chooses tokens itself; None: somebody else sees to forms.
    """

    def __init__(
        self, loaded: LoadedModel, renderer: ChatRenderer, most_tokens: int, vocabulary: int | None = None
    ) -> None:
        self.renderer = renderer
        self._model = loaded.model
        self._device = loaded.device
        # The base's own configs may know ends that its chat template never writes.
        self._end_ids = renderer.end_of_turn_ids | frozenset(loaded.end_of_turn_ids)
        self._most_tokens = min(loaded.context_tokens, most_tokens)
        self._logits_count = vocabulary
        self._constraints = None if vocabulary is None else Constraints(renderer, vocabulary, self._end_ids)
        self._ids = itertools.count()
        self._adapters: dict[str, ServedAdapter] = {}

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """Whether a request waits or is in flight."""

    @property
    @abstractmethod
    def status(self) -> DecoderStatus:
        """What it is doing; any thread may ask."""

    @abstractmethod
    def step(self) -> list[Delta | ScoreDone]:
        """Compute one step; return what it added. Without work, nothing happens."""

    @abstractmethod
    def cancel(self, request_id: int) -> None:
        """Forget a request; nothing more is heard of it. An unknown or finished id is fine."""

    @abstractmethod
    def _queue_answer(self, request: Request, answer: Answer) -> None:
        """Let a request wait for its turn."""

    @abstractmethod
    def _queue_score(self, request_id: int, request: ScoreRequest) -> None:
        """Let a request for a score wait for its turn."""

    def weight(self, name: str) -> Tensor:
        """Return the weight (out, in) of one of the model's linear layers, by its dotted name."""
        return weight_of(self._model.get_submodule(name))

    @property
    def adapters(self) -> frozenset[str]:
        """Names of the adapters that requests may go through."""
        return frozenset(self._adapters)

    @abstractmethod
    def add_adapter(self, name: str, adapter: ServedAdapter) -> None:
        """Let requests name an adapter.

        Raises:
            ModelError: it can't use this one, or has another one by this name.
        """

    @abstractmethod
    def remove_adapter(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            ModelError: there is none by this name, or a request uses it.
        """

    def check(self, request: Request) -> Matcher | None:
        """Refuse a request that can't be answered. Compiling its form may take seconds.

        Returns:
            What keeps the answer to its form, for `add`; None: nothing does, or whatever computes here has its own way.

        Raises:
            RequestError: the prompt is empty or longer than the model's context, its adapter is unknown, more than one
                answer is asked, a bias is for a token that the model doesn't have, or its form can't be used.
        """
        self._check_all_but_form(request)
        return self._matcher(request)

    def check_score(self, request: ScoreRequest) -> None:
        """Refuse a request for a score that can't be computed.

        Raises:
            RequestError: the prompt is empty, prompt and continuation are longer than the model's context, or its
                adapter is unknown.
        """
        self._check_adapter(request.adapter)
        self._check_prompt(request.prompt_ids, len(request.prompt_ids) + len(request.continuation_ids))

    def add(self, request: Request, matcher: Matcher | None = None) -> int:
        """Queue a request; return its id, which its deltas carry.

        Args:
            request: what is asked.
            matcher: what `check` returned, for this request alone; without it, the form may have to be compiled here.

        Raises:
            RequestError: see `check`.
        """
        self._check_all_but_form(request)
        if matcher is None:
            matcher = self._matcher(request)
        request_id = next(self._ids)
        limit = min(request.sampling.max_completion_tokens, self._most_tokens - len(request.prompt_ids))
        self._queue_answer(request, Answer(request_id, request, self.renderer, self._end_ids, limit, matcher))
        return request_id

    def add_score(self, request: ScoreRequest) -> int:
        """Queue a request for a score; return its id, which `ScoreDone` carries.

        Raises:
            RequestError: see `check_score`.
        """
        self.check_score(request)
        request_id = next(self._ids)
        self._queue_score(request_id, request)
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
            TunesmithError: an answer can't go on, see `Completion.error`.
        """
        for request in requests:
            self.check(request)
        index_of = {self.add(request): index for index, request in enumerate(requests)}
        done: dict[int, Completion] = {}
        try:
            while len(done) < len(requests):
                for event in self.step():
                    index = index_of.get(event.request_id)
                    if index is not None and isinstance(event, Delta) and event.completion is not None:
                        if event.completion.error is not None:
                            raise event.completion.error
                        done[index] = event.completion
                        if on_done is not None:
                            on_done(index, event.completion)
        finally:  # after Ctrl-C or a failing `on_done`, nothing is left to compute for nobody
            for request_id in index_of:
                self.cancel(request_id)
        return [done[index] for index in range(len(requests))]

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Return how likely continuations are; scores in the requests' order.

        What several prompts begin with is computed once.

        Raises:
            RequestError: see `check_score`; nothing is computed then.
        """
        for request in requests:
            self.check_score(request)
        index_of = {self.add_score(request): index for index, request in enumerate(requests)}
        done: dict[int, Score] = {}
        try:
            while len(done) < len(requests):
                for event in self.step():
                    if isinstance(event, ScoreDone) and event.request_id in index_of:
                        done[index_of[event.request_id]] = event.score
        finally:
            for request_id in index_of:
                self.cancel(request_id)
        return [done[index] for index in range(len(requests))]

    def _matcher(self, request: Request) -> Matcher | None:
        """Return what keeps an answer to its form, where this decoder chooses the tokens itself.

        Raises:
            RequestError: the form can't be used.
        """
        if self._constraints is None or request.sampling.output is None:
            return None
        return self._constraints.compile(request.sampling.output)

    def _check_all_but_form(self, request: Request) -> None:
        if request.sampling.n != 1:
            raise RequestError("The engine takes one answer a request.", fix="Use Request.expand().", param="n")
        self._check_adapter(request.adapter)
        self._check_prompt(request.prompt_ids, len(request.prompt_ids) + 1)
        self._check_biases(request.sampling.logit_bias)

    def _check_adapter(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._adapters:
            raise RequestError(
                f"There is no adapter {adapter!r} in memory.", fix="Load it first.", code="unknown_adapter"
            )

    def _check_biases(self, biases: Mapping[int, float]) -> None:
        for token_id in biases:
            if token_id < 0 or (self._logits_count is not None and token_id >= self._logits_count):
                known = "" if self._logits_count is None else f"; this model's go up to {self._logits_count - 1:,}"
                raise RequestError(
                    f"{token_id} isn't the id of a token{known}.",
                    fix="Look the ids up with the model's own tokenizer.",
                    code="invalid_value",
                    param="logit_bias",
                )

    def _check_prompt(self, prompt_ids: Sequence[int], total: int) -> None:
        count = len(prompt_ids)
        if count == 0:
            raise RequestError("The prompt is empty.", fix="Write at least one token.", code="empty_prompt")
        if total > self._most_tokens:
            raise RequestError(
                f"The prompt has {count:,} tokens; this model takes {self._most_tokens:,} with the answer.",
                fix="Shorten the messages.",
                code="context_length_exceeded",
                param="messages",
            )


def known_adapter(name: str) -> ModelError:
    """Say that an adapter is there already."""
    return ModelError(f"There is an adapter {name!r} already.", fix="Remove it first.", code="adapter_exists")


def busy_adapter(name: str) -> ModelError:
    """Say that an adapter can't go."""
    return ModelError(
        f"The adapter {name!r} is answering.", fix="Wait for its requests, or cancel them.", code="adapter_busy"
    )


def unknown_adapter(name: str) -> ModelError:
    """Say that an adapter isn't there."""
    return ModelError(f"There is no adapter {name!r} in memory.", fix="Load it first.", code="unknown_adapter")
