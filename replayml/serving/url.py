"""`UrlModule`: a module that runs elsewhere, at an address or under a name; and the names of services.

    UrlModule("http://127.0.0.1:8000")        there and nowhere else
    UrlModule(name="digits")                  wherever the gateway says: see `replayml.serving.calling.gateway`

Invariants:
    * An address that was looked up is used until nothing answers there; then it is looked up anew.
    * A call is sent to another address only when it is certain that it did not run at the first.
    * The gateway is imported where the program uses one, and not before.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replayml.core.errors import ConfigurationError
from replayml.module.deploying import GATEWAY
from replayml.module.module import Module
from replayml.module.showing import make_repr
from replayml.serving.calling.client import Client
from replayml.serving.errors import ServingError
from replayml.serving.service import running_of

if TYPE_CHECKING:
    from replayml.serving.calling.gateway import Gateway

__all__ = ["UrlModule", "open_gateway", "read_token", "require_name"]

_SHORTEST_TOKEN = 16
_MOVED = (
    "A service that was started again has another address, unless port= says which. Call update() of the service that "
    "asks it; or start, stop and restart them together, from that one."
)
_WRITING = "python -c 'import secrets; print(secrets.token_urlsafe())'"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_NO_TIME = 2.0
_PASSING = frozenset({"gateway-unreachable", "unknown-service"})


def require_name(name: str | None) -> None:
    """Refuse what is no name of a service.

    Raises:
        ConfigurationError: When it is none.

    Example:
        >>> require_name("digits-2")
        >>> require_name("my digits")
        Traceback (most recent call last):
            ...
        replayml.core.errors.ConfigurationError: 'my digits' is no name of a service: give up to 64 letters, ...
    """
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ConfigurationError(
            f"{name!r} is no name of a service: give up to 64 letters, digits, '_', '-' and '.', of which the "
            "first is a letter or digit"
        )


def open_gateway() -> Gateway | None:
    """Return the gateway that the environment names, or None.

    Raises:
        ConfigurationError: When the variable holds no address of a Redis.
        ModuleNotFoundError: When the extra is not installed.
    """
    url = os.environ.get(GATEWAY)
    if not url:
        return None
    found: Gateway = importlib.import_module("replayml.serving.calling.gateway").Gateway(url)
    return found


class UrlModule(Module):
    """A module that runs elsewhere: calling it calls the service.

    Args:
        url: Where the service is, such as ``"http://127.0.0.1:8000"``.
        name: The name under which the gateway lists it, instead of the address. The environment variable
            ``REPLAYML_REDIS_URL`` says where the gateway is. Who may write to that Redis decides where calls go to, and
            sees what they carry, the token included.
        token_file: A file with the token that it wants to see.
        timeout: Seconds until a call fails.

    Raises:
        ConfigurationError: When the URL is none of HTTP, the name is none, or both or neither is given.

    Example:
        >>> from replayml.serving.url import UrlModule
        >>> UrlModule("http://127.0.0.1:8000").url
        'http://127.0.0.1:8000'
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        name: str | None = None,
        token_file: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Say where the service is; `help` of the class tells each argument. Nothing is asked before a call."""
        if (url is None) == (name is None):
            raise ConfigurationError('give an address, UrlModule("http://host:port"), or a name, UrlModule(name="...")')
        require_name(name)
        self._url = None if url is None else Client(url).url
        self._name = name
        self._token_file = token_file
        self._timeout = timeout

    @property
    def url(self) -> str:
        """Where the service is; of one with a name, where it is at the moment."""
        return self._url or self._calling().url

    @property
    def name(self) -> str | None:
        """The name of the service, where it was given by that."""
        return self._name

    def _tree(self) -> str:
        where = {"url": self._url} if self._name is None else {"name": self._name}
        return make_repr("Module", "Url", **where)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the service: see `replayml.serving.calling.client.Client.call`."""
        return self._calling().call(args, kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call the service without blocking the event loop."""
        client = running_of(self).client
        if client is None:
            client = await asyncio.get_running_loop().run_in_executor(None, self._calling)
        return await client.acall(args, kwargs)

    def close(self) -> None:
        """Close the connections; a further call opens new ones."""
        running_of(self).end()

    def _take_owners(self, owners: Mapping[str, str]) -> None:
        """Show the service, from now on, that the program that started it calls."""
        running_of(self).owner = owners.get(self._name or self._url or "")

    def _calling(self) -> Client:
        running = running_of(self)
        with running.lock:
            if running.client is None:
                token = None if self._token_file is None else read_token(self._token_file)
                options: dict[str, Any] = {"token": token, "owner": running.owner, "timeout": self._timeout}
                if running.owner is not None:
                    options["advice"] = _MOVED
                if self._name is None:
                    running.begin(None, Client(self._url or "", **options))
                else:
                    finder = _Finder(self._name)
                    try:
                        client = Client(finder.find(self._timeout), locate=finder.find_again, **options)
                    except BaseException:
                        finder.close()
                        raise
                    running.enlist(finder)
                    running.begin(None, client)
            assert running.client is not None
            return running.client


class _Finder:
    """Looks up a service.

    Args:
        name: Its name.
    """

    def __init__(self, name: str) -> None:
        found = open_gateway()
        if found is None:
            raise ConfigurationError(
                f"UrlModule(name={name!r}) is looked up in a Redis, and {GATEWAY} is not set. Set it, such as "
                f"{GATEWAY}=redis://localhost:6379/0; or give the address: UrlModule(url)"
            )
        self._gateway = found
        self._name = name
        self._known = ""
        self._is_closed = threading.Event()

    def find(self, within: float) -> str:
        """Return where the service is; wait while it starts.

        Args:
            within: Seconds to wait at the most.
        """
        end = time.monotonic() + within
        pause = _FIRST_PAUSE
        while True:
            entry = self._gateway.find(self._name)
            if entry.url:
                self._known = entry.url
                return entry.url
            left = end - time.monotonic()
            if left <= 0 or self._is_closed.wait(min(pause, left)):
                raise self._gateway.not_up(entry)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def find_again(self, within: float) -> str:
        """Return where the service is that was known before.

        While it is listed no more, or Redis is away, it may come back: this is where it was, as long as there is time.
        """
        try:
            return self.find(within)
        except ServingError as error:
            if error.code not in _PASSING or within < _NO_TIME:
                raise
            return self._known

    def close(self) -> None:
        """Close the connection."""
        self._is_closed.set()
        self._gateway.close()


def read_token(path: str) -> str:
    """Return the token in a file.

    Raises:
        ConfigurationError: When it cannot be read, is too short, or holds what a header cannot.
    """
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        next_step = f"Write it: {_WRITING} > {path}" if isinstance(error, FileNotFoundError) else "Give another file"
        raise ConfigurationError(f"the token file {path} cannot be read: {error.strerror}. {next_step}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is no text, and holds no token. Write one: {_WRITING}") from error
    if len(token) < _SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigurationError(
            f"the token in {path} has {len(token)} characters; write {_SHORTEST_TOKEN} or more, printable and without "
            f"spaces: {_WRITING}"
        )
    return token
