"""The process that speaks with Ray for a service, as the program sees it, and what it leaves behind.

    program ─► a line of JSON ─► conductor (`replayml.serving.on_ray.ray_cluster`) ─► a line of JSON ─► program

Where there is no cluster the conductor starts one, in a session of its own: who ends that session has ended all of it.

Invariants:
    * One order is carried out at a time, and an answer belongs to its order, or to nobody.
    * After its end no process of a cluster that was started for it is left, and no file.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from replayml.serving.errors import Problem, ServingError, serving_error
from replayml.serving.on_ray.autoscaling import Autoscaling
from replayml.serving.packing.spec import Spec
from replayml.serving.supervising.process import surroundings

__all__ = ["Conductor", "end_session", "ray_problem"]

_CONDUCTOR = "replayml.serving.on_ray.ray_cluster"
_PIECE = 2**16
_LONGEST_END = 120.0
_LONGEST_KILL = 10.0
_STEP = 0.02
_LONGEST_FOLDER = 40
_LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""What makes Ray listen on this machine's own address alone, as it does on those systems."""


class Conductor:
    """The conductor, as the program sees it.

    Args:
        spec: What to serve.
        scaling: How many replicas.

    Attributes:
        place: Where the replicas are found.
        environment: The variables with which Ray runs.

    Raises:
        ServingError: When there is no cluster, and none can be started.
    """

    def __init__(self, spec: Spec, scaling: Autoscaling) -> None:
        self._lock = threading.Lock()
        address = _address()
        self._is_own = address is None
        self.environment = {"RAY_USAGE_STATS_ENABLED": "0"}
        if self._is_own:
            self.environment |= _LOCAL | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._folder = Path(tempfile.mkdtemp(prefix="replayml-ray-", dir=_short_folder()))
        self._channel, far_end = socket.socketpair()
        with far_end:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, with fixed words and a number
                [sys.executable, "-m", _CONDUCTOR, str(far_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[far_end.fileno()],
                env={**surroundings(), **self.environment, **({"TMPDIR": str(self._folder)} if self._is_own else {})},
                start_new_session=True,  # all processes that Ray starts are in it
            )
        self._asked = 0
        self._received = b""
        try:
            order = {
                "address": address,
                "folder": str(self._folder),
                "scaling": asdict(scaling),
                "queue": spec.limits.queue,
                "drain": spec.limits.drain,
            }
            self._channel.settimeout(spec.limits.start)
            self._channel.sendall(orjson.dumps(order) + b"\n")
            self.place: Mapping[str, Any] = self.ask("connect")
        except BaseException:
            self.end(drain=False)
            raise

    @property
    def is_alive(self) -> bool:
        """Whether the conductor runs."""
        return self._process.poll() is None

    def ask(self, do: str, **arguments: Any) -> Any:
        """Give an order, and return what came of it.

        Raises:
            ServingError: When it could not be carried out.
        """
        with self._lock:
            self._asked += 1
            try:
                self._channel.sendall(orjson.dumps({"number": self._asked, "do": do, **arguments}) + b"\n")
                while (answer := self._next_answer())["number"] != self._asked:
                    pass  # of an order that took so long that nobody waits for it any more
            except OSError as error:
                raise ray_problem("no-connection", f"Ray does not answer: {error}.") from error
        if "failed" in answer:
            raise ray_problem("start-failed", f"Ray could not {do}: {answer['failed']}")
        return answer["result"]

    def _next_answer(self) -> Any:
        while b"\n" not in self._received:
            data = self._channel.recv(_PIECE)
            if not data:
                raise ConnectionResetError("the process that speaks with it has ended")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return orjson.loads(line)

    def end(self, *, drain: bool) -> None:
        """End it; a cluster that was started for it ends, too.

        Args:
            drain: Whether replicas may finish what they have.
        """
        if self._is_own and not drain:
            self._process.kill()
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(timeout=_LONGEST_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        end_session(self._process.pid)
        self._channel.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def end_session(session: int) -> None:
    """Kill the processes of a session, but this one, and wait until they are gone.

    Args:
        session: The process that began it; it is the conductor's, in which are all that Ray started for it.
    """
    end = time.monotonic() + _LONGEST_KILL
    while (processes := _session(session)) and time.monotonic() < end:
        for process in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(_STEP)


def _session(session: int) -> list[int]:
    """Return the processes of a session that run, without this one; on Linux."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number = path.read_text().rpartition(")")[2].split()[:4]
            process = int(path.parent.name)
            if int(number) == session and state != "Z" and process != os.getpid():
                found.append(process)
    return found


def _address() -> str | None:
    """Return the address of the cluster that there is; None where one is to be started."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return str(ray.get_runtime_context().gcs_address)
    return os.environ.get("RAY_ADDRESS") or None


def _short_folder() -> str | None:
    """Return a folder for a cluster; the names of its sockets have little room."""
    return None if len(tempfile.gettempdir()) <= _LONGEST_FOLDER else "/tmp"  # noqa: S108 - in it, one of its own


def ray_problem(code: str, text: str) -> ServingError:
    """Return what there is to tell of Ray."""
    return serving_error(Problem(code, text, "Ray"))
