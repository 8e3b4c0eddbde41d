"""The arguments of a service with an example: its inputs, by position or name, and others that its forward takes."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import replayml
from replayml.serving.errors import Refusal, RefusedError
from replayml.serving.messages.parameters import Parameters
from replayml.serving.server import ServerModule
from tests.serving import services
from tests.serving.http import ask
from tests.serving.running import running, until

ROW = torch.tensor([[1.0, 2.0, 3.0]])


@pytest.fixture(scope="module")
def named() -> Iterator[ServerModule]:
    """A model that takes more than its example has."""
    with running(ServerModule(services.Named().build(seed=0), example=torch.zeros(1, 3))) as service:
        yield service


# Further arguments ----------------------------------------------------------------------------------------------

CALLS: list[Callable[[Any], Any]] = [
    lambda model: model(ROW),
    lambda model: model(x=ROW),
    lambda model: model(ROW, by=3),
    lambda model: model(ROW, 3),
    lambda model: model(by=3, x=ROW, tag={"a": [1, None]}),
    lambda model: model(ROW, tag=torch.ones(2)),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_service_takes_the_arguments_that_its_module_takes(call: Callable[[Any], Any], named: ServerModule) -> None:
    """By position or by name, the input and what the example does not have: the result is that of the module."""
    found, expected = call(named), call(named.module)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (
            torch.equal(torch.as_tensor(found[name]), value)
            if isinstance(value, torch.Tensor)
            else (found[name] == value)
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda model: model(ROW, size=3), r"expected: \(x, by=1, \*, tag=None\). .*unexpected keyword .*'size'"),
        (lambda model: model(ROW, x=ROW), "multiple values for argument 'x'"),
        (lambda model: model(ROW, 3, 4), "too many positional arguments"),
        (lambda model: model(by=3), "missing a required argument: 'x'"),
        (lambda model: model(x=torch.zeros(1, 4)), r"\[wrong-shape\] .* expected: \[1,3\]. found: \[1,4\]\. \("),
        (lambda model: model(x=ROW.double()), r"\[wrong-dtype\]"),
    ],
)
def test_what_the_module_does_not_take_is_refused(
    given: Callable[[Any], Any], message: str, named: ServerModule
) -> None:
    """An unknown name, a value given twice and a wrong input are refused before the module runs, with what it takes."""
    with pytest.raises(RefusedError, match=message):
        given(named)


def test_names_for_the_program_are_not_for_callers() -> None:
    """A caller leaves out no step of a flow; a name may be one of Python's own."""
    flow = replayml.pipeline(first=services.echo, second=services.echo)
    with running(ServerModule(flow)) as service, running(ServerModule(services.named)) as free:
        for options in ({"_skip_items": ["second"]}, {"_kept_items": ["first"]}):
            with pytest.raises(RefusedError, match=r"\[wrong-arguments\] .*_items, which is for the program alone"):
                service(1, **options)
            body = json.dumps({"args": [1], "kwargs": options}).encode()
            assert ask(service.url, body=body).code == "wrong-arguments"
        assert "_skip_items" not in json.dumps(ask(service.url, "/schema").json)
        assert service(1) == 1
        assert ask(free.url, body=b'{"kwargs": {"self": 1, "args": 2}}').json == {"result": {"self": 1, "args": 2}}


def test_a_private_name_is_no_further_argument() -> None:
    """It is offered neither by name nor by position."""

    def forward(x: Any, _depth: int = 0, *, n: int = 1, _seed: int = 0) -> None: ...

    takes = Parameters(inspect.signature(forward), 1)
    assert (takes.by_name, takes.by_position) == ({"n": 1}, ())
    with pytest.raises(Refusal, match="wrong-arguments"):
        takes.placed([0, 5], {})


def test_a_long_name_is_not_told_as_a_whole(named: ServerModule) -> None:
    """What is wrong in a request stands in the answer, but no more of it than a line."""
    body = json.dumps({"args": [ROW.tolist()], "kwargs": {"x" * 100_000: 1}}).encode()
    reply = ask(named.url, body=body)
    assert (reply.code, len(reply.body) < 2000) == ("wrong-arguments", True)


