"""How long a connection stays open between two requests.

    answered ─► has nothing come since, for `seconds`? ─► otherwise it is closed

A timer that each request ends and each answer starts anew costs more than the answer of a small model. This one runs
on, and looks when it is over how long the connection has been idle.

Invariants:
    * A connection on which something is under way is not closed, nor one that has been idle for less than its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Rest"]


class Rest:
    """The time between two requests; only for the event loop.

    Args:
        seconds: How long it may be.
        is_idle: Tells whether nothing is under way.
        close: Is called when it is over.
    """

    def __init__(self, seconds: float, is_idle: Callable[[], bool], close: Callable[[], None]) -> None:
        self._seconds = seconds
        self._is_idle = is_idle
        self._close = close
        self._loop = asyncio.get_running_loop()
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Know that nothing is under way from now on."""
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_at(self._since + self._seconds, self._look)

    def stop(self) -> None:
        """Let it never be over."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        end = self._since + self._seconds
        if not self._is_idle():
            return  # it begins again with the answer
        if end > self._loop.time():
            self._timer = self._loop.call_at(end, self._look)
        else:
            self._close()
