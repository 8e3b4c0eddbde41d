"""The process that speaks with Ray for a service: ``python -m replayml.serving.on_ray.ray_cluster CHANNEL``.

    program ─► connect, offer, hold, state ... (a line of JSON each, and one back) ─► Ray ─► keeper, replicas
    program ends, in whatever way ─► the application is deleted; a cluster that was started here is shut down

Ray changes the process that it is used in: signal handlers, variables of the environment, exit handlers, the debugger.
Here that is a process of its own, so that the program of the user stays as it is.

Invariants:
    * A cluster that was there before is left running, and Serve on it, too.
    * A cluster that is started here listens on this machine's own address, wants Ray's token, and sends no statistics.
    * It ends with the program, and no process of a cluster that it started outlives it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from replayml.serving.errors import text_of
from replayml.serving.on_ray.conductor import end_session
from replayml.serving.on_ray.ray_replica import Keeper, Probe, RayActorError, Replica, ray, serve

__all__ = ["Conductor"]

_log = logging.getLogger("replayml.serving")

_DEPLOYMENT = "replicas"
_ANSWERING = ("RUNNING", "UPDATING")  # the latter while a user_config is brought to them
_STORE = 128 * 2**20
_POLL = 0.05
_GRACE = 5.0
_LONGEST_DELETION = 60.0
_LONGEST_END = 90.0


class Conductor:
    """Holds one application on a cluster.

    Args:
        order: How it is to run, as `replayml.serving.on_ray.ray.RayBackend` says it.
    """

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._order = order
        self._name = f"replayml-{secrets.token_hex(6)}"
        self._offers: dict[int, tuple[bytes, dict[str, str]]] = {}
        self._has_started_serve = False
        self._is_deployed = False
        self._keeper: Any = None
        self._probe: Any = None
        self._trial: Any = None

    # Orders -------------------------------------------------------------------------------------------------------

    def connect(self) -> dict[str, Any]:
        """Join the cluster, or start one."""
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": self._name}
        if self._order["address"] is None:
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, self._order["scaling"]["max_replicas"]),
                include_dashboard=False,
                object_store_memory=_STORE,
                _temp_dir=self._order["folder"],
                **quiet,
            )
        else:
            ray.init(address=self._order["address"], **quiet)
        self._has_started_serve = not _has_serve()
        serve.start(proxy_location="Disabled")  # the front is the proxy
        context = ray.get_runtime_context()
        return {
            "address": context.gcs_address,
            "namespace": self._name,
            "application": self._name,
            "most_replicas": self._order["scaling"]["max_replicas"],
        }

    def offer(self, opening: int, spec: dict[str, Any], files: dict[str, str]) -> None:
        """Have the keeper give something to replicas."""
        self._offers[opening] = orjson.dumps(spec), files
        self._kept("offer", opening, *self._offers[opening])

    def withdraw(self, opening: int) -> None:
        """Have the keeper forget it."""
        if self._probe is not None:
            ray.kill(self._probe)
            self._probe = None
        if self._offers.pop(opening, None) is not None:
            self._kept("withdraw", opening)

    def try_out(self, opening: int) -> None:
        """Have a process of its own open it."""
        self._probe = ray.remote(Probe).options(num_cpus=0).remote()
        self._trial = self._probe.open.remote(f"{self._name}-keeper", self._name, opening)

    def tried(self) -> str | None:
        """Return why that failed, or nothing; None as long as it is not known."""
        try:
            failure: str = ray.get(self._trial, timeout=0)
        except ray.exceptions.GetTimeoutError:
            return None
        except RayActorError:
            failure = "Its process ended before it was ready."
        ray.kill(self._probe)
        return failure

    def hold(self, openings: list[int]) -> None:
        """Have the replicas hold these; new ones and old ones, by their ``user_config``."""
        scaling = dict(self._order["scaling"])
        count = {"num_replicas": scaling["min_replicas"]}
        if scaling["min_replicas"] != scaling["max_replicas"]:
            count = {"autoscaling_config": scaling}
        deployment = serve.deployment(
            Replica,
            name=_DEPLOYMENT,
            user_config={"openings": openings, "grace": self._order["drain"] + _GRACE},
            ray_actor_options={"num_cpus": 1},
            max_ongoing_requests=self._order["queue"] + 1,
            graceful_shutdown_wait_loop_s=0.1,
            graceful_shutdown_timeout_s=self._order["drain"],
            health_check_period_s=1.0,
            **count,
        )
        # With a version of its own making, Serve would start other replicas instead of bringing these the config.
        deployment = deployment.options(version="1", _internal=True)
        target = serve.RunTarget(deployment.bind(f"{self._name}-keeper", self._name), self._name, None)
        self._is_deployed = True
        serve.run_many([target], wait_for_applications_running=False)

    def state(self, opening: int) -> dict[str, Any]:
        """Tell how the replicas are, and what became of an opening in them."""
        notes, facts = self._kept("notes", opening)
        application = _details().get(self._name, {})
        deployment = application.get("deployments", {}).get(_DEPLOYMENT, {})
        replicas = deployment.get("replicas", [])
        here = ray.get_runtime_context().get_node_id()
        running = [one for one in replicas if one["state"] in _ANSWERING]
        return {
            "notes": notes,
            "facts": orjson.loads(facts) if facts else None,
            "running": {one["replica_id"]: one["pid"] if one["node_id"] == here else 0 for one in running},
            "cpus": ray.cluster_resources().get("CPU", 0),
            "has_failed": application.get("status") == "DEPLOY_FAILED",
            "message": f"{application.get('message', '')} {deployment.get('message', '')}".strip(),
        }

    def end(self) -> None:
        """Delete the application; shut down what was started here."""
        if self._is_deployed:
            self._is_deployed = False
            serve.delete(self._name, _blocking=False)
            end = time.monotonic() + min(_LONGEST_DELETION, self._order["drain"] + 10)
            while self._name in _details() and time.monotonic() < end:
                time.sleep(_POLL)
        if self._has_started_serve and not _details():
            self._has_started_serve = False
            serve.shutdown()
        if ray.is_initialized():
            ray.shutdown()

    # The keeper ---------------------------------------------------------------------------------------------------

    def _kept(self, method: str, *args: Any) -> Any:
        """Call the keeper; one that has died is replaced, and has the same offers."""
        if self._keeper is not None:
            with contextlib.suppress(RayActorError):
                return ray.get(getattr(self._keeper, method).remote(*args))
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._keeper = (
            ray.remote(Keeper)
            .options(name=f"{self._name}-keeper", num_cpus=0, scheduling_strategy=here, get_if_exists=True)
            .remote()
        )
        ray.get([self._keeper.offer.remote(opening, *offer) for opening, offer in self._offers.items()])
        return ray.get(getattr(self._keeper, method).remote(*args))


def _has_serve() -> bool:
    """Tell whether Serve runs on the cluster."""
    return serve.context._get_global_client(raise_if_no_controller_running=False) is not None


def _details() -> dict[str, Any]:
    """Return the applications of the cluster, with their replicas; Ray's public state lacks the processes."""
    client = serve.context._get_global_client(raise_if_no_controller_running=False)
    return {} if client is None else dict(client.get_serve_details()["applications"])


