"""One thread for each loaded model: it alone uses the engine, anybody may hand it requests."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from tunesmith.errors import RequestError, TunesmithError
from tunesmith.generate.constraints import Matcher
from tunesmith.generate.request import Delta, Request, ScoreDone, ScoreRequest
from tunesmith.serve.answering import OpenModel
from tunesmith.serve.turns import Turns
from tunesmith.serve.used import UsedTokens

#: Hears what becomes of one request of a ticket: its index, and a delta, its score, or the error that ended it. Called
#: from the worker's thread, so it must return at once and never raise.
Listener = Callable[[int, Delta | ScoreDone | TunesmithError], None]

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Ticket:
    """Requests that were submitted together, until each is finished."""

    requests: tuple[Request | ScoreRequest, ...]
    matchers: tuple[Matcher | None, ...]
    listener: Listener
    running: dict[int, int] = field(default_factory=dict)  # engine's request id -> index
    is_started: bool = False
    is_cancelled: bool = False


@dataclass(eq=False, slots=True)
class _Errand:
    """Something to do in the worker's thread, between two steps."""

    do: Callable[[], None]
    done: Future[None] = field(default_factory=Future)

    def run(self) -> None:
        self.done.set_running_or_notify_cancel()
        try:
            self.do()
        # It is the business of whoever sent it, not of those who are being answered.
        except Exception as error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


