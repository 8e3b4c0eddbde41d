"""New weights without downtime: real processes, and raw clients that never send a request again."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch

from replayml.core.errors import ConfigurationError, LifecycleError
from replayml.lifecycle.action import ActionModule
from replayml.serving.errors import ServingError
from replayml.serving.server import ServerModule
from replayml.serving.service import running_of
from replayml.serving.supervising.supervisor import Supervisor
from tests.serving import services, versions
from tests.serving.http import Line, Reply, ask, request
from tests.serving.running import running, until
from tests.serving.versions import DIES, HANGS, NOT_A_NUMBER, RAISES, Numbered, comers, teach

LONG = pytest.mark.skipif("REPLAYML_LONG_TESTS" not in os.environ, reason="takes minutes: set REPLAYML_LONG_TESTS=1")
"""For what repeats another test so often that it takes minutes."""

PATIENT = {"send": 600, "answer": 600, "idle": 600, "drain": 600, "start": 600}
"""Limits under which a slow machine is no fault."""

BODY = b'{"args": [[[1.0]]]}'
"""A request, which is answered with the number of the model, and nothing else."""


class Gated(NamedTuple):
    """A service whose number is its version, and the gate by which its requests pass."""

    service: ServerModule
    model: Numbered
    gate: Path
    url: str

    def hold(self, what: int) -> Path:
        """Shut the gate for a process or a number, of which nobody has come by yet."""
        for mark in self.gate.glob(f"{what}-*"):
            mark.unlink()
        path = self.gate / f"shut-{what}"
        path.touch()
        return path

    def begin(self, line: Line, pid: int) -> None:
        """Send a request that waits at the gate, and wait until it is there."""
        mark = self.gate / f"{self.service.version}-{pid}"
        mark.unlink()
        line.send(request(line.host, body=BODY))
        until(mark.exists)


@contextmanager
def numbered(gate: Path, **options: Any) -> Iterator[Gated]:
    """A service of a model whose number is 1."""
    model = Numbered(str(gate)).build(seed=0)
    teach(model, 1)
    limits = {**PATIENT, **options.pop("limits", {})}
    service = ServerModule(model, example=torch.ones(1, 1), limits=limits, timeout=600, **options)
    with running(service):
        yield Gated(service, model, gate, service.url)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    """A service that the tests update, one after the other."""
    with numbered(tmp_path_factory.mktemp("gate")) as found:
        yield found


def patient(url: str) -> Line:
    """A connection whose client waits."""
    return Line(url, timeout=300)


def made_by(reply: Reply) -> int:
    """Return which version made an answer, which has to be the one that its label tells."""
    assert reply.status == 200, reply
    version = int(reply.headers["x-model-version"])
    assert reply.json == {"result": [[float(version)]]}
    return version


def folders() -> list[str]:
    """Return the folders of all versions of all services of this program."""
    found = Path(tempfile.gettempdir()).glob(f"replayml-serving-{os.getpid()}-*/version-*")
    return sorted(str(path) for path in found)


def check_nothing_is_left(gated: Gated, before: list[str]) -> None:
    """A service that was stopped has left no process, port or file."""
    pids = [pid for number in range(10) for pid in comers(gated.gate, number)]
    assert pids
    assert not any(map(psutil.pid_exists, pids))
    assert folders() == before
    with pytest.raises(ConnectionError):
        Line(gated.url)


# The new version ----------------------------------------------------------------------------------------------


def test_update_trains_and_puts_the_new_version_in_its_place(gated: Gated) -> None:
    """`update` trains, and every connection that is open goes on with the new version, as if nothing had happened."""
    service = gated.service
    version, old, before = service.version, service.pids, folders()
    with patient(service.url) as idle, patient(service.url) as silent:
        assert made_by(idle.ask(body=BODY)) == version
        assert service.update() is service
        assert (service.version, gated.model.number) == (version + 1, version + 1)
        assert made_by(idle.ask(body=BODY)) == version + 1
        assert made_by(silent.ask(body=BODY)) == version + 1
        assert idle.ask("/readyz").json == {"ready": True, "version": version + 1}
        assert idle.ask("/schema").json["info"]["version"] == str(version + 1)
    assert float(service(torch.ones(1, 1))) == version + 1
    until(lambda: not any(map(psutil.pid_exists, old)))
    until(lambda: len(folders()) == len(before))
    assert folders() != before
    assert set(service.pids).isdisjoint(old)


def test_start_leaves_a_running_version_alone(gated: Gated) -> None:
    """`start` of a service that runs does nothing."""
    pids = gated.service.pids
    assert gated.service.start().pids == pids


def test_what_is_under_way_ends_on_the_old_version(gated: Gated) -> None:
    """A request that runs, or was begun, ends where it began; what is sent after `update` has returned does not."""
    service = gated.service
    version, (pid,) = service.version, service.pids
    head = {"expect": "100-continue", "content_length": str(len(BODY))}
    with patient(service.url) as busy, patient(service.url) as half:
        shut = gated.hold(pid)
        gated.begin(busy, pid)
        half.send(request(half.host, body=b"", **head))
        assert half.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        service.update()
        busy.send(request(busy.host, body=BODY))
        half.send(BODY)
        assert ask(service.url, body=BODY).headers["x-model-version"] == str(version + 1)
        assert psutil.pid_exists(pid)
        shut.unlink()
        assert [made_by(busy.reply()), made_by(busy.reply())] == [version, version + 1]
        assert [made_by(half.reply()), made_by(half.ask(body=BODY))] == [version, version + 1]
    until(lambda: not psutil.pid_exists(pid))


def test_a_stream_ends_on_the_old_version(tmp_path: Path) -> None:
    """A stream that has begun comes to its end while the new version answers already."""
    (tmp_path / "shut-0").touch()
    with running(ServerModule(versions.count_to, limits=PATIENT, timeout=600)) as service:
        (pid,) = service.pids
        stream = service(3, str(tmp_path))
        assert next(stream) == 0
        assert service.update().version == 2
        assert ask(service.url, "/readyz").json["version"] == 2
        (tmp_path / "shut-0").unlink()
        assert list(stream) == [1, 2]
        assert comers(tmp_path, 2) == [pid]
        until(lambda: not psutil.pid_exists(pid))


def test_an_old_worker_that_hangs_is_ended(tmp_path: Path) -> None:
    """`update` does not wait for ever for an old worker; who is connected to it, or was about to be, is answered."""
    with numbered(tmp_path, limits={"drain": 1}) as gated, patient(gated.url) as idle:
        assert made_by(idle.ask(body=BODY)) == 1
        assert ask(gated.url, "/readyz").status == 200  # so that the worker is done with the answer before
        (pid,) = gated.service.pids
        os.kill(pid, signal.SIGSTOP)
        with patient(gated.url) as new:
            new.send(request(new.host, body=BODY))
            gated.service.update()
            assert made_by(new.reply()) == 2
        assert not psutil.pid_exists(pid)
        assert made_by(idle.ask(body=BODY)) == 2


def test_a_tree_with_a_service_is_updated(tmp_path: Path) -> None:
    """`update` of what holds a service trains all, and then updates the service."""
    model = Numbered(str(tmp_path)).build(seed=0)
    teach(model, 0)
    service = ServerModule(model, example=torch.ones(1, 1))
    tree = ActionModule(service)
    try:
        assert service.version == 0
        tree.update()
        assert (service.version, made_by(ask(service.url, body=BODY))) == (1, 1)
        tree.update()
        assert (service.version, made_by(ask(service.url, body=BODY))) == (2, 2)
    finally:
        tree.stop()
    assert service.version == 0


# A version that does not pass ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("interrupts")
def test_an_update_can_be_interrupted(gated: Gated) -> None:
    """An interrupt while a new version is tried out ends that version, and nothing else."""
    service = gated.service
    number, before = service.version + 1, folders()

    def interrupt() -> None:
        until(lambda: comers(gated.gate, number))
        os.kill(os.getpid(), signal.SIGINT)

    with failing(gated), ThreadPoolExecutor(1) as pool:
        shut = gated.hold(number)
        call = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            service.update()
        call.result()
        until(lambda: folders() == before)
        assert not any(map(psutil.pid_exists, comers(gated.gate, number)))
        shut.unlink()


@contextmanager
def failing(gated: Gated) -> Iterator[None]:
    """Within the block an update fails; the old version has noticed nothing, and a later update works."""
    service, model = gated.service, gated.model
    version, pids, before = service.version, service.pids, folders()
    with patient(service.url) as idle:
        yield
        assert (service.version, service.pids, folders()) == (version, pids, before)
        assert made_by(idle.ask(body=BODY)) == version
        assert running_of(service).backend is not None
        teach(model, version)


@pytest.mark.parametrize(
    ("number", "message"),
    [(RAISES, "version {} answers as before. ValueError: the weights are bad"), (DIES, "Its process ended with 9")],
)
def test_a_version_that_does_not_pass_is_not_switched_to(gated: Gated, number: int, message: str) -> None:
    """A version that raises on the example, or dies, never answers; `update` tells why."""
    with failing(gated):
        teach(gated.model, number - 1)
        with pytest.raises(ServingError, match=message.format(gated.service.version)) as raised:
            gated.service.update()
        assert raised.value.code == "update-failed"
        assert "while deploying model (ServerModule)" in raised.value.__notes__


class Lengthy(Numbered):
    """A model of which the second version has a long message."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.number == 2:
            raise ValueError("\u4e2d" * 3900)
        return super().forward(x)


