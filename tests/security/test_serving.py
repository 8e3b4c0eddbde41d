"""What a service refuses, over real HTTP: each with its code, and the next request is served."""

from __future__ import annotations

import json
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import psutil
import pytest
import torch

import replayml
from replayml.core.errors import ConfigurationError
from replayml.serving.errors import (
    CODES,
    LateError,
    Problem,
    RefusedError,
    ServingError,
    UnavailableError,
    error_body,
    raised_again,
    told,
)
from replayml.serving.messages.wire import MEDIA_TYPE, encode
from replayml.serving.server import ServerModule, UrlModule
from tests.serving import oddities, services, streams
from tests.serving.http import Line, Reply, ask, request
from tests.serving.running import running, serving_on

ROW = b'{"args": [[[1, 2, 3, 4]]]}'
TOKEN = "a-token-of-more-than-16-characters"  # noqa: S105 - of this test


@pytest.fixture(scope="module")
def service() -> Iterator[ServerModule]:
    """A model, with short times."""
    model = replayml.MultiLayerPerceptron(4, [8], 2).build(seed=0)
    limits = {"send": 1.0, "depth": 20, "connections": 40}
    found = ServerModule(model, example=torch.zeros(1, 4), batch=True, limits=limits).start()
    yield found
    found.stop()


serves_on = serving_on(lambda service: ask(service.url, body=ROW).status == 200)


def check(reply: Reply, code: str) -> None:
    """Compare an answer with what is documented for a code."""
    assert reply.code == code
    assert reply.status == CODES[code].status
    error = reply.json["error"]
    assert error["text"] == CODES[code].text
    assert set(error) <= {"code", "text", "id", "detail"}
    assert b"Traceback" not in reply.body
    assert b"replayml/" not in reply.body


# Bodies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed-json"),
        (b"{", "malformed-json"),
        (b'{"args": [[[NaN, 2, 3, 4]]]}', "malformed-json"),
        (b'{"args": [[[Infinity, 2, 3, 4]]]}', "malformed-json"),
        (b'{"args": [[[1e999, 2, 3, 4]]]}', "malformed-json"),
        (b'{"args": [[[1, 2, 3, 4]]]}{}', "malformed-json"),
        (b"\xef\xbb\xbf" + ROW, "malformed-json"),
        (b'{"args": ["\xff"]}', "malformed-json"),
        (pickle.dumps({"args": [1]}), "malformed-json"),
        (b"[" * 21 + b"]" * 21, "too-deep"),
        (b'{"args": [' + b'{"a":[' * 12 + b"]}" * 12 + b"]}", "too-deep"),
        (b"[" * 100_000 + b"]" * 100_000, "too-deep"),
        (b"[1, 2]", "wrong-arguments"),
        (b'{"args": {}}', "wrong-arguments"),
        (b'{"inputs": []}', "wrong-arguments"),
        (b'{"args": []}', "wrong-arguments"),
        (b'{"args": [[[1, 2, 3, 4]], 1]}', "wrong-arguments"),
        (b'{"args": [[[1, 2, 3, 4]]], "kwargs": {"self": 1}}', "wrong-arguments"),
        (b'{"args": [[[1, 2, 3]]]}', "wrong-shape"),
        (b'{"args": [[1, 2, 3, 4]]}', "wrong-shape"),
        (b'{"args": [[]]}', "wrong-shape"),
        (b'{"args": [[[1, 2, 3, 4], [1]]]}', "wrong-shape"),
        (b'{"args": [[["1", "2", "3", "4"]]]}', "wrong-dtype"),
        (b'{"args": [[[1, 2, 3, true]]]}', None),
        (b'{"args": [[[1, 2, 3, 1e300]]]}', "wrong-dtype"),
        (b'{"args": [[[1, 2, 3, null]]]}', "wrong-dtype"),
        (b'{"args": ["' + b"[" * 50 + b'"]}', "wrong-dtype"),
    ],
)
def test_a_wrong_body_is_refused(service: ServerModule, body: bytes, code: str | None) -> None:
    """What is no JSON, too deep, or does not fit is refused before the model runs."""
    reply = ask(service.url, body=body)
    if code is None:
        assert reply.status in (200, 422)
    else:
        check(reply, code)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed-tensors"),
        (pickle.dumps({"args": [1]}), "malformed-tensors"),
        (b"RPMT\xff\xff\xff\xff", "malformed-tensors"),
        (encode({"args": [torch.zeros(1, 4)]}) + b"\x00", "malformed-tensors"),
        (encode({"args": [torch.zeros(1, 4)]})[:-1], "malformed-tensors"),
        (encode({"args": [torch.zeros(1, 4)]}).replace(b'"$tensor"', b'"$pickle"'), "malformed-tensors"),
        (encode({"args": [torch.zeros(1, 4)]}).replace(b"float32", b"object_"), "malformed-tensors"),
        (encode({"args": [torch.zeros(1, 5)]}), "wrong-shape"),
        (encode({"args": [torch.zeros(1, 4, dtype=torch.float64)]}), "wrong-dtype"),
        (encode({"args": [torch.zeros(0, 4)]}), "wrong-shape"),
        (encode([torch.zeros(1, 4)]), "wrong-arguments"),
        (encode({"args": [[1, 2]], "kwargs": {1: 2}}), "wrong-arguments"),
    ],
)
def test_wrong_tensors_are_refused(service: ServerModule, body: bytes, code: str) -> None:
    """The same holds for the typed body; nothing in it is unpickled or looked up."""
    check(ask(service.url, body=body, Content_Type=MEDIA_TYPE), code)


