"""The worker in front of a cluster: ``python -m replayml.serving.on_ray.ray_front LISTENER CHANNEL``.

It is the worker of `replayml.serving.worker.worker` with another engine: routes, limits, tokens and errors are those
of every service, and a request that is fit goes to a replica of Ray Serve instead of a thread of this process.

Invariants:
    * A request goes to one replica, and to another one only where the first has not taken it.
    * Who waits for a replica that ended is told so, as if it had been a worker of this machine.
    * Every answer is of the version that this worker is for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

from replayml.serving.errors import Problem, Refusal, raised_again
from replayml.serving.messages.wire import decode, encode
from replayml.serving.on_ray.ray_replica import DEEPEST, DeploymentUnavailableError, RayActorError, ray, serve
from replayml.serving.on_ray.remote import RemoteTarget
from replayml.serving.packing.spec import Spec
from replayml.serving.worker.batching import Inputs
from replayml.serving.worker.worker import Engine, main

__all__ = ["Dispatcher", "RayEngine"]

_log = logging.getLogger("replayml.serving")

_POLL = 1.0


class RayEngine(Engine):
    """Runs requests on a cluster."""

    def open(self, spec: Spec) -> RemoteTarget:
        """Connect to the cluster, and find out that a replica answers."""
        target = RemoteTarget(spec)
        place = target.place
        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR)
        ray.init(
            address=place["address"], namespace=place["namespace"], logging_level=logging.ERROR, log_to_driver=False
        )
        self._place = place
        self._handle = serve.get_app_handle(place["application"])
        self._handle.remote(place["opening"], b"").result(timeout_s=spec.limits.start)
        return target

    def batcher(self, target: Any, spec: Spec, observe: Any) -> Any:
        """Return what sends requests to replicas."""
        room = spec.limits.queue + self._place["most_replicas"]
        return Dispatcher(self._handle, self._place, room=room, patience=spec.limits.answer)


class Dispatcher:
    """Sends requests to replicas, in the place of a `replayml.serving.worker.batching.Batcher`.

    Args:
        handle: Of the deployment.
        place: Where it is.
        room: How many requests may wait or run.
        patience: For how many seconds nothing may run before the service counts as not ready.
    """

    def __init__(self, handle: Any, place: Mapping[str, Any], *, room: int, patience: float) -> None:
        self._handle = handle
        self._place = place
        self._room = room
        self._patience = patience
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._has_replicas = True
        self._watch = asyncio.get_running_loop().create_task(self._watch_replicas())

    @property
    def waiting(self) -> int:
        """How many requests wait or run."""
        return len(self._waiting)

    @property
    def busy_for(self) -> float:
        """How long nothing has been able to run; more than the patience while there are no replicas."""
        return 0.0 if self._has_replicas else 1.5 * self._patience

    def submit(
        self, args: Inputs, kwargs: Mapping[str, Any], rows: int | None, *, is_alone: bool = False
    ) -> asyncio.Future[Any]:
        """Send a request; as `replayml.serving.worker.batching.Batcher.submit`."""
        if len(self._waiting) >= self._room:
            raise Refusal("busy")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        body = encode({"args": list(args), "kwargs": dict(kwargs), "rows": rows})
        task = loop.create_task(self._ask(future, body))
        self._waiting.add(future)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def forget(_: asyncio.Future[Any]) -> None:
            self._waiting.discard(future)
            task.cancel()  # nobody waits for it any more

        future.add_done_callback(forget)
        return future

    def close(self) -> None:
        """Stop to look after the replicas."""
        self._watch.cancel()

    def join(self, seconds: float) -> None:
        """Wait for nothing: what runs, runs elsewhere."""

    async def _ask(self, future: asyncio.Future[Any], body: bytes) -> None:
        response = self._handle.remote(self._place["opening"], body)
        try:
            reply = decode(bytearray(await response), DEEPEST)
            result, error = _read(reply)
        except asyncio.CancelledError:
            response.cancel()
            raise
        except RayActorError:
            result, error = None, Refusal("worker-lost")
        except DeploymentUnavailableError:
            result, error = None, Refusal("not-ready")
        except Exception:  # noqa: BLE001 - whatever Ray raises: whoever waits gets an answer
            _log.exception("a replica could not be asked")
            result, error = None, Refusal("internal")
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

    async def _watch_replicas(self) -> None:
        """Keep in mind whether there is a replica; /readyz tells."""
        name = self._place["application"]
        while True:
            await asyncio.sleep(_POLL)
            try:
                status = await asyncio.to_thread(serve.status)
                states = [one.replica_states for one in status.applications[name].deployments.values()]
                self._has_replicas = any(
                    count for one in states for state, count in one.items() if str(state) in ("RUNNING", "UPDATING")
                )
            except Exception:  # noqa: BLE001 - Ray is away: there is nothing that could answer
                _log.exception("Ray cannot be asked for the state of its replicas")
                self._has_replicas = False


class RemoteError(Exception):
    """An exception that the program which started the service is not told the class of."""


def _read(reply: Mapping[str, Any]) -> tuple[Any, Exception | None]:
    """Return the result in the answer of a replica, or the exception."""
    code, detail = reply["code"], reply.get("detail")
    if not code:
        return reply["result"], None
    log = reply.get("log", "")
    if code != "raised":
        if log:
            _log.error("a replica answered %s: %s", code, log)
        return None, Refusal(code, detail)
    found = reply["told"]
    error = RemoteError() if found is None else raised_again(found, Problem("raised", "", "the replica"))
    error.add_note(log)
    return None, error


if __name__ == "__main__":
    number = main(sys.argv[1:], RayEngine())
    logging.shutdown()
    sys.stderr.flush()
    os._exit(number)  # threads of Ray do not keep the process
