"""Services in real processes, called over real HTTP."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import replayml
from replayml.core.errors import ArgumentError, ConfigurationError, NotBuiltError, RecipeError
from replayml.lifecycle.flows import pipeline
from replayml.serving.errors import CODES, LateError, RefusedError, ServingError, UnavailableError
from replayml.serving.server import ServerModule, UrlModule
from tests.serving import services
from tests.serving.http import Line, ask
from tests.serving.running import running, until

# Results ------------------------------------------------------------------------------------------------------


def test_a_result_is_that_of_the_model_to_the_last_bit(batched: ServerModule, model: replayml.Module) -> None:
    """Calling the handle gives what the model gives for the same batch."""
    x = torch.randn(5, 4)
    assert torch.equal(batched(x), model(x))


def test_json_gives_the_digits_of_float32(batched: ServerModule, model: replayml.Module) -> None:
    """A number in a JSON answer reads as the float32 that the model gave."""
    x = torch.randn(5, 4)
    reply = ask(batched.url, body=json.dumps({"args": [x.tolist()]}).encode())
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert torch.equal(torch.tensor(reply.json["result"]), model(x))


def test_requests_that_run_at_once_give_the_same(batched: ServerModule, model: replayml.Module) -> None:
    """Each of many requests at once gets its own rows, within the noise of float sums."""
    inputs = [torch.randn(1 + index % 3, 4) for index in range(64)]
    with ThreadPoolExecutor(16) as pool:
        for x, y in zip(inputs, pool.map(batched, inputs), strict=True):
            torch.testing.assert_close(y, model(x), rtol=0, atol=1e-6)


def test_what_came_while_the_model_ran_runs_together(tmp_path: Path) -> None:
    """The requests that queued while the last one ran are one batch, and each gets its own rows of it."""
    inputs = [torch.full((1 + index % 3, 1), float(index)) for index in range(12)]
    service = ServerModule(services.Gate(str(tmp_path)).build(), example=torch.zeros(1, 1), batch=True)
    with running(service), ThreadPoolExecutor(13) as pool:
        first = pool.submit(service, torch.tensor([[-1.0]]))
        until((tmp_path / "held").exists)
        others = [pool.submit(service, x) for x in inputs]
        until(lambda: "replayml_waiting_requests 12.0" in ask(service.url, "/metrics").body.decode())
        (tmp_path / "open").touch()
        assert first.result().tolist() == [[-1.0, 1.0]]
        for x, other in zip(inputs, others, strict=True):
            assert torch.equal(other.result(), torch.cat([x, torch.full_like(x, 24.0)], dim=1))


def test_a_request_with_more_rows_than_a_batch_runs(batched: ServerModule, model: replayml.Module) -> None:
    """The limit of a batch is none for a request."""
    x = torch.randn(50, 4)
    assert torch.equal(batched(x), model(x))


def test_arguments_by_name_are_found(batched: ServerModule, model: replayml.Module) -> None:
    """The handle takes arguments by name like the model."""
    x = torch.randn(1, 4)
    assert torch.equal(batched(x=x), model(x))


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        10**30,
        2.5,
        "text",
        [1, [2.0, None]],
        {"a": {"b": ()}},
        {1: "x", (1, 2): "y"},
        ("a", ("b",)),
        {"$tensor": 1},
    ],
)
def test_values_come_back_as_they_are(echo: ServerModule, value: Any) -> None:
    """Numbers, strings, lists, dicts and tuples travel unchanged, in their types."""
    found = echo(value)
    assert found == value
    assert type(found) is type(value)


def test_positional_and_named_arguments_arrive(echo: ServerModule) -> None:
    """All arguments arrive where they were given."""
    assert echo(1, "a", by=(2,)) == ((1, "a"), {"by": (2,)})


def test_tensors_of_all_kinds_come_back(echo: ServerModule) -> None:
    """Every dtype travels, also where JSON has no such numbers."""
    for value in (torch.tensor([float("nan"), float("inf")]), torch.zeros(0, 3), torch.tensor(1j), torch.tensor(True)):
        found = echo(value)
        assert (found.dtype, found.shape) == (value.dtype, value.shape)
        assert torch.equal(torch.nan_to_num(found), torch.nan_to_num(value))


def test_the_handle_can_be_awaited(echo: ServerModule) -> None:
    """Many calls are under way at once in one event loop."""

    async def together() -> list[Any]:
        return await asyncio.gather(*(echo.acall(number) for number in range(20)))

    assert asyncio.run(together()) == list(range(20))


def test_an_argument_that_cannot_be_sent_is_refused_here(echo: ServerModule) -> None:
    """What has no form does not leave the program."""
    with pytest.raises(ArgumentError, match=r"value\['args'\]\[0\]\['x'\] is a builtins.object"):
        echo({"x": object()})


# Exceptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("value", ValueError("no such row")),
        ("key", KeyError("a")),
        ("os", FileNotFoundError(2, "No such file or directory")),
        ("own", ConfigurationError("there is no 'depth'")),
        ("recipe", RecipeError("bad-value", "model.x", "it is wrong")),
    ],
)
def test_exceptions_come_back(failing: ServerModule, name: str, error: Exception) -> None:
    """What the module raises is raised here: the same class, arguments and text, and a note where it was raised."""
    with pytest.raises(type(error)) as found:
        failing(name)
    assert (found.value.args, str(found.value)) == (error.args, str(error))
    assert "raised by the module behind http://127.0.0.1" in found.value.__notes__[0]


def test_what_is_raised_is_told_to_the_own_program_only(failing: ServerModule) -> None:
    """Another caller gets the code, the fixed text and the id."""
    reply = ask(failing.url, body=b'{"args": ["value"]}', **{"x-replayml-owner": "00"})
    assert reply.json["error"].keys() == {"code", "text", "id"}
    with pytest.raises(ServingError, match=r"^\[raised\] The module raised an exception; .* \(http"):
        UrlModule(failing.url)("value")


@pytest.mark.parametrize("name", ["secret", "exit"])
def test_other_exceptions_stay_in_the_service(failing: ServerModule, name: str) -> None:
    """Of an exception of the user's own only the fixed text leaves the service, which goes on."""
    with pytest.raises(ServingError, match=r"^\[raised\] The module raised an exception; .* \(http") as found:
        failing(name)
    assert "password" not in str(found.value)
    with pytest.raises(ValueError, match="no such row"):
        failing("value")


