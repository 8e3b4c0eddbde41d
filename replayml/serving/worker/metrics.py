"""What a service counts, as Prometheus reads it; all its workers together.

Invariants:
    * The counts of the workers, also of those that ended, stand in files of a folder of the service.
    * No label takes a value from a request but the fixed routes.
"""

from __future__ import annotations

import os

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

__all__ = ["Metrics"]

_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the supervisor sets it; the library reads it when it is imported

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counts of one worker."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._total = CollectorRegistry()
        MultiProcessCollector(self._total, path=os.environ[_FOLDER])  # type: ignore[no-untyped-call]
        labels = ["route", "status"]
        own = self._registry
        self._requests = Counter("replayml_requests", "Requests answered.", labels, registry=own)
        self._seconds = Histogram(
            "replayml_request_seconds", "From a request to its answer.", ["route"], buckets=_SECONDS, registry=own
        )
        self._sizes = Histogram("replayml_batch_requests", "Requests in a batch.", buckets=_SIZES, registry=own)
        self._runs = Histogram("replayml_model_seconds", "Runs of the model.", buckets=_SECONDS, registry=own)
        self._waiting = Gauge(
            "replayml_waiting_requests", "Requests that wait.", multiprocess_mode="livesum", registry=own
        )
        self._counters: dict[tuple[str, int], Counter] = {}
        self._timers: dict[str, Histogram] = {}

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        counter = self._counters.get((route, status))
        if counter is None:
            counter = self._counters[route, status] = self._requests.labels(route, str(status))
        counter.inc()
        timer = self._timers.get(route)
        if timer is None:
            timer = self._timers[route] = self._seconds.labels(route)
        timer.observe(seconds)

    def ran(self, requests: int, seconds: float) -> None:
        """Count a batch."""
        self._sizes.observe(requests)
        self._runs.observe(seconds)

    def waiting(self, requests: int) -> None:
        """Note how many requests wait."""
        self._waiting.set(requests)

    def text(self) -> tuple[bytes, str]:
        """Return all counts of all workers as text, and its content type."""
        return generate_latest(self._total), CONTENT_TYPE_LATEST
