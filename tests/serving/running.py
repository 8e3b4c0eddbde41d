"""Running services, and waiting for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from replayml.serving.server import ServerModule

__all__ = ["running", "until"]


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
