"""One connection of a worker: uvicorn's HTTP protocol, with the limits that it lacks.

Invariants:
    * A request is sent in time or refused, its first line and headers included; no connection waits for ever.
    * What is not HTTP is answered with a code as well.
    * Bytes that are neither headers nor body are counted as headers are, and none of them is kept.
    * After an answer to a request that is not whole, no further request is read: nobody knows where one begins.
    * Whoever takes nothing of an answer for long, or all of it too slowly, is left.
    * The supervisor knows of the connection, and what is done with it, before a byte is worked on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from starlette.responses import Response
from starlette.types import Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from replayml.serving.errors import raw_answer
from replayml.serving.limits import ServeLimits
from replayml.serving.worker.desk import Desk, State
from replayml.serving.worker.plain import PlainProtocol
from replayml.serving.worker.resting import Rest
from replayml.serving.worker.taking import Taking

__all__ = ["Connection"]

_GRACE = 1.0
_ONE_PIECE = 65536
_CHUNK = 16
_AROUND_HEADER = 4


class Connection(PlainProtocol, asyncio.BufferedProtocol):
    """A connection.

    Args:
        config: What uvicorn gives every protocol.
        server_state: The same.
        app_state: The same.
        _loop: The same.
        own: Its socket.
        desk: Where the supervisor is told what is done with it.
        slot: Its place in the table of the supervisor; None for one that the supervisor has no hold of.
        limits: The limits.
        is_given: Whether it came from the supervisor, so that it may have been open for long.
        is_own: Whether the supervisor itself asks through it whether the worker answers.

    Attributes:
        waiting: What the model will answer to its request; nobody waits for it once the connection is lost.
        deadline: Until when its request is to be sent.
        is_own: Whether it is the supervisor's, and no user's.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        own: socket.socket,
        desk: Desk,
        slot: int | None,
        limits: ServeLimits,
        is_given: bool = False,
        is_own: bool = False,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._socket = own
        self._desk = desk
        self._limits = limits
        self._slot = slot
        self.is_own = is_own
        self._is_given = is_given
        self._is_given_back = False
        self._received = 0
        self._size = 0
        self._is_whole = True
        self._has_headers = False
        self._beside = 0
        self._timer: asyncio.TimerHandle | None = None
        self.waiting: asyncio.Future[Any] | None = None
        self.deadline = 0.0

    # The life of the connection -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and wait for a request."""
        super().connection_made(transport)
        self._taking = Taking(transport, self._limits, self._leave)
        self._rest = Rest(self._limits.idle, self._is_idle, transport.close)
        if len(self.connections) > self._limits.connections and not self._is_given:
            transport.write(raw_answer("busy", retry_after=1))
            transport.close()
        elif self._desk.is_retiring:
            self.give_back()
        elif self._is_given:
            self._rest.begin()
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """End: tell the supervisor."""
        self._stop_timer()
        self._taking.stop()
        self._rest.stop()
        if self.waiting is not None:
            self.waiting.cancel()
        super().connection_lost(exc)
        self._forget()
        if self._is_given_back and exc is None:
            self._desk.give_back(self._slot, self._socket)
            self._slot = None
            return
        with contextlib.suppress(OSError):  # the other side has closed it
            self._socket.shutdown(socket.SHUT_RDWR)  # the supervisor holds the connection too, and would keep it open
        self._desk.close(self._slot)
        self._slot = None

    def _forget(self) -> None:
        """Leave what was sent to whoever still works on it, so that it goes when that is done."""
        if self.cycle is not None:
            self.cycle.body = bytearray()  # a request of a lost connection is given no more of it
        self.pipeline.clear()
        self.cycle = self.scope = self.headers = None  # type: ignore[assignment]  # as before the first request

    def give_back(self) -> None:
        """Return it to the supervisor as soon as no request is under way on it, and read no further one."""
        if not self._is_whole or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self._is_given_back = True
            self._stop_timer()
            self.transport.close()  # what was written leaves first; the supervisor's hold keeps the connection open
        else:
            self.flow.read_paused = False  # so that uvicorn does not read on
            self.transport.pause_reading()

    # A request ----------------------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the bytes go that are there to be read; from here on somebody has asked something.

        Bytes that were read are in this process alone. When it is killed right after that, it is known already that
        there was a request.
        """
        if self._is_idle():
            self._desk.mark(self._slot, State.ASKED)
        return self._desk.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that were read."""
        self.data_received(bytes(self._desk.buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Take some bytes of a request."""
        if self._is_idle():
            self._is_whole = self._has_headers = False
            self._received = 0
        self._received += len(data)
        if self._is_inside:
            self._beside += len(data)
        super().data_received(data)
        self._beside = max(0, self._beside)
        if self._timer is None and not self._is_whole:  # most requests come as a whole, and need none
            self._start_timer()
        is_large = not self._has_headers and self._received > self._limits.headers
        if (is_large or (self._is_inside and self._beside > self._limits.headers)) and not self.transport.is_closing():
            self._refuse("headers-too-large")
        if self._desk.is_retiring:
            self.give_back()

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._is_whole = self._has_headers = False
        self._received = self._beside = self._size = 0

    def _is_idle(self) -> bool:
        """Whether no request is under way, nor any part of one."""
        return self._is_whole and (self.cycle is None or self.cycle.response_complete)

    @property
    def _is_inside(self) -> bool:
        """Whether the headers of a request have come, and not yet all of its body."""
        return self._has_headers and not self._is_whole

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; one that comes behind the body is dropped."""
        if not self._has_headers:
            self._size += len(name) + len(value) + _AROUND_HEADER
            super().on_header(name, value)

    def on_chunk_header(self) -> None:
        """Know that a piece of the body begins, which has a line of its own."""
        self._beside -= _CHUNK

    def on_body(self, body: bytes) -> None:
        """Take some bytes of the body."""
        self._beside -= len(body)
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """Start to answer."""
        super().on_headers_complete()
        self._has_headers = True  # not before: it raises when the first line is none
        self.scope.update(connection=self, cycle=self.cycle, size=self._size + len(self.url))  # type: ignore[call-arg]

    @property
    def is_alone(self) -> bool:
        """Whether no other request is being answered, on any connection."""
        return len(self.tasks) == 1

    def on_message_complete(self) -> None:
        """Know that the request has been sent as a whole."""
        if self.has_offer:
            return  # the parser has not read its body
        self._is_whole = True
        self._stop_timer()
        super().on_message_complete()
        if self.cycle.response_complete:  # it was answered before it was whole
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if not self.transport.is_closing():  # whoever was told that the connection is closed takes nothing for done
            super()._start_asgi_task(cycle, app)

    async def answer(self, scope: Scope, send: Send, response: Response) -> None:
        """Send an answer.

        A small one is written here, and leaves in one piece, so that a worker that is killed has sent all of it or
        nothing. uvicorn writes the headers first and then the body, and searches all of them for characters that no
        header of this service has.

        Args:
            scope: The request.
            send: uvicorn's way to answer it, for what is large or has to wait for room.
            response: The answer.
        """
        cycle: RequestResponseCycle = scope["cycle"]
        body = bytes(response.body)
        if cycle.disconnected:
            return
        is_early = cycle.more_body
        if is_early:
            cycle.keep_alive = False
            self._desk.mark(self._slot, State.ANSWERING)  # first: a worker that is killed then has answered already
        if len(body) > _ONE_PIECE or self.flow.write_paused:
            self._desk.mark(self._slot, State.ANSWERING)
            status, headers = response.status_code, response.raw_headers
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        headers = [*cycle.default_headers, *response.raw_headers]
        is_told = (b"connection", b"close") in headers
        if is_told:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            headers.append((b"connection", b"close"))
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        content = b"" if scope["method"] == "HEAD" else body
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[response.status_code], lines, content))
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        if not cycle.keep_alive and (is_told or not is_early):
            self.transport.close()  # otherwise what is still being sent is dropped first, or the answer would be lost
        cycle.on_response()

    async def begin_stream(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the start of an answer of which nobody knows how long it will be."""
        self._taking.stop()
        self._desk.mark(self._slot, State.ANSWERING)
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    def take_body(self, scope: Scope) -> bytearray | None:
        """Return the body of a request; None when it is not all here, or nobody waits for an answer."""
        cycle: RequestResponseCycle = scope["cycle"]
        if cycle.more_body or cycle.disconnected:
            return None
        if not self.pipeline:  # otherwise each answer would let in as much again as can be read at once
            self.flow.resume_reading()
        body, cycle.body = cycle.body, bytearray()
        return body

    def wait_for(self, future: asyncio.Future[Any]) -> None:
        """Cancel what is waited for when the connection is lost."""
        self.waiting = future

    def is_lost(self) -> bool:
        """Tell whether nobody takes an answer any more."""
        return self.transport.is_closing()

    def cut(self) -> None:
        """Close at once, without what was not taken."""
        self.transport.abort()

    def on_response_complete(self) -> None:
        """Know that the answer has been written."""
        self.waiting = None
        self._taking.watch()
        self._desk.mark(self._slot, self._state())
        if self.pipeline and self._timer is not None:  # nothing was read of the next one meanwhile
            self._stop_timer()
            self._start_timer()
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self.flow.resume_reading()
            self._rest.begin()
        if self._desk.is_retiring:
            self.give_back()

    def _state(self) -> State:
        """Return what is done with the connection after an answer."""
        if self.transport.get_write_buffer_size():
            return State.ANSWERING
        if self.pipeline:
            return State.ASKED
        if self._is_inside:  # it was answered before it was whole; what follows of it is no request
            return State.ANSWERING
        return State.IDLE if self._is_whole else State.ASKED

    def pause_writing(self) -> None:
        """Know that much was written and not taken; nothing is added to it until it has become less."""
        super().pause_writing()
        self._taking.watch()

    def resume_writing(self) -> None:
        """Know that there is room again."""
        super().resume_writing()
        if self.cycle is None or self.cycle.response_complete:
            self._taking.watch()
        else:
            self._taking.stop()  # more is added to it from now on, so that its size tells nothing

    def _leave(self) -> None:
        """Leave a client in the middle of an answer, where nobody can go on."""
        self._is_given_back = False
        self.transport.abort()

    # Refusing -----------------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse("malformed-request")

    def _refuse(self, code: str) -> None:
        if self._is_inside:
            if not (self.cycle.response_started or self.pipeline):
                self.transport.write(raw_answer(code))
                self.cycle.disconnected = True  # so that nothing else is answered
                self.cycle.message_event.set()
        elif self.cycle is None or self.cycle.response_complete:
            self.transport.write(raw_answer(code))
        self.transport.close()
        self._taking.watch()

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
        elif self.pipeline or not (self._has_headers or self.cycle is None or self.cycle.response_complete):
            self._start_timer()  # its turn has not come, and the one before is still being answered
        elif not self._has_headers:
            self._refuse("slow-request")
        else:  # the request waits for its body, and answers itself
            self._timer = self.loop.call_later(_GRACE, self.transport.close)