def test_the_document_tells_the_further_arguments(named: ServerModule) -> None:
    """Their names and defaults stand in `/schema`, and JSON gives them by name or by position."""
    body = ask(named.url, "/schema").json["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
    properties = body["schema"]["properties"]
    assert properties["kwargs"]["properties"] == {"by": {"default": 1}, "tag": {"default": None}}
    assert properties["kwargs"]["additionalProperties"] is False
    assert (properties["args"]["minItems"], properties["args"]["maxItems"]) == (1, 2)
    for given in ({"args": [ROW.tolist()], "kwargs": {"by": 5}}, {"args": [ROW.tolist(), 5]}):
        assert ask(named.url, body=json.dumps(given).encode()).json["result"]["by"] == 5


def test_a_request_with_further_arguments_runs_alone(tmp_path: Path) -> None:
    """Those without run as one batch meanwhile; an input that is given by its name runs with them."""
    service = ServerModule(services.Scaled(str(tmp_path)), example=torch.zeros(1, 1), batch=64)

    def waiting(count: int) -> bool:
        return f"replayml_waiting_requests {count}.0" in ask(service.url, "/metrics").body.decode()

    with running(service), ThreadPoolExecutor(8) as pool:
        held = pool.submit(service, torch.tensor([[-1.0]]))
        until((tmp_path / "held").exists)
        calls: list[Any] = []
        rows = torch.ones(2, 1)
        for options in ({}, {"x": rows}, {"by": 3.0}, {"by": 4.0}, {}):
            calls.append(pool.submit(service, *([] if "x" in options else [rows]), **options))
            until(lambda: waiting(len(calls)))
        (tmp_path / "open").touch()
        found = [call.result()[0].tolist() for call in calls]
        assert held.result().tolist() == [[-1.0, 1.0]]
    assert found == [[1.0, 4.0], [1.0, 4.0], [3.0, 2.0], [4.0, 2.0], [1.0, 2.0]]


@pytest.mark.parametrize("wrap", [replayml.Regressor, replayml.pipeline, replayml.ActionModule])
def test_what_hands_its_arguments_on_takes_those_of_what_it_asks(wrap: Any) -> None:
    """An application takes the arguments of its model by name, and a flow those of its first step."""
    model = wrap(services.Named())
    model.build(seed=0)
    with running(ServerModule(model, example=torch.zeros(1, 3))) as service:
        assert service(x=ROW, tag="a")["tag"] == "a"
        with pytest.raises(RefusedError, match="unexpected keyword argument 'size'"):
            service(ROW, size=1)


# Signatures of every kind ---------------------------------------------------------------------------------------


def several(a: Any, b: Any = 1, /, c: Any = 2, *rest: Any, d: Any = 3) -> None:
    """Take arguments of every kind but one."""


def anything(x: Any, **options: Any) -> None:
    """Take arguments of any name."""


def unknown(*args: Any, **kwargs: Any) -> None:
    """Tell nothing."""


@pytest.mark.parametrize(
    ("function", "inputs", "args", "kwargs", "expected"),
    [
        (several, 1, ["a"], {"c": 5, "d": 6}, (["a"], {"c": 5, "d": 6})),
        (several, 1, ["a", "b"], {}, None),
        (several, 2, ["a", "b"], {"c": 5, "d": 6}, (["a", "b"], {"c": 5, "d": 6})),
        (several, 3, ["a", "b"], {"c": "c", "d": 6}, (["a", "b", "c"], {"d": 6})),
        (several, 4, ["a", "b", "c", "r"], {}, (["a", "b", "c", "r"], {})),
        (several, 3, ["a", "b", "c", "r"], {}, None),
        (several, 1, ["a"], {"a": 1}, None),
        (anything, 1, [], {"x": 1, "y": 2}, ([1], {"y": 2})),
        (anything, 1, [1, 2], {}, None),
        (unknown, 1, [1], {}, ([1], {})),
        (unknown, 1, [1], {"x": 1}, None),
        (unknown, 1, [1, 2], {}, None),
        (None, 1, [1], {}, ([1], {})),
        (None, 1, [1], {"x": 1}, None),
    ],
)
def test_arguments_are_placed_by_the_signature(
    function: Any, inputs: int, args: list[Any], kwargs: dict[str, Any], expected: Any
) -> None:
    """The inputs come first and in order, the others by name; what cannot be told apart so is refused."""
    takes = Parameters(None if function is None else inspect.signature(function), inputs)
    if expected is None:
        with pytest.raises(Refusal, match="wrong-arguments"):
            takes.placed(args, kwargs)
    else:
        assert takes.placed(args, kwargs) == expected


# Rows -----------------------------------------------------------------------------------------------------------


def test_an_example_without_batch_says_how_to_take_any_number_of_rows(named: ServerModule) -> None:
    """Another number of rows than the example has is refused with the option that takes it; it does."""
    with pytest.raises(RefusedError, match=r"hint: .* batch=True, or .* --input 'float32\[\*,3\]'"):
        named(torch.zeros(2, 3))
    with running(ServerModule(services.Picky().build(seed=0), example=torch.zeros(1, 3), batch=True)) as service:
        assert service(torch.zeros(2, 3))["y"].shape == (2, 2)


def test_a_row_without_its_list_is_told(named: ServerModule) -> None:
    """A single row is refused with how to give it."""
    with pytest.raises(RefusedError, match=r"found: \[3\]. hint: The first dimension is missing: .* x\[None\]"):
        named(ROW[0])