def test_a_version_that_fails_at_length_is_not_switched_to() -> None:
    """However long the message is, and whatever its characters: `update` tells it, and the old version answers on."""
    model = Lengthy().build(seed=0)
    teach(model, 1)
    with running(ServerModule(model, example=torch.ones(1, 1), limits=PATIENT, timeout=600)) as service:
        pids = service.pids
        with pytest.raises(ServingError, match=r"version 1 answers as before\. ValueError: \u4e2d{1000}") as raised:
            service.update()
        assert raised.value.code == "update-failed"
        assert float(service(torch.ones(1, 1))) == 1
        assert (service.version, service.pids) == (1, pids)


def test_a_process_that_cannot_be_started_is_not_switched_to(gated: Gated) -> None:
    """Whatever is raised where a process is to be started ends the new version, and nothing else."""
    backend = running_of(gated.service).backend
    assert backend is not None

    def pack(folder: Path, spec: Any) -> Any:
        return replace(gated.service._packed(folder, spec), environment={"A": "\0"})

    with failing(gated), pytest.raises(ServingError, match="cannot be started: ValueError: embedded null byte"):
        backend.switch(pack)


def test_a_supervisor_that_cannot_go_on_tells_so(tmp_path: Path) -> None:
    """When its thread fails, everything ends at once, `update` raises, and `start` starts the service anew."""
    before = folders()
    with numbered(tmp_path) as gated, ThreadPoolExecutor(1) as pool, patient(gated.url) as idle:
        assert made_by(idle.ask(body=BODY)) == 1
        backend = running_of(gated.service).backend
        assert isinstance(backend, Supervisor)
        assert backend._crew is not None
        shut = gated.hold(2)
        update = pool.submit(gated.service.update)
        until(lambda: comers(tmp_path, 2))
        backend._crew.order(no_such_file)
        with pytest.raises(ServingError, match=r"\[stopped\] .* could not go on: FileNotFoundError: .*\x27/none\x27"):
            update.result()
        assert idle.is_closed()
        assert not any(psutil.pid_exists(pid) for number in (1, 2) for pid in comers(tmp_path, number))
        with pytest.raises(ConnectionError):
            Line(gated.url)
        shut.unlink()
        assert float(gated.service.start()(torch.ones(1, 1))) == gated.model.number
    assert folders() == before


