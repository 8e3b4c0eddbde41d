"""What a `ServerModule` has at run time, its backend and its client; nothing of it is recorded, copied or saved.

Invariants:
    * What runs belongs to one module of one program; see `replayml.module.runtime` for where it is kept.
    * When the module is no longer used, or the program ends, the service is stopped.
"""

from __future__ import annotations

import secrets
import threading
import weakref
from typing import Any, Protocol

from replayml.module.runtime import runtime_of
from replayml.serving.backend import Backend
from replayml.serving.calling.client import Client

__all__ = ["Running", "running_of"]


class Listed(Protocol):
    """What connects a module with the gateway."""

    def close(self) -> None:
        """End that."""


class Running:
    """The running service of a module, if it runs.

    Attributes:
        backend: What runs it, or None.
        client: Calls it, or None.
        listed: What connects it with the gateway, or None.
        owner: What shows the service that its own program calls; None where it has none, or is of another program.
        lock: Held while something of this is changed.
    """

    def __init__(self) -> None:
        self.backend: Backend | None = None
        self.client: Client | None = None
        self.listed: Any = None
        self.owner: str | None = None
        self.lock = threading.RLock()
        self._end: weakref.finalize[Any, Any] | None = None
        self._unlist: weakref.finalize[Any, Any] | None = None

    def own(self) -> str:
        """Return what shows the service that its own program calls; the same as long as the module exists."""
        with self.lock:
            self.owner = self.owner or secrets.token_hex(16)
            return self.owner

    def begin(self, backend: Backend | None, client: Client) -> None:
        """Keep what was started."""
        self.backend, self.client = backend, client
        self._end = weakref.finalize(self, _stop, backend, client)

    def enlist(self, listed: Listed) -> None:
        """Keep what connects the module with the gateway."""
        self.listed = listed
        self._unlist = weakref.finalize(self, listed.close)

    def end(self) -> None:
        """Stop it; nobody finds it before it stops."""
        (unlist, self._unlist), (end, self._end) = (self._unlist, None), (self._end, None)
        self.backend = self.client = self.listed = None
        try:
            if unlist is not None:
                unlist()
        finally:
            if end is not None:
                end()


def running_of(module: Any) -> Running:
    """Return what runs for a module; it holds nothing where nothing runs."""
    runtime = runtime_of(module)
    if runtime.handle is None:
        runtime.handle = Running()
    found: Running = runtime.handle
    return found


def _stop(backend: Backend | None, client: Client) -> None:
    if backend is not None:
        backend.stop()
    client.close()