def test_one_request_at_fault_takes_no_other_with_it() -> None:
    """When a batch raises, its requests run one by one, and only the one at fault fails."""
    picky = services.Picky().build()
    service = ServerModule(picky, example=torch.zeros(1, 3), batch=True).start()
    try:
        inputs = [torch.full((1, 3), -1.0 if index % 5 == 0 else 1.0) for index in range(40)]

        def called(x: torch.Tensor) -> Any:
            try:
                return service(x)
            except ValueError as error:
                return str(error)

        with ThreadPoolExecutor(10) as pool:
            results = list(pool.map(called, inputs))
        for index, result in enumerate(results):
            if index % 5 == 0:
                assert result == "a negative row"
            else:
                torch.testing.assert_close(result["y"], picky(inputs[index])["y"])
    finally:
        service.stop()


def test_nan_and_unsendable_results_are_told() -> None:
    """A result without a form is an error with a code; tensors may hold NaN."""
    service = ServerModule(services.nan).start()
    try:
        reply = ask(service.url, body=b"{}")
        assert (reply.status, reply.code) == (500, "not-finite")
        assert bool(service().isnan()[1])
    finally:
        service.stop()
    service = ServerModule(services.unsendable).start()
    try:
        with pytest.raises(ServingError, match="no-form"):
            service()
    finally:
        service.stop()


# What may be served -------------------------------------------------------------------------------------------


def test_modules_without_weights_are_served() -> None:
    """A module that has nothing to build is replayed from its recipe."""
    service = ServerModule(services.Shift(by=1).configure(by=5)).start()
    try:
        assert service(2) == 7
    finally:
        service.stop()


