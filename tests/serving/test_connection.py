"""Answers on one connection: whole, in order, and closed when that was asked for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import torch

from replayml.serving.server import ServerModule
from tests.serving import services
from tests.serving.http import Line, ask, request
from tests.serving.running import running, until


def _numbers(count: int) -> bytes:
    return json.dumps({"args": [list(range(count))]}).encode()


def test_requests_that_come_in_one_piece_are_answered_in_their_order(echo: ServerModule) -> None:
    """Several requests may be sent before the first is answered."""
    with Line(echo.url) as line:
        bodies = [_numbers(count) for count in (1, 3, 2)]
        line.send(b"".join(request(line.host, body=body) for body in bodies))
        answers = b""
        while answers.count(b'"result"') < 3:
            answers += line.socket.recv(65536)
    found = [part.partition(b"}")[0] for part in answers.split(b'"result":')[1:]]
    assert found == [b"[0]", b"[0,1,2]", b"[0,1]"]


def test_the_headers_of_each_request_are_measured(echo: ServerModule) -> None:
    """A large header of a request is not that of the one which is answered before it."""
    with Line(echo.url) as line:
        small, large = _numbers(1), _numbers(2)
        line.send(request(line.host, body=small) + request(line.host, body=large, x_large="x" * 20_000))
        answers = b""
        while answers.count(b"HTTP/1.1 ") < 2 or not answers.rstrip().endswith(b"}"):
            answers += line.socket.recv(65536)
    assert answers.index(b"200 OK") < answers.index(b"431 ")


def test_a_request_may_come_byte_by_byte(echo: ServerModule) -> None:
    """It is answered when it is whole."""
    with Line(echo.url) as line:
        for byte in request(line.host, body=_numbers(2)):
            line.send(bytes([byte]))
        assert line.reply().json == {"result": [0, 1]}
        assert line.ask(body=_numbers(1)).json == {"result": [0]}


def test_head_has_no_body(echo: ServerModule) -> None:
    """HEAD gives the headers of GET, and the connection goes on."""
    with Line(echo.url) as line:
        line.send(request(line.host, "/healthz", method="HEAD"))
        head = b""
        while b"\r\n\r\n" not in head:
            head += line.socket.recv(65536)
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert head.endswith(b"\r\n\r\n")
        assert b"content-length: 14" in head
        assert line.ask("/healthz").json == {"alive": True}


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_connection_is_closed_where_that_is_asked_for(echo: ServerModule, version: str) -> None:
    """HTTP/1.0, and Connection: close."""
    with Line(echo.url) as line:
        asked = request(line.host, "/healthz", connection="close" if version == "1.1" else None)
        line.send(asked.replace(b"HTTP/1.1", b"HTTP/" + version.encode()))
        reply = line.reply()
        assert reply.headers["connection"] == "close"
        assert reply.headers["date"]
        assert line.is_closed()


def test_large_and_small_answers_come_whole(echo: ServerModule) -> None:
    """An answer beyond one piece is as whole as one within, and the connection goes on."""
    with Line(echo.url) as line:
        for count in (1, 100_000, 2):
            assert line.ask(body=_numbers(count)).json == {"result": list(range(count))}
    x = torch.arange(100_000)
    assert torch.equal(echo(x), x)


def test_an_unknown_host_in_the_first_line_counts(echo: ServerModule) -> None:
    """The whole of the first line is part of the headers, also what stands before the path."""
    reply = ask(echo.url, f"http://{'x' * 20_000}/healthz")
    assert (reply.status, reply.code) == (431, "headers-too-large")


def _begin(host: str, path: str = "/predict", size: int = 100) -> bytes:
    """Return the headers of a request whose body is to follow."""
    length = {"Content_Length": str(size)}
    return request(host, path, method="POST", Content_Type="application/json", **length)


@pytest.mark.parametrize("path", ["/predict", "/elsewhere"])
def test_nothing_is_read_as_a_request_behind_an_early_answer(echo: ServerModule, path: str) -> None:
    """An answer before the body is whole says that the connection is closed, and it is, once the rest has come."""
    with Line(echo.url) as line:
        hidden = request(line.host, "/healthz")
        size = 2**40 if path == "/predict" else len(hidden)
        line.send(_begin(line.host, path, size))
        reply = line.reply()
        assert (reply.status, reply.headers.get("connection")) == (413 if path == "/predict" else 404, "close")
        if path != "/predict":
            line.send(hidden + hidden)
            assert line.is_closed()


def test_the_rest_of_a_body_is_no_request_for_the_next_worker() -> None:
    """A worker that is killed after an early answer leaves no connection in the middle of a body."""
    with running(ServerModule(services.echo)) as service, Line(service.url) as line:
        line.send(_begin(line.host, "/elsewhere"))
        assert line.reply().headers.get("connection") == "close"
        os.kill(service.pids[0], signal.SIGKILL)
        assert line.is_closed()
        service.wait()
        assert service(1) == 1


def test_who_takes_nothing_of_an_answer_is_left() -> None:
    """A connection with an answer that nobody reads does not stay open."""
    with running(ServerModule(services.echo, limits={"idle": 1.0})) as service, Line(service.url) as line:
        (pid,) = service.pids
        body = json.dumps({"args": ["x" * 15_000_000]}).encode()
        line.send(request(line.host, body=body))

        def is_open() -> bool:
            connections = psutil.Process(pid).net_connections("tcp")
            return any(found.raddr and found.raddr.port == line.socket.getsockname()[1] for found in connections)

        assert is_open()
        until(lambda: not is_open(), seconds=30)
        assert service(1) == 1
        assert service.pids == [pid]


def test_a_connection_rests_as_long_as_it_may_after_each_answer() -> None:
    """The time that a connection may be idle begins anew with each answer, and ends with the next request."""
    idle = 2.0
    with running(ServerModule(services.sleep, limits={"idle": idle})) as service, Line(service.url) as line:
        assert line.ask(body=b'{"args": [0.0]}').json == {"result": "slept"}
        assert line.ask(body=b'{"args": [3.0]}').json == {"result": "slept"}
        began = time.monotonic()
        assert line.ask(body=b'{"args": [1.0]}').json == {"result": "slept"}
        assert line.is_closed()
        assert time.monotonic() - began >= 1.0 + idle


def test_a_second_request_does_not_cut_the_first() -> None:
    """The time to send a request that waits behind another begins when that one is answered."""
    with running(ServerModule(services.sleep, limits={"send": 1.5})) as service, Line(service.url) as line:
        first, second = (request(line.host, body=json.dumps({"args": [time]}).encode()) for time in (3.0, 0.0))
        line.send(first + second[:-3])
        assert line.reply().json == {"result": "slept"}
        line.send(second[-3:])
        assert line.reply().json == {"result": "slept"}


@pytest.mark.parametrize(("rate", "is_whole"), [(2**30, False), (1, True)])
def test_who_takes_an_answer_drop_by_drop_is_left(rate: int, is_whole: bool) -> None:
    """A client that takes of an answer, but less in a second than it has to, does not keep it; a slow one gets it."""
    limits = {"idle": 60.0 if is_whole else 3.0, "rate": rate}
    with running(ServerModule(services.echo, limits=limits)) as service, Line(service.url) as line:
        line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        body = json.dumps({"args": ["x" * 15_000_000]}).encode()
        line.send(request(line.host, body=body))
        taken = 0
        slow = 0 if is_whole else 60
        with contextlib.suppress(ConnectionError):
            while taken < 15_000_000 and (data := line.socket.recv(2**16)):
                taken += len(data)
                slow -= 1
                time.sleep(0.1 if slow > 0 else 0.0)
        assert (taken >= 15_000_000) == is_whole
        assert service(1) == 1


def test_who_takes_an_answer_slowly_but_steadily_gets_it() -> None:
    """What the system holds of an answer counts as well: it is taken while the buffer of the service stays as it is."""
    limits = {"idle": 5.0}
    with running(ServerModule(services.echo, limits=limits)) as service, Line(service.url) as line:
        line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
        line.send(request(line.host, body=json.dumps({"args": ["x" * 15_000_000]}).encode()))
        taken = 0
        end = time.monotonic() + 12.0
        while taken < 15_000_000 and (data := line.socket.recv(2**14)):
            taken += len(data)
            time.sleep(0.15 if time.monotonic() < end else 0.0)
        assert taken >= 15_000_000


def test_requests_that_wait_on_one_connection_take_little_memory(echo: ServerModule) -> None:
    """No more is read of a connection than is being answered, however much was sent."""
    count = 100_000
    (pid,) = echo.pids
    worker = psutil.Process(pid)
    before = worker.memory_info().rss
    with Line(echo.url) as line, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(line.send, request(line.host, "/healthz") * count)
        answered, rest, most = 0, b"", 0
        while answered < count:
            data = rest + line.socket.recv(2**18)
            answered += data.count(b"HTTP/1.1 200")
            rest = data[-11:] if not data.endswith(b"HTTP/1.1 200") else b""
            most = max(most, worker.memory_info().rss)
        sending.result()
    assert most - before < 60 * 2**20


OFFERS = [
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13",
]
"""Headers by which a client offers to speak another protocol."""


def _offering(data: bytes, offer: str) -> bytes:
    """Return a request with an offer."""
    return data.replace(b"\r\n", f"\r\n{offer}\r\n".encode(), 1)


def _chunked(host: str, body: bytes) -> bytes:
    """Return a request whose body comes in chunks."""
    head = request(host, method="POST", Content_Type="application/json", Transfer_Encoding="chunked")
    return head + b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\nx-trailer: 1\r\n\r\n" % (3, body[:3], len(body) - 3, body[3:])


@pytest.mark.parametrize("offer", OFFERS, ids=["h2c", "websocket"])
@pytest.mark.parametrize("pieces", [1, 2, 1000])
def test_an_offer_of_another_protocol_changes_nothing(echo: ServerModule, offer: str, pieces: int) -> None:
    """A request that would be upgraded is answered in HTTP/1.1, with its body; so are those before and behind it."""
    with Line(echo.url) as line:
        plain = request(line.host, body=_numbers(2))
        asked = b"".join(
            [
                plain,
                _offering(request(line.host, body=_numbers(3)), offer),
                _offering(_chunked(line.host, _numbers(4)), offer),
                _offering(request(line.host, "/healthz"), offer) * 2,
                _chunked(line.host, _numbers(5)),
                _offering(plain, offer),
            ]
        )
        size = -(-len(asked) // pieces)
        for start in range(0, len(asked), size):
            line.send(asked[start : start + size])
        replies = [line.reply().json for _ in range(7)]
        numbers = [{"result": list(range(count))} for count in (2, 3, 4)]
        assert replies == [*numbers, {"alive": True}, {"alive": True}, {"result": [0, 1, 2, 3, 4]}, {"result": [0, 1]}]
        assert line.ask(body=_numbers(1)).json == {"result": [0]}


@pytest.mark.parametrize("is_closing", [True, False])
def test_what_follows_the_last_request_takes_no_answer_along(echo: ServerModule, is_closing: bool) -> None:
    """An offer, and then a request that closes the connection, are answered whatever is sent behind them."""
    offer = OFFERS[0].replace("Upgrade, ", "Upgrade, close, ") if is_closing else OFFERS[0]
    with Line(echo.url) as line:
        last = b"" if is_closing else request(line.host, body=_numbers(2), connection="close")
        line.send(_offering(request(line.host, body=_numbers(1)), offer) + last + b"junk")
        assert line.reply().json == {"result": [0]}
        if not is_closing:
            assert line.reply().json == {"result": [0, 1]}
        assert line.is_closed()


def test_what_is_wrong_behind_an_offer_is_refused(echo: ServerModule) -> None:
    """A body that is none is refused as it is without an offer, and many offers at once do no harm."""
    with Line(echo.url) as line:
        head = request(line.host, method="POST", Content_Type="application/json", Transfer_Encoding="chunked")
        line.send(_offering(head, OFFERS[0]) + b"nonsense")
        assert (line.reply().code, line.is_closed()) == ("malformed-request", True)
    with Line(echo.url) as line:
        line.send(_offering(request(line.host, "/healthz"), OFFERS[0]) * 2000)
        assert [line.reply().status for _ in range(2000)] == [200] * 2000
