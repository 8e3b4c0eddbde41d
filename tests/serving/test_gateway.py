"""Services that find one another through a real Redis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

import replayml
from replayml.core.errors import ConfigurationError
from replayml.lifecycle.flows import pipeline
from replayml.module.deploying import GATEWAY
from replayml.serving.calling.gateway import TTL, Gateway
from replayml.serving.errors import ServingError, UnavailableError
from replayml.serving.server import ServerModule, UrlModule
from tests.serving import services
from tests.serving.redis import PATIENCE, SLOW, Redis, running_redis
from tests.serving.running import until

KEY = "replayml:service:"

pytestmark = pytest.mark.xdist_group("gateway")  # the services that these tests share are started once


@pytest.fixture(scope="module")
def redis() -> Iterator[Redis]:
    """A Redis for all tests of this file; no entry in it expires before its service is gone, however busy we are."""
    with pytest.MonkeyPatch.context() as patch, running_redis() as redis:
        patch.setenv(GATEWAY, redis.url)
        patch.setenv(TTL, "3600")
        yield redis


@pytest.fixture
def gateway(redis: Redis) -> Iterator[Gateway]:
    """The list in it."""
    found = Gateway(redis.url)
    yield found
    found.close()


class Fleet(NamedTuple):
    """Three services that call one another: outer ─► middle ─► inner."""

    outer: ServerModule
    middle: ServerModule
    inner: ServerModule


@pytest.fixture(scope="module")
def fleet(redis: Redis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three services, deployed at once; each begins to load only when all of them do."""
    folder = tmp_path_factory.mktemp("meeting")
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("secret-" * 8)
    inner = ServerModule(services.Meeting(str(folder), "inner"), name="inner", token_file=str(token), limits=SLOW)
    middle = ServerModule(services.Meeting(str(folder), "middle", step=inner), name="middle", limits=SLOW)
    outer = ServerModule(services.Meeting(str(folder), "outer", step=middle), limits=SLOW)
    outer.start()
    try:
        yield Fleet(outer, middle, inner)
    finally:
        outer.stop()


def names(gateway: Gateway) -> set[str]:
    """Return the names that are listed with an address."""
    return {entry.name for entry in gateway.entries().entries if entry.url}


# Deployed at once -----------------------------------------------------------------------------------------------


def test_services_that_depend_on_one_another_are_deployed_at_once(fleet: Fleet) -> None:
    """All three load at the same time (each waits for the others to begin), and call one another by name."""
    assert fleet.outer(1) == ((1 + 1) * 2) * 2
    assert set(fleet.outer.status().values()) == {"deployed"}


def test_running_services_are_listed(fleet: Fleet, gateway: Gateway) -> None:
    """The list has name, address, version, program and heartbeat; a service without a name gets one of its own."""
    found = {entry.name: entry for entry in gateway.entries().entries}
    assert {"inner", "middle"} < found.keys()
    assert fleet.outer.name in found
    assert fleet.outer.name.startswith("meeting-")
    entry = found["middle"]
    assert (entry.url, entry.version) == (fleet.middle.url, 1)
    assert f"process {os.getpid()} on" in entry.owner
    assert entry.age is not None


def test_no_token_is_in_redis(fleet: Fleet, redis: Redis) -> None:
    """Neither the token of a service nor what its own program shows it stands there."""
    stored = redis.command("get", KEY + "inner") + redis.command("get", KEY + "middle")
    assert "url" in stored
    assert "secret-" not in stored
    assert redis.command("keys", "*").splitlines() == redis.command("keys", KEY + "*").splitlines()


