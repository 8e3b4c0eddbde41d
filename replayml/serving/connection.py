"""One connection of a worker: uvicorn's HTTP protocol, with the limits that it lacks.

Invariants:
    * A request is sent in time or refused, its first line and headers included; no connection waits for ever.
    * What is not HTTP is answered with a code as well.
    * The supervisor knows of the connection, and what is done with it, before a byte is worked on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from replayml.serving.desk import Desk, State
from replayml.serving.errors import raw_answer
from replayml.serving.limits import ServeLimits

__all__ = ["Connection"]

_GRACE = 1.0
_ONE_PIECE = 65536


class Writer:
    """A transport that can hold what is written until there is more, to send both at once.

    Args:
        transport: The transport.
        sent: Is told whether all of it has left, when what was held has been written.
    """

    def __init__(self, transport: asyncio.Transport, sent: Callable[[bool], None]) -> None:
        self._transport = transport
        self._sent = sent
        self._held: bytes | None = None
        self._is_holding = False

    def hold(self) -> None:
        """Hold what is written next."""
        self._is_holding = True

    def write(self, data: bytes) -> None:
        """Write, or hold."""
        if not self._is_holding:
            self._transport.write(data)
        elif self._held is None:
            self._held = data
        else:
            self._held += data
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        held, self._held, self._is_holding = self._held, None, False
        if held is not None:
            self._transport.write(held)
            self._sent(self._transport.get_write_buffer_size() == 0)

    def close(self) -> None:
        """Close, after what is held."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """A connection.

    Args:
        config: What uvicorn gives every protocol.
        server_state: The same.
        app_state: The same.
        _loop: The same.
        desk: Where the supervisor is told what is done with it.
        slot: Its place in the table of the supervisor.
        limits: The limits.

    Attributes:
        waiting: What the model will answer to its request; nobody waits for it once the connection is lost.
        deadline: Until when its request is to be sent.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        desk: Desk,
        slot: int | None,
        limits: ServeLimits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._desk = desk
        self._limits = limits
        self._slot = slot
        self._received = 0
        self._is_whole = True
        self._has_headers = False
        self._header_size = 0
        self._timer: asyncio.TimerHandle | None = None
        self.waiting: asyncio.Future[Any] | None = None
        self.deadline = 0.0

    # The life of the connection -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and wait for a request."""
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, Writer(transport, self._mark_answered))
        if len(self.connections) > self._limits.connections:
            transport.write(raw_answer("busy", retry_after=1))
            transport.close()
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: tell the supervisor."""
        self._stop_timer()
        if self.waiting is not None:
            self.waiting.cancel()
        super().connection_lost(exc)
        with contextlib.suppress(OSError):  # the other side has closed it
            self._socket.shutdown(socket.SHUT_RDWR)  # the supervisor holds the connection too, and would keep it open
        self._desk.close(self._slot)
        self._slot = None

    @property
    def _socket(self) -> socket.socket:
        return cast(socket.socket, self.transport.get_extra_info("socket"))

    # A request ----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take some bytes of a request."""
        if self._is_whole and (self.cycle is None or self.cycle.response_complete):
            self._desk.mark(self._slot, State.ASKED)
            self._is_whole = self._has_headers = False
            self._received = 0
            if self._timer is None:
                self._start_timer()
        self._received += len(data)
        super().data_received(data)
        if not self._has_headers and self._received > self._limits.headers and not self.transport.is_closing():
            self._refuse("headers-too-large")

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._is_whole = self._has_headers = False
        self._received = self._header_size = 0
        self.scope["connection"] = self  # type: ignore[typeddict-unknown-key]

    def on_url(self, url: bytes) -> None:
        """Take a part of the path."""
        self._header_size += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._header_size += len(name) + len(value) + 4
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start to answer."""
        self._has_headers = True
        if self._timer is None:  # one of several requests that came at once
            self._start_timer()
        super().on_headers_complete()

    @property
    def has_large_headers(self) -> bool:
        """Whether the headers of the request are beyond the limit."""
        return self._header_size > self._limits.headers

    def on_message_complete(self) -> None:
        """Know that the request has been sent as a whole."""
        self._is_whole = True
        self._stop_timer()
        super().on_message_complete()

    def begin_answer(self, size: int) -> None:
        """Prepare for an answer, which uvicorn writes in two parts.

        A small one leaves in one piece, so that a worker that is killed has sent all of it, or nothing.
        """
        if size <= _ONE_PIECE:
            cast(Writer, self.transport).hold()
        else:
            self._desk.mark(self._slot, State.ANSWERING)

    def _mark_answered(self, is_sent: bool) -> None:
        if not is_sent:
            self._desk.mark(self._slot, State.ANSWERING)
        elif not self.pipeline:
            self._desk.mark(self._slot, State.IDLE)

    def on_response_complete(self) -> None:
        """Know that the answer has been written."""
        self.waiting = None
        cast(Writer, self.transport).flush()
        self._desk.mark(self._slot, State.ASKED if self.pipeline else State.IDLE)
        super().on_response_complete()

    # Refusing -----------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse("malformed-request")

    def _refuse(self, code: str) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(raw_answer(code))
        self.transport.close()

    def _start_timer(self) -> None:
        self.deadline = self.loop.time() + self._limits.send
        self._timer = self.loop.call_at(self.deadline, self._expire)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_whole:
            self.transport.close()  # it was opened, and nothing came
        elif not self._has_headers:
            self._refuse("slow-request")
        else:  # the request waits for its body, and answers itself
            self._timer = self.loop.call_later(_GRACE, self.transport.close)
