"""One worker, as the supervisor sees it.

Invariants:
    * The supervisor has a hold of every connection that the worker told of, or was given, until it is closed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from replayml.serving.desk import State, open_table, receive, send
from replayml.serving.spec import Spec

__all__ = ["Worker"]

_METRICS = "PROMETHEUS_MULTIPROC_DIR"


class Worker:
    """A worker process.

    Args:
        spec: What it is started with.
        listener: The listening socket.

    Attributes:
        channel: The socket to it.
        started: When it was started.
        ready_at: When it was ready; 0 until then.
        is_draining: Whether it takes no further connections.
        failure: Why it could not start, or None.
    """

    def __init__(self, spec: Spec, listener: socket.socket) -> None:
        self.channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.started = time.monotonic()
        self.ready_at = 0.0
        self.is_draining = False
        self.failure: str | None = None
        self._held: dict[int, socket.socket] = {}
        self._given: deque[socket.socket] = deque()
        self._path = Path(spec.table)
        self._table = open_table(self._path, spec.limits.connections + 16)
        try:
            self._process = _spawn(spec, listener.fileno(), far_end.fileno())
        except BaseException:
            self.channel.close()
            self._table.close()
            raise
        finally:
            far_end.close()
        self.channel.setblocking(False)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.ready_at > 0 and not self.is_draining

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def hear(self) -> bool:
        """Take its messages; tell whether there can be more."""
        while True:
            try:
                message, files = receive(self.channel)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if message is None:
                return False
            self._take(message, files)

    def _take(self, message: dict[str, object], files: list[int]) -> None:
        slot = message.get("slot")
        match message.get("do"):
            case "open":
                if message.get("given"):
                    self._given.popleft().close()
                if files and isinstance(slot, int):
                    self._held[slot] = socket.socket(fileno=files[0])
            case "close" if isinstance(slot, int):
                held = self._held.pop(slot, None)
                if held is not None:
                    held.close()
            case "ready":
                self.ready_at = time.monotonic()
            case "draining":
                self.is_draining = True
            case "failed":
                self.failure = str(message.get("text"))

    def give(self, connection: socket.socket) -> bool:
        """Give it a connection; tell whether it could be given. It is held until the worker has it."""
        try:
            send(self.channel, {"do": "take"}, [connection.fileno()])
        except OSError:
            return False
        self._given.append(connection)
        return True

    def connections(self) -> Iterator[tuple[socket.socket, State]]:
        """Yield the connections that it left behind, and what it was doing with each."""
        while self._given:
            yield self._given.popleft(), State.IDLE
        while self._held:
            slot, connection = self._held.popitem()
            yield connection, State(self._table[slot])

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        self.send(signal.SIGKILL)

    def reap(self) -> int:
        """Make sure that it has ended, and return its exit code."""
        try:
            return self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def close(self) -> None:
        """Give everything back."""
        self.channel.close()
        self._table.close()
        self._path.unlink(missing_ok=True)


def _spawn(spec: Spec, listener: int, channel: int) -> subprocess.Popen[bytes]:
    """Start the process and give it its spec."""
    environment = {**os.environ, _METRICS: str(Path(spec.folder) / "metrics")}
    process = subprocess.Popen(  # noqa: S603 - this interpreter, with fixed words and two numbers
        [sys.executable, "-m", "replayml.serving.worker", str(listener), str(channel)],
        stdin=subprocess.PIPE,
        stdout=None if not spec.log else subprocess.DEVNULL,
        pass_fds=(listener, channel),
        env=environment,
        start_new_session=True,  # an interrupt at the terminal is for the program, which stops the worker
    )
    assert process.stdin is not None
    with process.stdin as pipe, contextlib.suppress(BrokenPipeError):
        pipe.write(spec.to_json())
    return process
