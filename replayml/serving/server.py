"""`ServerModule`: a module behind HTTP, in processes of its own; see `replayml.serving.url` for `UrlModule`.

Invariants:
    * The constructor call says all about a service: ``new()`` of it is the same service, which does not run.
    * Calling a started one calls the service; the arguments, the result and the exceptions are those of the module.
"""

from __future__ import annotations

import inspect
import re
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from replayml.core.errors import ConfigurationError, RecipeError
from replayml.core.tape import CallRecord
from replayml.module.deploying import alone
from replayml.module.evaluating import is_to_be_evaluated
from replayml.module.module import Module
from replayml.module.showing import make_repr, tree
from replayml.serving.backend import Backend, make_backend, require_backend
from replayml.serving.calling.address import url_of
from replayml.serving.calling.client import Client
from replayml.serving.errors import Problem, serving_error
from replayml.serving.limits import ServeLimits
from replayml.serving.messages.schema import specs_of
from replayml.serving.packing.packing import pack, write_example
from replayml.serving.packing.spec import Spec
from replayml.serving.packing.whole import StandIn
from replayml.serving.service import running_of
from replayml.serving.supervising.supervisor import require_token
from replayml.serving.url import UrlModule, open_gateway, read_token, require_name
from replayml.serving.worker.hosts import LOCAL

__all__ = ["ServerModule", "UrlModule", "listed_url", "local_url", "read_token"]

_ROWS = 64
_PORTS = 2**16


