"""What a service answers when it does not answer with a result, and how that reaches the caller.

    ServingError (RuntimeError)                    see `replayml.core.errors`
     ├── RefusedError (ValueError)                 the request was wrong; sending it again does not help
     ├── UnavailableError (ConnectionError)        the service is not there, starts, stops, is full, or died
     └── LateError (TimeoutError)                  no answer in time
    ConfigurationError (ValueError)
     └── AddressError (OSError)                    a service cannot listen at its address

Invariants:
    * A code is stable, and its text fixed; what differs from request to request stands in ``detail``.
    * What a module raised is told to the program that started its service, and to nobody else.
    * No answer holds a traceback, a path, or a line of code: those go to the log, with the same request id.
    * Every error has an answer, whatever the module raised: what of it has no form in JSON is left out.
    * An exception that ends a loop where it is raised, such as StopIteration, is told and raised as a RuntimeError.
"""

from __future__ import annotations

import builtins
import errno
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from replayml.core import errors as replayml_errors
from replayml.core.errors import ConfigurationError, ReplaymlError

__all__ = [
    "CODES",
    "NOT_RUN",
    "OWNER",
    "AddressError",
    "ClientGoneError",
    "EndedError",
    "LateError",
    "Problem",
    "Refusal",
    "RefusedError",
    "ServingError",
    "UnavailableError",
    "address_error",
    "error_body",
    "raised_again",
    "raw_answer",
    "sendable",
    "serving_error",
    "text_of",
    "told",
]


class Answer(NamedTuple):
    """The HTTP status and the text of a code."""

    status: int
    text: str


CODES: Mapping[str, Answer] = MappingProxyType(
    {
        "malformed-request": Answer(400, "The request is not valid HTTP."),
        "malformed-json": Answer(400, "The body is not strict JSON in UTF-8; NaN and Infinity are sent as tensors."),
        "malformed-tensors": Answer(400, "The body is not a whole typed body of tensors; a UrlModule sends such."),
        "too-deep": Answer(400, "The values in the body are nested too deeply; send flatter ones."),
        "missing-token": Answer(401, "The request lacks a valid token: Authorization: Bearer TOKEN."),
        "foreign-host": Answer(403, "The Host header names another host than this service; hosts= gives it names."),
        "foreign-origin": Answer(403, "The Origin header names another site; ask from the page of this service."),
        "unknown-route": Answer(404, "No such route. There are /, /predict, /schema, /readyz, /healthz and /metrics."),
        "wrong-method": Answer(405, "This route takes another method; the header Allow names it."),
        "slow-request": Answer(408, "The request was not sent in time; send it again, without a pause."),
        "too-large": Answer(413, "The body is too large. Send less at once, or raise the limit 'body' of the service."),
        "wrong-type": Answer(415, "Send application/json or application/vnd.replayml.tensors, without an encoding."),
        "wrong-arguments": Answer(422, "The body does not give the arguments of the module, which /schema tells."),
        "wrong-shape": Answer(422, "An input has another shape than the module takes; /schema tells it."),
        "wrong-dtype": Answer(422, "An input has another dtype than the module takes; /schema tells it."),
        "headers-too-large": Answer(431, "The headers are too large; send fewer or shorter ones."),
        "raised": Answer(500, "The module raised an exception; see the service's log, under the request's id."),
        "no-form": Answer(500, "The module returned something that cannot be sent; see the log of the service."),
        "not-finite": Answer(500, "The result holds NaN or Infinity, which JSON has no form for; ask for tensors."),
        "internal": Answer(500, "The service has a fault; see its log, under the id of this request."),
        "busy": Answer(503, "Too many requests wait already. This one did not run; send it again later."),
        "not-ready": Answer(503, "No worker is ready. The request did not run; send it again later."),
        "draining": Answer(503, "The service stops. The request did not run; send it again when a service runs there."),
        "worker-lost": Answer(503, "The worker that had this request ended before it answered; it may have run."),
        "too-late": Answer(504, "The model did not answer in time; the request may have run."),
    }
)
"""Every code, with its status and text."""

NOT_RUN = frozenset({"busy", "not-ready", "draining"})
"""Codes of requests that were not run, so that it is safe to send them again."""

OWNER = "x-replayml-owner"
"""The header by which the program that started a service shows that it is the one that calls."""

