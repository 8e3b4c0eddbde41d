"""The process that has the model and answers requests: ``python -m replayml.serving.worker.worker LISTENER CHANNEL``.

    spec on standard input ─► load ─► "loaded" ─► told to accept ─► serve until SIGTERM ─► drain ─► exit
                                                                       └─ told to retire ─► finish, return ─► exit

Invariants:
    * It ends with its supervisor, however that ends.
    * On SIGTERM it stops accepting, answers what it has, and closes each connection that it has told so.
    * It answers requests only once the model is loaded and its example was run.
    * Once it is told to retire it reads no further request; the supervisor gets each connection back as it is.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import uvicorn

from replayml.serving.errors import text_of
from replayml.serving.limits import ServeLimits
from replayml.serving.packing.spec import Spec
from replayml.serving.worker.app import Service
from replayml.serving.worker.batching import Batcher
from replayml.serving.worker.connection import Connection
from replayml.serving.worker.desk import Desk, fitting, open_table, receive
from replayml.serving.worker.hosts import Hosts
from replayml.serving.worker.metrics import Metrics
from replayml.serving.worker.target import Target

__all__ = ["EXIT_FAILED", "EXIT_STUCK", "Engine", "Watch", "main"]

EXIT_FAILED = 70
EXIT_STUCK = 75

_PR_SET_PDEATHSIG = 1
_BEAT = 1.0
_FEWEST_BEATS = 5
_LINGER = 0.5
_STEP = 0.02
_AT_ONCE = 64

_log = logging.getLogger("replayml.serving")


class Engine:
    """What answers the requests of a worker: a model in a thread of this process."""

    def open(self, spec: Spec) -> Target:
        """Return what is served."""
        return Target(spec)

    def batcher(self, target: Target, spec: Spec, observe: Callable[[int, float], None]) -> Batcher:
        """Return what runs it; called in the event loop.

        Args:
            target: What is served.
            spec: How.
            observe: Is told how many requests ran at once, and how long it took.
        """
        return Batcher(
            target,
            most_rows=spec.most_rows,
            wait=spec.wait,
            room=spec.limits.queue,
            is_steady=target.is_steady and target.specs is not None,
            observe=observe,
        )


def main(arguments: list[str], engine: Engine) -> int:
    """Run a worker.

    Args:
        arguments: The numbers of the inherited listening socket and of the channel to the supervisor.
        engine: What answers the requests.

    Returns:
        The exit code.
    """
    listener, channel = (socket.socket(fileno=int(number)) for number in arguments)
    spec = Spec.from_json(sys.stdin.buffer.read())
    _die_with(spec.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor gets it too, and decides
    _start_log(spec.log)
    if spec.threads:
        torch.set_num_threads(spec.threads)
    sys.path[:] = spec.sys_path
    desk = Desk(channel, open_table(Path(spec.table), spec.limits.connections + 16))
    try:
        target = engine.open(spec)
    except Exception as error:  # noqa: BLE001 - whatever the user's module raises is told to whoever started it
        _log.exception("%s could not be loaded", spec.title)
        desk.tell("failed", text=fitting(f"{type(error).__name__}: {text_of(error)}"))
        return EXIT_FAILED
    gc.freeze()  # what was loaded stays; looking through all of it would stop the service for a tenth of a second
    channel.setblocking(False)
    asyncio.run(_serve(spec, target, engine, desk, listener, channel))
    return 0


def _die_with(parent: int) -> None:
    """End with the supervisor, also where this process no longer listens to it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _start_log(path: str) -> None:
    """Send the log to a file, or to the standard error."""
    handler: logging.Handler = logging.StreamHandler()
    if path not in ("", "-"):
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")  # texts of users have anything
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s [{os.getpid()}] %(message)s"))
    for name in ("replayml.serving", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    logging.getLogger("replayml.serving.access").setLevel(logging.INFO if path else logging.WARNING)


async def _serve(
    spec: Spec, target: Target, engine: Engine, desk: Desk, listener: socket.socket, channel: socket.socket
) -> None:
    metrics = Metrics(Path(spec.folder) / "metrics")
    limits = spec.limits
    batcher = engine.batcher(target, spec, metrics.ran)
    hosts = Hosts(spec.host, spec.hosts)
    service = Service(target, batcher, limits=limits, hosts=hosts, token=spec.token, owner=spec.owner, metrics=metrics)
    config = uvicorn.Config(
        service,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(limits.drain),
    )
    server = Server(config, service, desk, limits)
    loop = asyncio.get_running_loop()
    loop.add_reader(channel, server.listen_to, channel)
    watch = Watch(lambda: batcher.busy_for, limits)
    watch.beat()
    threading.Thread(target=watch.run, name="replayml-watch", daemon=True).start()
    await server.serve(sockets=[listener])
    batcher.close()


class Watch:
    """Ends the worker when its model or its event loop is stuck: nobody waits for that any more, and all others do.

    Args:
        busy_for: Tells for how many seconds the model has been running.
        limits: The limits.
    """

    def __init__(self, busy_for: Callable[[], float], limits: ServeLimits) -> None:
        self._busy_for = busy_for
        self._longest = 2 * limits.answer
        self._is_alive = True
        self._missed = 0

    def beat(self) -> None:
        """Tell that the event loop goes round, again and again; called in it."""
        self._is_alive = True
        asyncio.get_running_loop().call_later(_BEAT, self.beat)

    def look(self) -> str | None:
        """Return what is stuck, or None; called after each second: while the process stood, nobody counts."""
        self._missed = 0 if self._is_alive else self._missed + 1
        self._is_alive = False
        busy_for = self._busy_for()
        if busy_for > self._longest:
            return f"the model has been running for {busy_for:.0f} s"
        if self._missed * _BEAT > self._longest and self._missed > _FEWEST_BEATS:
            return f"the event loop has stood still for {self._missed * _BEAT:.0f} s"
        return None

    def run(self) -> None:
        """Look as long as the worker lives."""
        while True:
            time.sleep(_BEAT)  # in a thread, because the event loop may be what runs the model
            stuck = self.look()
            if stuck is not None:
                _log.error("%s; this worker ends and is replaced", stuck)
                os._exit(EXIT_STUCK)


class Server(uvicorn.Server):
    """uvicorn's server, which loses no connection: it drains, and takes those that the supervisor kept.

    Args:
        config: The configuration.
        service: The application.
        desk: Where the supervisor is told things.
        limits: The limits.
    """

    def __init__(self, config: uvicorn.Config, service: Service, desk: Desk, limits: ServeLimits) -> None:
        super().__init__(config)
        self._service = service
        self._desk = desk
        self._limits = limits
        self._adopting: set[asyncio.Task[Any]] = set()
        self._listeners: list[socket.socket] = []
        self._leaving: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the supervisor, which says when to accept connections."""
        await self.lifespan.startup()
        self.servers = []  # accepting is done here, so that the supervisor has a hold of each connection at once
        self._listeners = list(sockets or [])
        self.started = True
        self._desk.tell("loaded")

    def _accept(self, listener: socket.socket) -> None:
        """Accept who waits."""
        for _ in range(_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # no more files may be open
                _log.error("no connection can be accepted: %s", error)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(1.0, self._accept_again, listener)
                return
            self._adopt(connection)

    def _accept_again(self, listener: socket.socket) -> None:
        if not (self._service.is_draining or self._desk.is_retiring):
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, answer what came, and return the connections on which nothing is under way."""
        if self._leaving is not None:
            await self._leaving
            return
        self._service.is_draining = True
        self._desk.tell("draining")
        for listener in sockets or []:
            asyncio.get_running_loop().remove_reader(listener)
            self._accept(listener)  # closing the socket would drop who waits
        end = asyncio.get_running_loop().time() + _LINGER
        while self.server_state.connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_STEP)  # who is between two requests learns with the next answer that it was the last
        await self._retire()

    async def _leave(self) -> None:
        """Wait until nothing is under way, or takes too long: that is given up, and streams are closed."""
        try:
            async with asyncio.timeout(self._limits.drain):
                while self.server_state.connections or self._adopting:
                    await asyncio.sleep(_STEP)
        except TimeoutError:
            _log.error("requests that ran for more than %g s are given up", self._limits.drain)
            tasks = list(self.server_state.tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._service.close()
        self.should_exit = True

    def _retire(self) -> asyncio.Task[None]:
        """Return each connection, now or when what is under way on it is finished, and end then."""
        self._desk.is_retiring = True
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener)
        for connection in list(self.server_state.connections):
            cast(Connection, connection).give_back()
        self._desk.tell("retired")
        self._leaving = loop.create_task(self._leave())
        return self._leaving

    def _adopt(self, connection: socket.socket, *, is_given: bool = False, is_question: bool = False) -> None:
        """Serve a connection."""
        slot = None if is_question else self._desk.open(connection, is_given=is_given)
        connection.setblocking(False)

        def protocol() -> Connection:
            return Connection(
                self.config,
                self.server_state,
                {},
                own=connection,
                desk=self._desk,
                slot=slot,
                limits=self._limits,
                is_given=is_given,
                is_own=is_question,
            )

        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(protocol, connection))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    def listen_to(self, channel: socket.socket) -> None:
        """Take what the supervisor sends; end when it is gone."""
        try:
            message, files = receive(channel)
        except BlockingIOError:
            return
        if message is None:
            os._exit(0)
        match message.get("do"):
            case "accept" if not self.should_exit:
                for listener in self._listeners:
                    asyncio.get_running_loop().add_reader(listener, self._accept, listener)
            case "retire":
                self._retire()
            case "ask" if files:
                self._adopt(socket.socket(fileno=files[0]), is_question=True)
            case "take" if files:
                self._adopt(socket.socket(fileno=files[0]), is_given=True)
            case "take":  # no more files may be open
                self._desk.tell("open", given=True)


if __name__ == "__main__":
    code = main(sys.argv[1:], Engine())
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # threads of the user's module do not keep the process
