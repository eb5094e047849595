"""What is counted, for Prometheus: `GET /metrics`.

No label has more values than the server has routes, methods, statuses or states: no model, key, project or path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from tunesmith.serve.pool import ModelPool

CONTENT_TYPE = CONTENT_TYPE_LATEST
_METHODS = frozenset({"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"})
_SECONDS = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


@dataclass(frozen=True, slots=True)
class RecordFigures:
    """What the record says when it is asked.

    Attributes:
        jobs: how many jobs are in each state.
        oldest_queued_seconds: age of the oldest job that waits for a worker.
        workers: workers that are alive.
        deliveries: events for webhooks in each state.
    """

    jobs: dict[str, int] = field(default_factory=dict)
    oldest_queued_seconds: float = 0.0
    workers: int = 0
    deliveries: dict[str, int] = field(default_factory=dict)


class Metrics:
    """The counters of one server. The event loop counts; `page` may be called from any thread.

    Args:
        pool: whose models and tokens are told of.
        ask_record: returns what the record says, None when it can't be asked; None: there is no record.
    """

    def __init__(self, pool: ModelPool, ask_record: Callable[[], RecordFigures | None] | None) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tunesmith_requests", "Requests that were answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "tunesmith_request_seconds",
            "Seconds from a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge(
            "tunesmith_requests_in_flight", "Requests that are being answered.", registry=self._registry
        )
        self.lag = Histogram(
            "tunesmith_event_loop_lag_seconds",
            "Seconds that the event loop came late.",
            buckets=_LAG_SECONDS,
            registry=self._registry,
        )
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._registry.register(_PoolCollector(pool))
        if ask_record is not None:
            self._registry.register(_RecordCollector(ask_record))

    def count(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count a request that is over.

        Args:
            method: of HTTP.
            route: the route's template (`/v1/files/{file_id}`), None where there is none.
            status: of the answer.
            seconds: that it took.
        """
        template = route or "none"
        self._requests.labels(method if method in _METHODS else "other", template, str(status)).inc()
        self._seconds.labels(template).observe(seconds)

    def page(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)


class _PoolCollector(Collector):
    """What the models' pool says."""

    def __init__(self, pool: ModelPool) -> None:
        self._pool = pool

    def collect(self) -> Iterable[Metric]:
        """Give the figures of this moment."""
        pool = self._pool
        tokens = CounterMetricFamily("tunesmith_tokens", "Tokens that models have read and written.", labels=["kind"])
        tokens.add_metric(["prompt"], pool.used.prompt_tokens)
        tokens.add_metric(["answer"], pool.used.answer_tokens)
        yield tokens
        yield GaugeMetricFamily("tunesmith_loaded_models", "Bases in memory.", value=len(pool.loaded))
        yield GaugeMetricFamily("tunesmith_loaded_adapters", "Adapters in memory.", value=len(pool.adapters))
        yield GaugeMetricFamily("tunesmith_answers_unfinished", "Answers that wait or grow.", value=pool.unfinished)


class _RecordCollector(Collector):
    """What the record says; it is asked when somebody wants to know."""

    def __init__(self, ask: Callable[[], RecordFigures | None]) -> None:
        self._ask = ask

    def describe(self) -> Iterable[Metric]:
        """Tell nothing beforehand: registering shouldn't ask the record."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Give the figures of this moment."""
        found = self._ask()
        yield GaugeMetricFamily("tunesmith_record_up", "Whether the record can be read.", value=found is not None)
        if found is None:
            return
        jobs = GaugeMetricFamily("tunesmith_jobs", "Fine-tuning jobs.", labels=["state"])
        for state, count in found.jobs.items():
            jobs.add_metric([state], count)
        yield jobs
        deliveries = GaugeMetricFamily("tunesmith_webhook_deliveries", "Events for webhooks.", labels=["state"])
        for state, count in found.deliveries.items():
            deliveries.add_metric([state], count)
        yield deliveries
        yield GaugeMetricFamily(
            "tunesmith_oldest_queued_seconds",
            "Age of the oldest job that waits for a worker.",
            value=found.oldest_queued_seconds,
        )
        yield GaugeMetricFamily("tunesmith_workers", "Workers that are alive.", value=found.workers)