_LONGEST_TEXT = 2000
_PHRASES: Mapping[int, str] = MappingProxyType({400: "Bad Request", 408: "Request Timeout", 431: "Headers Too Large"})
_PLAIN = (str, int, float, bool, type(None))
_ENDS = (StopIteration, StopAsyncIteration)
_UNAVAILABLE = frozenset(
    {
        "connection-lost",
        "gateway-unreachable",
        "no-connection",
        "not-started",
        "not-up",
        "stopped",
        "stream-cut",
        "unknown-service",
    }
)


# In the service -------------------------------------------------------------------------------------------------


class ClientGoneError(Exception):
    """The client left before it got an answer."""


class EndedError(Exception):
    """What stands for an exception of the module that would end the event loop.

    Args:
        error: The exception, such as SystemExit.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the module raised {type(error).__name__}: {text_of(error)}")
        self.__cause__ = error


class Refusal(Exception):  # noqa: N818 - an answer of the service, which no user of replayml meets
    """A request that is answered with a code.

    Args:
        code: One of `CODES`.
        detail: What was found and what would have been right, as plain data.
    """

    def __init__(self, code: str, detail: Mapping[str, Any] | None = None) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    @property
    def status(self) -> int:
        """The HTTP status."""
        return CODES[self.code].status


def error_body(code: str, request_id: str, detail: Mapping[str, Any] | None = None) -> bytes:
    """Return the body of an answer with a code; a detail that has no form in JSON is left out.

    Example:
        >>> error_body("busy", "7f")
        b'{"error":{"code":"busy","text":"Too many requests wait already. ...","id":"7f"}}'
    """
    error: dict[str, Any] = {"code": code, "text": CODES[code].text, "id": request_id}
    if detail is not None:
        try:
            return orjson.dumps({"error": {**error, "detail": dict(detail)}}, option=orjson.OPT_NON_STR_KEYS)
        except orjson.JSONEncodeError:
            pass  # code, text and id are what an answer needs
    return orjson.dumps({"error": error})


def raw_answer(code: str, *, retry_after: int | None = None) -> bytes:
    """Return a whole HTTP answer with a code, after which the connection is closed.

    Example:
        >>> raw_answer("slow-request").splitlines()[0]
        b'HTTP/1.1 408 Request Timeout'
    """
    status = CODES[code].status
    body = error_body(code, "-")
    lines = [
        f"HTTP/1.1 {status} {_PHRASES.get(status, 'Service Unavailable')}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *([] if retry_after is None else [f"retry-after: {retry_after}"]),
        "",
        "",
    ]
    return "\r\n".join(lines).encode("ascii") + body


def told(error: BaseException) -> dict[str, Any] | None:
    """Return an exception of the module as data, where its class is one that every Python or replayml has.

    Example:
        >>> told(ValueError("no such row"))
        {'type': 'ValueError', 'args': ['no such row'], 'text': 'no such row'}
        >>> told(orjson.JSONDecodeError("secret", "", 0)) is None
        True
    """
    name = type(error).__name__
    text = text_of(error)[:_LONGEST_TEXT]
    if isinstance(error, ServingError):  # of another service of the same program
        return {"type": name, "args": [], "text": text}
    if type(error) in _ENDS:
        text = f"the module raised {name}: {text}"
        return {"type": "RuntimeError", "args": [text], "text": text}
    if _class_of(name) is not type(error):
        return None
    args = list(error.args)
    return {"type": name, "args": args if _has_form(args) else [text], "text": text}


def text_of(error: BaseException) -> str:
    """Return the text of an exception of the module, which can be sent.

    Example:
        >>> text_of(ValueError(chr(0xD800)))
        '?'
    """
    try:
        return sendable(str(error))
    except BaseException:  # noqa: BLE001 - code of the module, which may raise anything
        return "(its text cannot be read)"


def sendable(text: str) -> str:
    """Return a text of characters that every text may have: halves of one, which no encoding has, are replaced."""
    return str.encode(text, "utf-8", "replace").decode()


def _has_form(args: list[Any]) -> bool:
    """Tell whether the arguments of an exception come back from JSON as they were, and are short."""
    if not all(type(value) in _PLAIN for value in args):
        return False
    try:
        data = orjson.dumps(args)
    except orjson.JSONEncodeError:
        return False
    return len(data) <= _LONGEST_TEXT and bool(orjson.loads(data) == args)


def _class_of(name: str) -> type[Exception] | None:
    found = getattr(replayml_errors, name, None) or getattr(builtins, name, None)
    return found if isinstance(found, type) and issubclass(found, Exception) and found not in _ENDS else None


# At the caller --------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    """What went wrong with a call.

    Attributes:
        code: One of `CODES`, or ``start-failed``, ``update-failed``, ``not-started``, ``stopped``, ``no-connection``,
            ``connection-lost``, ``stream-cut``, ``no-answer``, ``bad-answer``; or of the gateway
            ``gateway-unreachable``, ``gateway-refused``, ``gateway-invalid``, ``unknown-service``, ``name-taken``,
            ``not-up``.
        text: What it means.
        url: The service.
        status: The HTTP status, or None where there was no answer.
        request_id: The id under which the service logged the request, or None.
        detail: What was found and what would have been right, or None.
    """

    code: str
    text: str
    url: str
    status: int | None = None
    request_id: str | None = None
    detail: Mapping[str, Any] | None = None


class ServingError(ReplaymlError, RuntimeError):
    """A call of a service that gave no result.

    Args:
        problem: What went wrong.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem

    @property
    def code(self) -> str:
        """The stable code."""
        return self.problem.code

    def __str__(self) -> str:
        code, text, url, status, request_id, detail = self.problem
        facts = "".join(f" {name}: {value}." for name, value in (detail or {}).items())
        place = url + (f", HTTP {status}" if status else "") + (f", request {request_id}" if request_id else "")
        return f"[{code}] {text}{facts} ({place})"


