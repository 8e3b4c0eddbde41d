"""The process that has the model and answers requests: ``python -m replayml.serving.worker LISTENER CHANNEL``.

    spec on standard input ─► load ─► "ready" ─► serve until SIGTERM ─► drain ─► exit

Invariants:
    * It ends with its supervisor, however that ends.
    * On SIGTERM it stops accepting, answers what it has, and tells every connection that it will be closed.
    * It answers requests only once the model is loaded and its example was run.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import uvicorn

from replayml.serving.app import Service
from replayml.serving.batching import Batcher
from replayml.serving.connection import Connection
from replayml.serving.desk import Desk, open_table, receive
from replayml.serving.hosts import Hosts
from replayml.serving.limits import ServeLimits
from replayml.serving.metrics import Metrics
from replayml.serving.spec import Spec
from replayml.serving.target import Target

__all__ = ["EXIT_FAILED", "EXIT_STUCK", "main"]

EXIT_FAILED = 70
EXIT_STUCK = 75

_PR_SET_PDEATHSIG = 1
_LONGEST_TEXT = 4000
_LINGER = 0.5
_STEP = 0.02
_AT_ONCE = 64

_log = logging.getLogger("replayml.serving")


def main(arguments: list[str]) -> int:
    """Run a worker.

    Args:
        arguments: The numbers of the inherited listening socket and of the channel to the supervisor.

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
        target = Target(spec)
    except Exception as error:  # noqa: BLE001 - whatever the user's module raises is told to whoever started it
        _log.exception("%s could not be loaded", spec.title)
        desk.tell("failed", text=f"{type(error).__name__}: {error}"[:_LONGEST_TEXT])
        return EXIT_FAILED
    channel.setblocking(False)
    asyncio.run(_serve(spec, target, desk, listener, channel))
    return 0


def _die_with(parent: int) -> None:
    """End with the supervisor, also where this process no longer listens to it."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _start_log(path: str) -> None:
    """Send the log to a file, or to the standard error."""
    handler = logging.FileHandler(path) if path not in ("", "-") else logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s [{os.getpid()}] %(message)s"))
    for name in ("replayml.serving", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    logging.getLogger("replayml.serving.access").setLevel(logging.INFO if path else logging.WARNING)


async def _serve(spec: Spec, target: Target, desk: Desk, listener: socket.socket, channel: socket.socket) -> None:
    metrics = Metrics()
    limits = spec.limits
    batcher = Batcher(target, most_rows=spec.most_rows, wait=spec.wait, room=limits.queue, observe=metrics.ran)
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
        timeout_keep_alive=int(limits.idle),
        timeout_graceful_shutdown=int(limits.drain),
    )
    server = Server(config, service, desk, limits)
    loop = asyncio.get_running_loop()
    loop.add_reader(channel, server.listen_to, channel)
    watch = loop.create_task(_watch(batcher, limits))
    await server.serve(sockets=[listener])
    watch.cancel()
    batcher.close()


async def _watch(batcher: Batcher, limits: ServeLimits) -> None:
    """End the worker when its model is stuck: nobody waits for that any more, and all others wait for it."""
    while True:
        await asyncio.sleep(1.0)
        if batcher.busy_for > 2 * limits.answer:
            _log.error("the model has been running for %.0f s; this worker ends and is replaced", batcher.busy_for)
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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, and tell the supervisor."""
        await self.lifespan.startup()
        self.servers = []  # accepting is done here, so that the supervisor has a hold of each connection at once
        for listener in sockets or []:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)
        self.started = True
        self._desk.tell("ready")

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
        if not self._service.is_draining:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, answer what came, and close."""
        self._service.is_draining = True
        self._desk.tell("draining")
        for listener in sockets or []:
            asyncio.get_running_loop().remove_reader(listener)
            self._accept(listener)  # closing the socket would drop who waits
        end = asyncio.get_running_loop().time() + _LINGER
        while self.server_state.connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_STEP)  # who is between two requests learns with the next answer that it was the last
        await super().shutdown(sockets)

    def _adopt(self, connection: socket.socket, *, is_given: bool = False) -> None:
        """Serve a connection."""
        slot = self._desk.open(connection, is_given=is_given)
        connection.setblocking(False)

        def protocol() -> Connection:
            return Connection(self.config, self.server_state, {}, desk=self._desk, slot=slot, limits=self._limits)

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
        for number in files:
            self._adopt(socket.socket(fileno=number), is_given=True)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)  # threads of the user's module do not keep the process
