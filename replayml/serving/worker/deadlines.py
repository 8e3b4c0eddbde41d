"""How long somebody waits for an answer, with one timer for all who wait.

A timer for each request costs more than what it guards. All of these are given the same time, so that who came first is
through first, and only that one is timed.

Invariants:
    * What waits too long fails with `too-late`, and no sooner than it was told.
    * Nothing is kept of what is no longer waited for.
"""

from __future__ import annotations

import asyncio
from typing import Any

from replayml.serving.errors import Refusal

__all__ = ["Deadlines"]


class Deadlines:
    """Futures, each of which is waited for so long at most; only for the event loop.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._ends: dict[asyncio.Future[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, future: asyncio.Future[Any]) -> None:
        """Wait for a future from now on."""
        end = self._ends[future] = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_at(end, self._look)

    def discard(self, future: asyncio.Future[Any]) -> None:
        """Wait for it no longer."""
        self._ends.pop(future, None)

    def _look(self) -> None:
        """Let those fail whose time is over, and time the next."""
        self._timer = None
        now = self._loop.time()
        for future, end in [*self._ends.items()]:
            if end > now:
                self._timer = self._loop.call_at(end, self._look)
                return
            self.discard(future)
            if not future.done():
                future.set_exception(Refusal("too-late"))
