"""What holds built models, services and data sets is served: as one model that a worker replays."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import replayml
from replayml.core.errors import CheckpointError, ConfigurationError
from replayml.lifecycle.action import ActionModule
from replayml.lifecycle.binding import _0, bind
from replayml.lifecycle.branches import parallel
from replayml.lifecycle.flows import pipeline
from replayml.recipe.files.reading import read_model_file
from replayml.serving.errors import ServingError
from replayml.serving.packing.packing import pack
from replayml.serving.packing.whole import whole
from replayml.serving.server import ServerModule, UrlModule
from tests.serving import services
from tests.serving.redis import SLOW


def encoder(seed: int = 0) -> Any:
    """Return a built model that finds its sizes itself."""
    return replayml.MultiLayerPerceptron(None, [8], 4).build(torch.zeros(1, 4), seed=seed)


def head(seed: int = 1) -> Any:
    """Return a built model."""
    return replayml.MultiLayerPerceptron(4, [8], 2).build(seed=seed)


def packed(model: Any, folder: Path) -> tuple[dict[str, Any], str, Any]:
    """Return what a worker gets, the text of the recipe, and what it makes of it."""
    found = pack(model, folder)
    known: tuple[Any, ...] = (services.scaled, services.echo, Pair, torch.add, abs)
    trust = [each for each in known if any(place.endswith(f":{each.__name__}") for place in found["trust"])]
    return found, read_model_file(found["place"]).recipe, replayml.load(found["place"], trust=trust)


class Pair(replayml.Module):
    """A module of the user that was given built ones."""

    def __init__(self, parts: list[Any], last: Any = None) -> None:
        self.parts = replayml.LayerList(*parts)
        self.last = last

    def forward(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x if self.last is None else self.last(x)


class Keeper(replayml.Module):
    """A module of the user that hides what it was given from torch."""

    def __init__(self, kept: list[Any]) -> None:
        self.kept = kept

    def forward(self, x: Any) -> Any:
        return self.kept[0](x)


# Built models in what is served ---------------------------------------------------------------------------------


def named() -> Any:
    """Return a flow whose steps were assigned."""
    with pipeline() as flow:
        flow.encoder = encoder()
        flow.head = head()
    return flow


def bound() -> Any:
    """Return a flow with a step that gets the input of the flow as well."""
    with pipeline() as flow:
        flow.encoder = encoder()
        flow.sum = bind(torch.add, flow.input, _0)
    return flow


def shared() -> Any:
    """Return a flow with one model in two places."""
    part = encoder()
    return pipeline(part, part, head())


CASES: dict[str, Callable[[], Any]] = {
    "steps": lambda: pipeline(encoder(), head()),
    "keywords": lambda: pipeline(encoder=encoder(), head=head()),
    "appended": lambda: pipeline(encoder()).append(head()),
    "assigned": named,
    "bound": bound,
    "shared": shared,
    "built as a whole": lambda: pipeline(encoder(), head()).build(),
    "an action": lambda: ActionModule(encoder(), head()),
    "a flow in a flow": lambda: pipeline(pipeline(encoder(), services.scaled), head()),
    "a plain container": lambda: pipeline(nn.Sequential(encoder(), nn.Tanh()), head()),
    "plain layers": lambda: pipeline(nn.Linear(4, 4), encoder()),
    "a module of the user": lambda: Pair([encoder(), encoder(2)], head()),
    "a built module of the user": lambda: Pair([encoder()], replayml.MultiLayerPerceptron(4, [], 2)).build(),
    "functions of Python": lambda: pipeline(encoder(), abs),
    "parts of a model": lambda: pipeline(encoder().blocks[0], replayml.MultiLayerPerceptron(8, [], 2).build(seed=1)),
    "another type": lambda: pipeline(encoder().double(), head().double()),
}


@pytest.mark.parametrize("case", CASES)
def test_built_models_in_what_is_served_keep_their_weights(case: str, tmp_path: Path) -> None:
    """What a worker replays gives the same as what the program has, which stays as it was."""
    torch.manual_seed(0)
    model = CASES[case]()
    before, random = str(model), torch.get_rng_state()
    dtype = next((each.dtype for each in model.parameters()), torch.float32)
    x = torch.randn(3, 4, dtype=dtype)
    expected = model(x)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.set_rng_state(random)
    _, _, again = packed(model, tmp_path)
    assert torch.equal(again(x), expected)
    assert torch.equal(model(x), expected)
    assert str(model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_branches_of_built_models_are_served(tmp_path: Path) -> None:
    """Models side by side keep their weights as well."""
    model, x = parallel(encoder(), head()), torch.randn(3, 4)
    _, _, again = packed(model, tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(model(x), again(x), strict=True))


def test_what_is_shared_stays_one(tmp_path: Path) -> None:
    """A model that stands twice is one in the worker, and its weights are stored once."""
    _, _, again = packed(shared(), tmp_path)
    first, second, _ = again.steps.values()
    assert first is second


def test_a_model_and_a_part_of_it_may_stand_side_by_side(tmp_path: Path) -> None:
    """The part has the weights of the whole, though it is another object in the worker."""
    part = encoder()
    model, x = pipeline(part, part.blocks[0]), torch.randn(3, 4)
    _, _, again = packed(model, tmp_path)
    assert torch.equal(again(x), model(x))


def test_packing_copies_no_weights() -> None:
    """The copy that is saved has the very memory of the weights."""
    model = pipeline(encoder(), head())
    found = whole(model).model
    assert found is not model
    pairs = zip(model.state_dict().values(), found.state_dict().values(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)


def test_what_needs_no_change_is_saved_as_it_is() -> None:
    """A model without any of that is no copy."""
    model = encoder()
    assert whole(model).model is model
    flow = pipeline(services.scaled)
    assert whole(flow).model is flow


def test_a_part_that_was_changed_is_refused(tmp_path: Path) -> None:
    """What the worker would not have is not left out."""
    part = encoder()
    part[..., "activation"].first.replace(nn.Tanh())
    with pytest.raises(CheckpointError, match="was changed after its build"):
        pack(pipeline(part, head()), tmp_path)


def test_a_part_that_torch_does_not_see_is_refused(tmp_path: Path) -> None:
    """A built model in a plain list would lose its weights, and is told where it stands."""
    with pytest.raises(ConfigurationError, match=r"model\.0\.kept holds a MultiLayerPerceptron in a list"):
        pack(pipeline(Keeper([encoder()]), head()), tmp_path)


def test_a_part_without_weights_is_named(tmp_path: Path) -> None:
    """A model that still lacks its weights is told by its path."""
    with pytest.raises(replayml.NotBuiltError, match=r"at '1\.blocks\.0\.layer'"):
        pack(pipeline(encoder(), replayml.MultiLayerPerceptron(4, [8], 2)), tmp_path)


# Data sets ------------------------------------------------------------------------------------------------------


def test_data_sets_do_not_travel(tmp_path: Path) -> None:
    """What a service is trained and evaluated with stays in the program, however large it is."""
    rows = torch.zeros(20_000, 64)
    part = encoder()
    flow = pipeline(part, head())
    flow.evalset(rows)
    app = replayml.Regressor(replayml.MultiLayerPerceptron(4, [8], 2))
    app.trainset((rows, rows))
    app.evalset((rows, rows))
    app.build()
    for model in (flow, app, pipeline(part, app)):
        folder = tmp_path / str(id(model))
        folder.mkdir()
        _, recipe, _ = packed(model, folder)
        assert "trainset" not in recipe
        assert "evalset" not in recipe
        assert len(recipe) < 100_000


# Services in services -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerModule, Any, Any]]:
    """A service of services, one of which stands twice and takes a token; and what is behind them."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("t" * 40)
    first, last = encoder(), head()
    inner = ServerModule(first, token_file=str(token), limits=SLOW)
    with pipeline() as flow:
        flow.first = inner
        flow.again = inner
        flow.last = ServerModule(Pair([last]), example=torch.zeros(1, 4), batch=8, limits=SLOW)
    service = ServerModule(flow, example=torch.zeros(1, 4), batch=8, limits=SLOW).start()
    try:
        yield service, first, last
    finally:
        service.stop()


