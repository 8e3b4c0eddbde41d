"""What a service counts is what Prometheus's own instruments count, and outlives the worker that counted it."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from replayml.serving.server import ServerModule
from replayml.serving.worker.metrics import ROUTES, Metrics
from tests.serving import services
from tests.serving.http import ask
from tests.serving.running import running, until

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TIMES = st.sampled_from((*SECONDS, 0.0, 1e-9, 31.0)) | st.floats(0, 100)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _samples(text: bytes) -> Samples:
    """Return what a text says, but for the moments at which its counts began."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@settings(deadline=None)
@given(
    answered=st.lists(
        st.tuples(st.sampled_from([*ROUTES, "/elsewhere", "other"]), st.sampled_from([200, 422, 499, 503]), TIMES)
    ),
    ran=st.lists(st.tuples(st.integers(1, 300), TIMES)),
    waiting=st.integers(0, 300),
)
def test_the_counts_are_those_of_prometheus(
    answered: list[tuple[str, int, float]], ran: list[tuple[int, float]], waiting: int
) -> None:
    """The same names, labels, buckets and numbers, whatever is counted."""
    registry = CollectorRegistry()
    requests = Counter("replayml_requests", "Requests answered.", ["route", "status"], registry=registry)
    seconds = Histogram("replayml_request_seconds", "Times.", ["route"], buckets=SECONDS, registry=registry)
    sizes = Histogram("replayml_batch_requests", "Sizes.", buckets=SIZES, registry=registry)
    runs = Histogram("replayml_model_seconds", "Runs.", buckets=SECONDS, registry=registry)
    Gauge("replayml_waiting_requests", "Waiting.", registry=registry).set(waiting)
    with tempfile.TemporaryDirectory() as folder:
        metrics = Metrics(Path(folder))
        for path, status, took in answered:
            metrics.count(path, status, took)
            route = path if path in ROUTES else "other"
            requests.labels(route, str(status)).inc()
            seconds.labels(route).observe(took)
        for size, took in ran:
            metrics.ran(size, took)
            sizes.observe(size)
            runs.observe(took)
        metrics.waiting(waiting)
        text, kind = metrics.text()
    assert kind.startswith("text/plain")
    assert _samples(text) == _samples(generate_latest(registry))


def test_what_a_killed_worker_counted_stays() -> None:
    """The counts are those of all workers, also of one that was killed."""
    with running(ServerModule(services.echo, replicas=2)) as service:
        asked = 20
        assert set(ask(service.url, "/schema").json["paths"]) == set(ROUTES)
        for number in range(asked):
            assert ask(service.url, body=b'{"args": [%d]}' % number).json == {"result": number}
        name = ("replayml_requests_total", (("route", "/predict"), ("status", "200")))
        batches = ("replayml_batch_requests_sum", ())

        def counted() -> Samples:
            return _samples(ask(service.url, "/metrics").body)

        until(lambda: counted().get(name) == asked)  # an answer is counted when it has been sent
        assert counted()[batches] == asked
        killed = service.pids
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(service.pids) == 2 and not set(killed) & set(service.pids))
        service.wait()
        found = counted()
        assert (found[name], found[batches], found["replayml_waiting_requests", ()]) == (asked, asked, 0)