def no_such_file() -> None:
    """Raise an exception that nobody expects."""
    raise FileNotFoundError(2, "No such file or directory", "/none")


def test_what_cannot_be_packed_is_not_switched_to(gated: Gated) -> None:
    """A failure before any process was started leaves nothing, too."""
    backend = running_of(gated.service).backend
    assert backend is not None

    def pack(folder: Path, spec: Any) -> Any:
        (folder / "half").touch()
        raise OSError(28, "No space left on device")

    with failing(gated), pytest.raises(OSError, match="No space left"):
        backend.switch(pack)


def test_a_version_that_is_killed_is_not_switched_to(gated: Gated) -> None:
    """A new worker that is killed before its version answers takes nothing with it; a second `update` is refused."""
    service = gated.service
    number = service.version + 1
    with failing(gated), ThreadPoolExecutor(1) as pool:
        shut = gated.hold(number)
        update = pool.submit(service.update)
        until(lambda: comers(gated.gate, number))
        with pytest.raises(LifecycleError, match=r"update\(\) of ServerModule has not started: .* which is running"):
            service.update()
        backend = running_of(service).backend
        assert backend is not None
        with pytest.raises(LifecycleError, match="another new version of this service is being tried out"):
            backend.switch(service._packed)
        (pid,) = comers(gated.gate, number)
        assert pid not in service.pids
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ServingError, match=r"\[update-failed\] .* Its process ended with -9 before it was ready"):
            update.result()
        shut.unlink()


