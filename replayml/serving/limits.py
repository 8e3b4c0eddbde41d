"""How much a service takes, and how long it waits.

Invariants:
    * Limits are given by whoever starts the service; nothing in a request changes one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from replayml.core.errors import ConfigurationError, suggestion

__all__ = ["ServeLimits"]


@dataclass(frozen=True, slots=True)
class ServeLimits:
    """The limits of a service.

    Attributes:
        body: Bytes in the body of a request.
        headers: Bytes in its first line and headers.
        depth: How deep the values in it are nested.
        queue: How many requests wait for the model; further ones are told to come back.
        streams: How many results come item by item at once; further ones are told to come back.
        connections: How many connections are open at once.
        rate: Bytes of a long answer, or of a long item of a stream, that its client takes in a second at the least.
        send: Seconds that a client has to send a request.
        answer: Seconds until a request is answered.
        idle: Seconds that a connection stays open between two requests, or while its client takes nothing of an answer.
        drain: Seconds that running requests and streams have to finish when the service stops or is updated; those
            that take longer are cut, and their callers told so.
        start: Seconds that a worker has to load the model.

    Example:
        >>> ServeLimits().body
        16777216
    """

    body: int = 16 * 2**20
    headers: int = 16 * 2**10
    depth: int = 64
    queue: int = 256
    streams: int = 256
    connections: int = 512
    rate: int = 16 * 2**10
    send: float = 10.0
    answer: float = 30.0
    idle: float = 60.0
    drain: float = 30.0
    start: float = 120.0

    @classmethod
    def of(cls, given: Mapping[str, float] | None) -> ServeLimits:
        """Return the limits with some of them changed.

        Args:
            given: The new values by name; each is a positive number.

        Raises:
            ConfigurationError: When there is no such limit, or a value is none.

        Example:
            >>> ServeLimits.of({"answer": 5}).answer
            5.0
            >>> ServeLimits.of({"awnser": 5})
            Traceback (most recent call last):
                ...
            replayml.core.errors.ConfigurationError: there is no limit 'awnser'. Did you mean 'answer'? ...
        """
        kinds = {field.name: int if field.type == "int" else float for field in fields(cls)}
        values: dict[str, float] = {}
        for name, value in (given or {}).items():
            if name not in kinds:
                raise ConfigurationError(
                    f"there is no limit {name!r}.{suggestion(name, kinds)} The limits are {', '.join(kinds)}"
                )
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 2**40:
                raise ConfigurationError(f"the limit {name!r} is a positive number, not {value!r}")
            values[name] = kinds[name](value)
        return cls(**values)  # type: ignore[arg-type]  # each has the type of its default