def test_an_honest_body_of_each_kind_is_answered(service: ServerModule) -> None:
    """What is refused above is taken when it is right, and each kind can be answered in the other."""
    typed = encode({"args": [torch.zeros(1, 4)]})
    assert ask(service.url, body=ROW).status == 200
    assert ask(service.url, body=typed, Content_Type=MEDIA_TYPE).body.startswith(b"RPMT")
    assert ask(service.url, body=typed, Content_Type=MEDIA_TYPE, Accept="application/json").body.startswith(b"{")
    assert ask(service.url, body=ROW, Accept=MEDIA_TYPE).body.startswith(b"RPMT")
    assert ask(service.url, body=ROW, Content_Type="application/json; charset=utf-8").status == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/octet-stream"])
def test_other_kinds_of_bodies_are_refused(service: ServerModule, kind: str | None) -> None:
    """A body is of one of two kinds, which a form of a web page cannot send."""
    check(ask(service.url, body=ROW, Content_Type=kind), "wrong-type")
    check(ask(service.url, body=ROW, Content_Encoding="gzip"), "wrong-type")


def resident(service: ServerModule) -> int:
    """Return the memory of the worker."""
    return int(psutil.Process(service.pids[0]).memory_info().rss)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_while_it_comes(service: ServerModule, chunked: bool) -> None:
    """A body of 100 MB is refused at its limit, held by nobody, and the connection serves on."""
    assert ask(service.url, body=ROW).status == 200
    before = resident(service)
    block = b" " * 2**20
    with Line(service.url) as line:
        length = {"Transfer_Encoding": "chunked"} if chunked else {"Content_Length": str(100 * len(block))}
        line.send(request(line.host, method="POST", Content_Type="application/json", **length))
        replies: list[Reply] = []
        reader = threading.Thread(target=lambda: replies.append(line.reply()))
        reader.start()
        try:
            for _ in range(100):
                line.send(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
            line.send(b"0\r\n\r\n" if chunked else b"")
        except ConnectionError:
            pass  # it may be cut off after its time to send
        reader.join()
        check(replies[0], "too-large")
        assert resident(service) - before < 60 * 2**20
    assert ask(service.url, body=ROW).status == 200


def test_the_largest_body_is_taken() -> None:
    """A body right at the limit is taken, one byte more is not."""
    service = ServerModule(services.echo, limits={"body": 1000}).start()
    try:
        body = b'{"args": [' + b" " * 988 + b"1]}"
        assert ask(service.url, body=body[:10] + body[11:]).status == 200
        check(ask(service.url, body=body + b" "), "too-large")
    finally:
        service.stop()


# Senders ------------------------------------------------------------------------------------------------------


def test_slow_senders_are_refused(service: ServerModule) -> None:
    """A request that is not sent in time is refused: silent, in the headers, before the body, or in it."""
    with (
        Line(service.url) as silent,
        Line(service.url) as headers,
        Line(service.url) as before,
        Line(service.url) as body,
    ):
        headers.send(b"POST /predict HTTP/1.1\r\nHost: ")
        body.send(request(body.host, method="POST", Content_Type="application/json", Content_Length="10") + b"{")
        before.send(request(before.host, method="POST", Content_Type="application/json", Content_Length="10"))
        check(headers.reply(), "slow-request")
        check(before.reply(), "slow-request")
        check(body.reply(), "slow-request")
        assert headers.is_closed()
        assert body.is_closed()
        assert silent.is_closed()


def test_a_trickle_is_refused(service: ServerModule) -> None:
    """A sender does not gain time by sending a byte now and then."""
    with Line(service.url) as line:
        line.send(b"GET /readyz HTTP/1.1\r\nX-Slow: ")
        with pytest.raises(ConnectionError):
            trickle(line, until=time.monotonic() + 60)


def trickle(line: Line, until: float) -> None:
    """Send a byte now and then."""
    while time.monotonic() < until:
        line.send(b"a")
        time.sleep(0.05)


@pytest.mark.parametrize(
    "headers",
    [
        {"X_Large": "a" * 17_000},
        {"X_Large": "a" * 300_000},
        {f"X_{number}": "a" * 100 for number in range(200)},
    ],
)
def test_large_headers_are_refused(service: ServerModule, headers: dict[str, str]) -> None:
    """Headers beyond 16 KiB are refused, and the connection closed."""
    with Line(service.url) as line:
        try:
            check(line.ask("/readyz", **headers), "headers-too-large")
        except ConnectionError:
            assert len(str(headers)) > 100_000  # so much that it could not be sent


def send_chunked(line: Line, rest: bytes, **headers: str) -> None:
    """Send the headers of a body in chunks, and the rest once they have been read."""
    kind = {"Content_Type": "application/json", "Transfer_Encoding": "chunked", "Expect": "100-continue"}
    line.send(request(line.host, method="POST", **kind, **headers))
    assert line.reply().status == 100
    line.send(rest)


@pytest.mark.parametrize(
    "rest",
    [b"0\r\n" + b"a:b\r\n" * 4000, b"0\r\na:" + b"b" * 17_000, b"0\r\n" + b"a" * 17_000, b"2;" + b"a" * 17_000],
)
def test_bytes_beside_a_body_are_counted(service: ServerModule, rest: bytes) -> None:
    """Trailers and extensions of chunks without end are refused as large headers are."""
    with Line(service.url) as line:
        send_chunked(line, rest)
        check(line.reply(), "headers-too-large")
        assert line.is_closed()


def test_small_chunks_and_few_trailers_are_taken(service: ServerModule) -> None:
    """A body byte by byte is whole, and nothing that follows it becomes a header of the request."""
    body = b" " * 8000 + ROW
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body)
    with Line(service.url) as line:
        send_chunked(line, chunks + b"0\r\nAccept: " + MEDIA_TYPE.encode() + b"\r\n\r\n")
        reply = line.reply()
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/json"
        assert line.ask(body=ROW).status == 200


