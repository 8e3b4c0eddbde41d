"""The service as an ASGI application: a fixed table of routes, and what every request passes first.

    request ─► size, Host, Origin, token ─► route ─► body, counted while it streams ─► checked inputs ─► model ─► answer

Invariants:
    * Every answer has a request id, and every error a code; a traceback goes to the log only.
    * Nothing is read of a body before its sender is known to be allowed to send it.
    * Nothing loads a model, evaluates code or shuts the service down by request.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from replayml.serving.errors import OWNER, ClientGoneError, Refusal, error_body, told
from replayml.serving.limits import ServeLimits
from replayml.serving.messages.events import EVENTS, item_event
from replayml.serving.messages.openapi import openapi
from replayml.serving.messages.wire import decode, encode, plain
from replayml.serving.worker.batching import Batcher
from replayml.serving.worker.deadlines import Deadlines
from replayml.serving.worker.exchange import JSON, TENSORS, Reply, Request, Streamed, read_json, refused
from replayml.serving.worker.hosts import Hosts
from replayml.serving.worker.metrics import Metrics
from replayml.serving.worker.page import read_page
from replayml.serving.worker.streaming import Items, Pump, send_stream
from replayml.serving.worker.target import Target

__all__ = ["Service"]

_OWNER = OWNER.encode()
STREAM_HEADERS = ((b"content-type", EVENTS.encode()), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"))

_log = logging.getLogger("replayml.serving")
_access = logging.getLogger("replayml.serving.access")

_LAST = 1.0


class Service:
    """Answers requests for one model.

    Args:
        target: The model.
        batcher: Runs it.
        limits: The limits.
        hosts: Which ``Host`` and ``Origin`` belong to this service.
        token: Who sends it may call; None where everybody may.
        owner: Who sends it is told what the model raised; None for nobody.
        metrics: Counts the requests.
    """

    def __init__(
        self,
        target: Target,
        batcher: Batcher,
        *,
        limits: ServeLimits,
        hosts: Hosts,
        token: str | None,
        owner: str | None,
        metrics: Metrics,
    ) -> None:
        self._target = target
        self._batcher = batcher
        self._limits = limits
        self._hosts = hosts
        self._secret = None if token is None else f"Bearer {token}".encode()
        self._owner = None if owner is None else owner.encode()
        self._metrics = metrics
        self._version = b"%d" % target.version
        self._schema = orjson.dumps(openapi(target, has_token=token is not None, version=target.version))
        self._ids = map(f"{secrets.token_hex(4)}{{:08x}}".format, itertools.count(1))
        self._page = read_page()
        self._streams = 0
        self._deadlines = Deadlines(limits.answer)
        self.is_draining = False
        self._routes: Mapping[
            str, tuple[tuple[str, ...], bool, Callable[[Request], Awaitable[Response | Streamed]]]
        ] = {
            "/": (("GET", "HEAD"), False, self._show_page),
            "/predict": (("POST",), True, self._predict),
            "/healthz": (("GET", "HEAD"), False, self._healthz),
            "/readyz": (("GET", "HEAD"), False, self._readyz),
            "/schema": (("GET", "HEAD"), True, self._show_schema),
            "/metrics": (("GET", "HEAD"), True, self._show_metrics),
        }

    def close(self) -> None:
        """End the model's thread, and wait a little for what streams that were cut off have left to do."""
        self._batcher.close()
        self._batcher.join(_LAST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reply a request."""
        if scope["type"] != "http":
            return
        started = time.perf_counter()
        request = Request(next(self._ids), scope, dict(scope["headers"]), receive)
        status, code = 499, None
        try:
            try:
                response = await self._answer(request)
            except Refusal as refusal:
                code = refusal.code
                response = refused(refusal, request)
            except ClientGoneError:
                raise
            except Exception:  # noqa: BLE001 - the last resort; the traceback is logged
                _log.exception("request %s: a fault of the service", request.id)
                code = "internal"
                response = refused(Refusal(code), request)
            status = 200 if isinstance(response, Streamed) else response.status_code
            if isinstance(response, Streamed):
                code = await self._send_stream(response, request, send)
            else:
                await self._send(response, request, send)
        except ClientGoneError:
            status = 499
        finally:
            seconds = time.perf_counter() - started
            is_own = request.connection.is_own
            if not is_own:
                self._metrics.count(scope["path"], status, seconds)
                self._metrics.waiting(self._batcher.waiting)
            if not is_own and _access.isEnabledFor(logging.INFO):
                client = scope.get("client")
                line = {
                    "id": request.id,
                    "client": client[0] if client else None,
                    "method": scope["method"],
                    "path": scope["path"][:200],
                    "status": status,
                    "code": code,
                    "ms": round(seconds * 1000, 2),
                }
                _access.info("%s", orjson.dumps(line).decode())

    def _complete(self, headers: list[tuple[bytes, bytes]], request: Request) -> None:
        """Add the headers that every answer has."""
        headers.append((b"x-request-id", request.id.encode()))
        headers.append((b"x-model-version", self._version))
        if self.is_draining:
            headers.append((b"connection", b"close"))

    async def _send(self, response: Response, request: Request, send: Send) -> None:
        self._complete(response.raw_headers, request)
        await request.connection.answer(request.scope, send, response)

    async def _send_stream(self, stream: Streamed, request: Request, send: Send) -> str | None:
        """Reply with a stream; return the code of the error that ended it, if one did."""
        codes: list[str] = []

        def failed(error: Exception) -> bytes:
            refusal = self._refusal(error, request)
            codes.append(refusal.code)
            return error_body(refusal.code, request.id, refusal.detail)

        connection = request.connection
        pump = Pump(
            stream.items,
            run=self._batcher.call,
            to_bytes=partial(_item, is_typed=stream.is_typed),
            deadlines=self._deadlines,
            wait_with=connection.wait_for,
        )
        headers = [*STREAM_HEADERS]
        self._complete(headers, request)
        self._streams += 1
        try:
            await connection.begin_stream(send, headers)
            await send_stream(pump, send, failed=failed, is_lost=connection.is_lost)
        except ClientGoneError:
            connection.cut()
            await asyncio.sleep(0)  # so that uvicorn knows
            raise
        finally:
            self._streams -= 1
        return codes[0] if codes else None

    async def _answer(self, request: Request) -> Response | Streamed:
        scope, headers = request.scope, request.headers
        if scope["size"] > self._limits.headers:
            raise Refusal("headers-too-large")
        host = request.sole(b"host")
        if host is None or not self._hosts.is_ours(host):
            raise Refusal("foreign-host")
        if b"origin" in headers and not self._hosts.is_same_site(headers[b"origin"], host):
            raise Refusal("foreign-origin")
        found = self._routes.get(scope["path"])
        if found is None:
            raise Refusal("unknown-route")
        methods, is_guarded, endpoint = found
        if self._secret is not None and is_guarded:
            given = request.sole(b"authorization")
            if given is None or not hmac.compare_digest(given, self._secret):
                raise Refusal("missing-token")
        if scope["method"] not in methods:
            raise Refusal("wrong-method", {"allowed": list(methods)})
        return await endpoint(request)

    # Routes -------------------------------------------------------------------------------------------------------

    async def _healthz(self, request: Request) -> Response:
        return Reply(b'{"alive":true}')

    async def _readyz(self, request: Request) -> Response:
        if self.is_draining:
            raise Refusal("draining")
        if self._batcher.busy_for > self._limits.answer:
            raise Refusal("not-ready")
        return Reply(b'{"ready":true,"version":%b}' % self._version)

    async def _show_page(self, request: Request) -> Response:
        content, headers = self._page
        response = Response(content)
        response.raw_headers = [*headers]
        return response

    async def _show_schema(self, request: Request) -> Response:
        return Reply(self._schema)

    async def _show_metrics(self, request: Request) -> Response:
        content, kind = self._metrics.text()
        return Reply(content, kind=kind.encode())

    async def _predict(self, request: Request) -> Response | Streamed:
        kind = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind not in (JSON, TENSORS) or b"content-encoding" in request.headers:
            raise Refusal("wrong-type")
        is_json = kind == JSON
        body = await self._body(request)
        given = read_json(body, self._limits.depth) if is_json else decode(body, self._limits.depth)
        args, kwargs, rows = self._target.arguments(given)
        result = await self._result(request, args, kwargs, rows)
        accepted = request.headers.get(b"accept", b"*/*")
        is_typed = TENSORS in accepted or (not is_json and JSON not in accepted)
        if isinstance(result, Items):
            if self._streams >= self._limits.streams:
                self._batcher.call(result.close)
                raise Refusal("busy")
            return Streamed(result, is_typed)
        write = encode if is_typed else _as_json
        data = _written(write, result, f"request {request.id}: the result")
        return Reply(data, kind=TENSORS if is_typed else JSON)

    async def _body(self, request: Request) -> bytes | bytearray:
        """Return the body, no longer than it may be."""
        most = self._limits.body
        declared = request.headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 18 or int(declared) > most:
            raise Refusal("too-large", {"most": most})
        if (body := request.connection.take_body(request.scope)) is not None:  # it is here, as most are
            return body if len(body) <= most else _too_large(most)
        parts = bytearray()
        try:
            async with asyncio.timeout_at(request.connection.deadline):
                message = await request.receive()
                while message["type"] == "http.request":
                    parts += message["body"]
                    if len(parts) > most:
                        _too_large(most)
                    if not message.get("more_body"):
                        return parts
                    message = await request.receive()
        except TimeoutError:
            raise Refusal("slow-request") from None
        raise ClientGoneError

    def _is_owner(self, request: Request) -> bool:
        """Tell whether the program that started the service has sent a request."""
        given = request.headers.get(_OWNER, b"")
        return self._owner is not None and hmac.compare_digest(given, self._owner)

    async def _result(self, request: Request, args: Any, kwargs: Any, rows: int | None) -> Any:
        future = self._batcher.submit(args, kwargs, rows, is_alone=request.connection.is_alone)
        request.connection.waiting = future
        if not future.done():
            self._metrics.waiting(self._batcher.waiting)
        self._deadlines.add(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                raise ClientGoneError from None
            raise
        except Exception as error:
            raise self._refusal(error, request) from error
        finally:
            self._deadlines.discard(future)

    def _refusal(self, error: Exception, request: Request) -> Refusal:
        """Return how what the module raised is answered."""
        if isinstance(error, Refusal):
            return error
        _log.error("request %s: the module raised", request.id, exc_info=error)
        return Refusal("raised", told(error) if self._is_owner(request) else None)


def _item(value: Any, *, is_typed: bool) -> bytes:
    """Return the event of an item of a stream."""
    return _written(partial(item_event, is_typed=is_typed), value, "an item of a stream")


def _as_json(result: Any) -> bytes:
    return orjson.dumps({"result": plain(result)}, option=orjson.OPT_SERIALIZE_NUMPY)


def _written(write: Callable[[Any], bytes], value: Any, what: str) -> bytes:
    """Return a value of the module as bytes.

    Raises:
        Refusal: When it has no form: a dtype that nothing takes, text that is no Unicode, lists without an end.
    """
    try:
        return write(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a RecursionError is a RuntimeError
        _log.error("%s cannot be sent: %s", what, error)
        raise Refusal("no-form") from error


def _too_large(most: int) -> Any:
    raise Refusal("too-large", {"most": most})
