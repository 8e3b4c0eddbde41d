"""A request as it is known before its body, and the answers to it.

Invariants:
    * A header that may stand in a request once is not taken from one that has it twice.
    * What a text of JSON says is used only where it is not nested too deeply.
    * Every refusal is answered with its code, and with what HTTP tells clients to look for.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope

from replayml.serving.errors import Refusal, error_body
from replayml.serving.messages.wire import MEDIA_TYPE
from replayml.serving.worker.connection import Connection
from replayml.serving.worker.streaming import Items

__all__ = ["JSON", "TENSORS", "Reply", "Request", "Streamed", "read_json", "refused"]

JSON, TENSORS = b"application/json", MEDIA_TYPE.encode()
"""The types of a body."""

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_MIDDLE = ord("[") + 1  # between both brackets
_LONG = 2**17
_ALIKE = bytes.maketrans(b"{}", b"[]")
_RETRY_AFTER = {"busy": b"1", "not-ready": b"1", "draining": b"1"}


class Request(NamedTuple):
    """What is known of a request before its body.

    Attributes:
        id: The request id.
        scope: What uvicorn tells of it.
        headers: Its headers; of several with the same name the last.
        receive: Gives its body.
    """

    id: str
    scope: Scope
    headers: Mapping[bytes, bytes]
    receive: Receive

    @property
    def connection(self) -> Connection:
        """The connection that it came through."""
        found: Connection = self.scope["connection"]
        return found

    def sole(self, name: bytes) -> bytes | None:
        """Return the header of some name; None where there is none, or more than one."""
        value = self.headers.get(name)
        if value is not None and len(self.headers) != len(self.scope["headers"]):  # some header came twice
            names = [found for found, _ in self.scope["headers"]]
            return value if names.count(name) == 1 else None
        return value


class Reply(Response):
    """An answer that is there as a whole; starlette would look through headers that nobody gave.

    Args:
        body: Its body.
        status: The status.
        kind: The type of the body.
    """

    def __init__(self, body: bytes, status: int = 200, *, kind: bytes = JSON) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [(b"content-length", b"%d" % len(body)), (b"content-type", kind)]


class Streamed(NamedTuple):
    """An answer that comes item by item.

    Attributes:
        items: The items.
        is_typed: Whether their tensors are sent as they are in memory.
    """

    items: Items
    is_typed: bool


def refused(refusal: Refusal, request: Request) -> Response:
    """Return the answer with a code."""
    response = Reply(error_body(refusal.code, request.id, refusal.detail), refusal.status)
    if refusal.code in _RETRY_AFTER:
        response.raw_headers.append((b"retry-after", _RETRY_AFTER[refusal.code]))
    if refusal.code == "wrong-method" and refusal.detail is not None:
        response.raw_headers.append((b"allow", ", ".join(refusal.detail["allowed"]).encode()))
    if refusal.code == "missing-token":
        response.raw_headers.append((b"www-authenticate", b"Bearer"))
    if b"expect" in request.headers or refusal.code in ("slow-request", "headers-too-large"):
        response.raw_headers.append((b"connection", b"close"))
    return response


def read_json(body: bytes | bytearray, depth: int) -> Any:
    """Return what a text of JSON says.

    Raises:
        Refusal: When it is none, or nested too deeply.

    Example:
        >>> read_json(b'{"args": [[1, 2]]}', depth=8)
        {'args': [[1, 2]]}
        >>> read_json(b"[" * 9 + b"]" * 9, depth=8)
        Traceback (most recent call last):
            ...
        replayml.serving.errors.Refusal: ('too-deep', {'most': 8})
    """
    try:
        value = _loads(body)
    except orjson.JSONDecodeError as error:
        code = "too-deep" if "depth" in error.msg else "malformed-json"
        raise Refusal(code) from None
    if body.count(b"[") + body.count(b"{") > depth:
        text = bytes(body)
        if b"\\" in text:
            text = text.replace(rb"\\", b"").replace(rb"\"", b"")
        brackets = b"".join(text.split(b'"')[::2]).translate(_ALIKE, _NO_BRACKETS)  # those outside of strings
        steps = _MIDDLE - np.frombuffer(brackets, np.int8)  # one down for each that opens, one up for each that closes
        if np.cumsum(steps, dtype=np.int32).max(initial=0) > depth:
            raise Refusal("too-deep", {"most": depth})
    return value


def _loads(body: bytes | bytearray) -> Any:
    """Return the value of a text; of a long one without looking for garbage among all the lists that are made."""
    if len(body) < _LONG or not gc.isenabled():
        return orjson.loads(body)
    gc.disable()
    try:
        return orjson.loads(body)
    finally:
        gc.enable()
