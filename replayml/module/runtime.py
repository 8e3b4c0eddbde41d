"""What a module is doing: which modules one call is about, and what is known of them while the program runs.

Invariants:
    * It stands on the module's record, and is in no ``state_dict``, pickle, copy, recipe or checkpoint.
    * A module takes part in one call of the lifecycle at a time; a call inside of that call is part of it, in other
      threads too, where they run in a copy of its context.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from torch import nn

from replayml.core.errors import LifecycleError
from replayml.core.tape import Path

__all__ = ["Place", "Runtime", "claimed", "places_of", "runtime_of"]


class Runtime:
    """What is known of one module while the program runs.

    Attributes:
        lock: Held by the call of the lifecycle that the module takes part in.
        holder: That call, for messages.
        was_deployed: Whether its deployment tasks have run, and it was not stopped since.
        handle: What a deployment left behind, for the class that deploys: a process, a client.
        has_result: Whether it was evaluated, and nothing has changed since.
        result: The result of that.
    """

    __slots__ = ("handle", "has_result", "holder", "lock", "result", "was_deployed")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holder = ""
        self.was_deployed = False
        self.handle: Any = None
        self.has_result = False
        self.result: Any = None

    def keep(self, result: Any) -> None:
        """Keep the result of an evaluation."""
        self.result = result
        self.has_result = True

    def forget(self) -> None:
        """Forget the result of the last evaluation."""
        self.result = None
        self.has_result = False


def runtime_of(module: Any) -> Runtime:
    """Return what is known of a module while the program runs; it is made when it is first asked for."""
    record = module._record
    runtime: Runtime | None = record.runtime
    if runtime is None:
        runtime = record.__dict__.setdefault("runtime", Runtime())  # one, also for two threads at once
    return runtime


class Place(NamedTuple):
    """A module and its path below the one that a call was made on."""

    path: Path
    module: Any

    def __str__(self) -> str:
        return f"{'.'.join(('model', *self.path))} ({type(self.module).__name__})"


def places_of(module: Any, recursive: bool = True) -> list[Place]:
    """Return a replayml module and all below it: depth first, children before parents, each once.

    Args:
        module: The module.
        recursive: False for the module alone.

    Example:
        >>> import replayml
        >>> mlp = replayml.MultiLayerPerceptron(4, [], 2).build()
        >>> [str(place) for place in places_of(mlp)]
        ['model.blocks.0 (LinearBlock)', 'model.blocks (LayerList)', 'model (MultiLayerPerceptron)']
    """
    if not recursive:
        return [Place((), module)]
    found: list[Place] = []
    _collect(module, (), set(), found)
    return found


def _collect(module: nn.Module, path: Path, seen: set[int], found: list[Place]) -> None:
    seen.add(id(module))
    for name, child in module._modules.items():
        if child is not None and id(child) not in seen:
            _collect(child, (*path, name), seen, found)
    if "_record" in module.__dict__:
        found.append(Place(path, module))


class _Claim:
    """The modules of one call, for as long as it runs."""

    __slots__ = ("held", "is_over")

    def __init__(self) -> None:
        self.held: list[Runtime] = []
        self.is_over = False


_claims: ContextVar[tuple[_Claim, ...]] = ContextVar("replayml_claims", default=())


@contextmanager
def claimed(places: Sequence[Place], call: str) -> Iterator[None]:
    """Let no other call of the lifecycle run on some modules while the block runs.

    Raises:
        LifecycleError: When one is running on some of them; nothing is claimed then.
    """
    outer = _claims.get()
    mine = {id(runtime) for claim in outer if not claim.is_over for runtime in claim.held}
    claim = _Claim()
    token = None
    try:
        for place in places:
            runtime = runtime_of(place.module)
            if id(runtime) in mine:
                continue
            if not runtime.lock.acquire(blocking=False):
                raise LifecycleError(
                    f"{call} has not started: {place} takes part in {runtime.holder or 'another call'}, which is "
                    "running in another thread. Wait until that has returned, and call it again"
                )
            runtime.holder = call
            claim.held.append(runtime)
        token = _claims.set((*outer, claim))
        yield
    finally:
        claim.is_over = True
        if token is not None:
            _claims.reset(token)
        for runtime in claim.held:
            runtime.holder = ""
            runtime.lock.release()
