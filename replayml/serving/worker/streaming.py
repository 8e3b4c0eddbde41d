"""A result that comes item by item: made in the thread of the model, sent as server-sent events.

    event loop: wants more ─► queue of the model ─► thread of the model: some items ─► event loop: sends, wants more

Invariants:
    * The thread of the model makes one item of a stream, or what it makes of it within some milliseconds; then who else
      waits for the model has a turn. A stream queues anew for each turn, so that streams and other requests alternate.
    * A stream is no more than some items ahead of its client; a slow client makes it wait, and nobody else.
    * The iterator is used and closed in the thread of the model alone, and closed however the stream ends.
    * Every item is made into bytes before the next one is asked for: a tensor that is used again is sent as it was.
    * An iterator keeps its context variables and torch's modes to itself between two items.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import torch
from starlette.types import Send

from replayml.serving.errors import ClientGoneError, EndedError
from replayml.serving.messages.events import end_event, error_event
from replayml.serving.worker.deadlines import Deadlines

__all__ = ["Items", "Pump", "is_stream", "send_stream"]

_SLICE = 0.005
_MOST_AHEAD = 16
_MOST_BYTES_AHEAD = 2**20

_log = logging.getLogger("replayml.serving")


def is_stream(value: Any) -> bool:
    """Tell whether a result comes item by item.

    Example:
        >>> is_stream(iter([1])), is_stream([1])
        (True, False)
    """
    return isinstance(value, (Iterator, AsyncIterator))


class Items(Iterator[Any]):
    """The items of a result, in the thread that makes them.

    Args:
        source: The iterator; one that is asynchronous runs in an event loop of its own, item by item.
        has_gradients: Whether the first item is made with gradients.

    Example:
        >>> list(Items(iter("ab"), has_gradients=False))
        ['a', 'b']
    """

    def __init__(self, source: Iterator[Any] | AsyncIterator[Any], *, has_gradients: bool) -> None:
        self._source = source
        self._runner = asyncio.Runner() if isinstance(source, AsyncIterator) else None
        self._context = contextvars.copy_context()
        self._has_gradients = has_gradients
        self._is_inference = False

    def __next__(self) -> Any:
        return self._in_modes(self._step)

    def close(self) -> None:
        """End the iterator: what it has left to do for its end is done."""
        try:
            self._in_modes(self._end)
        finally:
            if self._runner is not None:
                self._runner.close()

    def _step(self) -> Any:
        if self._runner is None:
            return next(self._source)  # type: ignore[arg-type]
        try:
            return self._runner.run(_awaited(self._source.__anext__), context=self._context)  # type: ignore[union-attr]
        except StopAsyncIteration:
            raise StopIteration from None

    def _end(self) -> None:
        name = "close" if self._runner is None else "aclose"
        close = getattr(self._source, name, None)
        if close is None:
            return
        if self._runner is None:
            close()
        else:
            self._runner.run(_awaited(close), context=self._context)

    def _in_modes(self, step: Callable[[], Any]) -> Any:
        """Run a step with the modes and context variables that the last one left, and leave them as they are here."""
        with torch.inference_mode(self._is_inference), torch.set_grad_enabled(self._has_gradients):
            try:
                return step() if self._runner is not None else self._context.run(step)
            finally:
                self._has_gradients = torch.is_grad_enabled()
                self._is_inference = torch.is_inference_mode_enabled()


async def _awaited(call: Callable[[], Any]) -> Any:
    return await call()


class Pump:
    """Brings the items of a stream from the thread of the model to the event loop; used in the event loop.

    Args:
        items: The items.
        run: Queues a function for the thread of the model.
        to_bytes: Makes an item into bytes.
        deadlines: End the wait for an item that is not there in time.
        wait_with: Is given what is waited for; cancelling that ends the stream, for nobody wants more.

    Attributes:
        sent: How many items were taken.
    """

    def __init__(
        self,
        items: Items,
        *,
        run: Callable[[Callable[[], None]], None],
        to_bytes: Callable[[Any], bytes],
        deadlines: Deadlines,
        wait_with: Callable[[asyncio.Future[None]], None],
    ) -> None:
        self._items = items
        self._run = run
        self._to_bytes = to_bytes
        self._deadlines = deadlines
        self._wait_with = wait_with
        self._loop = asyncio.get_running_loop()
        self._came: deque[bytes] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._made = self._made_bytes = 0  # written in the thread of the model
        self.sent = self._sent_bytes = 0  # written in the event loop
        self._is_queued = False
        self._is_over = False
        self._is_closed = False

    # In the event loop --------------------------------------------------------------------------------------------

    async def take(self) -> bytes:
        """Return the items that have come since the last time; without any more, nothing.

        Raises:
            Refusal: When the next item does not come in time, or has no form.
            Exception: What the iterator raised, after the items before it.
            ClientGoneError: When nobody waits for them any more.
        """
        self._want()
        while not self._came:
            if self._error is not None:
                raise self._error
            if self._is_over:
                return b""
            self._waiter = self._loop.create_future()
            self._wait_with(self._waiter)
            self._deadlines.add(self._waiter)
            try:
                await self._waiter
            except asyncio.CancelledError:
                raise ClientGoneError from None
            finally:
                self._deadlines.discard(self._waiter)
                self._waiter = None
        taken = b"".join(self._came)
        self.sent += len(self._came)
        self._sent_bytes += len(taken)
        self._came.clear()
        return taken

    def close(self) -> None:
        """End the stream; the iterator is closed as soon as the model is free."""
        if not self._is_closed:
            self._is_closed = True
            if not self._is_over:
                self._run(self._finish)

    def _want(self) -> None:
        """Queue for the model, unless it is so already or there is enough."""
        if not (self._is_queued or self._is_over or self._is_closed) and self._has_room():
            self._is_queued = True
            self._run(self._advance)

    def _has_room(self) -> bool:
        return self._made - self.sent < _MOST_AHEAD and self._made_bytes - self._sent_bytes < _MOST_BYTES_AHEAD

    def _arrive(self, data: bytes) -> None:
        self._came.append(data)
        self._wake()

    def _rest(self) -> None:
        self._is_queued = False
        self._want()

    def _stop(self, error: BaseException | None) -> None:
        self._is_over = True
        self._error = error if error is None or isinstance(error, Exception) else EndedError(error)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # In the thread of the model -----------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Make items, for a while."""
        tell = self._loop.call_soon_threadsafe
        end = time.monotonic() + _SLICE
        try:
            while self._has_room() and not self._is_closed:
                try:
                    item = next(self._items)
                except StopIteration:
                    self._finish()
                    tell(self._stop, None)
                    return
                data = self._to_bytes(item)
                self._made += 1
                self._made_bytes += len(data)
                tell(self._arrive, data)
                if time.monotonic() > end:
                    break
        except BaseException as error:  # noqa: BLE001 - whatever the iterator raises is told to who waits for it
            self._finish()
            tell(self._stop, error)
            return
        tell(self._rest)

    def _finish(self) -> None:
        try:
            self._items.close()
        except BaseException:  # noqa: BLE001 - nobody waits for it
            _log.exception("a stream could not be closed")


async def send_stream(
    pump: Pump, send: Send, *, failed: Callable[[Exception], bytes], is_lost: Callable[[], bool]
) -> None:
    """Send a stream as the body of an answer, to its end.

    Args:
        pump: The stream.
        send: Takes messages of ASGI, and waits while the client takes nothing.
        failed: Returns the body of the error for what the iterator raised.
        is_lost: Tells whether the client has gone.

    Raises:
        ClientGoneError: When it leaves, or was left since it takes too little.
    """
    try:
        is_whole = False
        while not is_whole:
            if is_lost():
                raise ClientGoneError
            try:
                data = await pump.take()
                is_whole = not data
                data = data or end_event(pump.sent)
            except ClientGoneError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever the iterator raised
                is_whole, data = True, error_event(failed(error))
            await send({"type": "http.response.body", "body": data, "more_body": not is_whole})
    finally:
        pump.close()
