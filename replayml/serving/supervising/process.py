"""One worker, as the supervisor sees it.

    started ─► loaded ─► asked, and has answered ─► told to accept: ready ─► told to retire ─► retired ─► ended

Invariants:
    * The supervisor has a hold of every connection that the worker told of, or was given, until it is closed.
    * What the worker is told reaches it in its order; the supervisor never waits for it.
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

__all__ = ["Question", "Version", "Worker", "surroundings"]

_METRICS = "PROMETHEUS_MULTIPROC_DIR"
_QUESTION = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
_LONGEST_ANSWER = 65536


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
            self._process = _spawn(replace(version.spec, table=str(table)), listener.fileno(), far_end.fileno())
            undo.pop_all()

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
        while self._orders:
            try:
                send(self.channel, {"do": self._orders[0]})
            except BlockingIOError:
                return False
            except OSError:
                pass  # it has ended, which shows elsewhere
            self._orders.popleft()
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
        self._table.close()
        self._path.unlink(missing_ok=True)


class Question:
    """A request by which the supervisor finds out whether a worker answers, and which version.

    Args:
        worker: The worker, which has loaded.

    Attributes:
        worker: The worker.
        socket: Where its answer comes.

    Raises:
        OSError: When it cannot be asked.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.socket, far_end = socket.socketpair()
        self.socket.setblocking(False)
        self._answer = b""
        try:
            with far_end:
                send(worker.channel, {"do": "ask"}, [far_end.fileno()])
            self.socket.send(_QUESTION)
        except BaseException:
            self.socket.close()
            raise

    def look(self) -> str | None:
        """Take what came; return None as long as there is more to come, and then what is wrong, or an empty text."""
        try:
            data = self.socket.recv(_LONGEST_ANSWER)
        except BlockingIOError:
            return None
        except OSError as error:
            return f"it did not answer: {error}"
        self._answer += data
        if data and len(self._answer) < _LONGEST_ANSWER:
            return None
        head = self._answer.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
        label = b"x-model-version: %d" % self.worker.version.spec.version
        if not head[0].startswith(b"http/1.1 200 ") or label not in head:
            return f"it answered {self._answer[:200].decode('latin-1')!a}"
        return ""


def surroundings() -> dict[str, str]:
    """Return the environment variables, also while another thread changes them.

    Example:
        >>> surroundings() == dict(os.environ)
        True
    """
    found = ((name, os.environ.get(name)) for name in tuple(os.environ))
    return {name: value for name, value in found if value is not None}


def _spawn(spec: Spec, listener: int, channel: int) -> subprocess.Popen[bytes]:
    """Start the process and give it its spec."""
    written = spec.to_json()
    environment = {**surroundings(), **spec.environment, _METRICS: str(Path(spec.folder) / "metrics")}
    process = subprocess.Popen(  # noqa: S603 - this interpreter, with fixed words and two numbers
        [sys.executable, "-m", spec.program, str(listener), str(channel)],
        stdin=subprocess.PIPE,
        stdout=None if not spec.log else subprocess.DEVNULL,
        pass_fds=(listener, channel),
        env=environment,
        start_new_session=True,  # an interrupt at the terminal is for the program, which stops the worker
    )
    assert process.stdin is not None
    with process.stdin as pipe, contextlib.suppress(BrokenPipeError):
        pipe.write(written)
    return process
