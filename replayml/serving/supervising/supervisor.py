"""The supervisor: starts the workers of a service in a thread of the program, and puts new versions in their place.

    listening socket, bound here ─► inherited by each worker, which accepts by itself
    pack(version) ─► folder of the version ─► `crew.Crew`: tries it out, switches, drains the old one

Invariants:
    * The port is known before a worker runs, and stays when one ends, and from version to version.
    * No worker outlives the supervisor, nor the supervisor the program.
    * After `stop` there is no process, thread, port, connection or file of the service.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from replayml.core.errors import ConfigurationError, LifecycleError
from replayml.serving.backend import Pack
from replayml.serving.calling.address import url_of
from replayml.serving.errors import Problem, ServingError, address_error, serving_error
from replayml.serving.packing.spec import Spec
from replayml.serving.supervising.crew import Crew
from replayml.serving.supervising.folders import ServiceFolder
from replayml.serving.supervising.process import Version
from replayml.serving.worker.hosts import LOCAL

__all__ = ["Supervisor", "require_token"]

_TICK = 1.0


class Supervisor:
    """Runs a service in processes of this machine.

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
        self._address: tuple[str, int] | None = None
        self._folder: ServiceFolder | None = None
        self._listener: socket.socket | None = None
        self._crew: Crew | None = None
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._switching = threading.Lock()
        self._packing = threading.RLock()  # held while files are written; not in the way of a signal handler that stops

    @property
    def address(self) -> tuple[str, int]:
        """The address and port that the service is bound to."""
        assert self._address is not None
        return self._address

    @property
    def pids(self) -> list[int]:
        """The processes of the workers of the version that answers."""
        return [] if self._crew is None else self._crew.pids

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        if self._thread is None or self._crew is None:
            return False
        return self._thread.is_alive() and self._crew.failure is None and not self._is_stopping

    @property
    def version(self) -> int:
        """The version that answers; 0 before there is one."""
        current = None if self._crew is None else self._crew.current
        return 0 if current is None else current.spec.version

    @property
    def ready(self) -> int:
        """How many workers answer requests."""
        return 0 if self._crew is None else self._crew.ready

    # Versions -----------------------------------------------------------------------------------------------------

    def start(self, pack: Pack) -> None:
        """Start the workers, and return when all of them answer.

        Args:
            pack: Writes what the workers open into a folder, and returns the spec that says where it is.

        Raises:
            ServingError: When one could not load what is served, or not in time.
            AddressError: When the port is taken, or the host is none of this machine.
        """
        self._listener = _bound(self._spec.host, self._port)
        host, port = self._listener.getsockname()[:2]
        self._address = str(host), int(port)
        try:
            self._folder = ServiceFolder()
            folder = self._folder.path
            (folder / "metrics").mkdir()
            self._spec = replace(self._spec, sys_path=tuple(sys.path), folder=str(folder), parent=os.getpid())
            self._crew = Crew(self._listener, folder, replicas=self._replicas, limits=self._spec.limits)
            self._thread = threading.Thread(target=self._run, name="replayml-supervisor", daemon=True)
            self._thread.start()
            with self._switching:
                self._put(pack)
        except BaseException:
            self.stop(drain=False)
            raise

    def switch(self, pack: Pack) -> None:
        """Put a new version in the place of the one that answers: see `replayml.serving.backend.Backend.switch`.

        Args:
            pack: Writes what the workers of the new version open, and returns the spec that says where it is.

        Raises:
            ServingError: When the new version did not pass, or the service was stopped meanwhile.
            LifecycleError: When another call of `switch` is running.
        """
        if not self._switching.acquire(blocking=False):
            raise LifecycleError(
                "another new version of this service is being tried out at the moment. Wait until that call has "
                "returned, and call this again"
            )
        try:
            self._put(pack)
        finally:
            self._switching.release()

    def _put(self, pack: Pack) -> None:
        """Try a new version out, and return when it answers alone."""
        crew, thread = self._crew, self._thread
        assert crew is not None
        assert thread is not None
        version = self._packed(pack)
        try:
            crew.order(partial(crew.try_out, version))
            self._await(version, crew, thread)
        except BaseException:  # an interrupt
            crew.order(partial(crew.give_up, version))
            raise
        if version.failure is not None and crew.failure is None and not self._is_stopping:
            raise self._failed(version)
        if not self.is_running:
            raise self._stopped()

    def _packed(self, pack: Pack) -> Version:
        """Write the files of the next version."""
        with self._packing:
            if not self.is_running:
                raise self._stopped()
            assert self._folder is not None
            number = self.version + 1
            folder = Path(tempfile.mkdtemp(prefix=f"version-{number}-", dir=self._folder.path))
            try:
                return Version(replace(pack(folder, self._spec), version=number), folder)
            except BaseException as error:
                shutil.rmtree(folder, ignore_errors=True)
                if not self.is_running:
                    raise self._stopped() from error
                raise

    def _await(self, version: Version, crew: Crew, thread: threading.Thread) -> None:
        with crew.changed:
            while thread.is_alive() and not crew.is_settled(version):
                crew.changed.wait(_TICK)

    def _failed(self, version: Version) -> ServingError:
        title, before = version.spec.title, version.spec.version - 1
        if not before:
            text = f"{title} could not be served. {version.failure}"
            return serving_error(Problem("start-failed", text, url_of(*self.address)))
        text = f"{title} was not updated; version {before} answers as before. {version.failure}"
        return serving_error(Problem("update-failed", text, url_of(*self.address)))

    def _stopped(self) -> ServingError:
        failure = None if self._crew is None else self._crew.failure
        text = "The service was stopped." if failure is None else f"The service was stopped. {failure}"
        return serving_error(Problem("stopped", text, url_of(*self.address)))

    def wait(self, timeout: float | None = None) -> None:
        """Wait until every worker answers again, or the service was stopped."""
        crew = self._crew
        if crew is None:
            return
        end = None if timeout is None else time.monotonic() + timeout
        with crew.changed:
            while self.is_running and crew.ready < self._replicas:
                left = _TICK if end is None else min(_TICK, end - time.monotonic())
                if left <= 0:
                    return
                crew.changed.wait(left)

    # The end ------------------------------------------------------------------------------------------------------

    def stop(self, *, drain: bool = True) -> None:
        """Stop the workers and give everything back.

        Args:
            drain: Whether running requests may finish.
        """
        self._is_stopping = True
        thread, crew = self._thread, self._crew
        if thread is not None and crew is not None:
            crew.order(partial(crew.end, is_drained=drain))
            if thread is threading.current_thread():  # it finalizes what nobody uses any more, and cleans up at its end
                return
            if thread.ident is not None:
                thread.join()
        self._clean()

    def _run(self) -> None:
        assert self._crew is not None
        try:
            self._crew.run()
        finally:
            if not self._switching.locked():  # whoever is in there sees the end, and stop() cleans up
                self._clean()

    def _clean(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._crew is not None:
            self._crew.close()
        with self._packing:
            if self._folder is not None:
                self._folder.close()


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
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise address_error(host, port, error) from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise address_error(host, port, error) from error
    listener.setblocking(False)
    return listener
