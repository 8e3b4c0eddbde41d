"""What a worker is started with: plain data on its standard input.

Invariants:
    * It holds no code: what is served is a model file, or the name of a function of the user's program.
    * The tokens stand in no file, no argument and no environment variable.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

import orjson

from replayml.serving.limits import ServeLimits

__all__ = ["Spec"]


@dataclass(frozen=True, slots=True)
class Spec:
    """What to serve, and how.

    Attributes:
        kind: ``"model"`` or ``"function"``; ``"remote"`` for a worker in front of a cluster.
        place: The path of the model file, or ``module:qualname`` of the function.
        title: What it is called where people see it.
        name: The name of the service, under which others find it; empty where it has none.
        version: Which version of the service it is, counted from 1.
        imports: Modules to import first, so that the model file may use their classes.
        trust: Classes and functions that the model file may use besides, as ``module:qualname``.
        renames: Names in the model file and those of today.
        example: The example inputs, as `replayml.serving.messages.wire` writes them; empty where there are none.
        has_rows: Whether the first dimension of each input counts rows, of which there may be any number.
        most_rows: How many rows to run at once; 0 to run each request by itself.
        wait: Seconds to wait for more rows.
        host: The address of the service.
        hosts: Further names under which it is reached.
        limits: The limits.
        token: Who sends it may call.
        owner: Who sends it is the program that started the service, and is told what the module raised.
        owners: The same for the services that it calls, by their names or addresses.
        log: The file for the log; empty for the standard error, without a line for each request.
        sys_path: Where modules are found.
        folder: The private folder of the service.
        table: The file of the table of connections.
        threads: How many threads torch uses; 0 for as many as it likes.
        parent: The process of the supervisor.
        program: The module that a worker runs.
        environment: Variables of its environment, besides those of the program.
    """

    kind: str
    place: str
    title: str
    name: str = ""
    version: int = 1
    imports: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()
    renames: dict[str, str] = field(default_factory=dict)
    example: str = ""
    has_rows: bool = False
    most_rows: int = 0
    wait: float = 0.0
    host: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    limits: ServeLimits = field(default_factory=ServeLimits)
    token: str | None = field(default=None, repr=False)
    owner: str | None = field(default=None, repr=False)
    owners: dict[str, str] = field(default_factory=dict, repr=False)
    log: str = ""
    sys_path: tuple[str, ...] = ()
    folder: str = ""
    table: str = ""
    threads: int = 0
    parent: int = 0
    program: str = "replayml.serving.worker.worker"
    environment: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """Return it as bytes."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Return what `to_json` wrote.

        Example:
            >>> spec = Spec("function", "math:sqrt", "sqrt", hosts=("a",))
            >>> Spec.from_json(spec.to_json()) == spec
            True
        """
        values: dict[str, Any] = orjson.loads(data)
        values["limits"] = ServeLimits(**values["limits"])
        for name, value in values.items():
            if isinstance(value, list):
                values[name] = tuple(value)
        return cls(**values)
