"""Workers that are killed, told to stop, or left alone: real processes and signals."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import replayml
from replayml.serving.errors import UnavailableError
from replayml.serving.server import ServerModule
from tests.serving import services
from tests.serving.http import Line, Reply, ask, request
from tests.serving.running import running, until

LONG = pytest.mark.skipif("REPLAYML_LONG_TESTS" not in os.environ, reason="takes minutes: set REPLAYML_LONG_TESTS=1")
"""For what repeats another test so often that it takes minutes."""


def begun(line: Line, path: Path, seconds: float) -> None:
    """Send a request that takes some time, and wait until it runs."""
    path.unlink(missing_ok=True)
    line.send(request(line.host, body=json.dumps({"args": [str(path), seconds]}).encode()))
    until(path.exists)


# Killed -------------------------------------------------------------------------------------------------------


def test_a_request_on_a_killed_worker_is_told_so(tmp_path: Path) -> None:
    """Who waited for a killed worker gets a 503 that says so; an idle connection goes on with the next worker."""
    with (
        running(ServerModule(services.mark_and_sleep)) as service,
        Line(service.url) as busy,
        Line(service.url) as idle,
    ):
        assert idle.ask("/readyz").status == 200
        (pid,) = service.pids
        begun(busy, tmp_path / "mark", 60)
        os.kill(pid, signal.SIGKILL)
        reply = busy.reply()
        assert (reply.status, reply.code) == (503, "worker-lost")
        assert busy.is_closed()
        reply = ask(service.url, "/readyz")
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "not-ready", "1")
        assert ask(service.url, "/healthz").status == 200
        reply = idle.ask(body=json.dumps({"args": [str(tmp_path / "again"), 0]}).encode())
        assert (reply.status, reply.json["result"] != pid) == (200, True)
        assert ask(service.url, "/readyz").status == 200


def test_the_handle_tells_of_a_killed_worker(tmp_path: Path) -> None:
    """A call on a killed worker raises, and is not repeated; the next one waits for the new worker."""
    with running(ServerModule(services.mark_and_sleep)) as service, ThreadPoolExecutor(1) as pool:
        call = pool.submit(service, str(tmp_path / "mark"), 60)
        until((tmp_path / "mark").exists)
        os.kill(service.pids[0], signal.SIGKILL)
        with pytest.raises(UnavailableError, match=r"\[worker-lost\] .* it may have run"):
            call.result()
        assert service(str(tmp_path / "again"), 0) == service.pids[0]


@pytest.mark.slow
def test_a_worker_that_crashes_is_replaced() -> None:
    """A module that ends its process takes its own request with it, and no other."""
    with running(ServerModule(services.die)) as service:
        with pytest.raises(UnavailableError, match="worker-lost"):
            service()
        service.wait()
        assert ask(service.url, "/readyz").status == 200


def killed_under_load(kills: int) -> tuple[Counter[str], int]:
    """Kill workers while eight connections ask, and return what these were answered."""
    model = replayml.MultiLayerPerceptron(4, [8], 2).build(seed=0)
    body = json.dumps({"args": [[[1, 2, 3, 4]]]}).encode()
    expected = model(torch.tensor([[1.0, 2, 3, 4]])).tolist()
    answers: Counter[str] = Counter()
    is_over = threading.Event()

    def ask_on(url: str) -> None:
        line = Line(url, timeout=300)
        while not is_over.is_set():
            try:
                reply: Reply = line.ask(body=body)
            except ConnectionError as error:
                answers[f"dropped: {error}"] += 1
                line.socket.close()
                line = Line(url, timeout=300)
                continue
            if reply.status == 200:
                answers["ok" if abs(reply.json["result"][0][0] - expected[0][0]) < 1e-6 else "wrong"] += 1
            else:
                answers[reply.code] += 1
                line.socket.close()
                line = Line(url, timeout=300)
        line.socket.close()

    service = ServerModule(model, example=torch.zeros(1, 4), batch=True, replicas=2)
    with running(service), ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(ask_on, service.url) for _ in range(8)]
        for number in range(kills):
            pids = until(lambda: service.pids)
            os.kill(pids[number % len(pids)], signal.SIGKILL)
            if number % 2:
                service.wait()
            before = answers["ok"]
            until(lambda before=before: answers["ok"] > before + 20)  # type: ignore[misc]
        is_over.set()
        for call in calls:
            call.result()
    return answers, kills


def check_no_loss(answers: Counter[str], kills: int) -> None:
    """Nothing was lost but what ran on killed workers, of which each connection had one at most."""
    assert set(answers) <= {"ok", "worker-lost"}, answers
    assert answers["worker-lost"] <= 8 * kills


def test_killed_workers_lose_only_what_they_were_doing() -> None:
    """Under load, every request is answered: rightly, or with a 503 because its worker was killed."""
    check_no_loss(*killed_under_load(3))


@LONG
def test_fifty_killed_workers_lose_only_what_they_were_doing() -> None:
    """The same, fifty times."""
    check_no_loss(*killed_under_load(50))


# Stopped ------------------------------------------------------------------------------------------------------


def test_stopping_lets_requests_finish(tmp_path: Path) -> None:
    """``stop()`` answers what runs, and takes nothing new."""
    service = ServerModule(services.mark_and_sleep).start()
    url = service.url
    with Line(url) as busy, Line(url) as idle, ThreadPoolExecutor(1) as pool:
        assert idle.ask("/readyz").status == 200
        begun(busy, tmp_path / "mark", 1.5)
        stopping = pool.submit(service.stop)
        assert busy.reply().status == 200
        assert busy.is_closed()
        assert idle.is_closed()
        stopping.result()
    with pytest.raises(ConnectionError):
        Line(url)


def test_a_worker_that_is_told_to_end_drains(tmp_path: Path) -> None:
    """On SIGTERM a worker fails its readiness probe, answers what runs, and is replaced."""
    with running(ServerModule(services.mark_and_sleep)) as service:
        (pid,) = service.pids
        with Line(service.url) as busy, Line(service.url) as probing:
            assert probing.ask("/readyz").status == 200
            begun(busy, tmp_path / "mark", 1.5)
            os.kill(pid, signal.SIGTERM)
            reply = until(lambda: (found := probing.ask("/readyz")).status == 503 and found)
            assert reply.code in {"draining", "not-ready"}  # the second where the worker has returned the connection
            assert reply.headers["connection"] == "close"
            assert busy.reply().json == {"result": pid}
        until(lambda: service.pids and service.pids != [pid])
        service.wait()
        assert service(str(tmp_path / "again"), 0) != pid


def test_sigterm_under_load_drops_nobody() -> None:
    """Workers that are told to end, one after the other, drop no request of any connection."""
    model = replayml.MultiLayerPerceptron(4, [8], 2).build(seed=0)
    body = json.dumps({"args": [[[1, 2, 3, 4]]]}).encode()
    is_over = threading.Event()

    def ask_on(url: str) -> Counter[Any]:
        answers: Counter[Any] = Counter()
        line = Line(url, timeout=300)
        while not is_over.is_set():
            reply = line.ask(body=body)
            answers[reply.status] += 1
            if reply.headers.get("connection") == "close":
                line.socket.close()
                line = Line(url, timeout=300)
        line.socket.close()
        return answers

    service = ServerModule(model, example=torch.zeros(1, 4), batch=True, replicas=2)
    with running(service), ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(ask_on, service.url) for _ in range(8)]
        for _ in range(2):
            pid = service.pids[0]
            os.kill(pid, signal.SIGTERM)
            until(lambda pid=pid: pid not in service.pids)  # type: ignore[misc]
            service.wait()
        is_over.set()
        total: Counter[Any] = sum((call.result() for call in calls), Counter())
    assert set(total) == {200}, total


# Alone --------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from replayml.serving.server import ServerModule
from tests.serving import services

if __name__ == "__main__":
    service = ServerModule(services.mark_and_sleep).start()
    print(service.url, *service.pids, flush=True)
    if sys.argv[1] == "end":
        sys.exit()
    service(MARK, 60)
"""


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGINT))],
)
def test_no_worker_outlives_the_program(tmp_path: Path, number: signal.Signals) -> None:
    """When the program is killed, in whatever way, its workers end, also in the middle of a request."""
    mark = tmp_path / "mark"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("MARK", repr(str(mark))), "stay"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        assert process.stdout is not None
        url, pid = process.stdout.readline().split()
        until(mark.exists)
        process.send_signal(number)
        process.wait(timeout=60)
        until(lambda: not psutil.pid_exists(int(pid)))
    with pytest.raises(ConnectionError):
        ask(url, "/healthz")