def test_a_large_path_is_refused(service: ServerModule) -> None:
    """The first line counts as a header."""
    check(ask(service.url, "/" + "a" * 20_000), "headers-too-large")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"hello\r\n\r\n",
        b"GET /readyz HTTP/9.9\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\tfolded: a\r\n\r\n",
        b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    ],
)
def test_what_is_not_http_is_refused(service: ServerModule, data: bytes) -> None:
    """What is not HTTP, or could be read in two ways, is answered with a code and closed."""
    with Line(service.url) as line:
        line.send(data)
        reply = line.reply()
        assert 400 <= reply.status < 500
        assert reply.code in CODES


def test_more_connections_than_allowed_are_told(service: ServerModule) -> None:
    """Beyond the limit of connections a new one is told to come back."""
    lines = [Line(service.url) for _ in range(40)]
    try:
        for line in lines:
            assert line.ask("/readyz").status == 200
        with Line(service.url) as more:
            reply = more.reply()
            assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "busy", "1")
    finally:
        for line in lines:
            line.socket.close()
    deadline = time.monotonic() + 60
    while ask(service.url, "/readyz").status != 200 and time.monotonic() < deadline:
        time.sleep(0.05)


# Who asks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/predict", "/healthz", "/readyz", "/schema", "/metrics", "/"])
@pytest.mark.parametrize(
    "host",
    [None, "evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost@evil.example", "[::1]evil"],
)
def test_foreign_hosts_are_refused(service: ServerModule, host: str | None, path: str) -> None:
    """A name that was bent to this machine is told from its own, on every route."""
    check(ask(service.url, path, Host=host), "foreign-host")