def test_results_of_services_in_a_service_are_those_of_the_modules(nested: tuple[ServerModule, Any, Any]) -> None:
    """A call goes through all of them, each in a process of its own."""
    service, first, last = nested
    x = torch.randn(5, 4)
    assert torch.equal(service(x), last(first(first(x))))
    assert set(service.status().values()) == {"deployed"}
    flow = service.module
    assert len({*service.pids, *flow.first.pids, *flow.last.pids}) == 3


def test_what_the_worker_gets_has_clients_in_the_places_of_services(
    nested: tuple[ServerModule, Any, Any], tmp_path: Path
) -> None:
    """Neither inner models nor the token are in the file; what stands twice is one client; the user's stays."""
    service, _, _ = nested
    found, recipe, again = packed(service.module, tmp_path)
    assert "ServerModule" not in recipe
    assert "MultiLayerPerceptron" not in recipe
    assert "tttttttt" not in recipe
    assert again.first is again.again
    assert (type(again.first), type(again.last)) == (UrlModule, UrlModule)
    assert again.first.url == service.module.first.url
    assert set(found["owners"]) == {service.module.first.url, service.module.last.url}
    assert not any(secret in recipe for secret in found["owners"].values())
    assert type(service.module.first) is ServerModule
    assert "UrlModule" not in json.dumps(str(service))


