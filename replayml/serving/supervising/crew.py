"""The workers of a service, and the versions that they serve: what the thread of the supervisor does.

    try_out(version): its workers load, beside those that answer ─► each is asked ─► all have answered
        ─► switch: they accept, the others retire ─► each connection goes over when no request is under way on it
    a worker ends: its waiting requests get a 503, its idle connections go on with another one, it is replaced
    no worker is ready: connections wait here for one; /readyz says so

Invariants:
    * No version is switched to before all its workers have answered. One that does not come so far is ended, with its
      files, and the one before has noticed nothing.
    * After the switch no worker of an older version reads a further request; none of its connections is closed.
    * What ended is off the list before anybody is told so.
    * However the thread ends, it leaves no worker and no connection, and tells why.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import selectors
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue

from replayml.serving.limits import ServeLimits
from replayml.serving.supervising.asking import Question, Questions
from replayml.serving.supervising.doorway import Doorway, answer_and_close, dismiss, shut
from replayml.serving.supervising.process import Version, Worker
from replayml.serving.supervising.replacing import Replacements
from replayml.serving.worker.desk import State

__all__ = ["Crew"]

_TICK = 1.0
_SOON = 0.05
_YOUNG = 2.0
_GRACE = 5.0
_STOPPED = "The service was stopped."

_log = logging.getLogger("replayml.serving")


class Crew:
    """The workers of one service.

    Args:
        listener: The listening socket.
        folder: The folder of the service.
        replicas: How many workers a version has.
        limits: The limits.

    Attributes:
        changed: Is notified whenever something has changed; to be held while more than one attribute is read.
        current: The version that answers, or None before there is one.
        workers: All workers.
        failure: Why the thread could not go on, or None.
    """

    def __init__(self, listener: socket.socket, folder: Path, *, replicas: int, limits: ServeLimits) -> None:
        self.changed = threading.Condition()
        self.current: Version | None = None
        self.workers: list[Worker] = []
        self.failure: str | None = None
        self._listener = listener
        self._folder = folder
        self._replicas = replicas
        self._limits = limits
        self._trial: Version | None = None
        self._replacements = Replacements()
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._ear, self._mouth = socket.socketpair()
        self._is_drained: bool | None = None
        self._is_ending = False

    # For other threads --------------------------------------------------------------------------------------------

    def order(self, what: Callable[[], None]) -> None:
        """Let the thread do something."""
        self._orders.put(what)
        with contextlib.suppress(OSError):
            self._mouth.send(b"!")

    @property
    def ready(self) -> int:
        """How many workers of the version that answers take requests."""
        return sum(worker.is_ready and worker.version is self.current for worker in list(self.workers))

    @property
    def pids(self) -> list[int]:
        """The processes of the version that answers."""
        return [worker.pid for worker in list(self.workers) if worker.version is self.current]

    def is_settled(self, version: Version) -> bool:
        """Tell whether a version has failed, or answers alone: no worker of another one reads a further request."""
        if self.failure is not None:
            return True
        if version is not self.current:
            return version.is_gone
        return all(worker.version is version or worker.is_retired for worker in self.workers)

    def close(self) -> None:
        """Give back what the crew has; the thread has ended."""
        self._ear.close()
        self._mouth.close()

    # Orders -------------------------------------------------------------------------------------------------------

    def try_out(self, version: Version) -> None:
        """Start the workers of a version, and switch to it when all of them answer."""
        self._trial = version
        if self._is_ending:
            self._reject(version, _STOPPED)
            return
        try:
            for _ in range(self._replicas):
                self._spawn(version)
        except Exception as error:  # noqa: BLE001 - whatever it is, the version before goes on
            self._reject(version, f"Its process cannot be started: {type(error).__name__}: {error}.")

    def give_up(self, version: Version) -> None:
        """End a version that is tried out; one that was switched to stays."""
        self._reject(version, "It was interrupted.")
        if version is not self.current and not version.is_gone:
            self._clear(version)

    def end(self, *, is_drained: bool) -> None:
        """End all workers.

        Args:
            is_drained: Whether running requests may finish.
        """
        self._is_drained = is_drained and self._is_drained is not False

    # The thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Do what there is to do until the order to end comes."""
        with selectors.DefaultSelector() as selector:
            self._selector = selector
            self._door = Doorway(selector, self._listener, self._limits)
            self._questions = Questions(selector)
            selector.register(self._ear, selectors.EVENT_READ, self._ear)
            try:
                while self._is_drained is None:
                    self._step()
                self._finish()
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody may go on waiting for this thread
                _log.exception("the supervisor of a service cannot go on, and ends all its workers")
                self._break_down(f"Its supervisor could not go on: {type(error).__name__}: {error}.")
        with self.changed:
            self.changed.notify_all()

    def _step(self) -> None:
        if self.ready:
            self._door.shut()
            if self._door.waiting:
                self._hand_over()
        else:
            self._door.open()
        self._turn(min(_TICK, self._replacements.wait(now=time.monotonic())))
        self._door.expire()
        self._look_after()

    def _turn(self, seconds: float) -> None:
        """Wait for something to come, and take it."""
        if any([not worker.flush() or worker.cut_at for worker in self.workers]):  # noqa: C419 - each sends what it can
            seconds = min(seconds, _SOON)
        for key, _ in self._selector.select(seconds):
            if key.data is self._ear:
                self._obey()
            elif isinstance(key.data, Worker):
                self._hear(key.data)
            elif isinstance(key.data, Question):
                self._weigh(key.data)
            else:
                self._door.look(key.data)

    def _obey(self) -> None:
        self._ear.recv(1)
        with contextlib.suppress(Empty):
            self._orders.get_nowait()()

    # Workers ------------------------------------------------------------------------------------------------------

    def _spawn(self, version: Version) -> None:
        worker = Worker(version, self._folder / f"table-{secrets.token_hex(4)}", self._listener)
        try:
            self._selector.register(worker.channel, selectors.EVENT_READ, worker)
        except BaseException:
            worker.forsake()
            raise
        with self.changed:
            self.workers.append(worker)
            self.changed.notify_all()

    def _hear(self, worker: Worker) -> None:
        """Take the messages of a worker; without a next one it has ended."""
        was_loaded = worker.is_loaded
        is_open = worker.hear()
        while worker.returned:
            self._go_on(worker.returned.popleft())
        if worker.failure is not None:
            self._reject(worker.version, worker.failure)
        elif worker.is_loaded and not was_loaded:
            self._questions.ask(worker)
        with self.changed:
            self.changed.notify_all()
        if not is_open and not worker.cut_at:
            worker.cut_at = time.monotonic()
            self._selector.unregister(worker.channel)
            if worker.has_ended:
                self._bury(worker)

    def _weigh(self, question: Question) -> None:
        """Take the answer of a worker, and let it accept when that is as it should be, and its version complete."""
        worker = question.worker
        wrong = self._questions.look(question)
        if wrong is None:
            return
        if wrong:
            self._reject(worker.version, f"Its process did not answer: {wrong}.")
            worker.kill()
        elif worker.version is self.current:
            self._admit(worker)
        elif worker.version is self._trial:
            its = [each for each in self.workers if each.version is self._trial]
            if len(its) == self._replicas and all(each.is_loaded and each not in self._questions for each in its):
                self._switch()

    def _admit(self, worker: Worker) -> None:
        with self.changed:
            worker.accept()
            self.changed.notify_all()

    def _look_after(self) -> None:
        """Replace workers whose time has come, and end those that are late."""
        now = time.monotonic()
        for worker in list(self.workers):
            if worker.has_ended:
                self._bury(worker)
            elif worker.cut_at and now - worker.cut_at > _GRACE:
                worker.kill()
            elif not worker.ready_at and now - worker.started > self._limits.start:
                self._reject(worker.version, f"No worker was ready within {self._limits.start:g} s.")
                worker.kill()
            elif worker.retired_at and now - worker.retired_at > self._limits.drain + _GRACE:
                worker.kill()
        for _ in range(self._replacements.take(now=now)):
            self._replace()

    def _replace(self) -> None:
        assert self.current is not None
        try:
            self._spawn(self.current)
        except Exception as error:  # noqa: BLE001 - no memory, or no more files; the next attempt may find some
            _log.warning("a worker cannot be started, which is tried again: %s: %s", type(error).__name__, error)
            self._replacements.plan(now=time.monotonic(), is_young=True)

    def _bury(self, worker: Worker) -> None:
        """Answer for a worker that ended, and plan the next."""
        if not worker.cut_at:
            self._selector.unregister(worker.channel)
            worker.hear()
        self._questions.drop(worker)
        now = time.monotonic()
        code = worker.reap()
        with self.changed:  # before anybody is answered: who was told of the loss may ask at once who is ready
            self.workers.remove(worker)
            self.changed.notify_all()
        for connection, state in worker.connections():
            if state is State.IDLE:
                self._go_on(connection)
            elif state is State.ASKED:
                answer_and_close(connection, "worker-lost")
            else:
                shut(connection)
        worker.close()
        (self._folder / "metrics" / f"{worker.pid}.waiting").unlink(missing_ok=True)  # nothing waits for it any more
        if worker.version is self._trial:
            text = f"Its process ended with {code} before it was ready; see its log."
            self._reject(worker.version, worker.failure or text)
        elif worker.version is self.current:
            if not self._is_ending:
                self._replacements.plan(now=now, is_young=not worker.ready_at or now - worker.ready_at < _YOUNG)
        else:
            self._clear(worker.version)

    # Connections --------------------------------------------------------------------------------------------------

    def _go_on(self, connection: socket.socket) -> None:
        """Let a connection go on with another worker."""
        if not self._is_ending:
            self._door.keep(connection)
        else:
            dismiss(connection)

    def _hand_over(self) -> None:
        """Give the connections that wait to workers that are ready."""
        workers = [worker for worker in self.workers if worker.is_ready]
        while self._door.waiting and workers:
            connection = self._door.take()
            worker = workers.pop(0)
            if worker.give(connection):
                workers.append(worker)
            else:
                self._door.keep(connection)

    # Versions -----------------------------------------------------------------------------------------------------

    def _switch(self) -> None:
        """Let the version that is tried out answer, and the others retire."""
        with self.changed:
            before, self.current, self._trial = self.current, self._trial, None
            self._replacements.clear()
            for worker in self.workers:
                if worker.version is self.current:
                    worker.accept()
                elif worker.ready_at and not worker.retired_at:
                    worker.retire()
                elif not worker.ready_at:
                    worker.kill()
            self.changed.notify_all()
        if before is not None:
            self._clear(before)

    def _reject(self, version: Version, failure: str) -> None:
        """End a version that is tried out; nothing happens where it is not."""
        if version is self._trial:
            self._trial = None
            version.failure = failure
            for worker in self.workers:
                if worker.version is version:
                    worker.kill()
            self._clear(version)

    def _clear(self, version: Version) -> None:
        """Remove the files of a version that has ended, when its last worker is gone."""
        if all(worker.version is not version for worker in self.workers):
            shutil.rmtree(version.folder, ignore_errors=True)
            with self.changed:
                version.is_gone = True
                self.changed.notify_all()

    # The end ------------------------------------------------------------------------------------------------------

    def _break_down(self, failure: str) -> None:
        """End everything at once: nothing that the thread knows of its workers can be relied on."""
        with contextlib.ExitStack() as steps:  # each is done, also when one before it fails
            steps.callback(self._tell_all, failure)
            steps.callback(self._listener.close)
            steps.callback(self._door.drop_all)
            steps.callback(self._questions.close_all)
            for worker in self.workers:
                steps.callback(worker.forsake)

    def _tell_all(self, failure: str) -> None:
        with self.changed:
            self._is_ending = True
            self.workers.clear()
            self.failure = failure
            self.changed.notify_all()

    def _finish(self) -> None:
        """End all workers."""
        self._is_ending = True
        self._door.close()
        if self._trial is not None:
            self._reject(self._trial, _STOPPED)
        for worker in self.workers:
            worker.send(signal.SIGTERM if self._is_drained and worker.ready_at else signal.SIGKILL)
        self._listener.close()
        end = time.monotonic() + self._limits.drain + _GRACE
        while self.workers:
            if not self._is_drained or time.monotonic() > end:
                for worker in self.workers:
                    worker.kill()
            self._turn(0.2)
            for worker in list(self.workers):
                if worker.has_ended:
                    self._bury(worker)