def test_two_hosts_are_refused(service: ServerModule) -> None:
    """A request names one host."""
    with Line(service.url) as line:
        line.send(f"GET /readyz HTTP/1.1\r\nHost: {line.host}\r\nHost: evil.example\r\n\r\n".encode())
        check(line.reply(), "foreign-host")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "file://"])
def test_foreign_origins_are_refused(service: ServerModule, origin: str) -> None:
    """A page of another site cannot make a browser call the service."""
    check(ask(service.url, body=ROW, Origin=origin), "foreign-origin")


def test_own_names_are_taken(service: ServerModule) -> None:
    """The machine's own names, and a page of the service itself, are taken."""
    port = service.url.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST", "[::1]:80"):
        assert ask(service.url, "/readyz", Host=host).status == 200
    own = f"127.0.0.1:{port}"
    assert ask(service.url, body=ROW, Host=own, Origin=f"http://{own}").status == 200


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/predict", "wrong-method"),
        ("DELETE", "/readyz", "wrong-method"),
        ("OPTIONS", "/predict", "wrong-method"),
        ("POST", "/shutdown", "unknown-route"),
        ("GET", "/predict/", "unknown-route"),
        ("GET", "//predict", "unknown-route"),
        ("GET", "/../healthz", "unknown-route"),
        ("GET", "/docs", "unknown-route"),
    ],
)
def test_other_routes_are_unknown(service: ServerModule, method: str, path: str, code: str) -> None:
    """The table of routes is fixed."""
    check(ask(service.url, path, method=method), code)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104 - refused
def test_other_hosts_need_a_token(host: str) -> None:
    """A service that others could call does not start without a token; nothing is bound."""
    with pytest.raises(ConfigurationError, match="can be called by others, and needs a token: give token_file="):
        ServerModule(services.echo, host=host).start()


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    """A file with a token."""
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return str(path)


def test_a_token_is_asked_for(token_file: str, tmp_path: Path) -> None:
    """With a token only who shows it may call; probes are open, and the token stands nowhere to be read."""
    service = ServerModule(services.process, host="0.0.0.0", token_file=token_file).start()  # noqa: S104 - under test
    url = service.url
    try:
        (pid,) = service.pids
        assert service() == pid
        for given in (None, "Bearer wrong", f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}"):
            headers = {} if given is None else {"Authorization": given}
            for path, body in (("/predict", b"{}"), ("/schema", None), ("/metrics", None)):
                reply = ask(url, path, body, **headers)
                check(reply, "missing-token")
                assert reply.headers["www-authenticate"] == "Bearer"
        assert ask(url, "/predict", b"{}", Authorization=f"Bearer {TOKEN}").json == {"result": pid}
        assert ask(url, "/readyz").status == 200
        check(ask(url, "/readyz", Host="evil.example"), "foreign-host")
        assert ask(url, "/readyz", Host="192.0.2.7:80").status == 200
        remote = UrlModule(url, token_file=token_file)
        assert remote() == pid
        remote.close()
        with pytest.raises(RefusedError, match="missing-token"):
            UrlModule(url)()
        process = psutil.Process(pid)
        assert TOKEN not in str(process.cmdline()) + str(process.environ())
        assert TOKEN not in service.recipe().to_json()
        assert TOKEN not in repr(service)
    finally:
        service.stop()


def test_a_poor_token_is_refused(tmp_path: Path) -> None:
    """A token that could be guessed is refused when the service starts."""
    (tmp_path / "token").write_text("short")
    with pytest.raises(ConfigurationError, match="has 5 characters; write 16 or more"):
        ServerModule(services.echo, token_file=str(tmp_path / "token")).start()


def test_the_files_of_a_service_are_private() -> None:
    """Nobody else reads the model of a service, or writes what its worker opens."""
    service = ServerModule(services.Shift()).start()
    try:
        folder = next(
            Path(item.path).parent for item in psutil.Process(service.pids[0]).memory_maps() if "/table-" in item.path
        )
        assert folder.stat().st_mode & 0o077 == 0
    finally:
        service.stop()