@pytest.fixture(scope="module")
def doubling() -> Iterator[ServerModule]:
    """A service that runs."""
    service = ServerModule(services.scaled, limits=SLOW).start()
    yield service
    service.stop()


def bound_to_input(service: Any) -> Any:
    """Return a flow in which a service gets the input of the flow."""
    with pipeline() as flow:
        flow.echo = services.echo
        flow.last = bind(service, flow.input, by=_0)
    return flow


PLACES: dict[str, Callable[[Any], Any]] = {
    "a step": lambda service: pipeline(service, services.echo),
    "a step that was added": lambda service: pipeline(services.echo).append(service),
    "a step that was put in the place of another": lambda service: replaced(pipeline(encoder(), service), service),
    "a flow in a flow": lambda service: pipeline(pipeline(service), service),
    "an action": lambda service: ActionModule(service, services.echo),
    "a list of a module": lambda service: Pair([service, service]),
    "an argument of a module": lambda service: Pair([], service),
    "a branch": lambda service: parallel(service, services.echo),
    "a bound step": bound_to_input,
    "a plain container": lambda service: pipeline(nn.Sequential(service, encoder())),
    "beside a built model": lambda service: pipeline(service, encoder()),
    "a flow that was built": lambda service: pipeline(service, encoder()).build(),
}


def replaced(flow: Any, service: Any) -> Any:
    """Return a flow whose first step is a service by now."""
    flow.replace("0", service)
    return flow


@pytest.mark.parametrize("place", PLACES)
def test_a_service_is_a_client_wherever_it_stands(place: str, doubling: ServerModule, tmp_path: Path) -> None:
    """What a worker replays calls the service that the program has there, and the program keeps its own."""
    model = PLACES[place](doubling)
    before, x = str(model), torch.randn(3, 4)
    expected = model(x)
    _, recipe, again = packed(model, tmp_path)
    clients = [each for each in again.modules() if isinstance(each, UrlModule)]
    assert [client.url for client in clients] == [doubling.url]
    assert not any(isinstance(each, ServerModule) for each in again.modules())
    assert "ServerModule" not in recipe
    found = again(x)
    pairs = zip(found, expected, strict=True) if isinstance(expected, tuple) else [(found, expected)]
    assert all(torch.equal(one, other) for one, other in pairs)
    assert str(model) == before


def test_new_of_a_nested_service_is_one(nested: tuple[ServerModule, Any, Any]) -> None:
    """A copy of a running service holds services, not clients, and does not run."""
    service, _, _ = nested
    again = service.new()
    assert type(again.module.first) is ServerModule
    assert set(again.status().values()) == {"stopped"}


def test_an_exception_of_an_inner_service_comes_through() -> None:
    """It keeps its class and text through both services; what is nobody's business is kept back; a lost one is told."""
    lost = UrlModule("http://127.0.0.1:9", timeout=0.5)
    router = services.Router(ServerModule(services.fail, limits=SLOW), lost)
    service = ServerModule(ServerModule(router, limits=SLOW), limits=SLOW).start()
    try:
        with pytest.raises(ValueError, match="no such row") as found:
            service("value")
        assert any("raised by the module behind" in note for note in found.value.__notes__)
        with pytest.raises(ServingError, match=r"\[raised\]") as kept:
            service("secret")
        assert "1234" not in str(kept.value)
        with pytest.raises(ServingError, match=r"\[raised\] .* UnavailableError: \[no-connection\]"):
            service("lost")
    finally:
        service.stop()


def test_an_inner_service_that_does_not_run_is_named() -> None:
    """Starting the outer one alone says which one it lacks, and what starts both."""
    service = ServerModule(pipeline(first=services.scaled, second=ServerModule(services.scaled)))
    with pytest.raises(ConfigurationError, match=r"the ServerModule at 'model\.second' .* Call start\(\) of the whole"):
        service.start(recursive=False)
    assert set(service.status().values()) == {"stopped"}


def test_a_copy_of_packed_things_is_independent(tmp_path: Path) -> None:
    """Packing leaves nothing behind that a deep copy of the user's flow would notice."""
    model = pipeline(encoder(), head())
    pack(model, tmp_path)
    again = copy.deepcopy(model)
    x = torch.randn(2, 4)
    with suppress(OSError):
        (tmp_path / "model.replayml").unlink()
    assert torch.equal(again(x), model(x))
