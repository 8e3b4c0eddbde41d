"""Services on a real Ray cluster, which the tests start on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from replayml.serving.errors import ServingError, UnavailableError
from replayml.serving.on_ray.ray import RayBackend
from replayml.serving.server import ServerModule
from replayml.serving.service import running_of
from tests.serving import oddities, services
from tests.serving import running as waiting
from tests.serving.clustered import Clustered, renumber
from tests.serving.http import Line, ask, request
from tests.serving.running import running
from tests.serving.versions import DIES, RAISES, comers

if find_spec("ray") is None and os.environ.get("REPLAYML_REQUIRE_ALL") != "1":
    pytest.skip("Ray is not installed: pip install 'replayml[ray]'", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]  # one cluster at a time

LONG = pytest.mark.skipif("REPLAYML_LONG_TESTS" not in os.environ, reason="takes minutes: set REPLAYML_LONG_TESTS=1")
"""For what starts a further cluster."""

LIMITS = {"start": 300, "send": 300, "answer": 300, "drain": 300}
"""A loaded machine takes its time to start a cluster."""

until = partial(waiting.until, seconds=300)
"""It takes its time to replace a replica, too."""

TOKEN = "a-token-of-the-tests"  # noqa: S105 - which guards nothing


class Cluster(NamedTuple):
    """A service with two replicas, the gate by which its requests pass, and the processes that ran before."""

    service: ServerModule
    model: Clustered
    gate: Path
    url: str
    others: set[int]

    def ask(self, values: torch.Tensor) -> Any:
        """Send a request as JSON."""
        body = json.dumps({"args": [values.tolist()]}).encode()
        return ask(self.url, body=body, authorization=f"Bearer {TOKEN}")

    def shut(self) -> list[int]:
        """Hold what the replicas run from now on, and return their processes."""
        for path in self.gate.iterdir():
            path.unlink()
        pids = self.service.pids
        for pid in pids:
            (self.gate / f"shut-{pid}").touch()
        return pids

    def begin(self, line: Line) -> int:
        """Send a request that waits at the gate, and return the process that runs it."""
        self.shut()
        body = json.dumps({"args": [[[1, 2, 3, 4]]]}).encode()
        line.send(request(line.host, body=body, authorization=f"Bearer {TOKEN}"))
        return self.came()

    def came(self) -> int:
        """Wait for a process that waits at the gate; let the others pass."""
        (pid,) = until(lambda: comers(self.gate, self.model.number))
        for path in self.gate.glob("shut-*"):
            if path.name != f"shut-{pid}":
                path.unlink()
        return int(pid)

    def await_another(self, pid: int) -> None:
        """Wait until there are two replicas again, without one that was killed."""

        def there_are_two() -> bool:
            pids = self.service.pids
            return len(pids) == 2 and pid not in pids

        until(there_are_two)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A service that the tests share; the last one stops it."""
    gate, token = tmp_path_factory.mktemp("gate"), tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN)
    model = Clustered(str(gate)).build(seed=0)
    renumber(model, 1)
    service = ServerModule(
        model,
        example=torch.zeros(1, 4),
        batch=8,
        replicas=2,
        backend="ray",
        token_file=str(token),
        limits=LIMITS,
        timeout=300,
    )
    others = descendants()
    with running(service):
        yield Cluster(service, model, gate, service.url, others)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that waits for its parent to look at it has ended."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def descendants() -> set[int]:
    """Return all processes that this one has started, and those have started."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


# Results ------------------------------------------------------------------------------------------------------


def test_results_are_those_of_the_model(cluster: Cluster) -> None:
    """Both replicas give what the model gives for the same batch, to the last bit; in JSON to the digits of float32."""
    service, model = cluster.service, cluster.model
    pids = service.pids
    assert (len(pids), service.version) == (2, 1)
    for path in cluster.gate.iterdir():
        path.unlink()
    x = torch.randn(5, 4)

    def both_have_answered() -> bool:
        assert torch.equal(service(x), model(x))
        return set(pids) <= set(comers(cluster.gate, 1))

    until(both_have_answered)
    assert torch.equal(service(x=x), model(x))
    reply = cluster.ask(x)
    assert (reply.status, reply.headers["x-model-version"]) == (200, "1")
    assert torch.equal(torch.tensor(reply.json["result"]), model(x))


def test_requests_at_once_get_their_own_rows(cluster: Cluster) -> None:
    """Each of many requests at once gets its own result, within the noise of float sums."""
    inputs = [torch.randn(1 + index % 3, 4) for index in range(64)]
    with ThreadPoolExecutor(16) as pool:
        for x, y in zip(inputs, pool.map(cluster.service, inputs), strict=True):
            torch.testing.assert_close(y, cluster.model(x), rtol=0, atol=1e-6)


def test_a_request_is_checked_as_everywhere(cluster: Cluster) -> None:
    """Limits, token, host and inputs are those of every service; a stranger does not learn what the module raised."""
    key: dict[str, Any] = {"authorization": f"Bearer {TOKEN}"}
    good = b'{"args": [[[1, 2, 3, 4]]]}'
    assert ask(cluster.url, body=good).code == "missing-token"
    with Line(cluster.url) as line:
        line.send(request("evil.example", body=good, authorization=f"Bearer {TOKEN}"))
        assert line.reply().code == "foreign-host"
    assert ask(cluster.url, "/else", **key).code == "unknown-route"
    assert ask(cluster.url, body=b'{"args": [[[NaN, 2, 3, 4]]]}', **key).code == "malformed-json"
    assert ask(cluster.url, body=b'{"args": [[[1, 2]]]}', **key).code == "wrong-shape"
    reply = cluster.ask(torch.full((1, 4), -2000.0))
    assert (reply.status, reply.code) == (500, "raised")
    assert "low" not in reply.body.decode()
    with pytest.raises(ValueError, match="a row is too low"):
        cluster.service(torch.full((1, 4), -2000.0))
    assert ask(cluster.url, body=good, **key).status == 200
    assert ask(cluster.url, "/readyz").status == 200


def test_the_schema_is_that_of_a_service_on_this_machine(cluster: Cluster) -> None:
    """What runs elsewhere is described as what runs here."""
    key: dict[str, Any] = {"authorization": f"Bearer {TOKEN}"}
    local = ServerModule(
        cluster.model, example=torch.zeros(1, 4), batch=8, token_file=cluster.service._token_file, limits=LIMITS
    )
    with running(local):
        assert ask(cluster.url, "/schema", **key).json == ask(local.url, "/schema", **key).json


def test_a_killed_replica_is_replaced(cluster: Cluster) -> None:
    """Who waited for a killed replica is told so; the other one answers meanwhile, and there are two again."""
    service = cluster.service
    with Line(cluster.url, timeout=300) as busy:
        pid = cluster.begin(busy)
        os.kill(pid, signal.SIGKILL)
        reply = busy.reply()
        assert (reply.status, reply.code) == (503, "worker-lost")
    x = torch.randn(3, 4)
    for _ in range(20):
        assert torch.equal(service(x), cluster.model(x))
    cluster.await_another(pid)
    service.wait()
    assert ask(cluster.url, "/readyz").status == 200


def test_the_handle_tells_of_a_killed_replica(cluster: Cluster) -> None:
    """A call on a killed replica raises, and is not repeated."""
    service = cluster.service
    with ThreadPoolExecutor(1) as pool:
        cluster.shut()
        call = pool.submit(service, torch.zeros(1, 4))
        pid = cluster.came()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(UnavailableError, match=r"\[worker-lost\] .* it may have run"):
            call.result()
    cluster.await_another(pid)


# New weights --------------------------------------------------------------------------------------------------


def test_new_weights_go_to_the_replicas_in_place(cluster: Cluster) -> None:
    """An update under load changes the weights of running replicas; every answer is of the version that it tells."""
    service, model = cluster.service, cluster.model
    pids, version = service.pids, service.version
    answers: Counter[Any] = Counter()
    is_over = threading.Event()

    def ask_on() -> None:
        body = b'{"args": [[[0, 0, 0, 0]]]}'
        with Line(cluster.url, timeout=300) as line:
            while not is_over.is_set():
                reply = line.ask(body=body, authorization=f"Bearer {TOKEN}")
                made_by = int(reply.headers["x-model-version"]) if reply.status == 200 else reply.code
                answers[made_by, reply.status == 200 and round(reply.json["result"][0][0])] += 1

    with ThreadPoolExecutor(4) as pool, Line(cluster.url, timeout=300) as half:
        clients = [pool.submit(ask_on) for _ in range(4)]
        head = {"expect": "100-continue", "content_length": "26", "authorization": f"Bearer {TOKEN}"}
        half.send(request(half.host, body=b"", **head))
        assert half.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        until(lambda: answers[version, version])
        renumber(model, version + 1)
        service.update()
        assert service.version == version + 1
        assert cluster.ask(torch.zeros(1, 4)).headers["x-model-version"] == str(version + 1)
        half.send(b'{"args": [[[0, 0, 0, 0]]]}')  # which the old version has begun to read
        reply = half.reply()
        assert (reply.status, reply.headers["x-model-version"]) == (200, str(version)), reply
        until(lambda: answers[version + 1, version + 1])
        is_over.set()
        for client in clients:
            client.result()
    assert set(answers) == {(version, version), (version + 1, version + 1)}, answers
    assert service.pids == pids
    x = torch.randn(5, 4)
    assert torch.equal(service(x), model(x))


@pytest.mark.parametrize(
    ("number", "message"),
    [(RAISES, "ValueError: the weights are bad"), (DIES, "Its process ended before it was ready")],
)
def test_a_version_that_does_not_pass_is_not_switched_to(cluster: Cluster, number: int, message: str) -> None:
    """A version that raises on the example, or ends its process, harms no replica; the old one answers as before."""
    service, model = cluster.service, cluster.model
    pids, version, x = service.pids, service.version, torch.randn(2, 4)
    expected = model(x)
    renumber(model, number)
    with pytest.raises(ServingError, match=f"version {version} answers as before. {message}") as raised:
        service.update()
    renumber(model, version)
    assert raised.value.code == "update-failed"
    assert (service.version, service.pids) == (version, pids)
    assert torch.equal(service(x), expected)


# The end ------------------------------------------------------------------------------------------------------


def test_stopping_lets_requests_finish_and_leaves_nothing(cluster: Cluster) -> None:
    """``stop()`` answers what runs; then there is no process of Ray, no file and no port left."""
    service = cluster.service
    started = descendants() - cluster.others
    assert started.issuperset(service.pids)
    backend = running_of(service).backend
    assert isinstance(backend, RayBackend)
    assert backend._conductor is not None
    folder = backend._conductor._folder
    assert folder.exists()
    with Line(cluster.url, timeout=300) as busy, ThreadPoolExecutor(1) as pool:
        pid = cluster.begin(busy)
        stopping = pool.submit(service.stop)
        until(lambda: not service._is_deployed)
        assert not stopping.done()
        (cluster.gate / f"shut-{pid}").unlink()
        assert busy.reply().status == 200
        stopping.result()
    assert not [number for number in started if is_alive(number)]
    assert not folder.exists()
    with pytest.raises(ConnectionError):
        Line(cluster.url)
    with pytest.raises(UnavailableError, match="not-started"):
        service(torch.zeros(1, 4))


def test_a_start_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that cannot be opened is told, and Ray ends with it."""
    before = descendants()
    folder = Path(tempfile.mkdtemp())  # with a short name, as Ray needs it
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    model = Clustered("").build(seed=0)
    renumber(model, RAISES)
    service = ServerModule(model, example=torch.zeros(1, 4), backend="ray", limits=LIMITS)
    with pytest.raises(ServingError, match=r"\[start-failed\] Clustered could not be served. ValueError: the weights"):
        service.start()
    assert descendants() <= before
    folder.rmdir()


