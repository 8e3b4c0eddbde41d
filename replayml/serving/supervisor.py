"""The supervisor: a thread of the program that starts the workers, watches them, and answers where they cannot.

    listening socket, bound here ─► inherited by each worker, which accepts by itself
    a worker ends  ─► its waiting requests get a 503, its idle connections go on with the next worker, it is replaced
    no worker runs ─► connections wait here for one; /readyz says so

Invariants:
    * The port is known before a worker runs, and stays when one ends.
    * No worker outlives the supervisor, nor the supervisor the program.
    * After `stop` there is no process, thread, port, connection or file of the service.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from replayml.core.errors import ConfigurationError
from replayml.serving.desk import State
from replayml.serving.doorway import Doorway, answer_and_close
from replayml.serving.errors import Problem, serving_error
from replayml.serving.hosts import LOCAL
from replayml.serving.process import Worker
from replayml.serving.spec import Spec

__all__ = ["Supervisor"]

_TICK = 1.0
_YOUNG = 2.0
_LONGEST_BACKOFF = 10.0
_GRACE = 5.0


class Supervisor:
    """Runs a service.

    Args:
        spec: What to serve; what a worker alone needs is filled in here.
        replicas: How many workers.
        port: The port; 0 for a free one.
    """

    def __init__(self, spec: Spec, *, replicas: int, port: int) -> None:
        require_token(spec)
        self._spec = spec
        self._replicas = replicas
        self._port = port
        self._folder: Path | None = None
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._workers: list[Worker] = []
        self._failure: str | None = None
        self._is_stopping = False
        self._has_been_ready = False
        self._ear: socket.socket | None = None
        self._mouth: socket.socket | None = None
        self._due: list[float] = []
        self._deaths = 0

    # For the program ----------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """The address and port that the service is bound to."""
        assert self._listener is not None
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    @property
    def pids(self) -> list[int]:
        """The processes of the workers."""
        return [worker.pid for worker in list(self._workers)]

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._thread is not None and self._thread.is_alive() and not self._is_stopping

    @property
    def ready(self) -> int:
        """How many workers answer requests."""
        return sum(worker.is_ready for worker in list(self._workers))

    def start(self, pack: Callable[[Path, Spec], Spec]) -> None:
        """Start the workers, and return when all of them answer.

        Args:
            pack: Writes what the workers open into a folder, and returns the spec that says where it is.

        Raises:
            ServingError: When one could not load what is served, or not in time.
            OSError: When the port is taken.
        """
        self._listener = _bound(self._spec.host, self._port)
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=f"replayml-serving-{os.getpid()}-"))
            (self._folder / "metrics").mkdir()
            spec = pack(self._folder, self._spec)
            self._spec = replace(spec, sys_path=tuple(sys.path), folder=str(self._folder), parent=os.getpid())
            self._ear, self._mouth = socket.socketpair()
            self._thread = threading.Thread(target=self._run, name="replayml-supervisor", daemon=True)
            self._thread.start()
            self._await_start()
        except BaseException:
            self.stop(drain=False)
            raise

    def _await_start(self) -> None:
        end = time.monotonic() + self._spec.limits.start
        with self._changed:
            while self._failure is None and self.ready < self._replicas:
                if not self._changed.wait(max(0.0, min(end - time.monotonic(), _TICK))) and time.monotonic() > end:
                    self._failure = f"no worker was ready within {self._spec.limits.start:g} s"
            if self._failure is not None:
                host, port = self.address
                raise serving_error(
                    Problem(
                        "start-failed", f"{self._spec.title} could not be served. {self._failure}", _url(host, port)
                    )
                )
            self._has_been_ready = True

    def wait(self, timeout: float | None = None) -> None:
        """Wait until every worker answers again, or the service was stopped."""
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self.is_running and self.ready < self._replicas:
                left = _TICK if end is None else min(_TICK, end - time.monotonic())
                if left <= 0:
                    return
                self._changed.wait(left)

    def stop(self, *, drain: bool = True) -> None:
        """Stop the workers and give everything back.

        Args:
            drain: Whether running requests may finish.
        """
        with self._changed:
            self._is_stopping = True
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._wake(b"d" if drain else b"k")
            thread.join()
            self._thread = None
        for end in (self._listener, self._ear, self._mouth):
            if end is not None:
                end.close()
        self._listener_closed()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _listener_closed(self) -> None:
        self._listener = self._ear = self._mouth = None

    def _wake(self, what: bytes) -> None:
        if self._mouth is not None:
            with contextlib.suppress(OSError):
                self._mouth.send(what)

    # In the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        assert self._listener is not None
        assert self._ear is not None
        with selectors.DefaultSelector() as selector:
            self._selector = selector
            self._door = Doorway(selector, self._listener, self._spec.limits)
            selector.register(self._ear, selectors.EVENT_READ, self._ear)
            for _ in range(self._replicas):
                self._spawn()
            order = b""
            while not order:
                order = self._step()
            self._end(is_drained=order == b"d")
            self._door.close()
            selector.unregister(self._ear)

    def _step(self) -> bytes:
        """Do what there is to do; return an order of the program, if there is one."""
        assert self._ear is not None
        if self.ready:
            self._door.shut()
            if self._door.waiting:
                self._hand_over()
        else:
            self._door.open()
        now = time.monotonic()
        timeout = min([_TICK, *(max(0.0, due - now) for due in self._due)])
        for key, _ in self._selector.select(timeout):
            if key.data is self._ear:
                order: bytes = self._ear.recv(1)
                return order
            if isinstance(key.data, Worker):
                self._hear(key.data)
            else:
                self._door.look(key.data)
        self._door.expire()
        self._look_after()
        return b""

    def _spawn(self) -> None:
        assert self._listener is not None
        assert self._folder is not None
        table = self._folder / f"table-{secrets.token_hex(4)}"
        worker = Worker(replace(self._spec, table=str(table)), self._listener)
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)
        with self._changed:
            self._workers.append(worker)
            self._changed.notify_all()

    def _hear(self, worker: Worker) -> None:
        """Take the messages of a worker; without a next one it has ended."""
        was_ready = worker.is_ready
        is_open = worker.hear()
        if worker.is_ready != was_ready or worker.failure is not None:
            with self._changed:
                if worker.failure is not None and not self._has_been_ready:
                    self._failure = worker.failure
                self._changed.notify_all()
        if not is_open:
            self._bury(worker)

    def _look_after(self) -> None:
        """Replace workers whose time has come, and end those that do not get ready."""
        now = time.monotonic()
        for worker in list(self._workers):
            if not worker.is_ready and not worker.is_draining and now - worker.started > self._spec.limits.start:
                worker.kill()
            elif worker.has_ended:
                self._bury(worker)
        for due in [due for due in self._due if due <= now]:
            self._due.remove(due)
            self._spawn()

    def _bury(self, worker: Worker) -> None:
        """Answer for a worker that ended, and plan the next."""
        if worker not in self._workers:
            return
        self._selector.unregister(worker.channel)
        worker.hear()
        now = time.monotonic()
        was_young = not worker.ready_at or now - worker.ready_at < _YOUNG
        code = worker.reap()
        with self._changed:  # before anybody is answered: who was told of the loss may ask at once who is ready
            self._workers.remove(worker)
            if not self._has_been_ready and self._failure is None and not self._is_stopping:
                self._failure = f"its process ended with {code} before it was ready; see its log"
            self._changed.notify_all()
        for connection, state in worker.connections():
            if state is State.IDLE and not self._is_stopping:
                self._door.keep(connection)
            elif state is State.ASKED:
                answer_and_close(connection, "worker-lost")
            else:
                _close(connection)
        worker.close()
        assert self._folder is not None
        for path in (self._folder / "metrics").glob(f"gauge_live*_{worker.pid}.db"):
            path.unlink(missing_ok=True)
        if not self._is_stopping:
            self._deaths = self._deaths + 1 if was_young else 0
            delay = 0.0 if not self._deaths else min(_LONGEST_BACKOFF, 0.25 * 2 ** (self._deaths - 1))
            self._due.append(now + delay)

    def _hand_over(self) -> None:
        """Give the connections that wait to workers that are ready."""
        workers = [worker for worker in self._workers if worker.is_ready]
        while self._door.waiting and workers:
            connection = self._door.take()
            worker = workers.pop(0)
            if worker.give(connection):
                workers.append(worker)
            else:
                self._door.keep(connection)

    def _end(self, *, is_drained: bool) -> None:
        """End all workers."""
        assert self._listener is not None
        self._door.shut()
        for worker in list(self._workers):
            worker.send(signal.SIGTERM if is_drained and worker.is_ready else signal.SIGKILL)
        self._listener.close()
        end = time.monotonic() + (self._spec.limits.drain + _GRACE if is_drained else 0.0)
        while self._workers:
            if time.monotonic() > end:
                for worker in self._workers:
                    worker.kill()
            for key, _ in self._selector.select(0.2):
                if isinstance(key.data, Worker):
                    self._hear(key.data)
                elif key.data is self._ear:
                    self._ear.recv(1)
                    end = 0.0
            for worker in list(self._workers):
                if worker.has_ended:
                    self._bury(worker)


def require_token(spec: Spec) -> None:
    """Refuse a service that others could call without a token.

    Raises:
        ConfigurationError: When it is bound to an address that others reach, and has no token.

    Example:
        >>> require_token(Spec("function", "math:sqrt", "sqrt", host="0.0.0.0"))
        Traceback (most recent call last):
            ...
        replayml.core.errors.ConfigurationError: a service on '0.0.0.0' can be called by others, and needs a token: ...
    """
    if spec.host not in LOCAL and spec.token is None:
        raise ConfigurationError(
            f"a service on {spec.host!r} can be called by others, and needs a token: give token_file=, or leave the "
            "host at 127.0.0.1"
        )


def _bound(host: str, port: int) -> socket.socket:
    """Return a listening socket."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{host}:{port} cannot be bound: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
