"""`status`, and `serve --name`: what runs, as the real commands tell it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import replayml
from replayml.cli.report import ExitCode
from replayml.module.deploying import GATEWAY
from replayml.serving.calling.gateway import TTL, Gateway
from tests.cli.files import run
from tests.cli.test_serve import served
from tests.serving.redis import Redis, running_redis


@pytest.fixture
def redis(monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    """A Redis that the environment names."""
    with running_redis() as redis:
        monkeypatch.setenv(GATEWAY, redis.url)
        monkeypatch.setenv(TTL, "3600")
        yield redis


def status(*words: object) -> Any:
    """Run ``replayml status --json`` and return what it prints."""
    return json.loads(run("status", *words, "--json").stdout)


def test_a_served_file_is_listed_and_found_by_its_name(tmp_path: Path, redis: Redis) -> None:
    """A name is listed while the command runs; status tells the services, and what one of them takes and returns."""
    model = replayml.MultiLayerPerceptron(2, [3], 1).build(seed=0)
    model.save(tmp_path / "model.replayml")
    options = ("--input", "float32[*,2]", "--batch", 8, "--name", "digits")
    with served(tmp_path / "model.replayml", *options) as (process, url):
        listed = status()
        (service,) = listed["services"]
        assert (service["name"], service["url"], service["version"]) == ("digits", url, 1)
        assert listed["exit_code"] == ExitCode.DONE
        text = run("status").stdout
        assert all(word in text for word in ("digits", url, "heartbeat", f"process {process.pid} on"))
        x = torch.randn(3, 2)
        assert torch.equal(replayml.UrlModule(name="digits")(x), model(x))

        found = status(url, "--timeout", 60)
        assert (found["title"], found["version"], found["ready"]) == ("MultiLayerPerceptron", 1, True)
        assert found["inputs"][0]["x-shape"] == [-1, 2]
        shown = run("status", url, "--timeout", 60)
        assert shown.exit_code == ExitCode.DONE
        assert f"MultiLayerPerceptron, version 1, at {url}: ready" in shown.stdout
        assert "takes:   float32[*,2]" in shown.stdout
        assert "returns: float32[*,1]" in shown.stdout

        taken = run("serve", tmp_path / "model.replayml", "--name", "digits", "--port", 0)
        assert (taken.exit_code, "[name-taken]" in taken.stderr) == (ExitCode.FAILED, True)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert status()["services"] == []


def test_the_list_tells_what_starts_and_what_is_none_of_ours(redis: Redis) -> None:
    """A service without an address yet, and an entry of somebody else, stand in the list as such."""
    assert "lists no service" in run("status").stdout
    lease = Gateway(redis.url).claim("slow")
    redis.command("set", "replayml:service:\x1b[31mevil", "x")
    listed = status()
    assert [(service["name"], service["url"]) for service in listed["services"]] == [("slow", None)]
    assert listed["unreadable"] == ["\\x1b[31mevil"]
    text = run("status").stdout
    assert "starting" in text
    assert "no entry of replayml" in text
    assert "\x1b" not in text
    lease.close()


def test_without_address_and_gateway_status_says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is wrong usage."""
    monkeypatch.delenv(GATEWAY, raising=False)
    result = run("status")
    assert (result.exit_code, GATEWAY in result.stderr) == (ExitCode.USAGE, True)


def test_what_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service, or a gateway, that is not there is told in a sentence; the command has failed."""
    monkeypatch.setenv(GATEWAY, "redis://127.0.0.1:9/0")
    for words, code in ((["http://127.0.0.1:9", "--timeout", "0.1"], "no-connection"), ([], "gateway-unreachable")):
        result = run("status", *words)
        assert (result.exit_code, f"[{code}]" in result.stderr) == (ExitCode.FAILED, True)
        assert status(*words)["error"]["code"] == "UnavailableError"


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    """It is told before anything is opened."""
    path = tmp_path / "model.replayml"
    path.write_bytes(b"")
    result = run("serve", path, "--name", "my model")
    assert (result.exit_code, "is no name of a service" in result.stderr) == (ExitCode.USAGE, True)
