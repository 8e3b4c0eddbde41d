"""HTTP/1.1 and nothing else: uvicorn's protocol, which goes on in it whatever else a client would rather speak.

    POST /predict, Upgrade: h2c, Content-Length: 9 ─► the parser stops behind the headers: all else is HTTP/2 to it
        ─► another one is told how long the body is, and reads on

A client may offer to speak another protocol, as some do with each first request, and whoever does not know it answers
as if nothing had been offered (RFC 9110, 7.8). The parser ends its work there instead, and would lose the body.

Invariants:
    * A request that offers another protocol is answered as the same request without the offer.
    * What is read as a body, and where the next request begins, depends on no offer.
"""

from __future__ import annotations

from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["PlainProtocol"]

_FRAMING = (b"connection", b"content-length", b"transfer-encoding")
_OF_THE_BODY = ("on_body", "on_chunk_header", "on_chunk_complete")
_INVALID = "Invalid HTTP request received."


class PlainProtocol(HttpToolsProtocol):
    """A connection on which HTTP/1.1 is spoken."""

    def data_received(self, data: bytes) -> None:
        """Take some bytes."""
        rest: bytes | memoryview = data
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                except httptools.HttpParserUpgrade as offer:
                    rest = memoryview(rest)[offer.args[0] :]
                    self._go_on()
                else:
                    return
        except httptools.HttpParserError:
            self.logger.warning(_INVALID)
            self.send_400_response(_INVALID)

    @property
    def has_offer(self) -> bool:
        """Whether the parser stops behind the headers of this request, since it offers another protocol."""
        return bool(self.parser.should_upgrade())

    def _go_on(self) -> None:
        """Read the body of a request that offered something, which begins with the bytes that come next."""
        version = self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(_Rest(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] in _FRAMING]
        self.parser.feed_data(b"POST / HTTP/%b\r\n%b\r\n" % (version, b"".join(lines)))


class _Rest:
    """Tells a connection of the rest of a request, whose beginning it knows, and of all that follows.

    Args:
        connection: The connection.
    """

    def __init__(self, connection: HttpToolsProtocol) -> None:
        self._connection = connection
        self._is_first = True

    def __getattr__(self, name: str) -> Any:  # on_url, on_header and so on, where the connection has it
        found = getattr(self._connection, name)
        if name in _OF_THE_BODY:
            return found
        return lambda *facts: None if self._is_first else found(*facts)

    def on_message_complete(self) -> None:
        """Know that a request has been sent as a whole."""
        self._is_first = False
        self._connection.on_message_complete()