def test_another_program_calls_by_name(fleet: Fleet) -> None:
    """A second program on the same Redis finds a service by its name, and is told of one that is not there."""
    program = """
        from replayml import UrlModule
        print(UrlModule(name="middle")(1))
        try:
            UrlModule(name="midle")(1)
        except ConnectionError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    result, told = done.stdout.splitlines()
    assert result == "4", done.stderr
    assert "[unknown-service]" in told
    assert "Did you mean 'middle'? It lists" in told


def test_a_name_belongs_to_one_service(fleet: Fleet) -> None:
    """A second service of the same name is refused, with the one that has it, and the first runs on."""
    second = ServerModule(services.echo, name="middle")
    with pytest.raises(ServingError, match=rf"\[name-taken\] .* process {os.getpid()} on .* {fleet.middle.url}"):
        second.start()
    assert fleet.middle(1) == 4


def test_a_service_that_moved_is_found_again(fleet: Fleet) -> None:
    """Callers by name, services among them, go on when a service runs somewhere else."""
    client = UrlModule(name="inner", token_file=str(fleet.inner.new()._token_file))
    assert client(1) == 2
    before = fleet.inner.url
    fleet.inner.restart()
    assert fleet.inner.url != before
    assert client(1) == 2
    assert client.url == fleet.inner.url
    assert fleet.outer(1) == 8
    client.close()


def test_redis_may_be_killed_and_come_back(fleet: Fleet, redis: Redis, gateway: Gateway) -> None:
    """Meanwhile what is known goes on, and the rest is told clearly; then all is listed again by itself."""
    known = UrlModule(name="middle")
    assert (known(1), fleet.outer(1)) == (4, 8)  # from now on both know where their services are
    listed = names(gateway)
    redis.kill()
    try:
        assert (known(2), fleet.outer(1)) == (6, 8)
        with pytest.raises(UnavailableError, match=rf"\[gateway-unreachable\] Redis, which {GATEWAY} names, does not"):
            UrlModule(name="middle")(1)
        refused = ServerModule(services.echo, name="late")
        with pytest.raises(UnavailableError, match="gateway-unreachable"):
            refused.start()
        assert refused.status() == {"model": "stopped"}
    finally:
        redis.start()  # with an empty memory
    until(lambda: names(gateway) >= listed)
    assert UrlModule(name="middle")(1) == 4
    known.close()


def test_the_version_is_listed_while_the_service_runs(redis: Redis, gateway: Gateway) -> None:
    """A new version is listed under the same name, a stopped service is not; who knew it waits for it to come back."""
    service = ServerModule(services.echo, name="versions", limits=SLOW).start()
    client = UrlModule(name="versions", timeout=PATIENCE)
    results: list[Any] = []
    try:
        assert gateway.find("versions").version == 1
        service.update()
        assert gateway.find("versions").version == service.version == 2
        assert client(1) == 1
        service.stop()
        assert "versions" not in names(gateway)
        with pytest.raises(UnavailableError, match=r"\[unknown-service\]"):
            UrlModule(name="versions")(1)
        thread = threading.Thread(target=lambda: results.append(client(2)))
        thread.start()
        service.start()
        thread.join(PATIENCE)
        assert results == [2]
    finally:
        service.stop()
        client.close()


def test_one_failure_stops_those_that_were_started_with_it(redis: Redis, gateway: Gateway) -> None:
    """The exception names the path; the others are stopped, their names free and their threads gone."""
    before = threading.active_count()
    good = ServerModule(services.echo, name="good", limits=SLOW)
    bad = ServerModule(services.Unloadable(), name="bad", limits=SLOW)
    whole = ServerModule(pipeline(good, bad), name="whole", limits=SLOW)
    with pytest.raises(ServingError, match="there is no such device") as found:
        whole.start()
    assert any("while deploying model.module.1 (ServerModule)" in note for note in found.value.__notes__)
    assert set(whole.status().values()) == {"stopped"}
    assert not {"good", "bad", "whole"} & {entry.name for entry in gateway.entries().entries}
    until(lambda: threading.active_count() <= before)


# Names ----------------------------------------------------------------------------------------------------------


def test_the_name_of_a_killed_program_is_free_again(redis: Redis, gateway: Gateway) -> None:
    """When its heartbeats have ended, its entry expires, and another service may take the name."""
    program = f"""
        import os, sys, time
        from replayml.serving.calling.gateway import Gateway
        lease = Gateway(os.environ["{GATEWAY}"]).claim("orphan")
        lease.publish("http://127.0.0.1:1", 1)
        print("claimed", flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, env={**os.environ, TTL: "1"}, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "claimed\n"
        finally:
            process.send_signal(signal.SIGKILL)

    def is_free() -> bool:
        try:
            gateway.claim("orphan").close()
        except ServingError as error:
            if error.code != "name-taken":
                raise
            return False
        return True

    until(is_free)


def test_a_lease_that_lost_its_name_takes_nothing_away(redis: Redis, gateway: Gateway) -> None:
    """Who came after it keeps the name, also when the first one ends."""
    first = Gateway(redis.url).claim("contested")
    redis.command("del", KEY + "contested")
    second = Gateway(redis.url).claim("contested")
    second.publish("http://127.0.0.1:2", 3)
    with pytest.raises(ServingError, match="name-taken"):
        first.publish("http://127.0.0.1:1", 1)
    first.close()
    assert gateway.find("contested").url == "http://127.0.0.1:2"
    second.close()
    assert "contested" not in names(gateway)


def test_a_service_that_starts_is_waited_for(redis: Redis, gateway: Gateway) -> None:
    """Who looks it up meanwhile gets its address when it is up, or is told that it starts."""
    lease = Gateway(redis.url).claim("slow")
    with pytest.raises(UnavailableError, match=r"\[not-up\] The service 'slow' of process \d+ on .* is still starting"):
        UrlModule(name="slow", timeout=0.2)(1)
    client = UrlModule(name="slow")
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(client.url))
    thread.start()
    lease.publish("http://127.0.0.1:9", 1)
    thread.join(PATIENCE)
    assert found == ["http://127.0.0.1:9"]
    client.close()
    lease.close()