def test_a_flow_is_served() -> None:
    """A flow is served as a whole: its modules are replayed, its functions found by name."""
    service = ServerModule(pipeline(services.Shift(by=1), services.scaled, services.Shift(by=2)))
    assert repr(service).splitlines()[0] == "<Module type=Server>"
    assert [line.split("type=")[1][:5] for line in repr(service).splitlines()[2:]] == ["Shift", "scale", "Shift"]
    service.start()
    try:
        assert service(3) == 10
    finally:
        service.stop()


def test_the_worker_replays_and_does_not_import_the_program() -> None:
    """The worker has the module of what it serves, and not the tests that started it."""
    service = ServerModule(services.modules_of_the_worker).start()
    try:
        modules = service()
    finally:
        service.stop()
    assert "tests.serving.services" in modules
    assert not {"pytest", __name__, "lightning"} & set(modules)


def inside() -> Any:
    """Return a function that stands in this one."""

    def same(value: Any) -> Any:
        return value

    return same


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: lambda x: x, ConfigurationError, "is a lambda, which the server process cannot find by name"),
        (inside, ConfigurationError, "stands inside a function, where the server process cannot find it"),
        (lambda: nn.Linear(2, 2), ConfigurationError, "Linear is a plain torch module, which has no recipe"),
        (
            lambda: replayml.MultiLayerPerceptron(4, [8], 2),
            NotBuiltError,
            r"has no weights yet \(at 'blocks.0.layer'\)",
        ),
        (lambda: 3, ConfigurationError, "3 cannot be served"),
        (lambda: services.Shift(by=lambda: 0), RecipeError, "has no name by which it can be found again"),  # type: ignore[arg-type,return-value]
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(make: Any, error: type[Exception], message: str) -> None:
    """What the worker could not make again is refused before a process is started, by name."""
    service = ServerModule(make())
    with pytest.raises(error, match=message):
        service.start()
    assert (service.status()["model"], service.pids) == ("stopped", [])


def test_a_function_of_the_script_is_refused() -> None:
    """A function that stands in the script that runs is refused, with what to do."""
    copied = copy.copy(services.echo)
    function = type(copied)(copied.__code__, {}, "local")
    function.__module__ = "__main__"
    with pytest.raises(ConfigurationError, match="Put it into a module, and import it from there"):
        ServerModule(function).start()


def test_a_module_that_cannot_be_loaded_fails_at_the_start() -> None:
    """What is raised while the worker loads is raised by ``start()``, which leaves nothing running."""
    service = ServerModule(services.Unloadable())
    with pytest.raises(
        ServingError, match=r"\[start-failed\] Unloadable could not be served. .*there is no such device"
    ):
        service.start()
    assert service.pids == []