# The process ----------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> None:
    """Take orders until the program ends."""
    channel = socket.socket(fileno=int(arguments[0]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with channel.makefile("rb") as lines:
        order = orjson.loads(lines.readline())
        conductor, folder = Conductor(order), order["folder"]
        over = threading.Event()
        threading.Thread(target=_guard, args=(channel, over, folder), daemon=True).start()
        try:
            for line in lines:
                channel.sendall(_answer(conductor, line))
        except OSError:
            pass  # the program is gone
        finally:
            over.set()
    try:
        conductor.end()
    except Exception:  # noqa: BLE001 - whatever Ray raises, what was started here ends
        _log.exception("Ray could not be left in order")
    _clean(folder)


def _answer(conductor: Conductor, line: bytes) -> bytes:
    """Carry out an order, and return the answer."""
    order = orjson.loads(line)
    number = order.pop("number")
    method: Callable[..., Any] = getattr(conductor, order.pop("do"))
    try:
        answer = {"number": number, "result": method(**order)}
    except Exception as error:  # noqa: BLE001 - whatever Ray raises is told to the program
        answer = {"number": number, "failed": f"{type(error).__name__}: {text_of(error)}"[:4000]}
    return orjson.dumps(answer) + b"\n"


def _guard(channel: socket.socket, over: threading.Event, folder: str) -> None:
    """End in any case when the program has, however long Ray takes."""
    while not over.wait(1.0):
        with contextlib.suppress(BlockingIOError, OSError):
            if channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
                over.set()
    time.sleep(_LONGEST_END)
    _clean(folder)
    os._exit(1)


def _clean(folder: str) -> None:
    end_session(os.getpid())
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(0)