def test_an_old_worker_that_is_killed_in_between_is_no_loss(gated: Gated) -> None:
    """Old workers that are killed, before the switch and after it, take with them what ran, and nothing else."""
    service = gated.service
    version, (pid,) = service.version, service.pids
    with (
        patient(service.url) as idle,
        patient(service.url) as busy,
        patient(service.url) as cut,
        ThreadPoolExecutor(1) as pool,
    ):
        assert made_by(idle.ask(body=BODY)) == version
        shut = gated.hold(version + 1)
        update = pool.submit(service.update)
        until(lambda: comers(gated.gate, version + 1))
        gated.hold(pid)
        gated.begin(cut, pid)
        os.kill(pid, signal.SIGKILL)
        assert cut.reply().code == "worker-lost"
        until(lambda: service.pids not in ([], [pid]))
        (second,) = service.pids
        assert made_by(idle.ask(body=BODY)) == version  # the old version goes on until the new one is there
        gated.hold(second)
        gated.begin(busy, second)
        shut.unlink()
        update.result()
        os.kill(second, signal.SIGKILL)
        assert busy.reply().code == "worker-lost"
        assert made_by(idle.ask(body=BODY)) == version + 1
    service.wait()
    assert len(service.pids) == 1
    assert made_by(ask(service.url, body=BODY)) == version + 1


def test_stopping_in_the_middle_of_an_update(tmp_path: Path) -> None:
    """A service that is stopped while a new version is tried out stops, and the update tells so."""
    before = folders()
    with numbered(tmp_path) as gated, ThreadPoolExecutor(1) as pool:
        backend = running_of(gated.service).backend
        assert backend is not None
        shut = gated.hold(2)
        teach(gated.model, 2)
        update = pool.submit(backend.switch, gated.service._packed)
        until(lambda: comers(tmp_path, 2))
        with patient(gated.service.url) as idle:
            assert made_by(idle.ask(body=BODY)) == 1
            backend.stop()
            with pytest.raises(ServingError, match=r"\[stopped\] The service was stopped"):
                update.result()
            assert idle.is_closed()
        with pytest.raises(ServingError, match="stopped"):
            backend.switch(gated.service._packed)
        assert not gated.service._is_deployed
        shut.unlink()
    check_nothing_is_left(gated, before)