# Too much -----------------------------------------------------------------------------------------------------


def test_a_full_queue_is_told() -> None:
    """More requests than may wait are told to come back; those that wait are answered."""
    service = ServerModule(services.sleep, limits={"queue": 2, "answer": 20.0}).start()
    body = json.dumps({"args": [0.6]}).encode()
    try:
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: ask(service.url, body=body), range(8)))
        refused = [reply for reply in replies if reply.status != 200]
        assert len(refused) in (5, 6)
        for reply in refused:
            check(reply, "busy")
            assert reply.headers["retry-after"] == "1"
        assert service(0) == "slept"
    finally:
        service.stop()


def test_a_model_that_takes_too_long_is_told() -> None:
    """Who waits too long gets a 504; a model that does not come back is replaced."""
    service = ServerModule(services.sleep, limits={"answer": 0.5}).start()
    try:
        (pid,) = service.pids
        reply = ask(service.url, body=b'{"args": [60]}')
        check(reply, "too-late")
        with pytest.raises((LateError, UnavailableError), match=r"too-late|worker-lost"):
            service(0)  # waits behind the one that does not come back, until its time is over or the worker replaced
        deadline = time.monotonic() + 30
        while service.pids in ([pid], []) and time.monotonic() < deadline:
            time.sleep(0.05)
        service.wait()
        assert service(0) == "slept"
    finally:
        service.stop()


def test_who_leaves_is_not_waited_for() -> None:
    """A request whose sender has gone before its turn does not run."""
    service = ServerModule(services.sleep).start()
    try:
        with Line(service.url) as first:
            first.send(request(first.host, body=b'{"args": [1.0]}'))
            time.sleep(0.3)
            for _ in range(5):
                with Line(service.url) as line:
                    line.send(request(line.host, body=b'{"args": [30]}'))
                    time.sleep(0.05)
                    line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            assert first.reply().status == 200
        assert service(0) == "slept"
    finally:
        service.stop()


def test_what_goes_wrong_in_the_module_is_told() -> None:
    """An exception, NaN or something without a form, in a result or in a stream, has its code; the next is served."""
    service = ServerModule(streams.play).start()
    try:
        pids = service.pids
        for given, code in (("missing", "raised"), ("nan", "not-finite"), ("unsendable", "no-form")):
            check(ask(service.url, body=json.dumps({"args": [given]}).encode()), code)
            assert service("number", 1) == 1
        for given, code in (("value", "raised"), ("nan", "not-finite"), ("object", "no-form"), ("exit", "raised")):
            body = json.dumps({"args": ["fail", 1, given]}).encode()
            with Line(service.url) as line:
                line.send(request(line.host, body=body, Connection="close"))
                answer = b"".join(iter(lambda: line.socket.recv(65536), b""))
            event = json.loads(answer.partition(b"event: error\ndata: ")[2].partition(b"\n\n")[0])
            assert event["error"]["code"] == code
            assert event["error"]["text"] == CODES[code].text
            assert event["error"].keys() == {"code", "text", "id"} | ({"detail"} if code == "no-form" else set())
            assert b"Traceback" not in answer
            assert service("number", 1) == 1
        assert service.pids == pids
    finally:
        service.stop()


def test_every_code_is_documented() -> None:
    """Each code has an HTTP status of an error and a text of one or two sentences."""
    for code, answer in CODES.items():
        assert 400 <= answer.status < 600
        assert answer.text.endswith("."), code


# Exceptions and results without a form ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd() -> Iterator[ServerModule]:
    """A service of what is hard to answer."""
    found = ServerModule(oddities.play).start()
    yield found
    found.stop()


@pytest.mark.parametrize("name", list(oddities.ERRORS))
def test_every_exception_is_told_as_json(name: str) -> None:
    """What is told of an exception is JSON, whatever its arguments are, and is raised again with the same text."""
    detail = told(oddities.ERRORS[name]())
    error = json.loads(error_body("raised", "7f", detail))["error"]
    if name == "unreadable":  # a class of the user
        assert detail is None
        return
    raised = raised_again(error["detail"], Problem("raised", "", "http://x"))
    assert str(raised) == error["detail"]["text"]
    assert type(raised) is (RuntimeError if "stop" in name else ValueError)


