"""A client that asks a service as fast as it answers, and takes as little of the machine as it can.

    python -m benchmarks.asking PORT CONNECTIONS SECONDS < REQUEST

It speaks HTTP byte by byte on sockets without a framework, in a process of its own that imports nothing large. It tells
how busy it was: near 1 it would measure itself.
"""

from __future__ import annotations

import json
import selectors
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["NUMBER", "Load", "answers", "ask"]

NUMBER = b"@@@@"
"""Where a request holds this, each connection puts its number."""

_WARM = 0.5


class Load(NamedTuple):
    """What one run found.

    Attributes:
        rate: Requests a second.
        p50: The median of the seconds until an answer.
        p99: What 99 of 100 did not exceed.
        busy: Which part of the time the client itself was at work.
    """

    rate: float
    p50: float
    p99: float
    busy: float


@dataclass(slots=True)
class _Line:
    """A connection, its request, and what came of the answer to it."""

    socket: socket.socket
    request: bytes
    started: float = 0.0
    answer: bytes = b""

    def send(self) -> None:
        self.answer = b""
        self.started = time.perf_counter()
        self.socket.sendall(self.request)

    def is_answered(self) -> bool:
        """Take what is there, and tell whether the answer is whole."""
        data = self.socket.recv(65536)
        assert data, "the connection was closed"
        self.answer += data
        end = self.answer.find(b"\r\n\r\n")
        if end < 0:
            return False
        assert self.answer.startswith(b"HTTP/1.1 200"), self.answer
        length = self.answer[:end].lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        return len(self.answer) - end - 4 >= int(length)


def _run(port: int, request: bytes, connections: int, seconds: float) -> Load:
    selector = selectors.DefaultSelector()
    for number in range(connections):
        own = socket.create_connection(("127.0.0.1", port))
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = _Line(own, request.replace(NUMBER, b"%04d" % number))
        selector.register(own, selectors.EVENT_READ, line)
        line.send()
    _ask_until(selector, time.perf_counter() + _WARM)
    begin, used = time.perf_counter(), time.process_time()
    times = _ask_until(selector, begin + seconds)
    taken, used = time.perf_counter() - begin, time.process_time() - used
    return Load(len(times) / taken, statistics.median(times), times[int(len(times) * 0.99)], used / taken)


def _ask_until(selector: selectors.BaseSelector, end: float) -> list[float]:
    """Ask again and again, and return how long the answers took, the shortest first."""
    times = []
    while time.perf_counter() < end:
        for key, _ in selector.select(1.0):
            line: _Line = key.data
            if line.is_answered():
                times.append(time.perf_counter() - line.started)
                line.send()
    return sorted(times)


def ask(port: int, request: bytes, connections: int, seconds: float) -> Load:
    """Ask a service from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.asking", str(port), str(connections), str(seconds)]
    done = subprocess.run(command, input=request, check=True, stdout=subprocess.PIPE)
    return Load(*json.loads(done.stdout))


def answers(port: int, request: bytes) -> bool:
    """Ask once; False when nobody listens yet."""
    try:
        with socket.create_connection(("127.0.0.1", port)) as own:
            line = _Line(own, request.replace(NUMBER, b"0000"))
            line.send()
            while not line.is_answered():
                pass
    except ConnectionError:
        return False
    return True


if __name__ == "__main__":
    port, connections, seconds = sys.argv[1:]
    print(json.dumps(_run(int(port), sys.stdin.buffer.read(), int(connections), float(seconds))))
