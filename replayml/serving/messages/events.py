r"""Server-sent events: a result that comes item by item, as bytes, in both directions.

    event: item                          event: tensors                     event: end
    data: {"result": [0.5, 0.25]}        data: <base64 of a typed body>     data: {"items": 2}

An item is an ``item`` or, for who asked for tensors, a ``tensors`` event. The last event is ``end``, or ``error`` with
what an error answer has as its body: a stream without either was cut.

Invariants:
    * An event is two lines and an empty one; its data has no end of a line.
    * A reader holds no more than one event, of no more bytes than it was told.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from replayml.serving.messages.wire import decode, encode, plain

__all__ = ["EVENTS", "Event", "EventReader", "TooLongError", "end_event", "error_event", "item_event", "tensors_in"]

EVENTS = "text/event-stream"
"""The media type."""

_OPTION = orjson.OPT_SERIALIZE_NUMPY


# Writing --------------------------------------------------------------------------------------------------------


def item_event(value: Any, *, is_typed: bool) -> bytes:
    r"""Return the event of an item.

    Args:
        value: The item.
        is_typed: Whether its tensors are sent as they are in memory.

    Raises:
        ArgumentError: When it has no typed form.
        Refusal: When it has no form in JSON.

    Example:
        >>> item_event((1, 2.5), is_typed=False)
        b'event: item\ndata: {"result":[1,2.5]}\n\n'
    """
    if is_typed:
        return _event(b"tensors", binascii.b2a_base64(encode(value), newline=False))
    return _event(b"item", orjson.dumps({"result": plain(value)}, option=_OPTION))


def error_event(body: bytes) -> bytes:
    """Return the event that ends a stream with an error.

    Args:
        body: What `replayml.serving.errors.error_body` returned.
    """
    return _event(b"error", body)


def end_event(items: int) -> bytes:
    r"""Return the event that ends a whole stream.

    Example:
        >>> end_event(2)
        b'event: end\ndata: {"items":2}\n\n'
    """
    return _event(b"end", orjson.dumps({"items": items}))


def _event(name: bytes, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name, data)


# Reading --------------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """An event that came.

    Attributes:
        name: What it is.
        data: What it says.
    """

    name: str
    data: bytes


class TooLongError(ValueError):
    """An event that does not end in time."""


class EventReader:
    r"""Makes events of the bytes that come.

    Args:
        most: How many bytes an event has at most.

    Example:
        >>> reader = EventReader(most=100)
        >>> list(reader.feed(b"event: item\nda")), list(reader.feed(b"ta: 1\n\n: still here\n\n"))
        ([], [Event(name='item', data=b'1')])
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._line = bytearray()
        self._size = 0
        self._name = "message"
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that are whole with these bytes.

        Raises:
            TooLongError: When one is longer than it may be.
        """
        start = 0
        while (stop := data.find(b"\n", start)) >= 0:
            self._keep(data[start:stop])
            self._size += 1
            line, self._line = self._line, bytearray()
            start = stop + 1
            event = self._take(bytes(line.removesuffix(b"\r")))
            if event is not None:
                yield event
        self._keep(data[start:])

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._most:
            raise TooLongError(f"an event of the stream is longer than {self._most} bytes")
        self._line += part

    def _take(self, line: bytes) -> Event | None:
        """Take a line; return the event that it ends."""
        if not line:
            event = Event(self._name, b"\n".join(self._data)) if self._data else None
            self._size, self._name, self._data = 0, "message", []
            return event
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"data":
            self._data.append(value)
        return None


def tensors_in(data: bytes, depth: int) -> Any:
    """Return the value in a ``tensors`` event.

    Raises:
        ValueError: When it is no base64.
        Refusal: When it is no typed body.

    Example:
        >>> import torch
        >>> tensors_in(EventReader(1000).feed(item_event(torch.ones(2), is_typed=True)).__next__().data, depth=4)
        tensor([1., 1.])
    """
    return decode(bytearray(binascii.a2b_base64(data, strict_mode=True)), depth)
