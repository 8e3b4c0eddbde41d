"""What a worker tells its supervisor about the connections that it has, so that none is lost with it.

The worker hands the supervisor a second hold of each connection, and notes in a table that both share what it is
doing with it. When the worker is killed, the supervisor answers for it: who waited is told so, and a connection
between two requests goes on with the next worker.

    channel (one packet a message):  worker ─► open SLOT + connection, close SLOT, loaded, failed, draining
                                     worker ◄─ ask + connection, accept, take + connection, retire
                                     worker ─► return SLOT, retired

A worker accepts connections once it is told to. One that retires accepts no more, and returns each connection as it is,
unread, when no request is under way on it: the next version goes on with it, and its client notices nothing.

Invariants:
    * A byte in the table is set before a request is read, before a large answer is written, and after any answer.
    * A message that cannot be sent at once is kept in order; the worker never waits for the supervisor.
    * A packet that was cut, or holds no message, is told apart from all others: `MessageError`.
"""

from __future__ import annotations

import array
import asyncio
import mmap
import os
import socket
from collections import deque
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import orjson

__all__ = ["MESSAGE", "Desk", "MessageError", "State", "fitting", "open_table", "receive", "send"]

MESSAGE = 8192
"""The most bytes in a message."""

_ONE_READ = 2**18
_LONGEST_TEXT = 6000
_LONGEST_CHARACTER = 6


class MessageError(ValueError):
    """The other side sent what is no message."""


class State(IntEnum):
    """What a worker is doing with a connection."""

    IDLE = 0
    ASKED = 1
    ANSWERING = 2


def open_table(path: Path, slots: int) -> mmap.mmap:
    """Return the table of a worker; both sides open the same file."""
    with open(path, "a+b") as file:
        if path.stat().st_size < slots:
            file.truncate(slots)
        return mmap.mmap(file.fileno(), slots)


def send(channel: socket.socket, message: dict[str, object], files: Sequence[int] = ()) -> None:
    """Send a message, and files with it."""
    data = orjson.dumps(message)
    extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    channel.sendmsg([data], extra)


def receive(channel: socket.socket) -> tuple[dict[str, object] | None, list[int]]:
    """Return the next message and its files; None for the message when the other side is gone.

    Raises:
        BlockingIOError: When there is none at the moment.
        MessageError: When what came is none, or too long.
    """
    data, extra, flags, _ = channel.recvmsg(MESSAGE, socket.CMSG_SPACE(array.array("i").itemsize))
    files = array.array("i")
    for level, kind, content in extra:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            files.frombytes(content[: len(content) - len(content) % files.itemsize])
    try:
        return _read(data, is_cut=bool(flags & socket.MSG_TRUNC)), files.tolist()
    except MessageError:
        for number in files:
            os.close(number)
        raise


def _read(data: bytes, *, is_cut: bool) -> dict[str, object] | None:
    """Return the message of a packet."""
    if not data:
        return None
    if is_cut:
        raise MessageError(f"a message of more than {MESSAGE} bytes")
    try:
        message = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise MessageError(f"no JSON: {error}") from error
    if not isinstance(message, dict):
        raise MessageError(f"no object, but {type(message).__name__}")
    return message


def fitting(text: str) -> str:
    """Return as much of a text as a message has room for, however its characters are written.

    Example:
        >>> fitting("the weights are bad")
        'the weights are bad'
        >>> len(orjson.dumps(fitting(chr(0) * 10_000))) <= 6000
        True
    """
    text = text[:_LONGEST_TEXT].encode(errors="replace").decode()
    while (excess := len(orjson.dumps(text)) - _LONGEST_TEXT) > 0:
        text = text[: -1 - excess // _LONGEST_CHARACTER]
    return text


class Desk:
    """The worker's side.

    Args:
        channel: The socket to the supervisor.
        table: The table that both share.

    Attributes:
        is_retiring: Whether each connection is returned when no request is under way on it.
        buffer: Where bytes are read to, one connection after the other.
    """

    def __init__(self, channel: socket.socket, table: mmap.mmap) -> None:
        self._channel = channel
        self._table = table
        self.is_retiring = False
        self.buffer = memoryview(bytearray(_ONE_READ))
        self._free = list(range(len(table) - 1, -1, -1))
        self._kept: deque[tuple[dict[str, object], socket.socket | None]] = deque()

    def open(self, connection: socket.socket, *, is_given: bool = False) -> int | None:
        """Hand over a hold of a connection, and return its slot; None when there is no room.

        Args:
            connection: The connection.
            is_given: Whether it came from the supervisor.
        """
        if not self._free:
            self._tell({"do": "open", "given": is_given})
            return None
        slot = self._free.pop()
        self._table[slot] = State.IDLE
        self._tell({"do": "open", "slot": slot, "given": is_given}, connection)
        return slot

    def mark(self, slot: int | None, state: State) -> None:
        """Note what is done with a connection."""
        if slot is not None:
            self._table[slot] = state

    def close(self, slot: int | None) -> None:
        """Tell that a connection is over."""
        if slot is not None:
            self._tell({"do": "close", "slot": slot})
            self._free.append(slot)

    def give_back(self, slot: int | None, connection: socket.socket) -> None:
        """Tell that the supervisor has a connection again; the hold of the worker on it ends."""
        if slot is None:
            self._tell({"do": "return"}, connection)
        else:
            self._table[slot] = State.IDLE
            self._tell({"do": "return", "slot": slot})
            self._free.append(slot)

    def tell(self, do: str, **facts: object) -> None:
        """Send a message."""
        self._tell({"do": do, **facts})

    def _tell(self, message: dict[str, object], connection: socket.socket | None = None) -> None:
        if not self._kept and self._sent(message, connection):
            return
        if not self._kept:
            asyncio.get_running_loop().add_writer(self._channel, self._send_kept)
        self._kept.append((message, None if connection is None else connection.dup()))

    def _sent(self, message: dict[str, object], connection: socket.socket | None) -> bool:
        try:
            send(self._channel, message, () if connection is None else [connection.fileno()])
        except BlockingIOError:
            return False
        except OSError:
            return True  # the supervisor is gone, and the worker about to end
        return True

    def _send_kept(self) -> None:
        while self._kept:
            message, connection = self._kept[0]
            if not self._sent(message, connection):
                return
            self._kept.popleft()
            if connection is not None:
                connection.close()
        asyncio.get_running_loop().remove_writer(self._channel)