def test_a_program_that_ends_stops_its_services(tmp_path: Path) -> None:
    """A program that forgets to stop a service ends in time, and leaves nothing."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, "end"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    url, pid = process.stdout.split()
    assert not psutil.pid_exists(int(pid))
    assert list(folder.iterdir()) == []
    with pytest.raises(ConnectionError):
        ask(url, "/healthz")


def cycle(count: int) -> None:
    """Start and stop a service again and again, in a program of its own, and compare what is held."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.serving.cycling", str(count)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_starting_and_stopping_leaks_nothing() -> None:
    """A service that is started and stopped leaves no process, port, thread or file."""
    cycle(2)


@LONG
@pytest.mark.parametrize("count", [20, 100])
def test_starting_and_stopping_often_leaks_nothing(count: int) -> None:
    """The same, many times."""
    cycle(count)


def test_a_service_that_nobody_holds_is_stopped() -> None:
    """A service whose handle is gone is stopped."""
    folder, pattern = Path(tempfile.gettempdir()), f"replayml-serving-{os.getpid()}-*"
    others = set(folder.glob(pattern))
    service = ServerModule(services.echo).start()
    pid, url = service.pids[0], service.url
    mine = set(folder.glob(pattern)) - others
    assert mine
    del service
    gc.collect()
    until(lambda: not psutil.pid_exists(pid))
    until(lambda: not any(path.exists() for path in mine))
    with pytest.raises(ConnectionError):
        ask(url, "/healthz")


def test_a_connection_that_is_closed_is_forgotten(echo: ServerModule) -> None:
    """The supervisor holds no connection that is over."""
    me = psutil.Process()
    before = me.num_fds()
    for _ in range(20):
        with Line(echo.url) as line:
            assert line.ask("/readyz").status == 200
            line.socket.shutdown(socket.SHUT_RDWR)
    until(lambda: me.num_fds() <= before)
