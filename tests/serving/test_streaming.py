"""Results that come item by item, from real processes over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replayml.cli.main import main
from replayml.core.errors import ConfigurationError
from replayml.lifecycle.flows import pipeline
from replayml.serving.calling.client import Client
from replayml.serving.errors import CODES, LateError, ServingError, UnavailableError
from replayml.serving.messages.events import EventReader, TooLongError, end_event, error_event, item_event
from replayml.serving.messages.wire import MEDIA_TYPE
from replayml.serving.server import ServerModule, UrlModule
from tests.serving import streams
from tests.serving.http import Line, ask, request
from tests.serving.running import running, serving_on, until

ENDLESS_SIZE = 2**19


@pytest.fixture(scope="module")
def service() -> Iterator[ServerModule]:
    """A service of all streams."""
    found = ServerModule(streams.play).start()
    yield found
    found.stop()


serves_on = serving_on(lambda service: service("number", 1) == 1)


def body(*args: Any) -> bytes:
    """Return a request in JSON."""
    return json.dumps({"args": args}).encode()


def events(url: str, *args: Any, **headers: str) -> list[tuple[str, Any]]:
    """Return the events of a stream as another program reads them."""
    found = []
    with httpx2.stream(
        "POST",
        url + "/predict",
        content=body(*args),
        headers={"content-type": "application/json", **headers},
        timeout=60,
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        for event in response.read().decode().split("\n\n")[:-1]:
            name, data = event.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


# Items --------------------------------------------------------------------------------------------------------


def test_the_items_are_those_of_the_generator(service: ServerModule) -> None:
    """Calling the handle gives the items that the generator gives here, in their types."""
    found = list(service("values"))
    assert found == list(streams.values())
    assert [type(value) for value in found] == [type(value) for value in streams.values()]


def test_tensors_are_those_of_the_generator_to_the_last_bit(service: ServerModule) -> None:
    """Each tensor comes as it was when it was yielded, in its dtype, also when it is changed afterwards."""
    for found, local in zip(service("tensors"), streams.tensors(), strict=True):
        assert found.dtype == local.dtype
        assert torch.equal(found.view(torch.uint8), local.view(torch.uint8))


@pytest.mark.parametrize("name", ["count", "counted", "slowly"])
@pytest.mark.parametrize("items", [0, 1, 5000])
def test_every_iterator_is_a_stream(service: ServerModule, name: str, items: int) -> None:
    """Generators, other iterators and asynchronous generators are streams, of none, one or many items."""
    assert list(service(name, items)) == list(range(items))


def test_who_asks_in_json_gets_the_items_in_json(service: ServerModule) -> None:
    """Every program reads a stream: an event for each item, in the form of other results, and one for the end."""
    assert events(service.url, "count", 2) == [
        ("item", {"result": 0}),
        ("item", {"result": 1}),
        ("end", {"items": 2}),
    ]
    assert events(service.url, "count", 0) == [("end", {"items": 0})]
    name, data = events(service.url, "tensors")[0]
    assert (name, data) == ("item", {"result": [0.1, 0.1, 0.1]})


def test_a_stream_is_not_cached_and_has_an_id(service: ServerModule) -> None:
    """What stands between service and caller is told to pass on each item at once."""
    with Line(service.url) as line:
        line.send(request(line.host, body=body("count", 1)))
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            more = line.socket.recv(65536)
            assert more
            data += more
        head = data.partition(b"\r\n\r\n")[0].lower().decode()
        for header in ("cache-control: no-store", "x-accel-buffering: no", "x-request-id: ", "chunked"):
            assert header in head
        assert line.ask("/readyz").status == 200  # the connection serves on


def test_an_item_comes_when_it_was_made(service: ServerModule, tmp_path: Path) -> None:
    """An item is here before the next one is made."""
    gate = tmp_path / "gate"
    found = service("gated", str(gate), 3)
    assert next(found) == 0
    gate.touch()
    assert list(found) == [1, 2]
    with pytest.raises(StopIteration):
        next(found)


def test_a_model_streams_what_it_gives_here(tmp_path: Path) -> None:
    """A forward that yields is a stream; its items are made without gradients, and the first one tells their form."""
    model = streams.Rollout().build(seed=0)
    x = torch.randn(2, 3)
    with torch.no_grad():
        local = list(model(x))
    service = ServerModule(model, example=torch.zeros(2, 3)).start()
    try:
        found = list(service(x))
        assert all(torch.equal(mine, its) for mine, its in zip(found, local, strict=True))
        assert not any(item.requires_grad for item in found)
        reply = ask(service.url, body=json.dumps({"args": [[[1, 2]]]}).encode())
        assert (reply.status, reply.code) == (422, "wrong-shape")
        answer = ask(service.url, "/schema").json["paths"]["/predict"]["post"]["responses"]["200"]["content"]
        assert list(answer) == ["text/event-stream"]
        item = answer["text/event-stream"]["itemSchema"]["oneOf"][0]["properties"]["data"]["contentSchema"]
        assert item["properties"]["result"]["x-shape"] == [2, 3]
    finally:
        service.stop()


def test_a_stream_cannot_run_in_batches() -> None:
    """A module that yields has no rows to give back; the service says so when it starts."""
    service = ServerModule(streams.Rollout().build(seed=0), example=torch.zeros(1, 3), batch=True)
    with pytest.raises(ServingError, match=r"returns a stream, which has no rows\. Serve it with batch=False"):
        service.start()


def test_a_stream_keeps_its_modes(service: ServerModule) -> None:
    """What a generator sets between its items is set when it goes on, and nowhere else."""
    before = service("modes_here")
    one, other = service("modes"), service("modes")
    wanted = [(True, False, 1), (False, True, 2), (True, False, 3)]
    for item in wanted:
        assert next(one) == item
        assert service("modes_here") == before
        assert next(other) == item
    assert list(one) == list(other) == []


# Errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("value", ValueError("no such row")),
        ("stop", ConfigurationError("there is no 'depth'")),
        ("late", TimeoutError("the sensor is silent")),
    ],
)
@pytest.mark.parametrize("items", [0, 3])
def test_an_exception_comes_after_the_items(service: ServerModule, items: int, name: str, error: Exception) -> None:
    """What the generator raises is raised here, where it would be: after the items that it yielded before."""
    found = service("fail", items, name)
    assert [next(found) for _ in range(items)] == list(range(items))
    with pytest.raises(type(error)) as raised:
        next(found)
    assert (raised.value.args, str(raised.value)) == (error.args, str(error))
    assert "raised by the module behind http://127.0.0.1" in raised.value.__notes__[0]
    assert list(found) == []


def test_an_exception_before_the_iterator_is_an_answer(service: ServerModule) -> None:
    """What is raised before there is a stream is raised by the call."""
    assert ask(service.url, body=body("missing")).status == 500
    with pytest.raises(KeyError, match="missing"):
        service("missing")


def test_another_program_gets_code_text_and_id(service: ServerModule) -> None:
    """An error in a stream tells others no more than an error elsewhere."""
    *items, (name, data) = events(service.url, "fail", 1)
    assert (items, name) == ([("item", {"result": 0})], "error")
    assert data["error"].keys() == {"code", "text", "id"}
    assert (data["error"]["code"], data["error"]["text"]) == ("raised", CODES["raised"].text)
    remote = UrlModule(service.url)
    found = remote("fail", 1)
    assert next(found) == 0
    with pytest.raises(ServingError, match=r"^\[raised\] The module raised an exception; .* \(http"):
        next(found)
    remote.close()


def test_an_item_that_cannot_be_sent_ends_the_stream(service: ServerModule) -> None:
    """An item without a form is told as for other results; NaN has one for who asks for tensors."""
    assert [name for name, _ in events(service.url, "fail", 1, "nan")] == ["item", "error"]
    assert events(service.url, "fail", 0, "nan")[0][1]["error"]["code"] == "not-finite"
    assert events(service.url, "fail", 0, "object")[0][1]["error"]["code"] == "no-form"
    assert str(list(service("fail", 1, "nan"))) == "[0, nan]"
    with pytest.raises(ServingError, match=r"^\[no-form\]"):
        list(service("fail", 1, "object"))


def test_an_exit_in_a_generator_ends_no_worker(service: ServerModule) -> None:
    """A generator that calls sys.exit() ends its stream alone."""
    with pytest.raises(ServingError, match=r"^\[raised\]"):
        list(service("fail", 1, "exit"))


# Leaving ------------------------------------------------------------------------------------------------------


def _close(found: Any) -> None:
    found.close()


def _leave_block(found: Any) -> None:
    with found:
        pass


@pytest.mark.parametrize("leave", [_close, _leave_block, None])
def test_who_leaves_ends_the_generator(
    service: ServerModule, tmp_path: Path, leave: Callable[[Any], None] | None
) -> None:
    """A stream that is closed or dropped closes the generator, and what that does at its end is done."""
    ended = tmp_path / "ended"
    found = service("endless", str(ended))
    assert [next(found), next(found)] == [1, 2]
    if leave is not None:
        leave(found)
        assert list(found) == []
    del found
    until(ended.exists)


def test_who_leaves_before_the_first_item_harms_nobody(service: ServerModule, tmp_path: Path) -> None:
    """A stream of which nothing was read is closed or dropped like any other."""
    found = service("endless", str(tmp_path / "ended"))
    found.close()
    assert list(found) == []
    service("endless", str(tmp_path / "ended"))
    assert list(service("count", 2)) == [0, 1]


def test_a_connection_that_breaks_ends_the_generator(service: ServerModule, tmp_path: Path) -> None:
    """A client of any kind that goes away ends its generator."""
    ended = tmp_path / "ended"
    with Line(service.url) as line:
        line.send(request(line.host, body=body("endless", str(ended))))
        data = b""
        while b"event: item" not in data:  # a generator that has not begun has no end
            data += line.socket.recv(65536)
    until(ended.exists)


def test_who_leaves_before_there_is_a_stream_ends_it(service: ServerModule, tmp_path: Path) -> None:
    """A generator that has begun, and for which nobody waits any more, is ended in the thread of the model."""
    gate, mark, ended = (tmp_path / name for name in ("gate", "mark", "ended"))
    with Line(service.url) as line:
        line.send(request(line.host, body=body("begun", str(gate), str(mark), str(ended))))
        until(mark.exists)
    for _ in range(3):  # in which the service notices that the client has gone
        assert ask(service.url, "/readyz").status == 200
    gate.touch()
    until(ended.exists, seconds=60)
    assert ended.read_text() == "replayml-model"


def test_an_asynchronous_generator_is_closed(service: ServerModule, tmp_path: Path) -> None:
    """The end of an asynchronous generator runs in its event loop."""
    ended = tmp_path / "ended"
    with service("slowly_for_ever", str(ended)) as found:
        assert next(found) == 0
    until(ended.exists)


def test_streams_leave_no_connection_behind(service: ServerModule, tmp_path: Path) -> None:
    """Connections of streams that ended are used again, those of streams that were dropped closed."""
    (pid,) = service.pids
    for index in range(20):
        assert list(service("count", 2)) == [0, 1]
        assert next(service("endless", str(tmp_path / f"ended-{index}"))) == 1
    until(lambda: len(list(tmp_path.glob("ended-??"))) == 10)
    until(lambda: service("number", 0) == 0 and len(psutil.Process(pid).net_connections()) <= 4)


# Sharing the model --------------------------------------------------------------------------------------------


def test_other_requests_run_between_the_items(service: ServerModule, tmp_path: Path) -> None:
    """While streams run without an end, other requests are answered, and no stream waits for another."""
    running = [service("endless", str(tmp_path / f"ended-{index}")) for index in range(3)]
    readers = ThreadPoolExecutor(3)
    try:
        pulls = [readers.submit(lambda stream: [next(stream) for _ in range(20_000)][-1], found) for found in running]
        for index in range(50):
            assert service("number", index) == index
        assert [pull.result() for pull in pulls] == [20_000] * 3
    finally:
        readers.shutdown()
        for found in running:
            found.close()
    until(lambda: len(list(tmp_path.glob("ended-?"))) == 3)


def test_a_generator_does_not_run_away_from_its_client(service: ServerModule, tmp_path: Path) -> None:
    """A client that takes nothing makes the generator wait, while others are served."""
    ended = tmp_path / "ended"
    found = service("endless", str(ended), ENDLESS_SIZE)
    assert len(next(found)) == ENDLESS_SIZE
    cpu = psutil.Process(service.pids[0])

    def is_waiting() -> bool:
        before = sum(cpu.cpu_times()[:2])
        time.sleep(0.2)
        return bool(sum(cpu.cpu_times()[:2]) - before < 0.1)

    until(is_waiting)  # one that ran on would never rest
    assert service("number", 1) == 1
    found.close()
    until(ended.exists)
    assert int(ended.read_text()) * ENDLESS_SIZE < 64 * 2**20


# Time ---------------------------------------------------------------------------------------------------------


def test_the_time_to_answer_holds_for_each_item(tmp_path: Path) -> None:
    """A stream takes as long as it likes when each item comes in time; one that does not is told after the others.

    A client that takes nothing for the time that a connection may be idle is left: its generator is closed.
    """
    gate = tmp_path / "gate"
    service = ServerModule(streams.play, limits={"answer": 3.0, "idle": 1.0}).start()
    try:
        with Line(service.url) as line:
            line.send(request(line.host, body=body("endless", str(tmp_path / "ended"), ENDLESS_SIZE)))
            until((tmp_path / "ended").exists)
        assert list(service("paced", 7, 0.5)) == list(range(7))
        found = service("gated", str(gate), 3)
        assert next(found) == 0
        with pytest.raises(LateError, match=r"^\[too-late\]"):
            next(found)
        gate.touch()
        assert service("number", 1) == 1
    finally:
        service.stop()


def test_the_caller_waits_for_each_item_as_long_as_it_was_told(service: ServerModule, tmp_path: Path) -> None:
    """The timeout of a handle counts from item to item."""
    gate = tmp_path / "gate"
    remote = UrlModule(service.url, timeout=1.0)
    found = remote("gated", str(gate), 2)
    assert next(found) == 0
    with pytest.raises(LateError, match=r"^\[no-answer\] The next item of the stream did not come within 1 s"):
        next(found)
    gate.touch()
    remote.close()


# The end of a worker ------------------------------------------------------------------------------------------


def test_a_stream_that_was_cut_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    """When the worker is killed, the items before come, then an error; the next call is served by the next worker.

    A new version that takes over leaves a stream to the old one until its end.
    """
    service = ServerModule(streams.play).start()
    try:
        running = service("endless", str(tmp_path / "ended"))
        assert next(running) == 1
        with ThreadPoolExecutor(1) as pool:
            updating = pool.submit(service.update)
            until(lambda: service.version == 2)
            assert service("number", 1) == 1
            assert [next(running) for _ in range(1000)][-1] == 1001
            running.close()
            updating.result()
        until((tmp_path / "ended").exists)
        found = service("gated", str(tmp_path / "gate"), 2)
        assert next(found) == 0
        os.kill(service.pids[0], signal.SIGKILL)
        with pytest.raises(UnavailableError, match=r"^\[stream-cut\] The stream was cut after 1 items"):
            next(found)
        service.wait()
        assert list(service("count", 2)) == [0, 1]
    finally:
        service.stop()


def test_a_stream_ends_before_the_service_does(tmp_path: Path) -> None:
    """A service that stops sends its streams to their end first."""
    gate = tmp_path / "gate"
    service = ServerModule(streams.play).start()
    (pid,) = service.pids
    with contextlib.closing(Client(service.url)) as client:
        found = client.call(["gated", str(gate), 4], {})
        assert next(found) == 0
        stopping = threading.Thread(target=service.stop)
        stopping.start()
        try:
            until(lambda: not is_ready(client.url))
        finally:
            gate.touch()
        assert list(found) == [1, 2, 3]
        stopping.join()
        until(lambda: not psutil.pid_exists(pid))


@pytest.mark.parametrize("is_updated", [False, True])
def test_an_endless_stream_does_not_keep_a_service(tmp_path: Path, is_updated: bool) -> None:
    """When the time to drain is over, a stream is cut, which its reader is told by a code.

    Its generator is closed before the worker ends, be it that the service stops, or that a new version answers. What a
    flow returns is a stream like what a function returns.
    """
    ended = tmp_path / "ended"
    service = ServerModule(pipeline(streams.number, streams.endless), limits={"drain": 1.0})
    with running(service), contextlib.closing(Client(service.url)) as client:
        (pid,) = service.pids
        found = client.call([str(ended)], {})
        assert next(found) == 1
        reader = ThreadPoolExecutor(1)
        cut = reader.submit(lambda: sum(1 for _ in found))
        if is_updated:
            service.update()
        else:
            service.stop()
        with pytest.raises(UnavailableError, match=r"^\[stream-cut\]"):
            cut.result()
        reader.shutdown()
        until(lambda: not psutil.pid_exists(pid))
        assert ended.exists()
        assert service.version == (2 if is_updated else 0)


def is_ready(url: str) -> bool:
    """Tell whether a service takes requests."""
    try:
        with Line(url, timeout=1.0) as line:
            return line.ask("/readyz").status == 200
    except OSError:
        return False


# Waiting in an event loop ---------------------------------------------------------------------------------------


def test_a_stream_can_be_awaited(service: ServerModule) -> None:
    """Many streams are read at once in one event loop; an exception comes after the items."""

    async def together() -> list[list[int]]:
        async def read(items: int) -> list[int]:
            return [item async for item in await service.acall("count", items)]

        return await asyncio.gather(*(read(items) for items in range(12)))

    async def failing() -> list[int]:
        items = await service.acall("fail", 2)
        found = [await anext(items), await anext(items)]
        with pytest.raises(ValueError, match="no such row"):
            await anext(items)
        return found

    assert asyncio.run(together()) == [list(range(items)) for items in range(12)]
    assert asyncio.run(failing()) == [0, 1]


@pytest.mark.parametrize("how", ["aclose", "cancel", "block"])
def test_an_awaited_stream_can_be_left(service: ServerModule, tmp_path: Path, how: str) -> None:
    """Closing it, leaving its block or cancelling who waits for an item ends the generator."""
    ended, gate = tmp_path / "ended", tmp_path / "gate"

    async def leave() -> None:
        if how == "cancel":
            found = await service.acall("gated", str(gate), 2)
            assert await anext(found) == 0
            waiting = asyncio.ensure_future(anext(found))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gate.touch()
            ended.touch()
            return
        found = await service.acall("endless", str(ended))
        if how == "block":
            async with found:
                assert await anext(found) == 1
        else:
            assert await anext(found) == 1
            await found.aclose()
        assert [item async for item in found] == []

    asyncio.run(leave())
    until(ended.exists)


# Other services -----------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
ITEM = item_event(1, is_typed=True)


@contextlib.contextmanager
def answering(answer: bytes, *, is_open: bool = False) -> Iterator[str]:
    """A server that answers one request with some bytes, and leaves the connection open or closes it."""
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                with contextlib.suppress(OSError):
                    connection.sendall(answer)
                    while is_open and not over.wait(0.02):
                        connection.sendall(b": still here\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize(
    ("sent", "items", "message"),
    [
        (b"", 0, r"\[stream-cut\] The stream was cut after 0 items"),
        (ITEM, 1, r"\[stream-cut\] The stream was cut after 1 items"),
        (ITEM + ITEM[:-1], 1, r"\[stream-cut\] The stream was cut after 1 items"),
        (ITEM + end_event(2), 1, r"\[bad-answer\] .* an event 'end' came after 1 items"),
        (b"event: end\ndata: {\n\n", 0, r"\[bad-answer\] .* an event 'end' came after 0 items"),
        (b"event: x\ndata: 1\n\n", 0, r"\[bad-answer\] .* an event 'x' came after 0 items"),
        (item_event(1, is_typed=False), 0, r"\[bad-answer\] .* an event 'item' came after 0 items"),
        (b"data: 1\n\n", 0, r"\[bad-answer\] .* an event 'message' came after 0 items"),
        (b"event: tensors\ndata: ?\n\n", 0, r"\[bad-answer\] .* item 0 cannot be read"),
        (b"event: tensors\ndata: gASVAAAA\n\n", 0, r"\[bad-answer\] .* item 0 cannot be read"),
        (error_event(b"{}"), 0, r"\[bad-answer\] What answers there is no service"),
        (error_event(b"[]"), 0, r"\[bad-answer\] What answers there is no service"),
        (error_event(b"?"), 0, r"\[bad-answer\] What answers there is no service"),
        (error_event(b'{"error":{"code":"busy","text":"x","id":"1"}}'), 0, r"\[busy\] x"),
        (error_event(b'{"error":{"code":"new","text":"x","id":"1"}}'), 0, r"\[new\] x"),
    ],
)
def test_what_no_service_sends_is_refused(sent: bytes, items: int, message: str) -> None:
    """Whatever comes instead of a stream, the items that came whole are given, then there is an error."""
    with answering(HEAD + sent) as url, contextlib.closing(Client(url)) as client:
        found = client.call([], {})
        assert [next(found) for _ in range(items)] == [1] * items
        with pytest.raises(ServingError, match=message):
            next(found)
        assert list(found) == []


def test_a_sign_of_life_is_no_item() -> None:
    """Who sends something now and then, but no item, is not waited for."""
    with answering(HEAD + ITEM, is_open=True) as url, contextlib.closing(Client(url, timeout=1.0)) as client:
        found = client.call([], {})
        assert next(found) == 1
        with pytest.raises(LateError, match=r"\[no-answer\] The next item of the stream did not come within 1 s"):
            next(found)


@given(st.lists(st.integers(0, 10**6)), st.lists(st.integers(0, 200)), st.booleans())
def test_events_are_read_however_they_are_cut(values: list[int], cuts: list[int], is_crlf: bool) -> None:
    """The parts in which a stream arrives make no difference to its events."""
    sent = b"".join(item_event(value, is_typed=False) for value in values) + end_event(len(values))
    sent = sent.replace(b"\n", b"\r\n") if is_crlf else sent
    places = sorted({0, len(sent), *(min(cut, len(sent)) for cut in cuts)})
    reader = EventReader(1000)
    found = [event for start, stop in itertools.pairwise(places) for event in reader.feed(sent[start:stop])]
    assert [json.loads(event.data) for event in found[:-1]] == [{"result": value} for value in values]
    assert (found[-1].name, json.loads(found[-1].data)) == ("end", {"items": len(values)})


@pytest.mark.parametrize("data", [b"a" * 101, b"data: 1\n" * 13, b": comment\n" * 11])
def test_an_event_without_an_end_is_refused(data: bytes) -> None:
    """A line, or lines, of an event that goes on for ever are not kept."""
    reader = EventReader(100)
    parts = (reader.feed(data[index : index + 1]) for index in range(len(data)))
    with pytest.raises(TooLongError, match="longer than 100 bytes"):
        list(itertools.chain.from_iterable(parts))


# The command line ---------------------------------------------------------------------------------------------


def test_the_command_prints_items_as_they_come(
    service: ServerModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`replayml call` prints a line for each item when it comes, and fails after them where the stream does."""
    gate = tmp_path / "gate"
    command = [sys.executable, "-m", "replayml.cli.main", "call", service.url, "--json"]
    with subprocess.Popen(
        [*command, body("gated", str(gate), 3).decode()], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert json.loads(running.stdout.readline()) == {"result": 0}
        gate.touch()
        assert [json.loads(line) for line in running.stdout] == [
            {"result": 1},
            {"result": 2},
            {"exit_code": 0, "items": 3},
        ]
    assert running.returncode == 0
    assert main(["call", service.url, "--json", body("fail", 1).decode()]) == 1
    first, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == {"result": 0}
    assert last["error"]["code"] == "ServingError"


def test_the_typed_form_is_for_who_asks(service: ServerModule) -> None:
    """A body in JSON can be answered with tensors, each a typed body in base64."""
    reply = httpx2.post(
        service.url + "/predict",
        content=body("tensors"),
        headers={"content-type": "application/json", "accept": MEDIA_TYPE},
        timeout=60,
    )
    assert reply.text.count("event: tensors\ndata: UlBNV") == 6


# Servers that are none of ours ------------------------------------------------------------------------------------


@contextlib.contextmanager
def dripping(first: bytes, rest: bytes = b"", pause: float = 0.0) -> Iterator[str]:
    """Answer every request with some bytes, and with further ones one by one; give the address."""
    is_over = threading.Event()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                connection.sendall(first)
                for byte in rest:
                    connection.sendall(bytes([byte]))
                    if is_over.wait(pause):
                        break
                while connection.recv(65536):  # what closes before all was read resets the connection
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            is_over.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(60)


def test_an_answer_that_drips_ends_in_time() -> None:
    """A server that sends a byte now and then does not hold a call for longer than its time."""
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {MEDIA_TYPE}\r\ncontent-length: 200\r\n\r\n".encode()
    with dripping(head, b"x" * 200, pause=0.05) as url:
        client = Client(url, timeout=0.5)
        with pytest.raises(LateError, match=r"no answer within 0\.5 s; the call may have run"):
            client.call([1], {})
        client.close()


def test_an_error_without_end_is_not_kept() -> None:
    """What is no result is read up to a size that no error of a service has."""
    head = b"HTTP/1.1 500 No\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    with dripping(head + b" " * 2**22) as url:
        client = Client(url, timeout=60)
        with pytest.raises(ServingError, match=r"\[bad-answer\] The answer is larger than 1048576 bytes"):
            client.call([1], {})
        client.close()


def test_a_code_that_is_no_text_is_a_bad_answer() -> None:
    """An error event of a stranger ends in an error of serving, whatever stands in it."""
    event = b'event: error\ndata: {"error":{"code":[],"text":"","id":"1"}}\n\n'
    with dripping(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + event) as url:
        client = Client(url, timeout=60)
        with pytest.raises(ServingError, match=r"\[bad-answer\] What answers there is no service"):
            list(client.call([1], {}))
        client.close()


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "[v1.x]", "a\\b", "[::1%25x]", "%0d%0a"])
def test_an_address_that_cannot_be_is_told(host: str) -> None:
    """Whichever part refuses it, the caller meets an error of replayml."""
    with pytest.raises((ConfigurationError, ServingError), match=r"no address of a service|no service"):
        Client(f"http://{host}:1", timeout=1).call([1], {})


