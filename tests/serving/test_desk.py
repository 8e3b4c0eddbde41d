"""What a worker and its supervisor tell each other, and what becomes of one that is at fault."""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import tempfile
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replayml.serving.limits import ServeLimits
from replayml.serving.packing.spec import Spec
from replayml.serving.supervising.doorway import Doorway
from replayml.serving.supervising.folders import ServiceFolder, sweep
from replayml.serving.supervising.process import Version, Worker, surroundings
from replayml.serving.worker.desk import MESSAGE, MessageError, fitting, open_table, receive, send
from replayml.serving.worker.worker import Watch
from tests.serving.running import until


@contextmanager
def channel() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a channel."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        yield near, far


def open_files() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


# Messages -----------------------------------------------------------------------------------------------------


@given(st.text(alphabet=st.characters(), min_size=1), st.integers(0, 20_000))
def test_what_fits_is_a_message(piece: str, count: int) -> None:
    """Whatever its characters are, a text is cut so that it arrives; a short one arrives as it is."""
    text = piece * (count // len(piece) + 1)
    with channel() as (near, far):
        send(near, {"do": "failed", "text": fitting(text)})
        message, _ = receive(far)
    assert message is not None
    arrived = message["text"]
    assert isinstance(arrived, str)
    whole = text.encode(errors="replace").decode()
    assert whole.startswith(arrived)
    assert arrived == whole or len(orjson.dumps(arrived)) > 6000 - 16
    assert len(orjson.dumps(arrived)) <= 6000


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b'{"do": "failed", "text": "' + b"x" * MESSAGE + b'"}', f"more than {MESSAGE} bytes"),
        (b"\xff", "no JSON"),
        (b"[1]", "no object, but list"),
    ],
)
def test_what_is_no_message_is_told_apart(data: bytes, match: str) -> None:
    """A packet that was cut, or is no object, raises `MessageError`, and the files with it are closed."""
    with channel() as (near, far):
        before = open_files()
        socket.send_fds(near, [data], [near.fileno()])
        with pytest.raises(MessageError, match=match):
            receive(far)
        assert open_files() == before


# Workers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [b"x" * 2 * MESSAGE, b"null", b'{"do":"open","given":true}', b'{"do":"open","slot":99999}']
)
def test_a_worker_that_talks_nonsense_harms_nobody(tmp_path: Path, data: bytes) -> None:
    """What a worker sends does not raise in the supervisor; a worker that sends what is no message is killed."""
    is_message = data.startswith(b"{")
    lines = ["import socket, sys", "channel = socket.socket(fileno=int(sys.argv[2]))", f"channel.send({data!r})"]
    if not is_message:
        lines.append("channel.recv(1)")  # it waits to be killed
    (tmp_path / "nonsense.py").write_text("\n".join(lines))
    spec = Spec(
        "function",
        "math:sqrt",
        "sqrt",
        program="nonsense",
        folder=str(tmp_path),
        environment={"PYTHONPATH": str(tmp_path)},
    )
    with socket.socket() as listener:
        worker = Worker(Version(spec, tmp_path), tmp_path / "table", listener)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(worker.channel, selectors.EVENT_READ)
            while worker.hear():
                selector.select()
        assert (worker.failure is None) == is_message
        assert (worker.reap() == 0) == is_message
        assert all(state == 0 for _, state in worker.connections())
    finally:
        worker.forsake()


def test_a_worker_reads_a_large_spec_when_it_likes(tmp_path: Path) -> None:
    """A spec that no pipe has room for arrives as a whole, and the supervisor does not wait for that."""
    lines = ["import pathlib, sys, time", f"folder = pathlib.Path({str(tmp_path)!r})", "end = time.monotonic() + 60"]
    lines += ["while not (folder / 'gate').exists() and time.monotonic() < end: time.sleep(0.01)"]
    lines += ["if time.monotonic() < end: (folder / 'found').write_bytes(sys.stdin.buffer.read())"]
    (tmp_path / "late.py").write_text("\n".join(lines))
    surrounds = {"PYTHONPATH": str(tmp_path)}
    hosts = tuple(f"host-{number}.example.org" for number in range(20_000))
    spec = Spec("function", "math:sqrt", "sqrt", hosts=hosts, program="late", folder=".", environment=surrounds)
    with socket.socket() as listener:
        worker = Worker(Version(spec, tmp_path), tmp_path / "table", listener)
    try:
        assert not worker.flush()
        (tmp_path / "gate").touch()
        until(worker.flush)
        assert worker.reap() == 0
        assert Spec.from_json((tmp_path / "found").read_bytes()).hosts == hosts
    finally:
        worker.forsake()


def test_a_worker_that_ends_unread_is_no_fault_of_the_supervisor(tmp_path: Path) -> None:
    """A process that ends before it has read its spec is one that has ended, and its pipe is closed."""
    hosts = ("x" * 2**20,)
    spec = Spec("function", "math:sqrt", "sqrt", hosts=hosts, program="there_is_no_such_program", folder=str(tmp_path))
    before = open_files()
    with socket.socket() as listener:
        worker = Worker(Version(spec, tmp_path), tmp_path / "table", listener)
    assert worker.reap() != 0
    assert worker.flush()
    worker.forsake()
    assert open_files() == before


