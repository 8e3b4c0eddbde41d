"""Connections that have no worker at the moment: they wait for one, and who asks whether one is ready is told no.

Invariants:
    * Nothing is taken out of a connection that waits: the worker that gets it reads the whole request.
    * No connection waits longer than an answer may take.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import time
from collections import OrderedDict

from replayml.serving.errors import raw_answer
from replayml.serving.limits import ServeLimits

__all__ = ["Doorway", "answer_and_close", "dismiss", "shut"]

_PEEK = 65536
_LONGEST_LINE = 8192
_PIECES = 0.2
_ASKS_READY = re.compile(rb"(GET|HEAD) /readyz(\?[^ \r\n]*)? ")
_ASKS_ALIVE = re.compile(rb"GET /healthz(\?[^ \r\n]*)? ")
_QUESTIONS = (b"GET /readyz", b"HEAD /readyz", b"GET /healthz")
_ALIVE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 14\r\nconnection: close\r\n\r\n"
    b'{"alive":true}'
)


class Doorway:
    """Where connections wait.

    Args:
        selector: Of the supervisor's thread.
        listener: Where connections come from while no worker accepts them.
        limits: The limits.
    """

    def __init__(self, selector: selectors.BaseSelector, listener: socket.socket, limits: ServeLimits) -> None:
        self._selector = selector
        self._listener = listener
        self._limits = limits
        self._is_open = False
        self._watched: set[socket.socket] = set()
        self._since: OrderedDict[socket.socket, float] = OrderedDict()
        self._begun: set[socket.socket] = set()  # by a piece of a line that may become a question
        self._next_look = 0.0

    @property
    def waiting(self) -> int:
        """How many connections wait."""
        return len(self._since)

    def open(self) -> None:
        """Take the connections that come."""
        if not self._is_open:
            self._selector.register(self._listener, selectors.EVENT_READ, self._listener)
            for connection in self._since:
                self._watch(connection)
            self._is_open = True

    def shut(self) -> None:
        """Leave the connections that come to the workers."""
        if self._is_open:
            self._selector.unregister(self._listener)
            self._is_open = False

    def keep(self, connection: socket.socket) -> None:
        """Let a connection wait."""
        connection.setblocking(False)
        self._since[connection] = time.monotonic()
        self._watch(connection)

    def take(self) -> socket.socket:
        """Return the connection that has waited longest."""
        connection, _ = self._since.popitem(last=False)
        self._unwatch(connection)
        return connection

    def look(self, source: socket.socket) -> None:
        """See what came: a connection, or a request on one."""
        if source is self._listener:
            with contextlib.suppress(OSError):
                connection, _ = source.accept()
                if self.waiting >= self._limits.connections:
                    answer_and_close(connection, "busy", retry_after=1)
                else:
                    self.keep(connection)
            return
        try:
            start = source.recv(_PEEK, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            start = b""
        if not start:
            self._drop(source)
        elif _ASKS_READY.match(start):
            self._forget(source)
            answer_and_close(source, "not-ready", retry_after=1)
        elif _ASKS_ALIVE.match(start):
            self._forget(source)
            _send_and_close(source, _ALIVE)
        else:
            self._unwatch(source)  # it stays as it is until a worker takes it
            if _may_become_a_question(start):
                self._begun.add(source)

    def look_again(self) -> None:
        """See whether more came on connections where a question may have begun."""
        for connection in list(self._begun):
            self.look(connection)

    def expire(self) -> None:
        """Answer those that have waited too long, and those of which more has come."""
        if self._begun and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _PIECES
            self.look_again()
        end = time.monotonic() - self._limits.answer
        for connection in [connection for connection, since in self._since.items() if since < end]:
            is_asked = connection not in self._watched
            self._forget(connection)
            if is_asked:
                answer_and_close(connection, "not-ready", retry_after=1)
            else:
                shut(connection)

    def close(self) -> None:
        """End all of it."""
        self.shut()
        for connection in list(self._since):
            self._forget(connection)
            dismiss(connection)

    def drop_all(self) -> None:
        """Close all that wait, whatever the selector knows of them."""
        while self._since:
            shut(self._since.popitem()[0])

    def _watch(self, connection: socket.socket) -> None:
        if connection not in self._watched:
            self._selector.register(connection, selectors.EVENT_READ, connection)
            self._watched.add(connection)

    def _unwatch(self, connection: socket.socket) -> None:
        self._begun.discard(connection)
        if connection in self._watched:
            self._selector.unregister(connection)
            self._watched.discard(connection)

    def _forget(self, connection: socket.socket) -> None:
        self._unwatch(connection)
        self._since.pop(connection, None)

    def _drop(self, connection: socket.socket) -> None:
        self._forget(connection)
        shut(connection)


def _may_become_a_question(start: bytes) -> bool:
    """Tell whether this is a piece of a request line that may ask for the state of the service."""
    is_line = b"\n" not in start and len(start) < _LONGEST_LINE
    return is_line and any(start[: len(question)] == question[: len(start)] for question in _QUESTIONS)


def answer_and_close(connection: socket.socket, code: str, *, retry_after: int | None = None) -> None:
    """Answer a request with a code, and close its connection."""
    _send_and_close(connection, raw_answer(code, retry_after=retry_after))


def _send_and_close(connection: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(answer)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(_PEEK):  # what was sent and not read would make the system drop the answer
            pass
    connection.close()


def dismiss(connection: socket.socket) -> None:
    """Close a connection of a service that ends; who has asked something is told so."""
    has_asked = False
    with contextlib.suppress(OSError):
        has_asked = bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    if has_asked:
        answer_and_close(connection, "draining")
    else:
        shut(connection)


def shut(connection: socket.socket) -> None:
    """Close a connection, whoever else has a hold of it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
