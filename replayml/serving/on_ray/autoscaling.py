"""How many replicas a cluster runs: what ``autoscaling=`` says, checked.

Invariants:
    * What is checked here is taken by Ray Serve as it is; a mistake is told where a service is made, not where it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from replayml.core.errors import ConfigurationError, suggestion

__all__ = ["Autoscaling"]


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """Between how many replicas a cluster chooses, and by what.

    Attributes:
        min_replicas: How many run at least.
        max_replicas: How many run at most.
        target_ongoing_requests: How many requests one replica is to have at a time, on average; there are as many
            replicas as that takes.
        upscale_delay_s: Seconds for which more are wanted before there are more.
        downscale_delay_s: Seconds for which fewer are wanted before there are fewer.

    Example:
        >>> Autoscaling.of({"max_replicas": 4}, replicas=1).min_replicas
        1
    """

    min_replicas: int
    max_replicas: int
    target_ongoing_requests: float = 2.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0

    @classmethod
    def of(cls, given: Mapping[str, Any] | None, *, replicas: int) -> Autoscaling:
        """Return what was given, checked.

        Args:
            given: The fields by name; None for a fixed number of replicas.
            replicas: How many run at least where nothing else is given.

        Raises:
            ConfigurationError: When there is no such field, or its value does not fit.

        Example:
            >>> Autoscaling.of({"max_replica": 4}, replicas=1)
            Traceback (most recent call last):
                ...
            replayml.core.errors.ConfigurationError: autoscaling has no 'max_replica'. Did you mean 'max_replicas'? ...
        """
        if given is None:
            return cls(replicas, replicas)
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"autoscaling is a dict such as {_EXAMPLE}, not {given!r}")
        kinds = {field.name: int if field.type == "int" else float for field in fields(cls)}
        for name, value in given.items():
            if name not in kinds:
                raise ConfigurationError(
                    f"autoscaling has no {name!r}.{suggestion(str(name), kinds)} It takes {', '.join(kinds)}"
                )
            _check(name, value, is_count=kinds[name] is int)
        if "max_replicas" not in given:
            raise ConfigurationError(f"autoscaling lacks 'max_replicas', how many run at most: {_EXAMPLE}")
        values: dict[str, Any] = {"min_replicas": replicas, **given}
        made = cls(**{name: kinds[name](value) for name, value in values.items()})  # type: ignore[arg-type]  # as above
        if made.max_replicas < made.min_replicas:
            raise ConfigurationError(
                f"autoscaling: max_replicas, {made.max_replicas}, is less than min_replicas, {made.min_replicas}"
            )
        return made


_EXAMPLE = '{"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 2}'
_MOST = 10_000


def _check(name: str, value: Any, *, is_count: bool) -> None:
    is_number = isinstance(value, int if is_count else (int, float)) and not isinstance(value, bool)
    least = 0 if name.endswith("_delay_s") else 1 if is_count else 1e-6
    if not is_number or not least <= value <= _MOST:
        kind = "a whole number from 1" if is_count else "seconds, from 0" if least == 0 else "a number above 0"
        raise ConfigurationError(f"autoscaling: {name} is {kind}, not {value!r}")
