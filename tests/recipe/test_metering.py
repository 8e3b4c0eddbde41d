"""The dry run: what a model takes is counted before anything is allocated."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import replayml
from replayml.core.errors import RecipeError
from replayml.core.tape import CallRecord
from replayml.recipe import Limits, Recipe
from replayml.recipe.text.metering import free_memory, measured, rehearse

LITTLE = Limits(memory=10**6, tensors=100, modules=50, seconds=20.0)


ENCODER = CallRecord(nn.TransformerEncoderLayer, (8, 2, 8), {"batch_first": True})


class Endless(replayml.Module):
    """Takes as many layers as it is told."""

    def __init__(self, depth: int, step: Any = nn.ReLU) -> None:
        super().__init__()
        self.layers = replayml.LayerList(*(replayml.Layer(step) for _ in range(depth)))


class Table(replayml.Module):
    """Makes a tensor of any size in its constructor, on a device that it names."""

    def __init__(self, rows: int, how: str = "zeros") -> None:
        super().__init__()
        make: dict[str, Callable[[], Any]] = {
            "zeros": lambda: torch.zeros(rows, 8, device="cpu"),
            "repeat": lambda: torch.zeros(1, 8).repeat(rows, 1),
            "clone": lambda: torch.zeros(1, 8).expand(rows, 8).clone(),
            "new": lambda: torch.zeros(1).new_ones(rows, 8),
            "like": lambda: torch.zeros_like(torch.zeros(1).expand(rows, 8)),
            "twice": lambda: [torch.zeros(rows, 8), torch.zeros(rows, 8)],
        }
        self.table = make[how]()


class Curious(replayml.Module):
    """Looks at the values of a tensor, which has none in a dry run."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.first = torch.ones(3)[0].item()
        self.table = torch.zeros(rows)


HOSTILE: list[tuple[str, Callable[[], Any]]] = [
    ("too-much-memory", lambda: nn.Linear(10**9, 10**9)),
    ("too-much-memory", lambda: nn.Linear(10**10, 10**10)),
    ("too-much-memory", lambda: nn.Embedding(10**5, 10**5)),
    ("too-much-memory", lambda: nn.Embedding(10**30, 2)),
    ("too-much-memory", lambda: nn.Transformer(512, 8, 50)),
    ("too-much-memory", lambda: replayml.Layer(nn.Linear, 10**9, 10**9).build()),
    ("too-much-memory", lambda: replayml.MultiLayerPerceptron(4, [10**6] * 3, 2).build()),
    *(("too-much-memory", lambda how=how: Table(10**12, how)) for how in ("zeros", "repeat", "clone", "new", "like")),
    ("too-much-memory", lambda: Table(20_000, "twice")),
    ("too-many-tensors", lambda: nn.RNN(1, 1, 100)),
    ("too-many-tensors", lambda: [torch.ones(1) for _ in range(10**9)]),
    ("too-many-tensors", lambda: [torch.tensor(1) for _ in range(10**9)]),
    ("too-many-modules", lambda: Endless(10**9)),
    ("too-many-modules", lambda: replayml.MultiLayerPerceptron(4, [1] * 10**5, 2)),
]


@pytest.mark.parametrize(("code", "make"), HOSTILE, ids=range(len(HOSTILE)))
def test_what_takes_too_much_is_refused_before_it_is_allocated(code: str, make: Callable[[], Any]) -> None:
    """Sizes beyond any machine, and numbers without end, are refused with the limit that they pass."""
    with pytest.raises(
        RecipeError, match=rf"^\[{code}\] at model: .* Raise Limits\(\w+=\)\. Nothing was allocated|64 bits"
    ):
        rehearse(make, LITTLE)


def test_time_is_limited() -> None:
    """A constructor that goes on for ever, but makes little at a time, is stopped."""

    def slowly() -> Any:
        layer = nn.Linear(1, 1)
        while True:
            layer.weight.detach().add_(1)

    with pytest.raises(RecipeError, match=r"too-slow.*takes longer than 0\.1 seconds\. Raise Limits\(seconds=\)"):
        rehearse(slowly, Limits(seconds=0.1))