def test_a_detail_without_a_form_is_left_out() -> None:
    """An error has its code, text and id, whatever its detail is."""
    error = orjson.loads(error_body("no-form", "7f", {"found": object()}))["error"]
    assert error == {"code": "no-form", "text": CODES["no-form"].text, "id": "7f"}


@pytest.mark.parametrize("name", ["StopIteration", "StopAsyncIteration"])
def test_the_end_of_a_loop_is_not_raised_again(name: str) -> None:
    """A service that tells an exception which ends loops makes no stream look whole."""
    raised = raised_again({"type": name, "args": [], "text": ""}, Problem("raised", "It raised.", "http://x"))
    assert type(raised) is ServingError
    assert name in str(raised)


@pytest.mark.parametrize("name", list(oddities.ERRORS))
def test_every_exception_has_an_answer(odd: ServerModule, name: str) -> None:
    """An exception that JSON has no form for is answered with code and id, and raised at the owner."""
    reply = ask(odd.url, body=json.dumps({"args": ["fail", name]}).encode())
    check(reply, "raised")
    assert reply.json["error"]["id"]
    with pytest.raises((ValueError, RuntimeError)) as raised:
        odd("fail", name)
    is_told = name != "unreadable"
    assert isinstance(raised.value, ServingError) != is_told
    assert not isinstance(raised.value, ServingError) or raised.value.code == "raised"


@pytest.mark.parametrize("name", list(oddities.ERRORS))
def test_every_exception_ends_a_stream(odd: ServerModule, name: str) -> None:
    """An exception that JSON has no form for, or that ends loops, is raised after the items; no stream looks whole."""
    found = odd("stream", "fail", name)
    assert next(found) == 1
    with pytest.raises((ValueError, RuntimeError)) as raised:
        next(found)
    assert not isinstance(raised.value, ServingError) or raised.value.code == "raised"


@pytest.mark.parametrize("name", ["float8", "surrogate", "nested", "cyclic"])
@pytest.mark.parametrize("accept", ["application/json", MEDIA_TYPE])
def test_every_result_without_a_form_has_its_code(odd: ServerModule, accept: str, name: str) -> None:
    """A result that cannot be written is told as such, in both forms and in streams."""
    headers = {"Accept": accept}
    check(ask(odd.url, body=json.dumps({"args": ["result", name]}).encode(), **headers), "no-form")
    with Line(odd.url) as line:
        sent = json.dumps({"args": ["stream", "result", name]}).encode()
        line.send(request(line.host, body=sent, Connection="close", **headers))
        answer = b"".join(iter(lambda: line.socket.recv(65536), b""))
    event = json.loads(answer.partition(b"event: error\ndata: ")[2].partition(b"\n\n")[0])
    assert event["error"]["code"] == "no-form"


def test_a_lazy_minus_is_answered(odd: ServerModule) -> None:
    """A tensor whose minus torch has not worked out yet is a result like any other, in both forms."""
    assert ask(odd.url, body=b'{"args": ["result", "negative"]}').json == {"result": [-1.0, -1.0]}
    assert odd("result", "negative").tolist() == [-1.0, -1.0]


def test_the_log_takes_every_text(tmp_path: Path) -> None:
    """What the module raises stands in the log, whatever characters it has."""
    log = tmp_path / "log.txt"
    with running(ServerModule(oddities.play, log=str(log))) as service:
        check(ask(service.url, body=b'{"args": ["fail", "surrogate"]}'), "raised")
    text = log.read_text()
    assert "Traceback" in text
    assert "ValueError: a\\ud800" in text


def test_keys_that_meet_are_refused_at_once(odd: ServerModule) -> None:
    """A typed body whose keys all have one hash is refused before a dict is made of them."""
    keys = [[{"$int": str(k * (2**61 - 1))}, 0] for k in range(1, 2000)]
    header = orjson.dumps({"value": {"args": [{"$dict": keys}]}, "tensors": []})
    sent = b"RPMT" + len(header).to_bytes(4, "little") + header
    check(ask(odd.url, body=sent, **{"Content-Type": MEDIA_TYPE}), "malformed-tensors")
