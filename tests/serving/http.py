"""Speaking HTTP byte by byte, to send what no client would."""

from __future__ import annotations

import json
import socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Reply(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The code of an error."""
        return str(json.loads(self.body)["error"]["code"])

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)


class Line:
    """A connection to a service."""

    def __init__(self, url: str, timeout: float = 120.0) -> None:
        self.host = urlsplit(url).netloc
        address = urlsplit(url)
        self._rest = b""
        self.socket = socket.create_connection((address.hostname, address.port or 80), timeout=timeout)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.socket.sendall(data)

    def ask(
        self, path: str = "/predict", body: bytes | None = None, method: str | None = None, **headers: str | None
    ) -> Reply:
        """Send a request and return the answer; ``None`` leaves a header out."""
        self.send(request(self.host, path, body, method, **headers))
        return self.reply()

    def reply(self) -> Reply:
        """Return the next answer."""
        data, self._rest = self._rest, b""
        while b"\r\n\r\n" not in data:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError(f"the connection was closed after {data!r}")
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError("the connection was closed in the middle of an answer")
            body += more
        size = int(headers.get("content-length", 0))
        self._rest = body[size:]
        return Reply(int(first.split()[1]), headers, body[:size])

    def is_closed(self) -> bool:
        """Wait until the other side closes; False when it sends something."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True


def request(
    host: str, path: str = "/predict", body: bytes | None = None, method: str | None = None, **headers: str | None
) -> bytes:
    """Return a request as bytes."""
    fields: dict[str, str | None] = {"Host": host}
    if body is not None:
        fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    fields |= {name.replace("_", "-").title(): value for name, value in headers.items()}
    lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def ask(url: str, path: str = "/predict", body: bytes | None = None, **options: Any) -> Reply:
    """Send one request on a connection of its own."""
    with Line(url) as line:
        return line.ask(path, body, **options)