def test_a_name_without_a_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no gateway is named, a name is a label, and a call by name says which variable is missing."""
    monkeypatch.delenv(GATEWAY, raising=False)
    with pytest.raises(ConfigurationError, match=rf"{GATEWAY} is not set. Set it, such as"):
        UrlModule(name="digits")(1)
    assert str(UrlModule(name="digits")) == "<Module type=Url name=digits>"
    assert ServerModule(services.echo, name="digits").name == "digits"


@pytest.mark.parametrize("arguments", [{}, {"url": "http://127.0.0.1:1", "name": "a"}, {"name": "a b"}, {"name": ""}])
def test_a_client_has_an_address_or_a_name(arguments: dict[str, Any]) -> None:
    """One of both, and a good one."""
    with pytest.raises(ConfigurationError, match=r"give an address|is no name of a service"):
        UrlModule(**arguments)


def test_a_client_by_name_has_a_recipe() -> None:
    """The name is all that it holds."""
    again = replayml.Recipe.from_json(UrlModule(name="digits").recipe().to_json()).model()
    assert again.name == "digits"


# Data of strangers ----------------------------------------------------------------------------------------------


def entry(**changes: Any) -> str:
    """Return an entry, with changes."""
    sound = {"url": "http://127.0.0.1:8000", "version": 1, "owner": "process 1", "ttl": 15.0, "lease": "0" * 32}
    return orjson.dumps({**sound, **changes}).decode()


HOSTILE = {
    "no JSON": "cos\nsystem\n(S'true'\ntR.",
    "another kind of JSON": "[1, 2]",
    "a number": "1" * 4000,
    "too large": entry(owner="x" * 5000),
    "deep": "[" * 2000 + "]" * 2000,
    "a file": entry(url="file:///etc/passwd"),
    "a script": entry(url="javascript:alert(1)"),
    "credentials": entry(url="http://a:b@127.0.0.1:8000"),
    "a path": entry(url="http://127.0.0.1:8000/predict"),
    "a query": entry(url="http://127.0.0.1:8000?x"),
    "no host": entry(url="http://"),
    "a host with an empty label": entry(url="http://a..b:80"),
    "a host with a long label": entry(url="http://" + "a" * 70 + ":80"),
    "an address of a time to come": entry(url="http://[v1.x]:80"),
    "an address with a zone": entry(url="http://[fe80::1%25x]:80"),
    "a host with a backslash": entry(url="http://a\\b:80"),
    "a port too far": entry(url="http://127.0.0.1:99999"),
    "two lines": entry(url="http://127.0.0.1:8000\r\nx: y"),
    "a long address": entry(url="http://" + "a" * 600),
    "a version that is none": entry(version="1"),
    "a version that is true": entry(version=True),
    "no time to live": entry(ttl=-1),
    "an owner with control characters": entry(owner="\x1b[31mred"),
    "more than there should be": entry(more=1),
    "less": '{"url": "http://127.0.0.1:8000"}',
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_stands_in_redis_is_checked(redis: Redis, gateway: Gateway, case: str) -> None:
    """What is no entry of ours is refused and never followed; the list tells its name, and the honest one beside it."""
    redis.command("set", KEY + "hostile", HOSTILE[case])
    redis.command("set", KEY + "honest", entry())
    try:
        with pytest.raises(ServingError, match=r"\[gateway-invalid\] .*hostile' is no entry of replayml"):
            UrlModule(name="hostile")(1)
        listing = gateway.entries()
        assert "hostile" in listing.unreadable
        assert gateway.find("honest").url == "http://127.0.0.1:8000"
        with pytest.raises(ServingError, match="gateway-invalid"):
            gateway.claim("hostile")
    finally:
        redis.command("del", KEY + "hostile", KEY + "honest")


def test_another_kind_of_value_is_refused(redis: Redis, gateway: Gateway) -> None:
    """A list under the name of a service is told like anything else."""
    redis.command("rpush", KEY + "list", "1")
    for ask in (gateway.find, gateway.claim):
        with pytest.raises(ServingError, match=r"\[gateway-invalid\] .*list' is no entry of replayml"):
            ask("list")
    assert "list" in gateway.entries().unreadable
    redis.command("del", KEY + "list")


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost", "redis://localhost:port/0"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    """The message names the variable, and shows no password."""
    with pytest.raises(ConfigurationError, match=rf"{GATEWAY} holds no address of a Redis"):
        Gateway(url)


def test_the_password_of_redis_is_in_no_message() -> None:
    """What is told of a Redis that does not answer is its host and port."""
    gateway = Gateway("redis://user:pa55word@127.0.0.1:9/0")
    with pytest.raises(UnavailableError, match=r"redis://127\.0\.0\.1:9") as found:
        gateway.find("digits")
    shown = f"{found.value} {found.value.__cause__} {getattr(found.value, '__notes__', '')}"
    assert "pa55word" not in shown


@pytest.mark.parametrize("text", ["soon", "0", "nan", "1e9"])
def test_a_time_to_live_that_is_none_is_refused(redis: Redis, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The message names the variable."""
    monkeypatch.setenv(TTL, text)
    with pytest.raises(ConfigurationError, match=rf"{TTL} is '{text}'; set it to a number of seconds"):
        Gateway(redis.url).claim("any")