@LONG
def test_a_version_that_is_late_is_not_switched_to(tmp_path: Path) -> None:
    """A version that is not ready in time never answers."""
    with numbered(tmp_path, limits={"start": 30}) as gated, failing(gated):
        teach(gated.model, HANGS - 1)
        with pytest.raises(ServingError, match=r"\[update-failed\] .* No worker was ready within 30 s"):
            gated.service.update()


@LONG
def test_a_number_that_is_none_is_no_failure(tmp_path: Path) -> None:
    """What a module answers is its own affair: one that is to refuse NaN raises on it."""
    with numbered(tmp_path) as gated:
        teach(gated.model, NOT_A_NUMBER - 1)
        assert gated.service.update().version == 2
        assert bool(gated.service(torch.ones(1, 1)).isnan())


# Under load ---------------------------------------------------------------------------------------------------


class Load:
    """Eight raw clients that ask without end, each on one connection, and check each answer.

    Args:
        url: The service.
        allowed: Codes of errors after which a client goes on with a new connection; otherwise it never does.

    Attributes:
        answers: How many answers each version made, and how many errors of each code there were.
        least: The version that must have made every answer to a request that is sent from now on, or a later one.
    """

    def __init__(self, url: str, allowed: frozenset[str] = frozenset()) -> None:
        self.answers: Counter[Any] = Counter()
        self.least = 1
        self._url = url
        self._allowed = allowed
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(8)
        self._lock = threading.Lock()
        self._clients: list[Future[None]] = []

    def __enter__(self) -> Load:
        self._clients = [self._pool.submit(self._ask, number) for number in range(8)]
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._pool.shutdown()
        for client in self._clients:
            client.result()

    def _ask(self, number: int) -> None:
        line = patient(self._url)
        last = 0
        try:
            while not self._is_over.is_set():
                least = max(last, self.least)
                reply = self._reply(line)
                if isinstance(reply, str) and reply in self._allowed:
                    self._count(reply)
                    line.socket.close()
                    line = patient(self._url)
                    continue
                assert isinstance(reply, Reply), reply
                if reply.headers.get("connection") == "close":
                    line.socket.close()
                    line = patient(self._url)
                last = made_by(reply)
                assert last >= least, f"an answer of version {last} after one of {least}"
                self._count(last)
                if number % 2:  # some connections are idle for most of the time
                    time.sleep(random.uniform(0, 0.03))
        finally:
            line.socket.close()

    def _reply(self, line: Line) -> Reply | str:
        try:
            reply = line.ask(body=BODY)
        except ConnectionError:
            return "dropped"
        return reply if reply.status == 200 else reply.code

    def _count(self, what: Any) -> None:
        with self._lock:
            self.answers[what] += 1

    def more(self, version: int) -> None:
        """Wait until a version has made some more answers."""
        goal = self.answers[version] + 40
        until(lambda: self.answers[version] >= goal or any(client.done() for client in self._clients))


def updated_under_load(gated: Gated, updates: int) -> Counter[Any]:
    """Update a service again and again under load, and return how many answers each version made."""
    with Load(gated.service.url) as load:
        for _ in range(updates):
            version = gated.service.version
            load.more(version)
            gated.service.update()
            load.least = version + 1
            load.more(version + 1)
    assert set(load.answers) == set(range(1, updates + 2)), load.answers
    return load.answers


def test_no_request_fails_while_versions_change(tmp_path: Path) -> None:
    """Under load every request is answered by the version in its label; a new one begins when all its workers can."""
    with (
        numbered(tmp_path, replicas=2, batch=True) as gated,
        Load(gated.url) as load,
        ThreadPoolExecutor(1) as pool,
    ):
        service = gated.service
        shut = gated.hold(2)
        update = pool.submit(service.update)
        until(lambda: len(comers(tmp_path, 2)) == 2)
        held_back = gated.hold(comers(tmp_path, 2)[0])
        shut.unlink()
        load.more(1)
        assert (service.version, load.answers[2]) == (1, 0)
        held_back.unlink()
        update.result()
        load.least = 2
        load.more(2)
        service.update()
        load.least = 3
        load.more(3)
        assert (service.version, len(service.pids)) == (3, 2)
    assert set(load.answers) == {1, 2, 3}, load.answers