def test_a_model_without_rows_cannot_run_batches() -> None:
    """That outputs have rows is checked before the first request."""
    service = ServerModule(services.Summed(), example=torch.zeros(2, 3), batch=True)
    with pytest.raises(ServingError, match=r"cannot run requests as one batch.*Serve it with batch=False"):
        service.start()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": True}, "give example=, the inputs of one call"),
        ({"replicas": 0}, "replicas is 1 or more, not 0"),
        ({"limits": {"awnser": 1}}, "there is no limit 'awnser'. Did you mean 'answer'?"),
        ({"limits": {"body": -1}}, "the limit 'body' is a positive number, not -1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    """A service that could not work is not made."""
    with pytest.raises(ConfigurationError, match=message):
        ServerModule(services.echo, **options)


def test_an_async_function_is_refused() -> None:
    """A function that would have to be awaited is refused when the service is made, with what can be served."""
    with pytest.raises(ConfigurationError, match=r"sleep is an async function.*or an async generator"):
        ServerModule(asyncio.sleep)


# A service as a module ----------------------------------------------------------------------------------------


def test_new_of_a_service_is_a_service_that_does_not_run(batched: ServerModule) -> None:
    """What runs belongs to one object: copies, pickles and recipes hold the call alone."""
    configured = ServerModule(services.Shift(by=2)).configure(timeout=7.0)
    configured.start()
    try:
        assert configured(1) == 3
        for other in (configured.new(), copy.deepcopy(configured), pickle.loads(pickle.dumps(configured))):
            assert other.status()["model"] == "stopped"
            assert other._timeout == 7.0
            with pytest.raises(UnavailableError, match=r"\[not-started\] This service does not run"):
                other(1)
        assert "127.0.0.1" not in configured.recipe().to_json()
        assert configured.configure(timeout=8.0)(1) == 3  # what runs goes on
        again = configured.new().start()
        assert (again(1), again.pids != configured.pids) == (3, True)
        again.stop()
    finally:
        configured.stop()
    with pytest.raises(UnavailableError, match="does not run"):
        configured(1)


def test_a_service_is_saved_and_loaded(tmp_path: Path) -> None:
    """The file of a service holds the service, not what runs."""
    service = ServerModule(services.Shift(by=2), limits={"answer": 9.0}).start()
    try:
        service.save(tmp_path / "service.replayml")
    finally:
        service.stop()
    loaded = replayml.load(tmp_path / "service.replayml", trust=[services.Shift])
    assert loaded._spec.limits.answer == 9.0
    with loaded_service(loaded) as running:
        assert running(1) == 3


def loaded_service(service: ServerModule) -> Any:
    """Return a service that is stopped at the end of a block."""

    class Running:
        def __enter__(self) -> ServerModule:
            return service.start()

        def __exit__(self, *_: object) -> None:
            service.stop()

    return Running()


def test_starting_twice_starts_once(batched: ServerModule) -> None:
    """``start()`` of a service that runs leaves it as it is."""
    pids = batched.pids
    assert batched.start().pids == pids
    assert batched.status()["model"] == "deployed"


def test_restart_takes_new_settings() -> None:
    """``restart()`` starts the service as it is configured now."""
    shift = services.Shift(by=1)
    service = ServerModule(shift).start()
    try:
        service.module.configure(by=10)
        assert service(1) == 2
        assert service.restart()(1) == 11
    finally:
        service.stop()


def test_a_port_that_is_taken_is_refused(batched: ServerModule) -> None:
    """A service does not share the port of another."""
    port = int(batched.url.rpartition(":")[2])
    with pytest.raises(OSError, match=f"127.0.0.1:{port} cannot be bound"):
        ServerModule(services.echo, port=port).start()


def test_a_url_module_calls_a_service(echo: ServerModule, model: replayml.Module) -> None:
    """A service can be called from anywhere by its address, also as a part of another module."""
    remote = UrlModule(echo.url)
    try:
        assert remote({"a": 1}) == {"a": 1}
        assert asyncio.run(remote.acall(2)) == 2
        assert remote.new().url == echo.url
    finally:
        remote.close()


def test_nothing_that_answers_is_told() -> None:
    """No service, and one that is none, are told apart."""
    with pytest.raises(UnavailableError, match=r"\[no-connection\] There is no service") as found:
        UrlModule("http://127.0.0.1:9", timeout=0.3)(1)
    assert isinstance(found.value, ConnectionError)
    with pytest.raises(ConfigurationError, match="is no address of a service"):
        UrlModule("127.0.0.1:80")


def test_errors_of_calls_survive_pickling(failing: ServerModule) -> None:
    """An error of a call can be sent to another process."""
    with pytest.raises(ServingError) as found:
        failing("secret")
    again = pickle.loads(pickle.dumps(found.value))
    assert (str(again), again.code) == (str(found.value), "raised")


# Routes -------------------------------------------------------------------------------------------------------


def test_the_schema_tells_inputs_and_outputs(batched: ServerModule) -> None:
    """The OpenAPI document has shape and dtype of the real inputs and outputs."""
    document = ask(batched.url, "/schema").json
    assert document["openapi"].startswith("3.2")
    assert set(document["paths"]) == {"/", "/predict", "/healthz", "/readyz", "/schema", "/metrics"}
    predict = document["paths"]["/predict"]["post"]
    given = predict["requestBody"]["content"]["application/json"]["schema"]["properties"]["args"]["prefixItems"]
    assert [(item["x-dtype"], item["x-shape"]) for item in given] == [("float32", [-1, 4])]
    result = predict["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["result"]
    assert (result["x-dtype"], result["x-shape"]) == ("float32", [-1, 2])
    assert {"400", "403", "413", "422", "503", "504"} <= set(predict["responses"])


def test_probes_and_metrics_answer(batched: ServerModule) -> None:
    """The process tells that it lives, that it is ready, and what it has done."""
    assert ask(batched.url, "/healthz").json == {"alive": True}
    assert ask(batched.url, "/readyz").json == {"ready": True, "version": 1}
    metrics = ask(batched.url, "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert b'replayml_requests_total{route="/readyz",status="200"}' in metrics.body


def test_every_answer_has_its_request_id_in_the_log(tmp_path: Path) -> None:
    """The access log has one line for each request; a traceback stands in the log and in no answer."""
    log = tmp_path / "log.txt"
    service = ServerModule(services.fail, log=str(log)).start()
    try:
        reply = ask(service.url, body=b'{"args": ["secret"]}')
        ready = ask(service.url, "/readyz")
    finally:
        service.stop()
    request_id = reply.headers["x-request-id"]
    assert reply.json == {"error": {"code": "raised", "text": CODES["raised"].text, "id": request_id}}
    text = log.read_text()
    assert "the password is 1234" in text
    lines = [json.loads(line[line.index("{") :]) for line in text.splitlines() if '{"id"' in line]
    assert [(line["path"], line["status"], line["id"]) for line in lines] == [
        ("/predict", 500, reply.headers["x-request-id"]),
        ("/readyz", 200, ready.headers["x-request-id"]),
    ]


def test_a_connection_serves_many_requests(batched: ServerModule) -> None:
    """A connection is kept, also for several requests that are sent at once."""
    with Line(batched.url) as line:
        for _ in range(3):
            assert line.ask("/readyz").status == 200
        one = f"GET /readyz HTTP/1.1\r\nHost: {line.host}\r\n\r\n".encode()
        line.send(one)
        assert line.reply().status == 200
        assert line.ask(body=b'{"args": [[[1, 2, 3, 4]]]}').status == 200


def test_a_call_ends_in_time() -> None:
    """A call that takes longer than its time-out fails, with a code."""
    service = ServerModule(services.sleep, timeout=0.5).start()
    try:
        with pytest.raises(LateError, match=r"\[no-answer\] There was no answer within 0.5 s") as found:
            service(2.0)
        assert isinstance(found.value, TimeoutError)
    finally:
        service.stop()


@pytest.mark.parametrize("wrap", [lambda array: array, lambda array: (array,)])
def test_an_example_may_hold_arrays(wrap: Any) -> None:
    """An example of NumPy arrays is one of tensors."""
    example = np.zeros((1, 2), dtype=np.float32)
    with running(ServerModule(services.Shift(2).build(), example=wrap(example), batch=True)) as service:
        assert ask(service.url, body=b'{"args": [[[1.0, 2.0], [3.0, 4.0]]]}').status == 200
        assert ask(service.url, body=b'{"args": [[[1.0]]]}').code == "wrong-shape"


def test_wrong_inputs_are_refused_by_name(batched: ServerModule) -> None:
    """An input that does not fit is refused with what was expected, before the model runs."""
    with pytest.raises(RefusedError, match=r"\[wrong-shape\] .* expected: \[\*,4\]. found: \[1,5\]"):
        batched(torch.zeros(1, 5))
    with pytest.raises(RefusedError, match=r"\[wrong-dtype\] .* expected: float32. found: float64"):
        batched(torch.zeros(1, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"\[wrong-arguments\] .* missing a required argument: 'x'"):
        batched(z=1)
