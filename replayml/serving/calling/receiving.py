"""A stream at the caller: the items of a call as they come, in place of the generator that makes them elsewhere.

Invariants:
    * Items come as they were made and in their order; then the stream ends, or the exception is raised that ended it.
    * A stream that was cut is never taken for a whole one.
    * Each item comes in time, and is no larger than it may be.
    * Closing a stream, or dropping it, ends the generator that makes the items.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self, cast

import httpx2
import orjson

from replayml.serving.errors import Refusal
from replayml.serving.messages.events import Event, EventReader, TooLongError

__all__ = ["AsyncStream", "Caller", "Stream"]

_MOST = 2**28
_END = object()


class StreamClosedError(Exception):
    """The stream was closed here while an item was waited for."""


class Caller(Protocol):
    """What a stream asks the client that made it."""

    abandoned: deque[Callable[[], None]]

    def raised(self, error: Any, response: httpx2.Response) -> Exception:
        """Return the exception that an ``error`` event tells."""

    def cut(self, error: Exception | None, items: int) -> Exception:
        """Return the exception for a stream without an end."""

    def late(self) -> Exception:
        """Return the exception for an item that did not come in time."""

    def unreadable(self, text: str, response: httpx2.Response) -> Exception:
        """Return the exception for something that no service sends."""


class Stream(Iterator[Any]):
    """The items of a call; like a generator, it is iterated over once.

    Args:
        response: The answer, of which nothing was read.
        caller: The client.
        seconds: Until when each item has to be there.
        kind: The name of the events that hold items.
        read: Makes an item of the data of such an event.
    """

    def __init__(
        self, response: httpx2.Response, *, caller: Caller, seconds: float, kind: str, read: Callable[[bytes], Any]
    ) -> None:
        self._response = response
        self._caller = caller
        self._seconds = seconds
        self._kind = kind
        self._read = read
        self._lock = threading.Lock()
        self._events: deque[Event] = deque()
        self._reader = EventReader(_MOST)
        self._count = 0
        self._is_over = self._is_closed = False
        response.request.extensions["timeout"] = {**response.request.extensions["timeout"], "read": seconds}
        self._chunks = response.iter_raw()
        self._left = weakref.finalize(self, _leave, response, self._chunks, caller.abandoned)

    def __next__(self) -> Any:
        with self._lock:
            if self._is_over:
                raise StopIteration
            is_item = False
            try:
                event = self._event()
                if event.name == self._kind:
                    item = self._item(event)
                    is_item = True
                    return item
                self._finish(event)
            except StreamClosedError:
                pass
            finally:
                if not is_item:
                    self._end()
            raise StopIteration

    def _event(self) -> Event:
        """Return the next event."""
        end = time.monotonic() + self._seconds
        while not self._events:
            try:
                chunk = next(self._chunks, None)
                self._events.extend(self._reader.feed(chunk or b""))
            except TooLongError as error:
                raise self._caller.unreadable(f"{error}", self._response) from error
            except httpx2.TimeoutException as error:
                raise self._caller.late() from error
            except (httpx2.TransportError, httpx2.StreamError, RuntimeError, OSError) as error:
                if self._is_closed:
                    raise StreamClosedError from error
                raise self._caller.cut(error, self._count) from error
            if chunk is None:
                raise StreamClosedError if self._is_closed else self._caller.cut(None, self._count)
            if not self._events and time.monotonic() > end:
                raise self._caller.late()
        return self._events.popleft()

    def _item(self, event: Event) -> Any:
        try:
            item = self._read(event.data)
        except (Refusal, ValueError) as error:
            raise self._caller.unreadable(f"item {self._count} cannot be read", self._response) from error
        self._count += 1
        return item

    def _finish(self, event: Event) -> None:
        """Take the last event.

        Raises:
            Exception: When it tells one, or does not end the stream.
        """
        try:
            told = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            told = None
        if event.name == "error":
            raise self._caller.raised(told, self._response)
        if event.name != "end" or told != {"items": self._count}:
            raise self._caller.unreadable(
                f"an event {event.name[:40]!r} came after {self._count} items", self._response
            )
        if not self._events:
            with contextlib.suppress(httpx2.HTTPError):
                next(self._chunks, None)  # what ends the answer, so that the connection can be used again

    def close(self) -> None:
        """End the stream, and the generator that makes its items."""
        self._is_closed = True
        self.interrupt()
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._is_over = True
        self._left.detach()
        _close(self._response, self._chunks)

    def interrupt(self) -> None:
        """Close the connection under who waits for an item, without waiting."""
        if not self._is_over:
            _shut(self._response)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream(AsyncIterator[Any]):
    """A stream in an event loop, which it does not block.

    Args:
        stream: The stream.
        run: Calls a function in a thread.
    """

    def __init__(self, stream: Stream, run: Callable[..., Awaitable[Any]]) -> None:
        self._stream = stream
        self._run = run

    async def __anext__(self) -> Any:
        try:
            item = await self._run(next, self._stream, _END)
        except asyncio.CancelledError:
            self._stream.interrupt()
            raise
        if item is _END:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """End the stream, and the generator that makes its items."""
        self._stream.interrupt()
        await self._run(self._stream.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _close(response: httpx2.Response, chunks: Iterator[bytes]) -> None:
    cast(Generator[bytes], chunks).close()
    response.close()  # also where nothing was read of it


def _leave(response: httpx2.Response, chunks: Iterator[bytes], abandoned: deque[Callable[[], None]]) -> None:
    """Cut a stream that nobody has any more; what takes a lock is left to the client, for this may run anywhere."""
    _shut(response)
    abandoned.append(partial(_close, response, chunks))


def _shut(response: httpx2.Response) -> None:
    """Cut the connection of an answer; whoever reads from it sees its end."""
    found = response.extensions["network_stream"].get_extra_info("socket")
    if found is not None:
        with contextlib.suppress(OSError):  # it is closed
            found.shutdown(socket.SHUT_RDWR)