def test_a_call_without_a_connection_did_not_run() -> None:
    """Where the time ends before there is a connection, the message says that nothing ran."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with contextlib.ExitStack() as stack:
            for _ in range(4):  # until no more are taken
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(full.getsockname())
            client = Client(f"http://127.0.0.1:{full.getsockname()[1]}", timeout=0.5)
            with pytest.raises(LateError, match=r"no connection within 0\.5 s; the call did not run"):
                client.call([1], {})
            client.close()


def test_open_streams_leave_room_for_calls(service: ServerModule) -> None:
    """A caller with many open streams calls on: each has a connection of its own."""
    with contextlib.ExitStack() as stack:
        client = Client(service.url, timeout=60)
        stack.callback(client.close)
        found = [stack.enter_context(client.call(["paced", 10**6, 0.001], {})) for _ in range(80)]
        assert [next(stream) for stream in found] == [0] * 80
        assert client.call(["number", 3], {}) == 3


def test_so_many_streams_are_open_at_once() -> None:
    """A further one is told to come back, other requests are answered, and a stream that ended makes room."""
    service = ServerModule(streams.play, limits={"streams": 2}).start()
    try:
        with service("paced", 10**6, 0.001) as first, service("paced", 10**6, 0.001) as second:
            assert (next(first), next(second)) == (0, 0)
            reply = ask(service.url, body=body("count", 1))
            assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "busy", "1")
            assert service("number", 3) == 3
        assert list(service("count", 2)) == [0, 1]
    finally:
        service.stop()
