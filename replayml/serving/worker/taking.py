"""Whether a client takes what was written for it: an answer that nobody takes holds a connection and its memory.

    written ─► is some of it taken within `idle` seconds, again and again, and all of it in as many seconds and one for
        each `rate` bytes? ─► otherwise the client is left

Invariants:
    * Nobody is left while all that was written has been taken, or more is being written.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import termios
from collections.abc import Callable

from replayml.serving.limits import ServeLimits

__all__ = ["Taking"]


class Taking:
    """Watches how much of what was written has not been taken; only for the event loop.

    Args:
        transport: What it was written to.
        limits: The limits.
        leave: Is called when it is taken too slowly.
    """

    def __init__(self, transport: asyncio.Transport, limits: ServeLimits, leave: Callable[[], None]) -> None:
        self._transport = transport
        self._limits = limits
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> None:
        """Watch what has been written by now, until all of it is taken; nothing more is written meanwhile."""
        self.stop()
        size = self._left()
        if size:
            self._look_later(size, self._loop.time() + self._limits.idle + size / self._limits.rate)

    def stop(self) -> None:
        """Watch nothing: how much there is tells nothing while more is written."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _left(self) -> int:
        """Return how much has not been taken; what the system holds of it counts as long as there is more."""
        size = self._transport.get_write_buffer_size()
        if size:
            held = array.array("i", [0])
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
            size += held[0]
        return size

    def _look_later(self, size: int, end: float) -> None:
        self._timer = self._loop.call_at(min(self._loop.time() + self._limits.idle, end), self._look, size, end)

    def _look(self, before: int, end: float) -> None:
        size = self._left()
        if size and (size >= before or self._loop.time() >= end):
            self._leave()
        elif size:
            self._look_later(size, end)
