"""Calling a service: arguments over, result or exception back.

Invariants:
    * Arguments and results travel as they are: tensors to the last bit, tuples as tuples; nothing is unpickled.
    * A call is sent again only where the service said, or it is certain, that it did not run.
    * A call ends in time: with a result, with the exception of the module, or with a `ServingError`.
    * No more is kept of an answer than a result, or an error, may have; it is never unpacked from a smaller form.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson

from replayml.core.errors import ConfigurationError
from replayml.serving.calling.receiving import AsyncStream, Stream
from replayml.serving.errors import CODES, NOT_RUN, OWNER, Problem, Refusal, raised_again, serving_error
from replayml.serving.messages.events import EVENTS, tensors_in
from replayml.serving.messages.wire import MEDIA_TYPE, decode, encode

__all__ = ["Client"]

_MOST_THREADS = _MOST_IDLE = 64
_MOST = 2**30
_MOST_TOLD = 2**20
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_PATIENCE = 5.0  # seconds for a service that is just being started
_DEEPEST = 200


class Client:
    """Calls one service, from any number of threads.

    Args:
        url: Where it is, such as ``"http://127.0.0.1:8000"``.
        token: What it wants to see.
        owner: What shows it that its own program calls, which it tells what the module raised.
        timeout: Seconds until a call fails, further attempts included.
        locate: Returns where the service is now; called, with the seconds that are left, when it answers no more.
        advice: What to do where nothing answers.

    Raises:
        ConfigurationError: When the URL is none of HTTP.

    Example:
        >>> Client("ftp://example.org")
        Traceback (most recent call last):
            ...
        replayml.core.errors.ConfigurationError: 'ftp://example.org' is no address of a service; give http://host:port
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        owner: str | None = None,
        timeout: float = 60.0,
        locate: Callable[[float], str] | None = None,
        advice: str = "Start it, or give the address where it is.",
    ) -> None:
        try:
            parts = urlsplit(url)
            rest = parts.query or parts.fragment
            is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and not rest
        except ValueError:
            is_one = False
        if not is_one:
            raise ConfigurationError(f"{url!r} is no address of a service; give http://host:port")
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._locate = locate
        self._advice = advice
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        if owner is not None:
            self._headers[OWNER] = owner
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._http: httpx2.Client | None = None
        self._is_closed = False
        self.abandoned: deque[Callable[[], None]] = deque()

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the module behind the service.

        Args:
            args: Its positional arguments: what `replayml.serving.messages.wire.encode` takes.
            kwargs: Its arguments by name.

        Returns:
            Its result; of a generator a `replayml.serving.calling.receiving.Stream` of its items, each of which has the
            whole timeout to come.

        Raises:
            ArgumentError: When an argument cannot be sent.
            ServingError: When there is no result.
            Exception: What the module raised, where the own program started the service, and it is an exception of
                Python or replayml.
        """
        body = encode({"args": list(args), "kwargs": dict(kwargs)})
        headers = {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE}
        response, answer = self._send("POST", "/predict", body, headers)
        if _is_stream(response):
            return self._stream(response, "tensors", _tensors)
        if response.headers.get("content-type") != MEDIA_TYPE:
            raise self._problem("bad-answer", "What answers there is no service of replayml.", response)
        try:
            return decode(answer, _DEEPEST)
        except Refusal as refusal:
            raise self._problem("bad-answer", f"The answer cannot be read: {refusal.detail}.", response) from refusal

    async def acall(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call it without blocking the event loop; as `call`, but that a stream is an asynchronous iterator."""
        result = await self._in_thread(self.call, args, kwargs)
        return AsyncStream(result, self._in_thread) if isinstance(result, Stream) else result

    async def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads(), function, *args)

    def call_json(self, body: bytes) -> Any:
        """Send a body of JSON as it is, and return what stands in the answer; of a stream, one such after the other."""
        response, answer = self._send("POST", "/predict", body, {"content-type": "application/json"})
        return self._stream(response, "item", orjson.loads) if _is_stream(response) else self._read(response, answer)

    def get(self, path: str) -> Any:
        """Return what another route answers, such as ``/schema``."""
        return self._read(*self._send("GET", path, b"", {}))

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._is_closed = True
            http, pool = self._http, self._pool
            self._http = self._pool = None
        while self.abandoned:
            self.abandoned.popleft()()
        if http is not None:
            http.close()
        if pool is not None:
            pool.shutdown(wait=False)

    # Sending ------------------------------------------------------------------------------------------------------

    def _send(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[httpx2.Response, bytearray]:
        """Return the answer and its body; of a stream nothing was read yet."""
        begun = time.monotonic()
        end = begun + self._timeout
        pause = _FIRST_PAUSE
        while True:
            left = end - time.monotonic()
            error: Exception
            try:
                http = self._client()
                request = http.build_request(
                    method,
                    self.url + path,
                    content=body,
                    headers={**self._headers, **headers},
                    timeout=max(left, 0.001),
                )
                response = http.send(request, stream=True)
                if response.status_code == 200 and _is_stream(response):
                    return response, bytearray()
                answer = self._body(response, end)
                if response.status_code == 200:
                    return response, answer
                error = self._error(response, answer)
                code = getattr(error, "code", None)
                if code not in NOT_RUN or (code == "draining" and self._locate is None):
                    raise error
                if code == "draining" and self._has_moved(end):
                    continue
                pause = max(pause, min(_retry_after(response), _LONGEST_PAUSE))
            except httpx2.ConnectError as found:
                text = f"There is no service: {str(found).rstrip('.')}. {self._advice}"
                error = serving_error(Problem("no-connection", text, self.url))
                error.__cause__ = found
                if self._locate is None:  # nothing listens there, not even a supervisor whose workers start
                    end = min(end, begun + _PATIENCE)
                elif self._has_moved(end):
                    continue
            except (httpx2.InvalidURL, UnicodeError) as found:
                text = f"There can be no service at such an address: {found}."
                raise serving_error(Problem("no-connection", text, self.url)) from found
            except (httpx2.TimeoutException, httpx2.TransportError, RuntimeError) as found:
                raise self._broken(found) from found
            if time.monotonic() + pause >= end:
                raise error
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _body(self, response: httpx2.Response, end: float) -> bytearray:
        """Return the body of an answer, as long as there is time, and as much as there may be."""
        most = _MOST if response.status_code == 200 else _MOST_TOLD
        body = bytearray()
        times = response.request.extensions["timeout"]
        response.request.extensions["timeout"] = {**times, "read": max(end - time.monotonic(), 0.001)}
        try:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > most:
                    raise self._problem("bad-answer", f"The answer is larger than {most} bytes.", response)
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout("the answer came too slowly")
        finally:
            response.close()
        return body

    def _has_moved(self, end: float) -> bool:
        """Tell whether the service is somewhere else now; further attempts go there."""
        if self._locate is None:
            return False
        before, self.url = self.url, self._locate(end - time.monotonic())
        return self.url != before

    def _broken(self, error: Exception) -> Exception:
        """Return what to raise for a call without an answer."""
        if self._is_closed:
            text = "The service was stopped while this call ran; it may have run."
            return serving_error(Problem("stopped", text, self.url))
        if isinstance(error, (httpx2.ConnectTimeout, httpx2.PoolTimeout)):
            text = f"There was no connection within {self._timeout:g} s; the call did not run."
            return serving_error(Problem("no-answer", text, self.url))
        if isinstance(error, httpx2.TimeoutException):
            text = f"There was no answer within {self._timeout:g} s; the call may have run."
            return serving_error(Problem("no-answer", text, self.url))
        if isinstance(error, httpx2.TransportError):
            text = f"The connection broke before there was an answer ({error}); the call may have run."
            return serving_error(Problem("connection-lost", text, self.url))
        return error

    def _client(self) -> httpx2.Client:
        with self._lock:
            if self._is_closed:
                raise serving_error(Problem("stopped", "The service was stopped.", self.url))
            while self.abandoned:
                self.abandoned.popleft()()
            if self._http is None:
                # each open stream has a connection, so that their number is not limited
                limits = httpx2.Limits(max_connections=None, max_keepalive_connections=_MOST_IDLE)
                self._http = httpx2.Client(limits=limits, trust_env=False, headers={"accept-encoding": "identity"})
            return self._http

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._is_closed:
                raise serving_error(Problem("stopped", "The service was stopped.", self.url))
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="replayml-call")
            return self._pool

    # Streams ------------------------------------------------------------------------------------------------------

    def _stream(self, response: httpx2.Response, kind: str, read: Callable[[bytes], Any]) -> Stream:
        return Stream(response, caller=self, seconds=self._timeout, kind=kind, read=read)

    def cut(self, error: Exception | None, items: int) -> Exception:
        """Return the exception for a stream without an end."""
        if self._is_closed:
            return serving_error(Problem("stopped", "The service was stopped while it sent a stream.", self.url))
        why = f" ({error})" if error is not None and str(error) else ""
        text = f"The stream was cut after {items} items{why}; there may have been more."
        return serving_error(Problem("stream-cut", text, self.url))

    def late(self) -> Exception:
        """Return the exception for an item that did not come in time."""
        text = f"The next item of the stream did not come within {self._timeout:g} s."
        return serving_error(Problem("no-answer", text, self.url))

    def unreadable(self, text: str, response: httpx2.Response) -> Exception:
        """Return the exception for something that no service sends."""
        return self._problem("bad-answer", f"The stream cannot be read: {text}.", response)

    # Reading ------------------------------------------------------------------------------------------------------

    def _error(self, response: httpx2.Response, body: bytearray) -> Exception:
        """Return the exception for an answer that is no result."""
        try:
            told = orjson.loads(body)
        except orjson.JSONDecodeError:
            told = None
        return self.raised(told, response)

    def raised(self, error: Any, response: httpx2.Response) -> Exception:
        """Return the exception that the body of an error tells."""
        try:
            told = error["error"]
            code, text, request_id, detail = told["code"], told["text"], told["id"], told.get("detail")
        except (KeyError, TypeError, AttributeError):
            code = None
        if not isinstance(code, str):
            return self._problem("bad-answer", "What answers there is no service of replayml.", response)
        status = response.status_code
        if status == 200:  # it came in the middle of a stream
            status = CODES[code].status if code in CODES else 500
        problem = Problem(code, str(text), self.url, status, str(request_id))
        if code == "raised" and isinstance(detail, dict):
            return raised_again(detail, problem)
        return serving_error(problem._replace(detail=detail if isinstance(detail, dict) else None))

    def _problem(self, code: str, text: str, response: httpx2.Response) -> Exception:
        return serving_error(Problem(code, text, self.url, response.status_code, response.headers.get("x-request-id")))

    def _read(self, response: httpx2.Response, body: bytearray) -> Any:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise self._problem("bad-answer", "The answer is no JSON.", response) from error


def _is_stream(response: httpx2.Response) -> bool:
    return bool(response.headers.get("content-type", "").partition(";")[0].strip() == EVENTS)


def _tensors(data: bytes) -> Any:
    return tensors_in(data, _DEEPEST)


def _retry_after(response: httpx2.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdigit() else 0.0
