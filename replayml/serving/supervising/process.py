"""One worker, as the supervisor sees it.

    started ─► loaded ─► asked, and has answered ─► told to accept: ready ─► told to retire ─► retired ─► ended

Invariants:
    * The supervisor has a hold of every connection that the worker told of, or was given, until it is closed.
    * What the worker is told reaches it in its order, its spec first; the supervisor never waits for it.
    * A worker that sends what is no message is at fault: it is killed.
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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from replayml.serving.packing.spec import Spec
from replayml.serving.supervising.doorway import shut
from replayml.serving.worker.desk import MessageError, State, open_table, receive, send

__all__ = ["Version", "Worker", "surroundings"]


@dataclass(eq=False)
class Version:
    """A version of what is served.

    Attributes:
        spec: What its workers are started with.
        folder: The files that they open.
        failure: Why it was not switched to, or None.
        is_gone: Whether it has ended, with all its workers and files.
    """

    spec: Spec
    folder: Path
    failure: str | None = None
    is_gone: bool = False


class Worker:
    """A worker process.

    Args:
        version: What it serves.
        table: The file of the table of its connections.
        listener: The listening socket.

    Attributes:
        version: What it serves.
        channel: The socket to it.
        started: When it was started.
        ready_at: When it was told to accept; 0 until then.
        retired_at: When it was told to retire; 0 until then.
        cut_at: When it closed its channel, since it ends; 0 until then.
        is_loaded: Whether it has loaded the model.
        is_draining: Whether it was told to end by a signal, and takes no further connections.
        is_retired: Whether it has stopped to read from connections on which no request is under way.
        failure: Why it could not start or go on, or None.
        returned: The connections that it gave back, for others to go on with.
    """

    def __init__(self, version: Version, table: Path, listener: socket.socket) -> None:
        self.version = version
        self.channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.started = time.monotonic()
        self.ready_at = self.retired_at = self.cut_at = 0.0
        self.is_loaded = self.is_draining = self.is_retired = False
        self.failure: str | None = None
        self.returned: deque[socket.socket] = deque()
        self._held: dict[int, socket.socket] = {}
        self._given: deque[socket.socket] = deque()
        self._orders: deque[str] = deque()
        self._path = table
        with far_end, contextlib.ExitStack() as undo:
            undo.callback(self.channel.close)
            undo.callback(partial(table.unlink, missing_ok=True))
            self._table = undo.enter_context(open_table(table, version.spec.limits.connections + 16))
            self.channel.setblocking(False)
            spec = replace(version.spec, table=str(table))
            self._spec = spec.to_json()
            self._process = _spawn(spec, listener.fileno(), far_end.fileno())
            undo.pop_all()
        self.flush()

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return self.ready_at > 0 and not (self.is_draining or self.retired_at or self.cut_at)

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    # What it says -------------------------------------------------------------------------------------------------

    def hear(self) -> bool:
        """Take its messages; tell whether there can be more."""
        while True:
            try:
                message, files = receive(self.channel)
            except BlockingIOError:
                return True
            except OSError:
                return False
            except MessageError as error:
                self.failure = f"Its process sent what cannot be read: {error}."
                self.kill()
                return False
            if message is None:
                return False
            self._take(message, files)

    def _take(self, message: dict[str, object], files: list[int]) -> None:
        slot = message.get("slot")
        if isinstance(slot, int) and not 0 <= slot < len(self._table):
            slot = None
        match message.get("do"):
            case "open":
                if message.get("given") and self._given:
                    self._given.popleft().close()
                if files and isinstance(slot, int):
                    self._held[slot] = socket.socket(fileno=files[0])
            case "close" if isinstance(slot, int):
                held = self._held.pop(slot, None)
                if held is not None:
                    held.close()
            case "return" if isinstance(slot, int):
                held = self._held.pop(slot, None)
                if held is not None:
                    self.returned.append(held)
            case "return":
                self.returned.extend(socket.socket(fileno=number) for number in files)
            case "loaded":
                self.is_loaded = True
            case "retired":
                self.is_retired = True
            case "draining":
                self.is_draining = True
            case "failed":
                self.failure = str(message.get("text"))

    # What it is told ----------------------------------------------------------------------------------------------

    def accept(self) -> None:
        """Let it take requests."""
        self.ready_at = time.monotonic()
        self._order("accept")

    def retire(self) -> None:
        """Let it finish what it has, return all else, and end."""
        self.retired_at = time.monotonic()
        self._order("retire")

    def give(self, connection: socket.socket) -> bool:
        """Give it a connection; tell whether it could be given. It is held until the worker has it."""
        if not self.flush():
            return False
        try:
            send(self.channel, {"do": "take"}, [connection.fileno()])
        except OSError:
            return False
        self._given.append(connection)
        return True

    def _order(self, do: str) -> None:
        self._orders.append(do)
        self.flush()

    def flush(self) -> bool:
        """Send what could not be sent at once; tell whether nothing of it is left."""
        if not self._send_spec():
            return False
        while self._orders:
            try:
                send(self.channel, {"do": self._orders[0]})
            except BlockingIOError:
                return False
            except OSError:
                pass  # it has ended, which shows elsewhere
            self._orders.popleft()
        return True

    def _send_spec(self) -> bool:
        """Write of the spec what there is room for: a large one goes on when the process reads."""
        pipe = self._process.stdin
        assert pipe is not None
        if pipe.closed:
            return True
        while self._spec:
            try:
                self._spec = self._spec[os.write(pipe.fileno(), self._spec) :]
            except BlockingIOError:
                return False
            except OSError:
                break  # it has ended, which shows elsewhere
        pipe.close()
        return True

    # Its end ------------------------------------------------------------------------------------------------------

    def connections(self) -> Iterator[tuple[socket.socket, State]]:
        """Yield the connections that it left behind, and what it was doing with each."""
        for waiting in (self.returned, self._given):
            while waiting:
                yield waiting.popleft(), State.IDLE
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
        """Return the exit code of a process that has ended."""
        return self._process.wait()

    def forsake(self) -> None:
        """End it and all its connections at once, and give everything back."""
        self.kill()
        self.reap()
        for connection in (*self.returned, *self._given, *self._held.values()):
            shut(connection)
        self.close()

    def close(self) -> None:
        """Give everything back."""
        self.channel.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._table.close()
        self._path.unlink(missing_ok=True)


def surroundings() -> dict[str, str]:
    """Return the environment variables, also while another thread changes them.

    Example:
        >>> surroundings() == dict(os.environ)
        True
    """
    found = ((name, os.environ.get(name)) for name in tuple(os.environ))
    return {name: value for name, value in found if value is not None}


def _spawn(spec: Spec, listener: int, channel: int) -> subprocess.Popen[bytes]:
    """Start a process, which reads its spec from a pipe."""
    process = subprocess.Popen(  # noqa: S603 - this interpreter, with fixed words and two numbers
        [sys.executable, "-m", spec.program, str(listener), str(channel)],
        stdin=subprocess.PIPE,
        bufsize=0,
        stdout=None if not spec.log else subprocess.DEVNULL,
        pass_fds=(listener, channel),
        env={**surroundings(), **spec.environment},
        start_new_session=True,  # an interrupt at the terminal is for the program, which stops the worker
    )
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    return process
