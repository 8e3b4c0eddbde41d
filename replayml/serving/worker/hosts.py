"""Which hosts and sites belong to a service.

A page of another site that makes a browser call a service on this machine is told from its user by ``Host`` and
``Origin``: a name that was bent to 127.0.0.1 still stands in ``Host``.

Invariants:
    * On this machine's own addresses a service takes no other name than theirs.
    * Everywhere else it takes addresses, the name of the machine, and the names that it was given.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from functools import lru_cache

__all__ = ["LOCAL", "Hosts"]

LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
"""The hosts that only programs on the same machine reach."""


class Hosts:
    """The hosts of a service.

    Args:
        host: The address that it is bound to.
        names: Further names under which it is reached.

    Example:
        >>> hosts = Hosts("127.0.0.1")
        >>> hosts.is_ours(b"localhost:8000"), hosts.is_ours(b"evil.example:8000")
        (True, False)
        >>> hosts.is_same_site(b"http://localhost:8000", b"localhost:8000")
        True
    """

    def __init__(self, host: str, names: Collection[str] = ()) -> None:
        self._takes_addresses = host not in LOCAL
        own = {socket.gethostname().lower()} if self._takes_addresses else set()
        self._names = {*LOCAL, host.lower(), *own, *(name.lower() for name in names)}

    def is_ours(self, header: bytes) -> bool:
        """Tell whether a ``Host`` header names this service."""
        name = _name_of(header)
        return name is not None and (name in self._names or (self._takes_addresses and _is_address(name)))

    def is_same_site(self, origin: bytes, host: bytes) -> bool:
        """Tell whether an ``Origin`` header names the site that ``Host`` names."""
        return origin.lower() in (b"http://" + host.lower(), b"https://" + host.lower())


@lru_cache(maxsize=64)
def _name_of(header: bytes) -> str | None:
    """Return the name or address in a ``Host`` header, without the port."""
    text = header.decode("ascii", "replace").lower()
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        is_port = not port or (port.startswith(":") and port[1:].isdigit())
        return name if bracket and is_port else None
    name, colon, port = text.partition(":")
    return name if name and (not colon or port.isdigit()) else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