@LONG
def test_no_request_fails_over_twenty_updates(tmp_path: Path) -> None:
    """The same over twenty updates."""
    with numbered(tmp_path, replicas=2, batch=True) as gated:
        print(sorted(updated_under_load(gated, 20).items()))


@LONG
@pytest.mark.parametrize("seed", range(10))
def test_workers_that_end_at_random_in_an_update(tmp_path: Path, seed: int) -> None:
    """Whichever worker ends in an update, and when: who waited for a killed one is told, and nothing else is lost."""
    chance = random.Random(seed)
    with (
        numbered(tmp_path, replicas=2, batch=True) as gated,
        Load(gated.service.url, frozenset({"worker-lost"})) as load,
        ThreadPoolExecutor(1) as pool,
    ):
        service = gated.service
        for _ in range(3):
            load.more(service.version)
            update = pool.submit(service.update)
            time.sleep(chance.uniform(0, 5))
            worker = chance.choice(psutil.Process().children())
            worker.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
            error = update.exception()
            assert error is None or (isinstance(error, ServingError) and error.code == "update-failed"), error
            teach(gated.model, service.version)
            load.least = service.version
            service.wait()
            assert len(service.pids) == 2
            load.more(service.version)
        print(sorted(load.answers.items(), key=str))


@LONG
@pytest.mark.parametrize("seed", range(10))
def test_stopping_at_random_in_an_update(tmp_path: Path, seed: int) -> None:
    """Whenever a service is stopped in an update: it stops, what it answered was right, and nothing is left."""
    before = folders()
    with numbered(tmp_path, replicas=2, batch=True) as gated, ThreadPoolExecutor(1) as pool:
        service = gated.service
        backend = running_of(service).backend
        assert backend is not None
        is_over = threading.Event()
        lines = [pool_line(service.url, is_over) for _ in range(8)]
        update = pool.submit(service.update)
        time.sleep(random.Random(seed).uniform(0, 5))
        backend.stop()
        is_over.set()
        error = update.exception()
        assert error is None or (isinstance(error, ServingError) and error.code == "stopped"), error
        for line in lines:
            assert line.result() in {"dropped", "draining", "over"}
    check_nothing_is_left(gated, before)


def pool_line(url: str, is_over: threading.Event) -> Future[str]:
    """Ask on one connection until it ends, in a thread; return how it ended."""
    found: Future[str] = Future()

    def run() -> None:
        try:
            with patient(url) as line:
                while not is_over.is_set():
                    reply = line.ask(body=BODY)
                    if reply.status != 200:
                        found.set_result(reply.code)
                        return
                    made_by(reply)
                found.set_result("over")
        except ConnectionError:
            found.set_result("dropped")
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            found.set_exception(error)

    threading.Thread(target=run).start()
    return found


# Arguments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "rya"}, r"there is no backend 'rya'. Did you mean 'ray'\? Choose 'process' or 'ray'"),
        ({"autoscaling": {"max_replicas": 4}}, "autoscaling= needs backend='ray'"),
        ({"name": "no/name"}, "'no/name' is no name of a service"),
        ({"name": ""}, "'' is no name of a service"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    """A backend or name that cannot be is refused when the service is made."""
    with pytest.raises(ConfigurationError, match=message):
        ServerModule(services.echo, **options)


def test_a_service_knows_its_name() -> None:
    """The name is on the handle, and on what is made anew from it."""
    assert (ServerModule(services.echo).name, ServerModule(services.echo, name="digits").new().name) == (None, "digits")
    assert json.dumps(ServerModule(services.echo).version) == "0"
