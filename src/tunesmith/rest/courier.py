"""Delivers events to webhooks, off every request's way: a thread that looks for what is due, one for each sending."""

from __future__ import annotations

import logging
import threading
import time

from tunesmith.errors import StorageError
from tunesmith.record.database import Database
from tunesmith.record.webhook_endpoints import Webhook
from tunesmith.record.webhooks import Delivery, Outcome, Webhooks
from tunesmith.rest.webhook_sending import send

_LOOK_SECONDS = 1.0
#: Endpoints that are sent something at once; each gets one event at a time.
_MOST_AT_ONCE = 8
#: How long a stop waits for what is being sent; what isn't settled by then is sent again later.
_PATIENCE_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Courier:
    """Delivers what is due until it is closed. Several servers of one record share the work."""

    def __init__(self, database: Database) -> None:
        self._webhooks = Webhooks(database)
        self._changed = threading.Condition()
        self._busy: set[str] = set()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="courier", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking, and wait a little for what is being sent."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        give_up = time.monotonic() + _PATIENCE_SECONDS
        self._thread.join(_PATIENCE_SECONDS)
        with self._changed:
            while self._busy and (left := give_up - time.monotonic()) > 0:
                self._changed.wait(left)

    def _work(self) -> None:
        while True:
            with self._changed:
                # An endpoint that has just taken one may have more to come.
                self._changed.wait(_LOOK_SECONDS)
                if self._is_closing:
                    return
                busy = set(self._busy)
            try:
                found = self._webhooks.claim(int(time.time()), _MOST_AT_ONCE - len(busy), busy)
            except StorageError as error:
                _log.warning("webhooks have to wait: %s", error.message)
                continue
            except Exception as error:
                # Whatever it was, the thread that looks must not end: nothing would be delivered any more.
                _log.error("webhooks have to wait", exc_info=error)
                continue
            for delivery, webhook in found:
                with self._changed:
                    self._busy.add(webhook.id)
                threading.Thread(target=self._deliver, args=(delivery, webhook), name="delivery", daemon=True).start()

    def _deliver(self, delivery: Delivery, webhook: Webhook) -> None:
        try:
            outcome = _sent(webhook, delivery)
            self._webhooks.settle(delivery, outcome)
            if not outcome.is_good:
                _log.warning(
                    "attempt %d to tell %s of %s failed: %s",
                    delivery.attempts, webhook.id, delivery.event_id, outcome.error,
                )  # fmt: skip
        except StorageError as error:
            # The claim lapses, and the event is sent again.
            _log.warning("what became of %s isn't noted: %s", delivery.event_id, error.message)
        finally:
            with self._changed:
                self._busy.discard(webhook.id)
                self._changed.notify_all()


def _sent(webhook: Webhook, delivery: Delivery) -> Outcome:
    """Send an event. What nobody foresaw is a failed attempt, lest the event be tried without end."""
    try:
        return send(webhook, delivery)
    except Exception as error:
        _log.error("sending %s failed", delivery.event_id, exc_info=error)
        return Outcome(None, "The event couldn't be sent.")