class RefusedError(ServingError, ValueError):
    """A request that the service does not take."""


class UnavailableError(ServingError, ConnectionError):
    """A service that is not there, starts, stops, is full, or died."""


class AddressError(ConfigurationError, OSError):
    """An address at which a service cannot listen."""


class LateError(ServingError, TimeoutError):
    """A service that did not answer in time."""


def serving_error(problem: Problem) -> ServingError:
    """Return the exception for a problem.

    Example:
        >>> str(serving_error(Problem("busy", "Too many requests wait already.", "http://127.0.0.1:1", 503, "7f")))
        '[busy] Too many requests wait already. (http://127.0.0.1:1, HTTP 503, request 7f)'
    """
    status = problem.status
    if status is not None and status < 500:
        return RefusedError(problem)
    if problem.code in ("too-late", "no-answer"):
        return LateError(problem)
    if status == 503 or problem.code in _UNAVAILABLE:
        return UnavailableError(problem)
    return ServingError(problem)


def address_error(host: str, port: int, error: OSError) -> AddressError:
    """Return the exception for an address that could not be bound.

    Args:
        host: The host.
        port: The port.
        error: What the system told.

    Example:
        >>> str(address_error("127.0.0.1", 80, PermissionError(errno.EACCES, "Permission denied")))
        '127.0.0.1:80 cannot be bound: Permission denied. Choose a port above 1023, or 0 for a free one'
    """
    return AddressError(f"{host}:{port} cannot be bound: {error.strerror}. {_NEXT.get(error.errno, _CHOOSE_HOST)}")


_CHOOSE_HOST = "Choose an address of this machine as the host: 127.0.0.1, or 0.0.0.0 for callers elsewhere as well"
_NEXT: Mapping[int | None, str] = MappingProxyType(
    {
        errno.EADDRINUSE: "Another program listens there. End that one, or choose another port, or 0 for a free one",
        errno.EACCES: "Choose a port above 1023, or 0 for a free one",
    }
)


def raised_again(detail: Mapping[str, Any], problem: Problem) -> Exception:
    """Return the exception that the module raised in the service: the same class, the same text.

    Args:
        detail: What `told` returned.
        problem: The answer that it came with.

    Example:
        >>> raised_again({"type": "KeyError", "args": ["a"], "text": "'a'"}, Problem("raised", "", "http://x"))
        KeyError('a')
    """
    name, args, text = detail.get("type"), detail.get("args"), detail.get("text")
    if not isinstance(name, str) or not isinstance(args, list) or not isinstance(text, str):
        return serving_error(problem)
    found = _class_of(name)
    for given in (args, [text]):
        if found is None:
            break
        try:
            error = found(*given)
        except (TypeError, ValueError):
            continue  # a class with arguments of its own
        if str(error)[:_LONGEST_TEXT] == text:
            error.add_note(f"raised by the module behind {problem.url}, request {problem.request_id}")
            return error
    return serving_error(problem._replace(text=f"{problem.text} {name}: {text}"))