class ServerModule(Module):
    """A module, flow or function behind HTTP, in processes of its own.

    `start` gives the process a model file, which it *replays*; a function is found there by its name. From then on
    calling this object calls the service. `update` trains, and puts the new version in the place of the one that runs:
    no request is lost, and each answer tells its version in the header ``x-model-version``. A new version that cannot
    be loaded, or raises on the example, never takes the place of one that works. The old version finishes what it has
    in the seconds of the limit ``drain``, as it does at `stop`; what takes longer is cut, and its caller gets a
    `ServingError` whose code is ``stream-cut``, or ``worker-lost`` where the result is no stream.

    Requests are run one after the other. With ``batch`` those that came while the model ran are run as one batch: the
    first dimension of every input and output then counts rows, of which a request has any number. A batch is added up
    in another order than its rows alone, so that results may differ in the last digits of a float.

    A result that is an iterator, such as that of a generator, is a stream: its items are made in the service and come
    here one by one, and `acall` gives an asynchronous iterator. Closing or dropping it ends the generator. Between two
    items of a stream other requests, and other streams, have a turn. Opened in a browser, `url` is a page to try the
    module.

    Args:
        module: What to serve: a built model, a module without weights (such as a flow), or a function of a module.
        example: The inputs of one call: a tensor or an array, or a tuple of such. Requests are checked against their
            shapes and dtypes, and `/schema` tells them; without ``batch`` a request has as many rows as the example.
            Further arguments of ``forward`` are taken as they come, and such a request runs alone.
        batch: Whether requests may have any number of rows, and run together; a number says how many rows at most. It
            needs an example.
        max_wait: Seconds to wait for further requests where there are two or more; a lone one never waits.
        replicas: How many processes to run.
        backend: Where they run: ``"process"``, on this machine, or ``"ray"``, on a cluster.
        autoscaling: How ``"ray"`` finds the number of processes by itself, instead of ``replicas``: the fields of
            `replayml.serving.on_ray.autoscaling.Autoscaling`, by name.
        name: The name under which other programs find the service, where the environment variable
            ``REPLAYML_REDIS_URL`` names a Redis: see `replayml.serving.calling.gateway`. It then has one of its own by
            default.
        host: The address to listen on. Any but this machine's own needs a token.
        port: The port; 0 for a free one, another one at each `start`.
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
        example: torch.Tensor | np.ndarray[Any, Any] | Sequence[torch.Tensor | np.ndarray[Any, Any]] | None = None,
        batch: bool | int = False,
        max_wait: float = 0.0,
        replicas: int = 1,
        backend: str = "process",
        autoscaling: Mapping[str, Any] | None = None,
        name: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        hosts: Sequence[str] = (),
        token_file: str | None = None,
        limits: Mapping[str, float] | None = None,
        log: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        """Say what to serve, and how; `help` of the class tells each argument. Nothing runs before `start`."""
        self.module = module
        inputs = _inputs(example)
        most_rows = _ROWS if batch is True else int(batch)
        for what, value, least in (("batch", most_rows, 0), ("max_wait", max_wait, 0), ("replicas", replicas, 1)):
            if value < least:
                raise ConfigurationError(f"{what} is {least} or more, not {value!r}")
        if type(port) is not int or not 0 <= port < _PORTS:
            raise ConfigurationError(f"port is a number from 1 to {_PORTS - 1}, or 0 for a free one, not {port!r}")
        if timeout <= 0:
            raise ConfigurationError(f"timeout is a number of seconds above 0, not {timeout!r}")
        if inspect.iscoroutinefunction(module):
            raise ConfigurationError(
                f"{module.__qualname__} is an async function, which is not awaited in a service. Serve a function that "
                "returns its result, or an async generator, which is streamed"
            )
        if most_rows and not inputs:
            raise ConfigurationError(
                "requests can run together only where it is known what they look like: give example=, the inputs of "
                "one call"
            )
        require_name(name)
        require_backend(backend, replicas=replicas, autoscaling=autoscaling)
        if backend == "ray" and _streams(module):
            raise ConfigurationError(
                f"{getattr(module, '__qualname__', type(module).__name__)} yields its result item by item, which is "
                "not sent from a cluster. Serve it with backend='process', or return a list"
            )
        specs_of(inputs, any_rows=most_rows > 0)
        self._inputs = inputs
        self._replicas = replicas
        self._backend = backend
        self._autoscaling = autoscaling
        self._port = port
        self._token_file = token_file
        self._timeout = timeout
        self._spec = Spec(
            kind="",
            place="",
            title="",
            name=name or "",
            has_rows=most_rows > 0,
            most_rows=most_rows,
            wait=float(max_wait),
            host=host,
            hosts=tuple(hosts),
            limits=ServeLimits.of(limits),
            log="" if log is None else str(log),
        )

    _finds_by_name: ClassVar[bool] = True

    # The life of the service --------------------------------------------------------------------------------------

    def _get_deploy_tasks(self) -> Callable[[], Any]:
        return self._deploy

    def _get_eval_tasks(self) -> Callable[[], Any] | None:
        """Return what reads the result of the module, which is that of the service where it has no test set."""
        is_evaluated = isinstance(self.module, Module) and is_to_be_evaluated(self.module)
        return (lambda: self.module.eval_result) if is_evaluated and not is_to_be_evaluated(self) else None

    def _deploy(self) -> ServerModule:
        """Start the service; put a new version in the place of the one that runs."""
        running = running_of(self)
        if running.backend is not None:
            if running.backend.is_running:
                running.backend.switch(self._packed)
                if running.listed is not None:
                    running.listed.renew(listed_url(self._spec, running.backend), running.backend.version)
                return self
            running.end()
        self._announce_deployment()
        spec = self._spec if self._token_file is None else replace(self._spec, token=read_token(self._token_file))
        require_token(spec)
        spec = replace(spec, owner=running.own())
        threads = max(1, torch.get_num_threads() // self._replicas)
        backend = make_backend(
            self._backend,
            replace(spec, threads=threads),
            replicas=self._replicas,
            port=self._port,
            autoscaling=self._autoscaling,
        )
        backend.start(self._packed)
        client = Client(local_url(backend), token=spec.token, owner=spec.owner, timeout=self._timeout)
        running.begin(backend, client)
        if running.listed is not None:
            running.listed.publish(listed_url(self._spec, backend), backend.version)
        return self

    def _announce_deployment(self) -> None:
        """Claim the name of the service where there is a gateway; who looks it up waits until the service is up."""
        running = running_of(self)
        gateway = None if running.listed is not None else open_gateway()
        if gateway is not None:
            kind = "".join(char for char in type(self.module).__name__ if char.isascii() and char.isalnum()).lower()
            name = self._spec.name or f"{kind or 'service'}-{secrets.token_hex(4)}"
            running.enlist(gateway.claim(name))

    def _stand_in(self) -> StandIn | None:
        """Return what calls this service from another process; None while it does not run."""
        running = running_of(self)
        options: dict[str, Any] = {"timeout": self._timeout}
        if self._token_file is not None:
            options["token_file"] = str(Path(self._token_file).resolve())
        if running.listed is not None:
            name = running.listed.name
            return StandIn(CallRecord(UrlModule, (), {"name": name, **options}), name, running.own())
        if running.client is None:
            return None
        url = running.client.url
        return StandIn(CallRecord(UrlModule, (url,), options), url, running.own())

    def _packed(self, folder: Path, spec: Spec) -> Spec:
        """Write what the workers open, and return the spec that says where it is."""
        with alone():
            try:
                packed = pack(self.module, folder)
            except RecipeError as error:
                raise _without_options(error) from error
        example = write_example(self._inputs, folder) if self._inputs else ""
        mine = self._spec  # configured anew, perhaps, since the service was started
        return replace(
            spec, example=example, has_rows=mine.has_rows, most_rows=mine.most_rows, wait=mine.wait, **packed
        )

    def _stop_deployed(self) -> None:
        """Stop the service: running requests finish, and process, port, thread and files are given back."""
        running_of(self).end()

    def _wait_deployed(self) -> None:
        """Wait until every process answers."""
        backend = running_of(self).backend
        if backend is not None:
            backend.wait()

    @property
    def _is_deployed(self) -> bool:
        backend = running_of(self).backend
        return backend is not None and backend.is_running

    @property
    def name(self) -> str | None:
        """The name under which other programs find the service; one that it was given, or has while it runs."""
        listed = running_of(self).listed
        return self._spec.name or (None if listed is None else str(listed.name))

    @property
    def version(self) -> int:
        """The version that answers: 1 after `start`, one more with each `update`; 0 where the service does not run."""
        backend = running_of(self).backend
        return 0 if backend is None else backend.version

    @property
    def url(self) -> str:
        """Where the service is; it must run."""
        return self._client("url").url

    @property
    def pids(self) -> list[int]:
        """The processes of the version that answers."""
        backend = running_of(self).backend
        return [] if backend is None else backend.pids

    def _tree(self) -> str:
        return make_repr("Module", "Server", subs=[tree(self.module)])

    # Calling ------------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the service: see `replayml.serving.calling.client.Client.call`."""
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


