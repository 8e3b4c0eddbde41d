"""The gateway: a list in a Redis of which service is where, by which programs find one another's services by name.

    ServerModule(m, name="digits").start()  ─► Lease: claim the name ─► publish the address ─► heartbeats ─► close
    UrlModule(name="digits")                ─► Gateway.find

One key a service, ``replayml:service:NAME``; its value is a small JSON object that expires unless heartbeats renew it.

Invariants:
    * A name is held by one service at a time; of a program that was killed it is free when its heartbeats have expired.
    * A service goes on answering while Redis is away, and is listed again when Redis is back, empty or not.
    * What is read is data of strangers: JSON of a limited size and form, an address of HTTP. No pickle, and no token is
      ever stored. Who may write to that Redis decides, however, where those calls go that are made by name.
    * The password in the address of Redis stands in no message.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from replayml.core.errors import ConfigurationError, suggestion
from replayml.module.deploying import GATEWAY
from replayml.serving.calling.address import is_address
from replayml.serving.errors import Problem, ServingError, serving_error

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{GATEWAY} is set, and the gateway takes redis-py, which is not installed: pip install 'replayml[redis]'"
    ) from error

__all__ = ["Entry", "Gateway", "Lease", "Listing"]

TTL = "REPLAYML_REDIS_TTL"
"""The environment variable for after how many seconds without a heartbeat a service counts as gone; 15 by default."""

_PREFIX = "replayml:service:"
_TTL = 15.0
_BEATS = 3.0
_LONGEST_BEAT = 3.0
_CONNECT = 2.0
_ANSWER = 5.0
_LARGEST = 4096
_LONGEST_TEXT = 200
_MOST = 1000
_PAGE = 500
_NEAR_PAGES = 20
_NEAR_SECONDS = 0.5
_NOT_THERE = -2

_HOLD = """
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'none' and kind ~= 'string' then return '' end
local held = redis.call('GETRANGE', KEYS[1], 0, ARGV[4])
if kind ~= 'none' and not string.find(held, ARGV[1], 1, true) then return held end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return false
"""
_RELEASE = """
local held = redis.call('GETRANGE', KEYS[1], 0, ARGV[2])
if string.find(held, ARGV[1], 1, true) then redis.call('DEL', KEYS[1]) end
return false
"""

_log = logging.getLogger("replayml.serving.calling.gateway")


class Entry(NamedTuple):
    """A service in the list.

    Attributes:
        name: Its name.
        url: Where it is; empty while it starts.
        version: Which version answers.
        owner: The program that has it, for people.
        ttl: Seconds after which it counts as gone without a heartbeat.
        age: Seconds since its last heartbeat, where that was asked for.
    """

    name: str
    url: str
    version: int
    owner: str
    ttl: float
    age: float | None = None


class Listing(NamedTuple):
    """What a gateway lists.

    Attributes:
        entries: The services, by name.
        unreadable: The names under which something else stands.
    """

    entries: list[Entry]
    unreadable: list[str]


class Gateway:
    """A list of services in a Redis.

    Args:
        url: The address of the Redis, such as ``redis://localhost:6379/0``.

    Raises:
        ConfigurationError: When it is none.

    Example:
        >>> Gateway("localhost:6379")
        Traceback (most recent call last):
            ...
        replayml.core.errors.ConfigurationError: REPLAYML_REDIS_URL holds no address of a Redis; set it to ...
    """

    def __init__(self, url: str) -> None:
        try:
            self._redis = redis.Redis.from_url(
                url,
                socket_connect_timeout=_CONNECT,
                socket_timeout=_ANSWER,
                retry=Retry(NoBackoff(), 1),
                decode_responses=False,
            )
            parts = urlsplit(url)
            where = f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
            self.place = f"{parts.scheme}://{where}"
        except ValueError as error:
            raise ConfigurationError(
                f"{GATEWAY} holds no address of a Redis; set it to redis://host:port/number, rediss:// or unix://"
            ) from error

    def find(self, name: str) -> Entry:
        """Return the service of a name.

        Raises:
            ServingError: ``unknown-service`` when there is none, ``gateway-unreachable`` when Redis does not answer,
                ``gateway-invalid`` when what stands there is none of replayml's.
        """
        with self._reached():
            [(data, left)] = self._values([_PREFIX + name])
        if left == _NOT_THERE:
            found, is_whole = self._scan(_NEAR_PAGES, _NEAR_SECONDS)
            names = [entry.name for entry in self._listing(found).entries]
            known = f" It lists {', '.join(names[:10])}." if names else " It lists none." if is_whole else ""
            text = f"The gateway lists no service {name!r}.{suggestion(name, names)}{known}"
            raise serving_error(Problem("unknown-service", text, self.place))
        return self._read(name, data)

    def entries(self) -> Listing:
        """Return all services, sorted by name.

        Raises:
            ServingError: When Redis does not answer.
        """
        return self._listing(self._scan()[0])

    def claim(self, name: str) -> Lease:
        """Claim a name for a service that is about to start.

        Raises:
            ServingError: ``name-taken`` when another service holds it, ``gateway-unreachable`` when Redis does not
                answer.
        """
        lease = Lease(self, name, _ttl())
        lease.begin()
        return lease

    def not_up(self, entry: Entry) -> ServingError:
        """Return the exception for a service that was still starting when the caller could not wait any longer."""
        text = f"The service {entry.name!r} of {entry.owner} is still starting."
        return serving_error(Problem("not-up", text, self.place))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    # For leases ---------------------------------------------------------------------------------------------------

    def hold(self, name: str, lease: str, value: bytes, ttl: float) -> Entry | None:
        """Write the value of a name, unless another lease holds it: then return that one's entry."""
        with self._reached():
            held = self._redis.eval(_HOLD, 1, _PREFIX + name, lease, value, str(int(ttl * 1000)), str(_LARGEST))
        return None if held is None else self._read(name, held)

    def release(self, name: str, lease: str) -> None:
        """Take a name out, if a lease holds it."""
        with self._reached():
            self._redis.eval(_RELEASE, 1, _PREFIX + name, lease, str(_LARGEST))

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Tell what is wrong where Redis gives no answer."""
        try:
            yield
        except (redis.ConnectionError, redis.TimeoutError) as error:
            text = f"Redis, which {GATEWAY} names, does not answer: {str(error).rstrip('.')}. Services that run go on."
            raise serving_error(Problem("gateway-unreachable", text, self.place)) from error
        except redis.RedisError as error:
            text = f"Redis refuses: {str(error).rstrip('.')}."
            raise serving_error(Problem("gateway-refused", text, self.place)) from error

    # Reading ------------------------------------------------------------------------------------------------------

    def _scan(self, pages: float = math.inf, seconds: float = math.inf) -> tuple[dict[str, tuple[Any, Any]], bool]:
        """Return what stands under names of services, and whether all of Redis was looked through.

        Args:
            pages: How much of it to look through at the most.
            seconds: When to stop.
        """
        found: dict[str, tuple[Any, Any]] = {}
        end = time.monotonic() + seconds
        cursor: Any = 0
        with self._reached():
            while True:
                page: Any = self._redis.scan(cursor, match=_PREFIX + "*", count=_PAGE)
                cursor, keys = page[0], page[1][: _MOST - len(found)]
                names = [key.decode("utf-8", "backslashreplace").removeprefix(_PREFIX) for key in keys]
                found.update(zip(names, self._values(keys), strict=True))
                pages -= 1
                is_whole = not int(cursor)
                if is_whole or len(found) >= _MOST or pages <= 0 or time.monotonic() > end:
                    return found, is_whole

    def _values(self, keys: Sequence[Any]) -> list[tuple[Any, Any]]:
        """Return what stands under keys, and for how many milliseconds; no more of it than tells that it is too large.

        What is no text at all comes as the error of Redis.
        """
        with self._redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.getrange(key, 0, _LARGEST)
                pipe.pttl(key)
            answers = pipe.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
                raise answer
        return list(zip(answers[::2], answers[1::2], strict=True))

    def _listing(self, found: Mapping[str, tuple[Any, Any]]) -> Listing:
        entries, unreadable = [], []
        for name, (data, left) in sorted(found.items()):
            if left == _NOT_THERE:
                continue  # it expired meanwhile
            try:
                entry = self._read(name, data)
            except ServingError:
                unreadable.append(ascii(name)[1:-1][:_LONGEST_TEXT])
                continue
            age = max(0.0, entry.ttl - left / 1000) if isinstance(left, int) and left >= 0 else None
            entries.append(entry._replace(age=age))
        return Listing(entries, unreadable)

    def _read(self, name: str, data: Any) -> Entry:
        entry = _entry(name, data)
        if entry is None:
            text = f"What stands in Redis under {ascii(_PREFIX + name)[:_LONGEST_TEXT]} is no entry of replayml."
            raise serving_error(Problem("gateway-invalid", text, self.place))
        return entry


class Lease:
    """A name that a service holds; heartbeats run from `begin` to `close`.

    Args:
        gateway: The gateway; it is closed with the lease.
        name: The name.
        ttl: Seconds after which it is free without a heartbeat.
    """

    def __init__(self, gateway: Gateway, name: str, ttl: float) -> None:
        self.name = name
        self._gateway = gateway
        self._ttl = ttl
        self._id = secrets.token_hex(16)
        self._lock = threading.Lock()
        self._url = ""
        self._version = 0
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Take the name, and begin with the heartbeats."""
        try:
            self._hold()
        except BaseException:
            self._gateway.close()
            raise
        self._thread = threading.Thread(target=self._beat, name=f"replayml-gateway-{self.name}", daemon=True)
        self._thread.start()

    def publish(self, url: str, version: int) -> None:
        """Tell where the service is, and its version.

        Raises:
            ServingError: When Redis does not answer; the heartbeats tell it as soon as it does.
        """
        with self._lock:
            self._url, self._version = url, version
        self._hold()

    def renew(self, url: str, version: int) -> None:
        """Tell where the service is, and its version; where Redis does not answer, the heartbeats tell it later."""
        try:
            self.publish(url, version)
        except ServingError as error:
            _log.warning("version %d of %r is not listed yet: %s", version, self.name, error)

    def close(self) -> None:
        """Give the name back."""
        if self._is_over.is_set():
            return
        self._is_over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        try:
            self._gateway.release(self.name, self._id)
        except ServingError as error:
            _log.warning("%r stays listed until it expires: %s", self.name, error)
        finally:
            self._gateway.close()

    def _hold(self) -> None:
        with self._lock:
            url, version = self._url, self._version
        owner = f"process {os.getpid()} on {socket.gethostname()}"[:_LONGEST_TEXT]
        data = {"url": url, "version": version, "owner": owner, "ttl": self._ttl, "lease": self._id}
        other = self._gateway.hold(self.name, self._id, orjson.dumps(data), self._ttl)
        if other is not None:
            where = f" at {other.url}" if other.url else ", which starts"
            text = f"The name {self.name!r} is held by a service of {other.owner}{where}. Choose another name=."
            raise serving_error(Problem("name-taken", text, self._gateway.place))

    def _beat(self) -> None:
        is_listed = True
        while not self._is_over.wait(min(self._ttl / _BEATS, _LONGEST_BEAT)):
            try:
                self._hold()
            except ServingError as error:
                if is_listed:
                    _log.warning("%r may not be listed at the moment: %s", self.name, error)
                is_listed = False
            else:
                if not is_listed:
                    _log.warning("%r is listed again", self.name)
                is_listed = True


def _entry(name: str, data: Any) -> Entry | None:
    """Return what a value says, or None where it is none that a lease wrote."""
    if not isinstance(data, bytes) or len(data) > _LARGEST:
        return None
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    match found:
        case {
            "url": str() as url,
            "version": int() as version,
            "owner": str() as owner,
            "ttl": float() | int() as ttl,
            "lease": str(),
        } if len(found) == 5:
            is_sound = 0 <= version < 2**53 and type(version) is int and 0 < ttl < 1e6 and _is_text(owner)
            if is_sound and (not url or is_address(url)) and _is_text(name):
                return Entry(name, url, version, owner, float(ttl))
    return None


def _is_text(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_TEXT and text.isprintable()


def _ttl() -> float:
    text = os.environ.get(TTL, "")
    try:
        ttl = float(text) if text else _TTL
    except ValueError:
        ttl = math.nan
    if not 0.5 <= ttl <= 3600:
        raise ConfigurationError(f"{TTL} is {text!r}; set it to a number of seconds from 0.5 to 3600")
    return ttl