def test_a_worker_that_cannot_be_started_leaves_nothing(tmp_path: Path) -> None:
    """Where its table cannot be made, or its environment is none, no file stays open."""
    bad = Spec("function", "math:sqrt", "sqrt", folder=str(tmp_path), environment={"A": "\0"})
    with socket.socket() as listener:
        before = open_files()
        with pytest.raises(FileNotFoundError, match="missing"):
            Worker(Version(bad, tmp_path), tmp_path / "missing" / "table", listener)
        with pytest.raises(ValueError, match="null byte"):
            Worker(Version(bad, tmp_path), tmp_path / "table", listener)
        assert open_files() == before
    assert list(tmp_path.iterdir()) == []


class Changing(MutableMapping[str, str]):
    """Variables of which one is gone when it is read: what another thread may do."""

    def __getitem__(self, name: str) -> str:
        return {"STAYS": "1"}[name]

    def __iter__(self) -> Iterator[str]:
        return iter(["GONE", "STAYS"])

    def __len__(self) -> int:
        return 2

    def __setitem__(self, name: str, value: str) -> None:
        raise KeyError(name)

    def __delitem__(self, name: str) -> None:
        raise KeyError(name)


def test_an_environment_that_changes_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that goes while the environment is read is left out."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", Changing())
        found = surroundings()
    assert found == {"STAYS": "1"}


def test_a_table_is_as_long_as_it_has_slots(tmp_path: Path) -> None:
    """Both sides see the same table."""
    with open_table(tmp_path / "table", 8) as one, open_table(tmp_path / "table", 8) as other:
        one[3] = 2
        assert (other[3], len(other)) == (2, 8)


# The watch ----------------------------------------------------------------------------------------------------


def test_an_event_loop_that_stands_still_is_seen() -> None:
    """A worker is stuck when its event loop did not go round for twice as long as an answer may take."""
    watch = Watch(lambda: 0.0, ServeLimits(answer=10))
    assert [watch.look() for _ in range(21)] == [None] * 21

    async def go_round() -> None:
        watch.beat()

    asyncio.run(go_round())
    assert [watch.look() for _ in range(21)] == [None] * 21
    assert watch.look() == "the event loop has stood still for 21 s"


def test_a_model_that_is_stuck_is_seen() -> None:
    """A worker is stuck when its model runs for longer than twice as long as an answer may take."""
    busy = [20.0]
    watch = Watch(lambda: busy[0], ServeLimits(answer=10))
    assert watch.look() is None
    busy[0] = 21.0
    assert watch.look() == "the model has been running for 21 s"


# Where connections wait ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "answer"),
    [
        ([b"GET /readyz HTTP/1.1\r\n\r\n"], b"HTTP/1.1 503 "),
        ([b"GET /readyz?x=1 HTTP/1.1\r\n\r\n"], b"HTTP/1.1 503 "),
        ([b"HE", b"AD /ready", b"z HTTP/1.1\r\n\r\n"], b"HTTP/1.1 503 "),
        ([b"GET /healthz?", b"x=1 HTTP/1.1\r\n\r\n"], b"HTTP/1.1 200 "),
        ([b"GET /readyzz HTTP/1.1\r\n\r\n"], b""),
        ([b"GET /", b"schema HTTP/1.1\r\n\r\n"], b""),
        ([b"POST /readyz HTTP/1.1\r\n\r\n"], b""),
    ],
)
def test_who_asks_whether_a_worker_is_ready_is_told(pieces: list[bytes], answer: bytes) -> None:
    """The question is understood with a query, and in pieces; all else waits for a worker."""
    with selectors.DefaultSelector() as selector, socket.socket() as listener:
        door = Doorway(selector, listener, ServeLimits())
        near, far = socket.socketpair()
        with far:
            door.keep(near)
            for piece in pieces:
                far.send(piece)
                for key, _ in selector.select(0):
                    door.look(near)
                    assert key.fileobj is near
                door.look_again()
            assert door.waiting == (0 if answer else 1)
            assert selector.select(0) == []
            if answer:
                assert far.recv(100).startswith(answer)
            door.drop_all()
            assert door.waiting == 0


# Folders ------------------------------------------------------------------------------------------------------


def test_folders_that_were_only_begun_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was begun long ago by a program that was killed goes, with its lock or without; what is new stays."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("bare", "locked", "young", "filled"):
        (tmp_path / f"replayml-new-{name}").mkdir()
    (tmp_path / "replayml-new-locked" / "lock").touch()
    (tmp_path / "replayml-new-filled" / "mine").touch()
    for name in ("bare", "locked", "filled"):
        os.utime(tmp_path / f"replayml-new-{name}", (0, 0))
    sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["replayml-new-filled", "replayml-new-young"]


def test_where_nobody_may_look_nothing_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temporary folder that cannot be listed is no reason not to start."""
    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = ServiceFolder()
    assert folder.path.is_dir()
    monkeypatch.undo()
    folder.close()


def refused(path: str) -> None:
    """Do what the system does where a folder may not be listed."""
    raise PermissionError(13, "Permission denied", path)
