"""What runs on the cluster: replicas of what is served, and a keeper that gives them what they open.

    keeper (on the machine of the program) ─► spec, files ─► replica: replay, run the example ─► "ready" or "failed"
    front ─► version + typed body ─► replica: run, alone or as a batch ─► typed body ─► front

Invariants:
    * A replica gets and gives bytes, as `replayml.serving.messages.wire` writes them, and replays a model file: no
      value of a request, and nothing of a model, is pickled.
    * A replica holds what ``user_config`` names. What it has to get is opened beside what answers; a replica that has
      just been started takes no request before it has all of it.
    * It takes no path of another machine: files come through Ray.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from replayml.core.errors import ConfigurationError
from replayml.serving.errors import Refusal, sendable, text_of, told
from replayml.serving.messages.wire import decode, encode
from replayml.serving.on_ray.remote import facts_of
from replayml.serving.packing.spec import Spec
from replayml.serving.worker.batching import Batcher
from replayml.serving.worker.streaming import Items
from replayml.serving.worker.target import Target
from replayml.serving.worker.worker import EXIT_STUCK, Engine

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about how Ray declares its own settings
    import ray
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import DeploymentUnavailableError

__all__ = ["DEEPEST", "DeploymentUnavailableError", "Keeper", "Probe", "RayActorError", "Replica", "ray", "serve"]

DEEPEST = 1000
"""How deep values are nested between a front and its replicas; what a request may hold is checked before."""

_PIECE = 2**22
_NO_STREAMS = (
    "a result that comes item by item is not sent from a cluster. Return a list, or serve it with backend='process'"
)


class Keeper:
    """Gives replicas what they open, and keeps what became of it; it runs on the machine of the program."""

    def __init__(self) -> None:
        self._offers: dict[int, Offer] = {}

    def offer(self, opening: int, spec: bytes, files: dict[str, str]) -> None:
        """Have something to open.

        Args:
            opening: Its number.
            spec: What it is.
            files: The paths of its files, by name.
        """
        self._offers[opening] = Offer(spec, files, {}, [])

    def withdraw(self, opening: int) -> None:
        """Have it no longer."""
        self._offers.pop(opening, None)

    def offered(self, opening: int) -> tuple[bytes, list[str]]:
        """Return the spec, and the names of the files."""
        offer = self._offers[opening]
        return offer.spec, list(offer.files)

    def read(self, opening: int, name: str, offset: int) -> bytes:
        """Return a piece of a file; nothing behind its end."""
        with open(self._offers[opening].files[name], "rb") as file:
            file.seek(offset)
            return file.read(_PIECE)

    def note(self, opening: int, replica: str, failure: str, facts: str) -> None:
        """Note what became of it in a replica: why it failed, or what is to be known of it."""
        offer = self._offers.get(opening)
        if offer is not None:
            offer.notes[replica] = failure
            offer.facts[:] = [facts] if facts else offer.facts

    def notes(self, opening: int) -> tuple[dict[str, str], str]:
        """Return why it failed, by replica, empty where it is ready; and what is to be known of it."""
        offer = self._offers[opening]
        return offer.notes, "".join(offer.facts)


class Offer(NamedTuple):
    """What a keeper gives."""

    spec: bytes
    files: dict[str, str]
    notes: dict[str, str]
    facts: list[str]


class Opened(NamedTuple):
    """A version that a replica has opened.

    Attributes:
        target: What is served.
        batcher: Runs it.
        most_busy: For how many seconds a run may go on before the replica counts as stuck.
    """

    target: Target
    batcher: Batcher
    most_busy: float


class Replica:
    """One replica.

    Args:
        keeper: The name of the keeper.
        namespace: Where it is found.
    """

    def __init__(self, keeper: str, namespace: str) -> None:
        self._keeper = keeper
        self._namespace = namespace
        self._openings: dict[int, asyncio.Task[Opened]] = {}

    # Versions -----------------------------------------------------------------------------------------------------

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Hold other versions.

        Args:
            config: The ``user_config``: ``{"openings": [1, 2], "grace": 35}``. What is no longer wanted is kept for so
                many seconds, in which a front that drains may still ask for it.
        """
        wanted: list[int] = config["openings"]
        is_new = not self._openings
        for opening in wanted:
            if opening not in self._openings:
                self._openings[opening] = asyncio.create_task(self._open(opening))
        for opening in self._openings.keys() - wanted:
            asyncio.get_running_loop().call_later(config["grace"], self._drop, opening)
        if is_new:
            await asyncio.gather(*self._openings.values())

    async def _open(self, opening: int) -> Opened:
        replica = serve.get_replica_context().replica_id.unique_id
        keeper = ray.get_actor(self._keeper, namespace=self._namespace)
        try:
            target, spec = await asyncio.to_thread(_loaded, keeper, opening)
            batcher = Engine().batcher(target, spec, _nobody_counts)
        except Exception as error:
            await keeper.note.remote(opening, replica, _text_of(error), "")
            raise
        await keeper.note.remote(opening, replica, "", orjson.dumps(facts_of(target)).decode())
        return Opened(target, batcher, 2 * spec.limits.answer)

    def _drop(self, opening: int) -> None:
        task = self._openings.pop(opening, None)
        if task is not None:
            task.add_done_callback(_close)

    # Requests -----------------------------------------------------------------------------------------------------

    async def __call__(self, opening: int, body: bytes) -> bytes:
        """Answer a request; one without a body tells that the replica answers."""
        if opening not in self._openings:
            return encode({"code": "not-ready", "detail": None})
        opened = await self._openings[opening]
        return await _answered(opened, body) if body else b""

    async def check_health(self) -> None:
        """End the replica when its model is stuck; Ray replaces it."""
        for task in self._openings.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                opened = task.result()
                if opened.batcher.busy_for > opened.most_busy:
                    os._exit(EXIT_STUCK)


