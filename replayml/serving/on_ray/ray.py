"""A service on Ray: replicas on a cluster, behind the same front as every other service.

    program ─► front (a worker process: routes, limits, token, errors) ─► Ray Serve ─► replicas, on any machine
       └─────► conductor (a process that speaks with Ray) ─► keeper ─► gives replicas the model file

The front is our own process and not Ray's HTTP proxy. That one shares its port with whoever asks for it, has limits of
its own, and would need the routes, tokens, errors and typed bodies a second time; behind our front they are the same as
everywhere, and a port that is taken is refused. Ray Serve does what it is good at: it places the replicas, replaces and
scales them, and brings new weights to them by ``user_config``.

Where Ray runs in the program already (``ray.init()``), or ``RAY_ADDRESS`` names a cluster, that one is used and left
running. Otherwise one is started on this machine for the service, and shut down with it: that takes ten seconds, and
half a gigabyte. The program itself never imports Ray, which would change its signal handlers and its environment.

New weights: the replicas open them beside the old ones. When each has run the example, a new front starts, which asks
for the new ones; when the old front has drained, the replicas drop the old ones.

What is served has to be importable on the machines of the cluster, and replayml installed there. A replica runs with
one thread, for it takes one CPU of the cluster. On its own channels Ray pickles what it sends; who reaches these with
Ray's token can run code on the cluster, so keep them private. Of a request they carry typed bytes alone. A cluster that
is started here has a token of its own, and listens on this machine's own address, but for one port that each replica
opens on all of them; it takes nothing without the token.

A result that comes item by item is not sent from a cluster: Ray Serve does not bound how far a stream runs ahead of its
reader. A generator is refused before it starts, and a model whose example shows it when it starts; where only a call
shows it, that is answered with ``no-form``.

Invariants:
    * Nothing of ours is pickled: replicas get a spec and a model file, which they replay, and requests as typed bytes.
    * A version that one replica could not open is never switched to.
    * After `stop` no process of a cluster that was started here is left; a cluster that was there has lost nothing.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson

from replayml.serving.backend import Pack
from replayml.serving.errors import ServingError
from replayml.serving.on_ray.autoscaling import Autoscaling
from replayml.serving.on_ray.conductor import Conductor, ray_problem
from replayml.serving.packing.spec import Spec
from replayml.serving.supervising.supervisor import Supervisor

__all__ = ["RayBackend", "require_ray"]

_FRONT = "replayml.serving.on_ray.ray_front"
_POLL = 0.1
_LONGEST_TEXT = 1000


class RayBackend:
    """Runs a service on a Ray cluster.

    Args:
        spec: What to serve.
        replicas: How many replicas.
        port: The port of the front; 0 for a free one.
        autoscaling: The fields of `replayml.serving.on_ray.autoscaling.Autoscaling`, where the number of replicas is to
            follow the requests.

    Raises:
        ConfigurationError: When Ray is not installed, or an argument does not fit.
    """

    def __init__(self, spec: Spec, *, replicas: int, port: int, autoscaling: Mapping[str, Any] | None = None) -> None:
        require_ray()
        self._spec = spec
        self._scaling = Autoscaling.of(autoscaling, replicas=replicas)
        self._front = Supervisor(replace(spec, program=_FRONT), replicas=1, port=port)
        self._conductor: Conductor | None = None
        self._openings = 0
        self._current: list[int] = []
        self._is_stopping = False

    @property
    def address(self) -> tuple[str, int]:
        """The address and port of the front."""
        return self._front.address

    @property
    def pids(self) -> list[int]:
        """The processes of the replicas on this machine."""
        return sorted(pid for pid in self._running().values() if pid)

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""
        conductor = self._conductor
        return self._front.is_running and conductor is not None and conductor.is_alive

    @property
    def version(self) -> int:
        """The version that answers."""
        return self._front.version

    # Versions -----------------------------------------------------------------------------------------------------

    def start(self, pack: Pack) -> None:
        """Start the replicas and the front, and return when all of them answer.

        Args:
            pack: Writes what the replicas open.

        Raises:
            ServingError: When what is served could not be loaded, or not in time.
            OSError: When the port is taken.
        """
        made: list[int] = []
        try:
            self._front.start(lambda folder, spec: self._offer(pack(folder, spec), folder, made))
        except BaseException:
            self.stop(drain=False)
            raise
        self._current = made

    def switch(self, pack: Pack) -> None:
        """Put a new version in the place of the one that answers; see `replayml.serving.backend.Backend.switch`.

        Args:
            pack: Writes what the replicas of the new version open.

        Raises:
            ServingError: When the new version did not pass; the old one answers as before.
            LifecycleError: When another call of `switch` is running.
        """
        made: list[int] = []
        try:
            self._front.switch(lambda folder, spec: self._offer(pack(folder, spec), folder, made))
        except BaseException:
            if made:
                with contextlib.suppress(ServingError):  # the service was stopped
                    self._keep(self._current, made)
            raise
        before, self._current = self._current, made
        self._keep(made, before)

    def _offer(self, spec: Spec, folder: Path, made: list[int]) -> Spec:
        """Have the replicas open something, and return the spec of a front for it.

        Args:
            spec: What there is to open.
            folder: Where the front finds what it has to know.
            made: Takes the number of the opening.
        """
        if self._conductor is None:
            self._conductor = Conductor(self._spec, self._scaling)
        conductor = self._conductor
        self._openings += 1
        made.append(self._openings)
        files = {"example": spec.example} if spec.example else {}
        if spec.kind == "model":
            files["model"] = spec.place
        paths = tuple(str(Path(path).absolute()) for path in sys.path)
        told = replace(spec, token=None, owner=None, log="", folder="", sys_path=paths)
        conductor.ask("offer", opening=made[0], spec=asdict(told), files=files)
        if self._current:
            self._try_out(conductor, made[0], spec.title)
        conductor.ask("hold", openings=self._current + made)
        facts = self._facts(conductor, made[0], spec.title)
        front = folder / "front.json"
        front.write_bytes(orjson.dumps({"place": {**conductor.place, "opening": made[0]}, "facts": facts}))
        return replace(
            spec,
            kind="remote",
            place=str(front),
            imports=(),
            trust=(),
            renames={},
            owners={},
            environment=conductor.environment,
        )

    def _keep(self, openings: list[int], dropped: list[int]) -> None:
        """Let the replicas hold nothing else."""
        conductor = self._conductor
        if conductor is not None:
            conductor.ask("hold", openings=openings)
            for opening in dropped:
                conductor.ask("withdraw", opening=opening)

    def _try_out(self, conductor: Conductor, opening: int, title: str) -> None:
        """Find out, beside the replicas, whether something can be opened: it may end the process that opens it."""
        conductor.ask("try_out", opening=opening)
        end = time.monotonic() + self._spec.limits.start
        while (failure := conductor.ask("tried")) is None:
            self._go_on(title)
            if time.monotonic() > end:
                raise self._failed(title, f"It was not ready within {self._spec.limits.start:g} s.")
            time.sleep(_POLL)
        if failure:
            raise self._failed(title, failure)

    def _go_on(self, title: str) -> None:
        """Raise when the service has been stopped."""
        if self._is_stopping or not self._front.is_running:
            raise self._failed(title, "The service was stopped.")

    def _facts(self, conductor: Conductor, opening: int, title: str) -> Any:
        """Wait until every replica has opened something, and return what is to be known of it."""
        end = time.monotonic() + self._spec.limits.start
        while True:
            state = conductor.ask("state", opening=opening)
            failures = [f"{text} (in replica {name})" for name, text in state["notes"].items() if text]
            running = state["running"]
            if not failures and len(running) >= self._scaling.min_replicas and running.keys() <= state["notes"].keys():
                return state["facts"]
            self._go_on(title)
            if failures or state["has_failed"]:
                raise self._failed(title, failures[0] if failures else state["message"][-_LONGEST_TEXT:])
            if time.monotonic() > end:
                text = (
                    f"{len(running)} of {self._scaling.min_replicas} replicas were ready within "
                    f"{self._spec.limits.start:g} s; each takes one CPU of the cluster, which has {state['cpus']:g} in "
                    f"all. {state['message']}"
                )
                raise self._failed(title, text.strip())
            time.sleep(_POLL)

    def _failed(self, title: str, text: str) -> ServingError:
        version = self.version
        if not version:
            return ray_problem("start-failed", f"{title} could not be served. {text}")
        return ray_problem("update-failed", f"{title} was not updated; version {version} answers as before. {text}")

    def _running(self) -> dict[str, int]:
        """Return the processes of the replicas that run, by name; 0 for one on another machine."""
        conductor = self._conductor
        if conductor is None or not self._current:
            return {}
        try:
            running: dict[str, int] = conductor.ask("state", opening=self._current[0])["running"]
        except ServingError:
            return {}  # it was stopped
        return running

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the front and every replica answer again, or the service was stopped."""
        end = None if timeout is None else time.monotonic() + timeout
        self._front.wait(timeout)
        while self.is_running and len(self._running()) < self._scaling.min_replicas:
            if end is not None and time.monotonic() > end:
                return
            time.sleep(_POLL)

    def stop(self, *, drain: bool = True) -> None:
        """Stop the front, then the replicas, and give everything back.

        Args:
            drain: Whether running requests may finish.
        """
        self._is_stopping = True
        try:
            self._front.stop(drain=drain)
        finally:
            conductor, self._conductor = self._conductor, None
            if conductor is not None:
                conductor.end(drain=drain)


def require_ray() -> None:
    """Refuse when Ray is not installed.

    Raises:
        ModuleNotFoundError: It names the extra.
    """
    if find_spec("ray") is None:
        raise ModuleNotFoundError(
            "backend='ray' needs ray, which is not installed. Install the extra: pip install 'replayml[ray]'",
            name="ray",
        )