def test_a_replica_answers_whatever_the_module_does() -> None:
    """What a module raises or returns that is hard to write is answered by its code, as by a worker of this machine."""
    command = [sys.executable, "-m", "tests.serving.replicating"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    expected = {f"fail {name}": "raised" for name in oddities.ERRORS}
    expected |= {f"result {name}": "" if name == "negative" else "no-form" for name in oddities.RESULTS}
    assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_a_port_that_is_taken_is_refused() -> None:
    """A port is never shared, and nothing is started for one that is taken."""
    before = descendants()
    with socket.create_server(("127.0.0.1", 0)) as other:
        service = ServerModule(abs, backend="ray", port=other.getsockname()[1])
        with pytest.raises(OSError, match="cannot be bound: Address already in use"):
            service.start()
    assert descendants() <= before


# Alone --------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, torch
from replayml.serving.server import ServerModule
from tests.serving import services

if __name__ == "__main__":
    service = ServerModule(services.mark_and_sleep, backend="ray", limits={"start": 300}, timeout=300).start()
    print(service.url, "ray" in sys.modules, *service.pids, flush=True)
    service(sys.argv[1], 600)
"""


@LONG
def test_no_process_of_ray_outlives_the_program(tmp_path: Path) -> None:
    """When the program is killed, Ray ends with it, also in the middle of a request; the program never imported it."""
    folder = Path(tempfile.mkdtemp())  # with a short name, as Ray needs it
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "mark")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    ) as process:
        assert process.stdout is not None
        url, has_ray, pid = process.stdout.readline().split()
        assert has_ray == "False"
        until((tmp_path / "mark").exists)
        started = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
        assert int(pid) in started
        process.kill()
        process.wait()
        until(lambda: not [number for number in started if is_alive(number)])
    until(lambda: not list(folder.glob("replayml-ray-*")))
    shutil.rmtree(folder)
    with pytest.raises(ConnectionError):
        ask(url, "/healthz")


OWN_RAY = """
import os, ray, torch
from replayml.serving.errors import ServingError
from replayml.serving.server import ServerModule
from tests.serving import services, streams
from tests.serving.running import until

if __name__ == "__main__":
    ray.init(address="local", num_cpus=3, include_dashboard=False, object_store_memory=2**27, log_to_driver=False)
    nodes = len(ray.nodes())
    service = ServerModule(services.process, backend="ray", replicas=2, limits={"start": 300}, timeout=300)
    with_ray = ray.get_runtime_context().gcs_address
    for _ in range(2):
        service.start()
        pids = service.pids
        assert len(pids) == 2 and service() in pids
        service.stop()
    stream = ServerModule(streams.counted, backend="ray", limits={"start": 300}, timeout=300).start()
    try:
        stream(3)
    except ServingError as error:
        assert error.code == "no-form", error
    else:
        raise AssertionError("a stream was sent")
    stream.stop()
    assert ray.is_initialized() and ray.get_runtime_context().gcs_address == with_ray
    assert ray.get(ray.remote(services.process).remote()) != os.getpid()
    until(lambda: ray.util.list_named_actors(all_namespaces=True) == [])
    print("left running", flush=True)
    ray.shutdown()
"""


@LONG
def test_ray_that_runs_already_is_used_and_left_running() -> None:
    """A program with a cluster of its own deploys to that, and has it as it was when its services have stopped."""
    process = subprocess.run([sys.executable, "-c", OWN_RAY], capture_output=True, text=True, timeout=540, check=False)
    assert process.stdout == "left running\n", process.stderr


@LONG
def test_replicas_follow_the_requests(tmp_path: Path) -> None:
    """With ``autoscaling`` there are as many replicas as the requests take."""
    scaling = {"max_replicas": 2, "target_ongoing_requests": 1, "upscale_delay_s": 0}
    service = ServerModule(services.mark_and_sleep, backend="ray", autoscaling=scaling, limits=LIMITS, timeout=300)
    with running(service), ThreadPoolExecutor(4) as pool:
        assert len(service.pids) == 1
        calls = [pool.submit(service, str(tmp_path / str(number)), 30) for number in range(4)]
        until(lambda: len(service.pids) == 2)
        assert {call.result() for call in calls} <= set(service.pids)


@LONG
def test_a_file_is_served_by_the_command_line(tmp_path: Path) -> None:
    """``replayml serve FILE --backend ray`` serves until it is told to stop, and leaves nothing."""
    model = Clustered("").build(seed=0)
    model.save(tmp_path / "model.replayml")
    command = [sys.executable, "-m", "replayml.cli.main", "serve", str(tmp_path / "model.replayml")]
    options = ["--backend", "ray", "--port", "0", "--input", "float32[*,4]", "--import", "tests.serving.clustered"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(line for line in process.stderr if "serving" in line).split()[-1]
        x = torch.randn(2, 4)
        reply = ask(url, body=json.dumps({"args": [x.tolist()]}).encode())
        assert torch.equal(torch.tensor(reply.json["result"]), model(x))
        started = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=240) == 0
    assert not [number for number in started if is_alive(number)]
