"""`ServerModule`: a module behind HTTP, in processes of its own; `UrlModule`: one that runs elsewhere.

Invariants:
    * The constructor call says all about a service: ``new()`` of it is the same service, which does not run.
    * Calling a started one calls the service; the arguments, the result and the exceptions are those of the module.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from replayml.core.errors import ConfigurationError
from replayml.lifecycle.showing import make_repr, tree
from replayml.module.module import Module
from replayml.serving.client import Client
from replayml.serving.errors import Problem, serving_error
from replayml.serving.limits import ServeLimits
from replayml.serving.packing import pack, write_example
from replayml.serving.schema import specs_of
from replayml.serving.service import running_of
from replayml.serving.spec import Spec
from replayml.serving.supervisor import Supervisor, require_token

__all__ = ["ServerModule", "UrlModule", "local_url", "read_token"]

_ROWS = 64
_SHORTEST_TOKEN = 16


class ServerModule(Module):
    """A module, flow or function behind HTTP, in processes of its own.

    `start` gives the process a model file, which it *replays*; a function is found there by its name. From then on
    calling this object calls the service.

    Requests are run one after the other. With ``batch`` those that came while the model ran are run as one batch: the
    first dimension of every input and output then counts rows, of which a request has any number. A batch is added up
    in another order than its rows alone, so that results may differ in the last digits of a float.

    Args:
        module: What to serve: a built model, a module without weights (such as a flow), or a function of a module.
        example: The inputs of one call, as a tensor or a tuple of tensors. Requests are checked against their shapes
            and dtypes, and `/schema` tells them. A module that is to run batches needs one.
        batch: Whether requests may run together; a number says how many rows at most.
        max_wait: Seconds to wait for further requests where there are two or more; a lone one never waits.
        replicas: How many processes to run.
        host: The address to listen on. Any but this machine's own needs a token.
        port: The port; 0 for a free one.
        hosts: Further names under which callers reach the service.
        token_file: A file with the token that callers must show, of 16 characters or more.
        limits: What `replayml.serving.limits.ServeLimits` lists, by name.
        log: A file for the log, with a line for each request; by default faults go to the standard error.
        timeout: Seconds until a call fails.

    Raises:
        ConfigurationError: When an argument does not fit.

    Example:
        >>> import torch, replayml
        >>> from replayml.serving.server import ServerModule
        >>> model = replayml.MultiLayerPerceptron(4, [8], 2).build()
        >>> service = ServerModule(model, example=torch.zeros(1, 4), batch=True)
        >>> service(torch.zeros(3, 4))
        Traceback (most recent call last):
            ...
        replayml.serving.errors.UnavailableError: [not-started] This service does not run. Call start() first. ...
    """

    def __init__(
        self,
        module: Any,
        *,
        example: torch.Tensor | Sequence[torch.Tensor] | None = None,
        batch: bool | int = False,
        max_wait: float = 0.0,
        replicas: int = 1,
        host: str = "127.0.0.1",
        port: int = 0,
        hosts: Sequence[str] = (),
        token_file: str | None = None,
        limits: Mapping[str, float] | None = None,
        log: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self.module = module
        inputs = (example,) if isinstance(example, torch.Tensor) else tuple(example or ())
        most_rows = _ROWS if batch is True else int(batch)
        if most_rows < 0 or replicas < 1 or max_wait < 0 or timeout <= 0:
            raise ConfigurationError("batch and max_wait are 0 or more, replicas 1 or more, timeout more than 0")
        if most_rows and not inputs:
            raise ConfigurationError(
                "requests can run together only where it is known what they look like: give example=, the inputs of "
                "one call"
            )
        specs_of(inputs, any_rows=most_rows > 0)
        self._inputs = inputs
        self._replicas = replicas
        self._port = port
        self._token_file = token_file
        self._timeout = timeout
        self._spec = Spec(
            kind="",
            place="",
            title="",
            has_rows=most_rows > 0,
            most_rows=most_rows,
            wait=float(max_wait),
            host=host,
            hosts=tuple(hosts),
            limits=ServeLimits.of(limits),
            log="" if log is None else str(log),
        )

    # The life of the service --------------------------------------------------------------------------------------

    def _get_deploy_tasks(self) -> Callable[[], Any]:
        return self._deploy

    def _deploy(self) -> ServerModule:
        """Start the service, unless it runs."""
        running = running_of(self)
        if running.supervisor is not None:
            return self
        spec = self._spec if self._token_file is None else replace(self._spec, token=read_token(self._token_file))
        require_token(spec)
        spec = replace(spec, owner=secrets.token_hex(16))
        threads = max(1, torch.get_num_threads() // self._replicas)
        supervisor = Supervisor(replace(spec, threads=threads), replicas=self._replicas, port=self._port)
        supervisor.start(self._packed)
        running.begin(
            supervisor, Client(local_url(supervisor), token=spec.token, owner=spec.owner, timeout=self._timeout)
        )
        return self

    def _packed(self, folder: Path, spec: Spec) -> Spec:
        """Write what the workers open, and return the spec that says where it is."""
        packed = pack(self.module, folder)
        example = write_example(self._inputs, folder) if self._inputs else ""
        return replace(spec, example=example, **packed)

    def _stop_deployed(self) -> None:
        """Stop the service: running requests finish, and process, port, thread and files are given back."""
        running_of(self).end()

    def _wait_deployed(self) -> None:
        """Wait until every process answers."""
        supervisor = running_of(self).supervisor
        if supervisor is not None:
            supervisor.wait()

    @property
    def _is_deployed(self) -> bool:
        supervisor = running_of(self).supervisor
        return supervisor is not None and supervisor.is_running

    @property
    def url(self) -> str:
        """Where the service is; it must run."""
        return self._client("url").url

    @property
    def pids(self) -> list[int]:
        """The processes that answer, without those that start at the moment."""
        supervisor = running_of(self).supervisor
        return [] if supervisor is None else supervisor.pids

    def _tree(self) -> str:
        return make_repr("Module", "Server", subs=[tree(self.module)])

    def __repr__(self) -> str:
        return self._tree()

    # Calling ------------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the service: see `replayml.serving.client.Client.call`."""
        return self._client("forward").call(args, kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call the service without blocking the event loop."""
        return await self._client("acall").acall(args, kwargs)

    def _client(self, what: str) -> Client:
        client = running_of(self).client
        if client is None:
            text = "This service does not run. Call start() first."
            raise serving_error(Problem("not-started", text, f"{type(self).__name__}.{what}"))
        return client


class UrlModule(Module):
    """A module that runs elsewhere: calling it calls the service.

    Args:
        url: Where the service is, such as ``"http://127.0.0.1:8000"``.
        token_file: A file with the token that it wants to see.
        timeout: Seconds until a call fails.

    Raises:
        ConfigurationError: When the URL is none.

    Example:
        >>> from replayml.serving.server import UrlModule
        >>> UrlModule("http://127.0.0.1:8000").url
        'http://127.0.0.1:8000'
    """

    def __init__(self, url: str, *, token_file: str | None = None, timeout: float = 60.0) -> None:
        self.url = Client(url).url
        self._token_file = token_file
        self._timeout = timeout

    def _tree(self) -> str:
        return make_repr("Module", "Url", url=self.url)

    def __repr__(self) -> str:
        return self._tree()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the service: see `replayml.serving.client.Client.call`."""
        return self._calling().call(args, kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call the service without blocking the event loop."""
        return await self._calling().acall(args, kwargs)

    def close(self) -> None:
        """Close the connections; a further call opens new ones."""
        running_of(self).end()

    def _calling(self) -> Client:
        running = running_of(self)
        if running.client is None:
            token = None if self._token_file is None else read_token(self._token_file)
            running.begin(None, Client(self.url, token=token, timeout=self._timeout))
        assert running.client is not None
        return running.client


def read_token(path: str) -> str:
    """Return the token in a file.

    Raises:
        ConfigurationError: When it is too short, or holds what a header cannot.
    """
    token = Path(path).read_text(encoding="utf-8").strip()
    if len(token) < _SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigurationError(
            f"the token in {path} has {len(token)} characters; write {_SHORTEST_TOKEN} or more, printable and without "
            "spaces: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def local_url(supervisor: Supervisor) -> str:
    """Return where this program reaches its own service."""
    host, port = supervisor.address
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - it is compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