@given(st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_a_dry_run_counts_what_is_made(rows: int, columns: int, bias: bool) -> None:
    """Bytes and tensors are those of the real thing, and the limit that just fits lets it through."""
    real = nn.Linear(rows, columns, bias)
    size = sum(parameter.nbytes for parameter in real.parameters())
    done = rehearse(lambda: nn.Linear(rows, columns, bias), Limits(memory=size, tensors=1 + bias))
    assert (done.bytes, done.tensors, done.modules) == (size, 1 + bias, 0)
    assert done.made is not None
    assert {p.device.type for p in done.made.parameters()} == {"meta"}
    with pytest.raises(RecipeError, match=f"brings the tensors to {size} bytes; the limit is {size - 1}"):
        rehearse(lambda: nn.Linear(rows, columns, bias), Limits(memory=size - 1))


def test_modules_that_are_gone_do_not_count() -> None:
    """A constructor that makes and drops modules holds one at a time."""

    def again_and_again() -> Any:
        for _ in range(10):
            found = replayml.Layer(nn.ReLU)
        return found

    assert rehearse(again_and_again, Limits(modules=3)).modules <= 3


def test_the_usual_limits_are_generous_and_promised() -> None:
    """Half of the memory that is free, 200 000 tensors, 20 000 modules, 30 seconds."""
    limits = Limits()
    assert (limits.memory, limits.tensors, limits.modules, limits.seconds) == (None, 200_000, 20_000, 30.0)
    half = free_memory() // 2
    assert rehearse(lambda: torch.empty(half // 2, dtype=torch.uint8), limits).bytes == half // 2
    with pytest.raises(RecipeError, match="half of the memory that is free is"):
        rehearse(lambda: torch.empty(half * 4, dtype=torch.uint8), limits)


def test_an_error_of_the_model_comes_through() -> None:
    """What a constructor raises by itself is raised as it is."""
    with pytest.raises(ValueError, match="divisible"):
        rehearse(lambda: nn.GroupNorm(3, 4), LITTLE)
    with pytest.raises(TypeError, match="must be tuple of ints"):
        rehearse(lambda: torch.empty("a"), LITTLE)  # type: ignore[arg-type]


def test_a_dry_run_leaves_the_generators_alone() -> None:
    """Random numbers that a constructor draws in a dry run are drawn again for real."""
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index]  # noqa: NPY002

    def draw() -> Any:
        random.random()
        np.random.rand()  # noqa: NPY002
        return nn.Linear(2, 2)

    rehearse(draw, LITTLE)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == [random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index]  # noqa: NPY002


def recursing(depth: int = 0) -> int:
    """Call itself for ever."""
    return recursing(depth + 1) + 1


@pytest.mark.parametrize(
    ("make", "code", "message"),
    [
        (lambda: tuple(range(2**62)), "too-much-memory", "its values take more memory than there is"),
        (lambda: bytes(2**62), "too-much-memory", "its values take more memory than there is"),
        (recursing, "too-deep", r"goes deeper than \d+ calls\. Raise sys\.setrecursionlimit"),
    ],
    ids=["tuple", "bytes", "recursion"],
)
def test_the_ends_of_the_machine_are_refusals(make: Callable[[], Any], code: str, message: str) -> None:
    """No memory for a list, and no stack for a call, are told like any other limit, with the error that they were."""
    with pytest.raises(RecipeError, match=rf"^\[{code}\] at model: .*{message}") as caught:
        rehearse(make, LITTLE)
    assert isinstance(caught.value.__cause__, (MemoryError, RecursionError))


ENDLESS: dict[str, tuple[Any, Any]] = {
    "copies": ((nn.TransformerEncoder, (CallRecord(nn.ReLU), 10**9)), (nn.TransformerEncoder, (ENCODER, 3))),
    "weights": ((nn.LSTM, (1, 1, 10**9)), (nn.LSTM, (1, 1, 30))),
    "names": ((nn.RNN, (1, 1, 10**18)), (nn.RNN, (1, 1, 30))),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_one_call_of_torch_does_not_go_on_and_on(name: str) -> None:
    """A number that a layer of torch counts up to is refused by default, and a small one makes the layer."""
    (cls, hostile), (honest_cls, honest) = ENDLESS[name]
    with pytest.raises(
        RecipeError, match=r"^\[too-(slow|much-memory)\] at model: one step goes on .*Limits\(seconds=\)"
    ):
        Recipe.of(CallRecord(cls, hostile)).model()
    assert isinstance(Recipe.of(CallRecord(honest_cls, honest)).model(), honest_cls)


@pytest.mark.parametrize("layers", [nn.ReLU, nn.PReLU])
def test_many_layers_are_made(layers: Any) -> None:
    """Thousands of layers, each a call of its own, are no call that goes on."""
    record = CallRecord(replayml.Sequential, tuple(CallRecord(replayml.Layer, (layers,)) for _ in range(5000)))
    assert len(Recipe.of(record).model()) == 5000
    assert len(Recipe.of(CallRecord(nn.Sequential, (CallRecord(layers),) * 9000)).model()) == 9000


# Recipes ------------------------------------------------------------------------------------------------------------


def limited(model: Any, limits: Limits = LITTLE) -> Recipe:
    """Return the recipe of a model, to be made within limits."""
    return Recipe.from_json(Recipe.of(model).to_json(), limits=limits)


def test_a_recipe_is_run_dry_before_its_model_is_made() -> None:
    """`Recipe.model` refuses what takes too much, and makes what does not, for real."""
    with pytest.raises(
        RecipeError, match=r"too-much-memory.*\(1000000000, 1000000000\) and float32.*Nothing was alloc"
    ):
        limited(CallRecord(nn.Linear, (10**9, 10**9))).model()
    with pytest.raises(RecipeError, match="too-many-modules"):
        limited(CallRecord(Endless, (10**9,))).model()
    made = limited(CallRecord(nn.Linear, (3, 4))).model()
    assert made.weight.device.type == "cpu"
    assert limited(CallRecord(Endless, (10,))).model().layers[9].classtype is nn.ReLU


def test_a_limit_is_no_error_of_the_constructor() -> None:
    """A ``try`` in a constructor or in a replayed call does not swallow a refusal."""

    class Careful(replayml.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            try:
                self.table = torch.zeros(rows)
            except Exception:  # noqa: BLE001 - what this test is about
                self.table = torch.zeros(1)

    recipe = limited(CallRecord(Careful, (10**12,)))
    with pytest.raises(RecipeError, match="too-much-memory"):
        recipe.model()
    edited = replayml.Layer(nn.Linear, 1, 1)
    assert Recipe.of(CallRecord(Careful, (3,))).model().table.shape == (3,)
    assert edited.recipe().model() is not edited


def test_a_constructor_that_needs_values_is_measured_on_the_way() -> None:
    """What cannot be run dry is made for real, each tensor counted just before."""
    assert rehearse(lambda: Curious(3), LITTLE).made is None
    assert measured(lambda: Curious(3), LITTLE).table.device.type == "cpu"
    with pytest.raises(RecipeError, match=r"too-much-memory.*brings the tensors to \d+ bytes.*Limits\(memory=\)\.$"):
        measured(lambda: Curious(10**14), LITTLE)
    with pytest.raises(RecipeError, match="too-much-memory"):
        limited(CallRecord(Curious, (10**14,))).model()


def test_dry_runs_in_threads_do_not_see_each_other() -> None:
    """Each thread counts what it makes itself, and what one refuses another makes."""
    small = Recipe.of(replayml.MultiLayerPerceptron(4, [8] * 3, 2).recipe().record())
    huge = limited(CallRecord(Endless, (10**9,)))

    def work(number: int) -> str:
        if number % 4 == 0:
            with pytest.raises(RecipeError, match="too-many-modules"):
                huge.model()
            return "refused"
        return str(small.model())

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(24)))
    assert found == ["refused" if number % 4 == 0 else str(small.model()) for number in range(24)]
