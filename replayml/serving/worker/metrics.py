"""What a service counts, as Prometheus reads it; all its workers together.

    count, ran ─► numbers in a file of the worker, which is mapped into its memory ─► /metrics: the sums over all files

Prometheus's own instruments take locks and ask for the process at each step, which takes about as long as to parse a
small request.

Invariants:
    * What was counted stands in the file at once: a worker that is killed takes none of it along.
    * No label takes a value from a request but the fixed routes.
    * What waits stands in a file of its own, which the supervisor removes when the worker has ended.
    * Each number is written by one thread at a time: those of requests by the event loop, those of runs by who runs.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from replayml.serving.errors import CODES

__all__ = ["ROUTES", "Metrics"]

ROUTES = ("/", "/predict", "/healthz", "/readyz", "/schema", "/metrics")
"""The routes that are counted by name; all else is "other"."""

_LABELS = (*ROUTES, "other")
_STATUSES = sorted({200, 499, *(answer.status for answer in CODES.values())})
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_WIDTH = 8


class _Spread:
    """How a value is spread: the places of its counts and its sum among the numbers of a worker.

    Args:
        start: The first place.
        bounds: The largest value of each count but the last.
    """

    def __init__(self, start: int, bounds: Sequence[float]) -> None:
        self._start = start
        self._bounds = bounds
        self._sum = start + len(bounds) + 1
        self.end = self._sum + 1

    def add(self, numbers: memoryview[float], value: float) -> None:
        """Count a value."""
        numbers[self._start + bisect_left(self._bounds, value)] += 1.0
        numbers[self._sum] += value

    def told(self, numbers: Sequence[float]) -> tuple[list[tuple[str, float]], float]:
        """Return how many were up to each bound, and the sum."""
        names = [*map(str, map(float, self._bounds)), "+Inf"]
        return list(zip(names, accumulate(numbers[self._start : self._sum]), strict=True)), numbers[self._sum]


_REQUESTS = {
    (route, status): place
    for place, (route, status) in enumerate((route, status) for route in _LABELS for status in _STATUSES)
}
_TIMES: dict[str, _Spread] = {}
_END = len(_REQUESTS)
for _label in _LABELS:
    _TIMES[_label] = _Spread(_END, _SECONDS)
    _END = _TIMES[_label].end
_BATCHES = _Spread(_END, _SIZES)
_RUNS = _Spread(_BATCHES.end, _SECONDS)
_COUNT = _RUNS.end


class Metrics:
    """The counts of one worker, and of all the others in the same folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = _mapped(folder / f"{os.getpid()}.counts", _COUNT)
        self._waiting = _mapped(folder / f"{os.getpid()}.waiting", 1)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        route = route if route in _TIMES else "other"
        self._numbers[_REQUESTS[route, status]] += 1.0
        _TIMES[route].add(self._numbers, seconds)

    def ran(self, requests: int, seconds: float) -> None:
        """Count a batch."""
        _BATCHES.add(self._numbers, requests)
        _RUNS.add(self._numbers, seconds)

    def waiting(self, requests: int) -> None:
        """Note how many requests wait."""
        self._waiting[0] = requests

    def text(self) -> tuple[bytes, str]:
        """Return all counts of all workers as text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """Yield what was counted, as Prometheus asks for it."""
        total = _sums(self._folder.glob("*.counts"), _COUNT)
        requests = CounterMetricFamily("replayml_requests", "Requests answered.", labels=["route", "status"])
        for (route, status), place in _REQUESTS.items():
            if total[place]:
                requests.add_metric([route, str(status)], total[place])
        yield requests
        times = HistogramMetricFamily("replayml_request_seconds", "From a request to its answer.", labels=["route"])
        for route, spread in _TIMES.items():
            buckets, seconds = spread.told(total)
            if buckets[-1][1]:
                times.add_metric([route], buckets, seconds)
        yield times
        for name, text, spread in (
            ("replayml_batch_requests", "Requests in a batch.", _BATCHES),
            ("replayml_model_seconds", "Runs of the model.", _RUNS),
        ):
            buckets, value = spread.told(total)
            yield HistogramMetricFamily(name, text, buckets=buckets, sum_value=value)
        (waiting,) = _sums(self._folder.glob("*.waiting"), 1)
        yield GaugeMetricFamily("replayml_waiting_requests", "Requests that wait.", value=waiting)


def _mapped(path: Path, count: int) -> memoryview[float]:
    """Return the numbers in a file, which is made if there is none."""
    with open(path, "a+b") as file:
        file.truncate(count * _WIDTH)
        return memoryview(mmap.mmap(file.fileno(), count * _WIDTH)).cast("d")


def _sums(paths: Iterator[Path], count: int) -> list[float]:
    """Return the sums of the numbers in files; one that has just gone counts for nothing."""
    total = [0.0] * count
    for path in paths:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        if len(data) == count * _WIDTH:
            total = [before + more for before, more in zip(total, memoryview(data).cast("d"), strict=True)]
    return total
