"""Running services, waiting for what they do, and seeing that they go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from replayml.serving.server import ServerModule

__all__ = ["running", "serving_on", "until"]


def until(happens: Callable[[], Any], seconds: float = 300.0) -> Any:
    """Wait until something is so, also on a slow machine, and return it."""
    end = time.monotonic() + seconds
    while not (found := happens()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)
    return found


@contextmanager
def running(service: ServerModule) -> Iterator[ServerModule]:
    """A service that is stopped at the end of the block."""
    service.start()
    try:
        yield service
    finally:
        service.stop()


def serving_on(answers: Callable[[ServerModule], bool]) -> Any:
    """Return a fixture for each test of a module that uses its fixture ``service``: the same workers serve on after it.

    Args:
        answers: Asks the service something, and tells whether the answer is right.
    """

    @pytest.fixture(autouse=True)
    def serves_on(request: pytest.FixtureRequest) -> Iterator[None]:
        if "service" not in request.fixturenames:
            yield
            return
        service: ServerModule = request.getfixturevalue("service")
        pids = service.pids
        yield
        assert answers(service)
        assert service.pids == pids

    return serves_on