def _inputs(example: Any) -> tuple[Any, ...]:
    """Return the inputs of an example, as tensors where they are arrays."""
    given = (example,) if isinstance(example, (torch.Tensor, np.ndarray)) else () if example is None else tuple(example)
    return tuple(torch.from_numpy(value) if isinstance(value, np.ndarray) else value for value in given)


def _without_options(error: RecipeError) -> RecipeError:
    """Return what cannot be written with a way out that a service has, in the place of options of ``save``."""
    found = _OPTIONS.search(error.message)
    if found is None:
        return error
    return RecipeError(error.code, error.where, f"{error.message[: found.start()].rstrip('.')}. {_NAMED}")


_OPTIONS = re.compile(r"(?: Three ways out:|, register a codec).*allow_pickle=True", re.DOTALL)
_NAMED = (
    "The process of the service makes it again from names and plain values: use a function or class that stands at the "
    "top of a module, or a module of replayml whose __init__ makes it"
)


def _streams(module: Any) -> bool:
    function = getattr(module, "forward", module)
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def local_url(backend: Backend) -> str:
    """Return where this program reaches its own service."""
    host, port = backend.address
    return url_of({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104 - compared, not bound


def listed_url(spec: Spec, backend: Backend) -> str:
    """Return where other programs reach a service, for the gateway."""
    if spec.host in LOCAL:
        return local_url(backend)
    is_everywhere = spec.host in ("0.0.0.0", "::")  # noqa: S104 - it is compared, not bound
    return url_of((*spec.hosts, socket.gethostname())[0] if is_everywhere else spec.host, backend.address[1])
