"""What runs a service: processes of this machine, or a cluster.

    ServerModule ─► Backend: start ─► switch to new weights, again and again ─► stop

Invariants:
    * A backend is imported when a service asks for it, not before: what it needs besides is needed by its users alone.
    * The address stays the same from `start` to `stop`, whatever version answers there.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from replayml.core.errors import ConfigurationError, suggestion
from replayml.serving.on_ray.autoscaling import Autoscaling
from replayml.serving.packing.spec import Spec

__all__ = ["BACKENDS", "Backend", "Pack", "make_backend", "require_backend"]

Pack = Callable[[Path, Spec], Spec]
"""Writes what a worker opens into a folder, and returns the spec that says where it is."""

BACKENDS: Mapping[str, str] = MappingProxyType(
    {"process": "replayml.serving.supervising.supervisor:Supervisor", "ray": "replayml.serving.on_ray.ray:RayBackend"}
)
"""Where the class of each backend stands."""


class Backend(Protocol):
    """Runs one service."""

    @property
    def address(self) -> tuple[str, int]:
        """The address and port that the service is bound to."""

    @property
    def pids(self) -> list[int]:
        """The processes of the version that answers, as far as they run on this machine."""

    @property
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""

    @property
    def version(self) -> int:
        """The version that answers: 1 after `start`, one more with each `switch`; 0 before."""

    def start(self, pack: Pack) -> None:
        """Start the service, and return when all of it answers.

        Args:
            pack: Writes what the workers open.

        Raises:
            ServingError: When what is served could not be loaded, or not in time; nothing is left behind.
        """

    def switch(self, pack: Pack) -> None:
        """Put a new version in the place of the one that answers, without a request that is lost.

        The workers of the new version load it beside those of the old one. When all of them have shown that they
        answer, they take the requests, and the old ones finish what they have; what takes longer than the limit
        ``drain`` is cut. Every request that is sent after this has returned is answered by the new version.

        Args:
            pack: Writes what the workers of the new version open.

        Raises:
            ServingError: When the new version did not pass; the old one answers as before.
            LifecycleError: When another call of `switch` is running.
        """

    def wait(self, timeout: float | None = None) -> None:
        """Wait until every worker answers again, or the service was stopped."""

    def stop(self, *, drain: bool = True) -> None:
        """Stop the service and give everything back.

        Args:
            drain: Whether running requests may finish.
        """


def require_backend(name: str, *, replicas: int = 1, autoscaling: Mapping[str, Any] | None = None) -> None:
    """Refuse a backend that does not exist.

    Raises:
        ConfigurationError: When there is none of that name, or it does not take this ``autoscaling``.

    Example:
        >>> require_backend("rya")
        Traceback (most recent call last):
            ...
        replayml.core.errors.ConfigurationError: there is no backend 'rya'. Did you mean 'ray'? Choose ...
    """
    if name not in BACKENDS:
        choices = " or ".join(map(repr, BACKENDS))
        raise ConfigurationError(f"there is no backend {name!r}.{suggestion(str(name), BACKENDS)} Choose {choices}")
    if autoscaling is not None and name == "process":
        raise ConfigurationError("autoscaling= needs backend='ray'; processes of this machine are counted by replicas=")
    Autoscaling.of(autoscaling, replicas=replicas)


def make_backend(
    name: str, spec: Spec, *, replicas: int, port: int, autoscaling: Mapping[str, Any] | None = None
) -> Backend:
    """Return a backend, which does not run yet.

    Args:
        name: One of `BACKENDS`.
        spec: What to serve.
        replicas: How many workers.
        port: The port; 0 for a free one.
        autoscaling: How ``"ray"`` finds the number of workers by itself.

    Raises:
        ConfigurationError: When there is no such backend, or it needs an extra that is not installed.
    """
    require_backend(name, replicas=replicas, autoscaling=autoscaling)
    module, _, attribute = BACKENDS[name].partition(":")
    make: Callable[..., Backend] = getattr(importlib.import_module(module), attribute)
    if autoscaling is None:
        return make(spec, replicas=replicas, port=port)
    return make(spec, replicas=replicas, port=port, autoscaling=autoscaling)
