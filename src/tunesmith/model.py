"""`Model`: a base or a tuned version in memory, asked from Python, by one caller or by many at once."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from types import TracebackType
from typing import Any, Self

from tunesmith.data.prompts import Prompt, as_conversation, is_one_prompt
from tunesmith.errors import ModelError, SpecError
from tunesmith.generate.completion import Completion
from tunesmith.generate.request import Request, Score, ScoreRequest
from tunesmith.serve.answering import OpenModel
from tunesmith.serve.answers import Answers, AsyncAnswers
from tunesmith.serve.scoring import (
    Normalisation,
    ScoredContinuation,
    check_choices,
    classification,
    score_requests,
    scored_continuations,
)
from tunesmith.serve.turns import Turns
from tunesmith.serve.worker import Worker
from tunesmith.specs.generation import SamplingSpec

#: Models of one process compute in turn, see `serve.turns`.
_TURNS = Turns()


class Model:
    """A model that answers: a base or a tuned version. Open one with `open_model`.

        with ts.open_model("smollm2-135m") as model:
            print(model.generate("What is the capital of France?", max_completion_tokens=8).text)

    All methods may be called by several threads, and the async ones by any number of tasks: one engine computes all
    requests side by side, each answered as if it were alone. A model that is closed, or that nobody holds any more,
    frees its memory.
    """

    def __init__(self, opened: OpenModel) -> None:
        """Wrap an opened model, whose engine is this object's from now on."""
        self.name = opened.name
        self._opened: OpenModel | None = opened
        self._worker: Worker | None = None
        self._end: Callable[[], object] = _nothing
        self._starting = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def opened(self) -> OpenModel:
        """The weights with their renderer.

        Raises:
            ModelError: the model is closed.
        """
        if self._opened is None:
            raise ModelError(
                "This model is closed.", where=self.name, fix="Open it again with open_model.", code="model_closed"
            )
        return self._opened

    @property
    def system_prompt(self) -> str | None:
        """The system prompt that a tuned model's training rows shared; in use it wants the same."""
        version = self.opened.version
        return version.made.summary.get("system") if version else None

    def close(self) -> None:
        """Stop what is being answered and free the memory; twice is fine."""
        with self._starting:
            self._worker = self._opened = None
            self._end()
        # Models hold themselves in circles; without this their memory would wait for the next collection.
        gc.collect()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling: SamplingSpec | None = None,
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        **settings: Any,
    ) -> Any:
        """Answer one prompt (a `Completion`) or several (a list of them, in order).

        Of several answers, one that can't go on doesn't end the others: its `finish_reason` is `error`, and its `error`
        says why.

            answer = model.generate("Name a fruit.", temperature=0.7, seed=1)
            first, second = model.generate(["Name a fruit.", "Name a colour."], max_completion_tokens=4)

        Args:
            prompts: words, a list of OpenAI messages, a `Conversation`; or a list of any of these.
            sampling: how tokens are chosen; greedy by default. With `n` above 1, a prompt's answers follow one another.
            on_done: called in this thread with an answer's index and completion as soon as it is finished; what it
                raises stops the rest.
            settings: fields of `SamplingSpec` by name, instead of `sampling`.

        Raises:
            RequestError: a prompt can't be answered; nothing is generated then.
            SpecError: a setting is unknown or out of its limits.
            ModelError: the model is closed.
            TunesmithError: the only answer can't go on.
        """
        sampling = _sampling(sampling, settings)
        requests = self._requests(prompts, sampling)
        done: dict[int, Completion] = {}
        with Answers(self._running(), requests, whole=True, keeps_errors=len(requests) > 1) as answers:
            for index, delta in answers:
                if delta.completion is not None:
                    done[index] = delta.completion
                    if on_done is not None:
                        on_done(index, delta.completion)
        return _in_form([done[index] for index in range(len(requests))], prompts, sampling)

    async def agenerate(
        self, prompts: Prompt | Sequence[Prompt], sampling: SamplingSpec | None = None, **settings: Any
    ) -> Any:
        """As `generate`, without keeping the event loop; a task that is cancelled stops its answers.

        answers = await asyncio.gather(*(model.agenerate(question) for question in questions))
        """
        sampling = _sampling(sampling, settings)
        requests = await asyncio.to_thread(self._requests, prompts, sampling)
        answers = await AsyncAnswers.begin(self._running(), requests, whole=True, keeps_errors=len(requests) > 1)
        try:
            return _in_form(await answers.completions(), prompts, sampling)
        finally:
            answers.close()

    def stream(self, prompt: Prompt, sampling: SamplingSpec | None = None, **settings: Any) -> Generator[str]:
        """Give one answer's text piece by piece; closing the iterator stops the answer.

            for piece in model.stream("Count to ten.", max_completion_tokens=20):
                print(piece, end="")

        Raises:
            RequestError: the prompt can't be answered.
            SpecError: a setting is unknown, out of its limits, or `n` isn't 1.
            ModelError: the model is closed.
        """
        request = self._one_request(prompt, _sampling(sampling, settings))
        return self._pieces(request)

    def _pieces(self, request: Request) -> Generator[str]:
        with Answers(self._running(), [request]) as answers:
            for _, delta in answers:
                if delta.text:
                    yield delta.text

    async def astream(
        self, prompt: Prompt, sampling: SamplingSpec | None = None, **settings: Any
    ) -> AsyncGenerator[str]:
        """As `stream`, without keeping the event loop.

        asyncio closes an iterator that a loop has left a moment later; `contextlib.aclosing` does so at once.

            async with aclosing(model.astream("Count to ten.")) as pieces:
                async for piece in pieces:
                    print(piece, end="")
        """
        request = await asyncio.to_thread(self._one_request, prompt, _sampling(sampling, settings))
        answers = await AsyncAnswers.begin(self._running(), [request])
        try:
            while not answers.is_finished:
                _, delta = await answers.next()
                if delta.text:
                    yield delta.text
        finally:
            answers.close()

    def score(self, prompt: Prompt, continuations: Sequence[str], *, with_end: bool = True) -> list[ScoredContinuation]:
        """Return how likely each of some answers to a prompt is, in their order; the prompt is computed once.

            best = max(model.score("The capital of France?", ["Paris", "Rome"]), key=lambda one: one.logprob)

        Args:
            prompt: words, a list of OpenAI messages or a `Conversation`.
            continuations: the answers, as the model would write them.
            with_end: count the end of the turn: the score of the whole answer, and not of all that begin like it.

        Raises:
            RequestError: prompt and answer don't fit into the context, or there is nothing to score.
            ModelError: the model is closed.
        """
        requests = score_requests(self.opened, as_conversation(prompt), continuations, with_end=with_end)
        return scored_continuations(continuations, requests, self._scores(requests))

    async def ascore(
        self, prompt: Prompt, continuations: Sequence[str], *, with_end: bool = True
    ) -> list[ScoredContinuation]:
        """As `score`, without keeping the event loop."""
        conversation = as_conversation(prompt)
        requests = await asyncio.to_thread(score_requests, self.opened, conversation, continuations, with_end=with_end)
        return scored_continuations(continuations, requests, await self._ascores(requests))

    def classify(
        self, prompts: Prompt | Sequence[Prompt], choices: Sequence[str], *, normalise: Normalisation = "none"
    ) -> Any:
        """Choose the likeliest of a few answers to one prompt (a `Classification`) or to several (a list of them).

            model.classify("Good or bad? I loved every page.", ["good", "bad"]).choice

        A choice's weight is its log-probability, the end of the turn included, so that "New York" isn't likelier than
        "New York City" only because it is a part of it.

        Args:
            prompts: one or several, as in `generate`.
            choices: the answers, as the model would write them.
            normalise: what the log-probability is divided by: `none`, the number of `tokens` (the mean, which doesn't
                favour short choices), or of `bytes` of UTF-8 (which doesn't depend on the tokenizer either).

        Raises:
            RequestError: a prompt doesn't fit into the context, or the choices aren't different texts.
            ModelError: the model is closed.
        """
        requests = self._choice_requests(prompts, choices, normalise)
        return _classified(prompts, choices, normalise, requests, self._scores(requests))

    async def aclassify(
        self, prompts: Prompt | Sequence[Prompt], choices: Sequence[str], *, normalise: Normalisation = "none"
    ) -> Any:
        """As `classify`, without keeping the event loop."""
        requests = await asyncio.to_thread(self._choice_requests, prompts, choices, normalise)
        return _classified(prompts, choices, normalise, requests, await self._ascores(requests))

    def _scores(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        with Answers(self._running(), requests) as answers:
            return answers.scores()

    async def _ascores(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        answers = await AsyncAnswers.begin(self._running(), requests)
        try:
            return await answers.scores()
        finally:
            answers.close()

    def _choice_requests(
        self, prompts: Prompt | Sequence[Prompt], choices: Sequence[str], normalise: Normalisation
    ) -> list[ScoreRequest]:
        check_choices(choices, normalise)
        opened = self.opened
        return [
            request
            for prompt in _listed(prompts)
            for request in score_requests(opened, as_conversation(prompt), choices, with_end=True)
        ]

    def _one_request(self, prompt: Prompt, sampling: SamplingSpec) -> Request:
        """Render a prompt that is answered piece by piece.

        Raises:
            SpecError: more than one answer is asked for.
        """
        if sampling.n != 1:
            raise SpecError("A stream is one answer.", fix="Leave out `n`, or use generate.", param="n")
        return self.opened.request(as_conversation(prompt), sampling)

    def _requests(self, prompts: Prompt | Sequence[Prompt], sampling: SamplingSpec) -> list[Request]:
        """Render prompts, one request for each answer."""
        opened = self.opened
        return [
            request
            for prompt in _listed(prompts)
            for request in opened.request(as_conversation(prompt), sampling).expand()
        ]

    def _running(self) -> Worker:
        """Return the one thread that uses the engine; it starts when first needed."""
        with self._starting:
            if self._worker is None:
                # Callers are in this process and hold their prompts anyway, so none is turned away.
                self._worker = Worker(self.opened, max_waiting=sys.maxsize, turns=_TURNS)
                # The thread holds the model. So it must end when nobody can ask any more, and before Python does.
                self._end = weakref.finalize(self, self._worker.close)
            return self._worker


def _nothing() -> None:
    """End nothing: no thread has been started yet."""


def _sampling(sampling: SamplingSpec | None, settings: dict[str, Any]) -> SamplingSpec:
    """Return what was asked for, whichever way it was said.

    Raises:
        SpecError: it was said in both ways, or a setting is wrong.
    """
    if sampling is None:
        return SamplingSpec.parse(settings)
    if settings:
        raise SpecError(
            f"`sampling` holds all settings, and {', '.join(settings)} came beside it.", fix="Use one or the other."
        )
    return sampling


def _listed(prompts: Any) -> Sequence[Any]:
    """Return the prompts as a list, also if it is one."""
    return [prompts] if is_one_prompt(prompts) else list(prompts)


def _classified(
    prompts: Any,
    choices: Sequence[str],
    normalise: Normalisation,
    requests: Sequence[ScoreRequest],
    scores: Sequence[Score],
) -> Any:
    """Return one classification for one prompt, else a list."""
    found = [
        classification(
            scored_continuations(choices, requests[at : at + len(choices)], scores[at : at + len(choices)]), normalise
        )
        for at in range(0, len(requests), len(choices))
    ]
    return found[0] if is_one_prompt(prompts) else found


def _in_form(completions: list[Completion], prompts: Any, sampling: SamplingSpec) -> Any:
    """Return one completion for one prompt with one answer, else a list."""
    return completions[0] if is_one_prompt(prompts) and sampling.n == 1 else completions
