"""What a `ServerModule` has at run time, its supervisor and its client; nothing of it is recorded, copied or saved.

Invariants:
    * What runs belongs to one module of one program; see `replayml.module.runtime` for where it is kept.
    * When the module is no longer used, or the program ends, the service is stopped.
"""

from __future__ import annotations

import weakref
from typing import Any

from replayml.module.runtime import runtime_of
from replayml.serving.client import Client
from replayml.serving.supervisor import Supervisor

__all__ = ["Running", "running_of"]


class Running:
    """The running service of a module, if it runs.

    Attributes:
        supervisor: It, or None.
        client: Calls it, or None.
    """

    def __init__(self) -> None:
        self.supervisor: Supervisor | None = None
        self.client: Client | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    def begin(self, supervisor: Supervisor | None, client: Client) -> None:
        """Keep what was started."""
        self.supervisor, self.client = supervisor, client
        self._end = weakref.finalize(self, _stop, supervisor, client)

    def end(self) -> None:
        """Stop it."""
        end, self._end = self._end, None
        self.supervisor = self.client = None
        if end is not None:
            end()


def running_of(module: Any) -> Running:
    """Return what runs for a module; it holds nothing where nothing runs."""
    runtime = runtime_of(module)
    if runtime.handle is None:
        runtime.handle = Running()
    found: Running = runtime.handle
    return found


def _stop(supervisor: Supervisor | None, client: Client) -> None:
    if supervisor is not None:
        supervisor.stop()
    client.close()