class Worker:
    """Answers with one model until it is closed.

    A fault in a step fails the answers that were in flight; the worker goes on with a fresh engine.

    Args:
        opened: the model; its engine belongs to this worker from now on.
        max_waiting: requests beyond the engine's batch that may wait.
        turns: shared with the workers of other models.
        used: where tokens are counted.
    """

    def __init__(self, opened: OpenModel, *, max_waiting: int, turns: Turns, used: UsedTokens | None = None) -> None:
        self.opened = opened
        self._capacity = opened.limits.max_batch + max_waiting
        self._turns = turns
        self._used = used or UsedTokens()
        self._wake = threading.Condition()
        self._inbox: list[Ticket | _Errand] = []
        self._unfinished = 0
        self._is_closing = False
        self._owners: dict[int, Ticket] = {}  # by the engine's request id; used by the worker's thread alone
        self._steps: Counter[int] = Counter()  # of each request in flight; each gave a token at least
        self._thread = threading.Thread(target=self._run, name=f"answer {opened.name}", daemon=True)
        self._thread.start()

    @property
    def unfinished(self) -> int:
        """How many requests are waiting or in flight."""
        return self._unfinished

    def check_count(self, count: int) -> None:
        """Refuse more requests at once than there is ever room for; ask before many of them are made.

        Raises:
            RequestError: there are (`too_many_answers`).
        """
        if count > self._capacity:
            raise RequestError(
                f"This server gives at most {self._capacity} answers at once.",
                fix="Ask for fewer answers.",
                code="too_many_answers",
                param="n",
            )

    def check(self, requests: Sequence[Request | ScoreRequest]) -> tuple[Matcher | None, ...]:
        """Refuse requests that can't be answered, all if one is. Not for an event loop, where they have a form.

        Returns:
            What keeps each answer to its form.

        Raises:
            RequestError: a request can't be answered, or there are more than fit at all.
        """
        self.check_count(len(requests))
        engine = self.opened.engine
        matchers: list[Matcher | None] = []
        for request in requests:
            if isinstance(request, ScoreRequest):
                engine.check_score(request)
                matchers.append(None)
            else:
                matchers.append(engine.check(request))
        return tuple(matchers)

    def submit(
        self,
        requests: Sequence[Request | ScoreRequest],
        listener: Listener,
        matchers: tuple[Matcher | None, ...] | None = None,
    ) -> Ticket:
        """Queue requests, all or none; `listener` hears of each until it ends.

        Args:
            requests: what is asked.
            listener: hears what becomes of them.
            matchers: what `check` returned for these requests; None: they are checked here.

        Raises:
            RequestError: see `check`, or too many wait already (`code="overloaded"`).
        """
        if matchers is None:
            matchers = self.check(requests)
        ticket = Ticket(tuple(requests), matchers, listener)
        with self._wake:
            if self._is_closing:
                raise _closed()
            if self._unfinished + len(requests) > self._capacity:
                raise RequestError(
                    f"{self._unfinished} answers are waiting for this model already.",
                    fix="Try again shortly.",
                    code="overloaded",
                )
            self._unfinished += len(requests)
            self._inbox.append(ticket)
            self._wake.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop what isn't finished of a ticket; its listener hears nothing more. Twice, or too late, is fine."""
        with self._wake:
            if not ticket.is_cancelled:
                ticket.is_cancelled = True
                self._inbox.append(ticket)
                self._wake.notify()

    def send(self, errand: Callable[[], None]) -> Future[None]:
        """Have something done in the worker's thread, after what was submitted and cancelled before it.

        Returns:
            What tells when it is done, with its error if it has one; `RequestError` if the worker was closed before.
        """
        sent = _Errand(errand)
        with self._wake:
            if not self._is_closing:
                self._inbox.append(sent)
                self._wake.notify()
                return sent.done
        sent.done.set_exception(_closed())
        return sent.done

    def close(self) -> None:
        """Fail what isn't finished, and end the thread."""
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:  # which may be where an unused model is collected
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._is_closing or self._owners):
                    self._wake.wait()
                arrived, self._inbox = self._inbox, []
                is_closing = self._is_closing
            try:
                self._take_in(arrived)
                if is_closing:
                    break
                with self._turns.take():
                    events = self.opened.engine.step()
                for event in events:
                    self._tell(event)
            # Whatever went wrong, the next request must find a working model; the fault is logged and told.
            except Exception as error:
                self.opened.renew_engine()
                self._fail_all(self._fault(error))
                self._make_engine()
        self._fail_all(_closed())

    def _make_engine(self) -> None:
        """Make a fresh engine here rather than in the thread of whoever asks next."""
        try:
            _ = self.opened.engine
        # Whoever asks next tries again, and hears of it.
        except Exception:
            _log.exception("%s can't be made ready again", self.opened.name)

    def _take_in(self, arrived: Sequence[Ticket | _Errand]) -> None:
        """Start new tickets, stop cancelled ones, run errands."""
        for ticket in arrived:
            if isinstance(ticket, _Errand):
                ticket.run()
            elif ticket.is_cancelled:
                for request_id in ticket.running:
                    self.opened.engine.cancel(request_id)
                    del self._owners[request_id]
                    self._steps.pop(request_id, None)
                # A ticket that is cancelled before it was started comes twice.
                self._release(len(ticket.running) if ticket.is_started else len(ticket.requests))
                ticket.running.clear()
                ticket.is_started = True
            elif not ticket.is_started:
                ticket.is_started = True
                for index, request in enumerate(ticket.requests):
                    self._add(ticket, index, request)

    def _add(self, ticket: Ticket, index: int, request: Request | ScoreRequest) -> None:
        """Hand a request to the engine, or say at once why that can't be."""
        try:
            engine = self.opened.engine
            if isinstance(request, ScoreRequest):
                request_id = engine.add_score(request)
            else:
                # A form that was forgotten meanwhile isn't compiled again here, where all others would wait for it.
                request_id = engine.add(request, ticket.matchers[index])
        # A fresh engine that can't be made, for one: nothing of this request is in it.
        except Exception as error:
            self._release(1)
            ticket.listener(index, self._fault(error))
            return
        ticket.running[request_id] = index
        self._owners[request_id] = ticket
        read = len(request.prompt_ids) + (len(request.continuation_ids) if isinstance(request, ScoreRequest) else 0)
        self._used.add(prompt_tokens=read)

    def _fault(self, error: Exception) -> TunesmithError:
        """Return what callers are told: their own fault as it is, ours without its trace, which is logged."""
        if isinstance(error, RequestError):
            return error
        _log.error("%s failed while answering", self.opened.name, exc_info=error)
        fault = TunesmithError("The model failed while it was answering.", fix="See the log.", code="answer_failed")
        fault.__cause__ = error
        return fault

    def _tell(self, event: Delta | ScoreDone) -> None:
        ticket = self._owners[event.request_id]
        index = ticket.running[event.request_id]
        self._count(event)
        if isinstance(event, ScoreDone) or event.completion is not None:
            del ticket.running[event.request_id], self._owners[event.request_id]
            self._release(1)
        if not ticket.is_cancelled:
            ticket.listener(index, event)

    def _count(self, event: Delta | ScoreDone) -> None:
        """Count what a step wrote: one token, and at the end as many more as there were."""
        if isinstance(event, ScoreDone):
            return
        if event.completion is None:
            self._steps[event.request_id] += 1
            self._used.add(answer_tokens=1)
        else:
            told = self._steps.pop(event.request_id, 0)
            self._used.add(answer_tokens=max(0, event.completion.completion_tokens - told))

    def _fail_all(self, error: TunesmithError) -> None:
        """End every request that was started with `error`."""
        owners, self._owners = self._owners, {}
        self._steps.clear()
        self._release(len(owners))
        for request_id, ticket in owners.items():
            index = ticket.running.pop(request_id)
            if not ticket.is_cancelled:
                ticket.listener(index, error)

    def _release(self, count: int) -> None:
        with self._wake:
            self._unfinished -= count


def _closed() -> RequestError:
    return RequestError("This model is being unloaded.", fix="Try again later.", code="stopping")
