"""What a person is told who sets a service up: each error says what is wrong and what to do next."""

from __future__ import annotations

import inspect
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import replayml
from replayml.core.errors import ConfigurationError, RecipeError
from replayml.serving.errors import CODES, AddressError, ServingError
from replayml.serving.server import ServerModule, UrlModule
from tests.serving import services, streams
from tests.serving.http import ask
from tests.serving.redis import SLOW
from tests.serving.running import running

# Where it listens -----------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_told_with_what_to_do() -> None:
    """It is an error of replayml and of the system, with host, port and the next step, and survives pickling."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = ServerModule(services.echo, port=port)
        with pytest.raises(AddressError, match=f"127.0.0.1:{port} cannot be bound: .* or choose another port") as found:
            service.start()
    assert isinstance(found.value, ConfigurationError)
    assert isinstance(found.value, OSError)
    assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value)
    assert service.status()["model"] == "stopped"
    with running(service):
        assert service(1) == 1


def test_a_host_of_another_machine_is_told(tmp_path: Path) -> None:
    """An address that this machine does not have is an error with those that it has."""
    token = tmp_path / "token"
    token.write_text("t" * 40)
    with pytest.raises(AddressError, match=r"192\.0\.2\.1:0 cannot be bound: .* Choose an address of this machine"):
        ServerModule(services.echo, host="192.0.2.1", token_file=str(token)).start()


@pytest.mark.parametrize("port", [-1, 2**16, "8000", True])
def test_what_is_no_port_is_refused(port: Any) -> None:
    """A port is refused when the service is made."""
    with pytest.raises(ConfigurationError, match=f"port is a number from 1 to 65535, or 0 .* not {port!r}"):
        ServerModule(services.echo, port=port)


# Its token ------------------------------------------------------------------------------------------------------


def test_a_token_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """One that is not there, a folder, and what is no text: each is named, with what to do."""
    missing, damaged = tmp_path / "missing", tmp_path / "damaged"
    damaged.write_bytes(b"\xff" * 40)
    for path, message in (
        (missing, rf"the token file .*missing cannot be read: No such file .* Write it: .* > {missing}"),
        (tmp_path, "cannot be read: Is a directory. Give another file"),
        (damaged, "is no text, and holds no token. Write one: python"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            ServerModule(services.echo, token_file=str(path)).start()
        with pytest.raises(ConfigurationError, match=message):
            UrlModule("http://127.0.0.1:9", token_file=str(path))(1)


# What is served -------------------------------------------------------------------------------------------------


class Applied(replayml.Module):
    """A module that is given a function."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def forward(self, value: Any) -> Any:
        return self.function(value)


class Plain(nn.Module):
    """A module of torch."""


def test_what_has_no_name_is_told_with_what_a_service_takes() -> None:
    """A lambda is refused with a way out that there is: a service has no options for codecs and pickles."""
    for thing, error, message in (
        (lambda value: value, ConfigurationError, "is a lambda, .* Write it with def, at the top of a module"),
        (Applied(lambda value: value), RecipeError, r"has no name .* use a function or class that stands at the top"),
        (replayml.Sequential(Applied(nn.Linear(2, 2).forward)), RecipeError, "The process of the service makes it"),
        (Applied(Plain()), RecipeError, "replayml.Layer.* The process of the service makes it"),
    ):
        with pytest.raises(error, match=message) as found:
            ServerModule(thing).start()
        assert not any(option in str(found.value) for option in ("codecs", "allow_pickle"))


class Streaming(replayml.Module):
    """A module that yields."""

    def forward(self, stop: int) -> Any:
        yield from range(stop)


@pytest.mark.parametrize("thing", [streams.count, Streaming()])
def test_a_stream_is_not_served_from_a_cluster(thing: Any) -> None:
    """A generator is refused when the service is made, before a cluster is started for it."""
    with pytest.raises(ConfigurationError, match=r"yields its result item by item.*Serve it with backend='process'"):
        ServerModule(thing, backend="ray")


def test_a_generator_is_known_to_stream() -> None:
    """That a function yields is told in `/schema` without an example."""
    with running(ServerModule(streams.count)) as service:
        answers = ask(service.url, "/schema").json["paths"]["/predict"]["post"]["responses"]
        assert list(answers["200"]["content"]) == ["text/event-stream"]


def test_the_signature_of_a_service_is_shown() -> None:
    """``help`` of the constructor has every option with its default, and a sentence of its own."""
    for cls in (ServerModule, UrlModule):
        text = inspect.getdoc(cls.__init__)
        assert text is not None
        assert "what torch needs" not in text
    parameters = inspect.signature(ServerModule.__init__).parameters
    assert (parameters["port"].default, parameters["batch"].default) == (0, False)


# Routes ---------------------------------------------------------------------------------------------------------


def test_a_wrong_route_or_method_names_the_right_ones(echo: ServerModule) -> None:
    """The text of an unknown route lists those that there are; a wrong method is told where the right one stands."""
    document = ask(echo.url, "/schema").json
    text = ask(echo.url, "/nothing").json["error"]["text"]
    assert {word.strip(",.") for word in text.split() if word.startswith("/")} == set(document["paths"])
    wrong = ask(echo.url, "/predict")
    assert ("Allow" in wrong.json["error"]["text"], wrong.headers["allow"]) == (True, "POST")


def test_texts_end_once() -> None:
    """Each text is one or more sentences, with one full stop at the end."""
    for code, (_, text) in CODES.items():
        assert text.endswith("."), code
        assert not text.endswith(".."), code


# Evaluation -----------------------------------------------------------------------------------------------------


def test_a_service_has_the_result_of_its_module() -> None:
    """Where the service has no test set of its own, its result is that of the module, updated or not."""
    model = replayml.MultiLayerPerceptron(4, [8], 2).build(seed=0)
    model.evalset(torch.ones(5, 4))
    service = ServerModule(model)
    assert torch.equal(service.eval_result, model(torch.ones(5, 4)))
    with running(service):
        service.update()
        assert service.eval_result is model.eval_result
        service.evalset([torch.zeros(1, 4)])
        (found,) = service.update().eval_result
        assert torch.allclose(found, model(torch.zeros(1, 4)))
    assert ServerModule(services.Shift()).eval_result is None


# Services in services -------------------------------------------------------------------------------------------


def test_an_inner_service_that_moved_is_told_with_what_to_do() -> None:
    """The outer one asks the address that it knows; the error says so, and what it says helps."""
    inner = ServerModule(services.Shift(by=2), limits=SLOW)
    outer = ServerModule(replayml.pipeline(inner), limits=SLOW).start()
    try:
        assert outer(1) == 3
        before = inner.url
        while inner.url == before:
            inner.restart()
        with pytest.raises(ServingError, match=r"has another address, unless port= .* Call update\(\) of the service"):
            outer(1)
        assert outer.update()(1) == 3
    finally:
        outer.stop()


# Files of what replayml has -------------------------------------------------------------------------------------


def test_a_saved_flow_is_known_to_a_fresh_program(tmp_path: Path) -> None:
    """A program that has imported replayml alone opens the file of a flow, and of a service in it."""
    replayml.pipeline(services.Shift(by=2), UrlModule("http://127.0.0.1:9")).save(tmp_path / "flow.replayml")
    code = (
        "import sys, replayml\n"
        "from tests.serving.services import Shift\n"
        "print(replayml.load(sys.argv[1], trust=[Shift]).steps.keys())"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "flow.replayml")]
    path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert "'0', '1'" in done.stdout, done.stderr