class Probe:
    """Opens something in a process of its own, before a replica does: it may end the process, and that does no harm."""

    def open(self, keeper: str, namespace: str, opening: int) -> str:
        """Return why it cannot be opened, or nothing."""
        try:
            _loaded(ray.get_actor(keeper, namespace=namespace), opening)
        except Exception as error:  # noqa: BLE001 - whatever the module raises is told to the program
            return _text_of(error)
        return ""


def _text_of(error: Exception) -> str:
    return f"{type(error).__name__}: {text_of(error)}"[:4000]


def _loaded(keeper: Any, opening: int) -> tuple[Target, Spec]:
    """Fetch what a keeper offers, and replay it; in a thread."""
    data, names = ray.get(keeper.offered.remote(opening))
    spec = Spec.from_json(data)
    folders = [folder for folder in spec.sys_path if Path(folder).exists()]
    sys.path[:] = [*folders, *(folder for folder in sys.path if folder not in folders)]
    folder = Path(tempfile.mkdtemp(prefix="replayml-replica-"))
    try:
        for name in names:
            with (folder / name).open("wb") as file:
                while piece := ray.get(keeper.read.remote(opening, name, file.tell())):
                    file.write(piece)
        if "model" in names:
            spec = replace(spec, place=str(folder / "model"))
        target = Target(replace(spec, example=str(folder / "example") if "example" in names else ""))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if target.is_stream:
        raise ConfigurationError(f"{spec.title}: {_NO_STREAMS}")
    return target, spec


async def _answered(opened: Opened, body: bytes) -> bytes:
    given = decode(bytearray(body), DEEPEST)
    try:
        result = await opened.batcher.submit(tuple(given["args"]), given["kwargs"], given["rows"])
    except Refusal as refusal:
        return encode({"code": refusal.code, "detail": refusal.detail})
    except Exception as error:  # noqa: BLE001 - whatever the module raises is told to the front, which logs it
        log = sendable("".join(traceback.format_exception(error)))
        return encode({"code": "raised", "told": told(error), "log": log})
    if isinstance(result, Items):
        opened.batcher.call(result.close)
        return encode({"code": "no-form", "log": _NO_STREAMS})
    try:
        return encode({"code": "", "result": result})
    except (TypeError, ValueError, RuntimeError) as error:  # as a worker of this machine: a RecursionError is the last
        return encode({"code": "no-form", "log": text_of(error)})


def _close(task: asyncio.Task[Opened]) -> None:
    """Let a version that is not wanted any more finish what it has."""
    if not task.cancelled() and task.exception() is None:
        task.result().batcher.close()


def _nobody_counts(requests: int, seconds: float) -> None:
    """Take what a batcher observes: the front counts its requests, and a replica has no metrics of its own."""