def test_the_folder_of_a_redis_is_gone_after_the_tests(redis: Redis) -> None:
    """It writes nothing to disk."""
    assert [path.name for path in Path(redis.url.removeprefix("unix://")).parent.iterdir()] == ["redis.sock"]


def _info(redis: Redis, section: str, field: str) -> str:
    """Return what Redis tells of itself."""
    lines = redis.command("info", section).splitlines()
    return next((line.removeprefix(field) for line in lines if line.startswith(field)), "")


def test_of_a_huge_value_only_the_beginning_is_read(redis: Redis, gateway: Gateway) -> None:
    """Whoever looks it up, lists it or claims its name is sent no more than tells that it is too large."""
    redis.command("setrange", KEY + "huge", str(32 * 2**20), "x")
    try:
        before = int(_info(redis, "stats", "total_net_output_bytes:"))
        for ask in (gateway.find, Gateway(redis.url).claim):
            with pytest.raises(ServingError, match=r"\[gateway-invalid\]"):
                ask("huge")
        assert "huge" in gateway.entries().unreadable
        assert int(_info(redis, "stats", "total_net_output_bytes:")) - before < 2**20
    finally:
        redis.command("del", KEY + "huge")


def test_for_near_names_only_some_of_a_large_redis_is_looked_through(redis: Redis) -> None:
    """Who asks for an unknown name is told so after some pages, however many keys there are."""
    gateway = Gateway(f"{redis.url}?db=1")
    redis.command("-n", "1", "eval", "for i = 1, 100000 do redis.call('SET', 'k' .. i, 1) end", "0")
    try:
        redis.command("config", "resetstat")
        with pytest.raises(UnavailableError, match=r"\[unknown-service\] The gateway lists no service 'none'\. \("):
            gateway.find("none")
        calls = int(_info(redis, "commandstats", "cmdstat_scan:calls=").partition(",")[0])
        assert 1 <= calls <= 20
    finally:
        redis.command("-n", "1", "flushdb")
        gateway.close()
