"""Faults that libraries of this kind had; each must not be here."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import replayml
from replayml.core.errors import AlreadyBuiltError, ArgumentError, ConfigurationError, SelectionError
from replayml.core.hooks import after_build, stateful
from replayml.layers.containers import LayerList, Parallel, Sequential
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.module import Module


class Net(Module):
    """A nest of three levels."""

    def __init__(self, width: int = 4) -> None:
        self.hidden = Sequential(Layer(nn.Linear, 4, width), Layer(nn.ReLU))
        self.items = LayerList(Sequential(Layer(nn.Linear, width, width)), Layer(nn.Dropout, 0.5))
        self.out = Layer(nn.Linear, width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, 4)``."""
        x = self.hidden(x)
        for item in self.items:
            x = item(x)
        out: torch.Tensor = self.out(x)
        return out


def test_forward_of_a_built_model_does_not_grow_the_tape() -> None:
    """Running a built model that writes attributes in ``forward`` records nothing."""

    class Writing(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = x.shape
            self.out.count = 1
            return super().forward(x)

    built = Writing().build()
    for _ in range(4):
        built(torch.zeros(1, 4))
    assert len(built.tape) == 0


def test_a_layer_given_twice_is_not_random_the_second_time() -> None:
    """A layer at two places has one set of weights after ``build`` and after ``create``."""
    layer = Layer(nn.Linear, 3, 3)
    model = Sequential(layer, Layer(nn.ReLU), layer)
    for built in (model.create(), model.build()):
        assert built[0] is built[2]
        assert torch.equal(built.state_dict()["0.weight"], built.state_dict()["2.weight"])


def test_an_attribute_set_on_a_grandchild_is_kept_by_new() -> None:
    """An attribute written at any depth is in the copy, and after a reconstruction."""
    model = Net()
    model.items[0][0].scale = 7
    model.hidden.note = ["x"]
    assert model.new().items[0][0].scale == 7
    model.configure(width=5)
    assert (model.items[0][0].scale, model.hidden.note) == (7, ["x"])
    assert model.new().new().hidden.note == ["x"]


def test_a_deep_copy_of_a_built_model_keeps_mode_type_ties_and_hooks() -> None:
    """``copy.deepcopy`` of a built model is torch's own."""
    seen: list[int] = []
    built = Net().build().to(torch.float64).eval()
    built.out.weight = built.items[0][0].weight
    built.out.register_forward_hook(lambda *_: seen.append(1))
    copied = copy.deepcopy(built)
    assert not copied.training
    assert copied.out.weight.dtype == torch.float64
    assert copied.out.weight is copied.items[0][0].weight
    assert copied.out.weight is not built.out.weight
    copied(torch.zeros(1, 4, dtype=torch.float64))
    assert seen == [1]


@pytest.mark.parametrize("wrapper", [Layer, External])
def test_misspelt_and_surplus_arguments_are_refused_when_they_are_given(wrapper: Any) -> None:
    """A wrong keyword or too many positional arguments of the wrapped class raise at once, and name the right one."""
    with pytest.raises(ArgumentError, match=r"takes no 'bais'. Did you mean 'bias'\?"):
        wrapper(nn.Linear, 8, 8, bais=False)
    with pytest.raises(ArgumentError, match=r"takes"):
        wrapper(nn.Linear, 8, 8, True, None, None, 7)
    with pytest.raises(TypeError):
        wrapper(nn.Linear, 8, 8, in_features=8)
    layer = wrapper(nn.Linear, 8, 8)
    with pytest.raises(ConfigurationError, match=r"Did you mean 'bias'\?"):
        layer.configure(bais=False)
    with pytest.raises(ArgumentError, match="takes no 'bais'"):
        layer.configure(nn.Conv1d, 8, 8, 3, bais=False)
    assert layer.new().kwargs == {"in_features": 8, "out_features": 8}


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (lambda: Net(), {"width": 3}),
        (lambda: Layer(nn.Linear, 1, 1), {"bias": False}),
        (lambda: External(dict, a=1), {"a": 2}),
        (lambda: LayerList(Layer(nn.Linear, 1, 1)), {"bias": False}),
        (lambda: Sequential(Layer(nn.Linear, 1, 1)), {"bias": False}),
        (lambda: Parallel(Layer(nn.Linear, 1, 1)), {"bias": False}),
    ],
)
def test_configure_returns_the_module(make: Any, arguments: dict[str, Any]) -> None:
    """``configure`` of each class returns the module itself, so that calls chain."""
    module = make()
    assert module.configure(**arguments) is module


@pytest.mark.parametrize("depth", [12, 16])
def test_a_nest_runs_polynomially_many_constructors(depth: int) -> None:
    """A nest in which each level sets something on the next one runs far fewer than 2**depth constructors."""

    class Nest(Module):
        runs: ClassVar[int] = 0

        def __init__(self, depth: int, width: int = 1) -> None:
            Nest.runs += 1
            self.width = width
            if depth:
                self.inner = Nest(depth - 1)
                self.inner.configure(width=width + 1)

    model = Nest(depth)
    assert Nest.runs <= (depth + 1) ** 3 / 2
    Nest.runs = 0
    model.configure(width=5)
    assert Nest.runs <= (depth + 1) ** 3 / 2
    inner: Any = model
    while "inner" in inner._modules:
        inner = inner.inner
    assert inner.width == 5 + depth


def test_compiling_does_not_compile_again_on_each_call() -> None:
    """``torch.compile`` compiles the forward pass of a built model once for inputs of one shape."""
    built = Net().build().eval()
    count = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal count
        count += 1
        return graph.forward

    torch._dynamo.reset()
    compiled: Any = torch.compile(built, backend=backend, fullgraph=True)
    x = torch.randn(2, 4)
    for _ in range(5):
        torch.testing.assert_close(compiled(x), built(x))
    assert count == 1


@pytest.mark.parametrize(
    "selector", ["nothing", ("hidden", 7), (..., "nothing"), "**.nothing", ("items", "layer#3"), slice(9, 12)]
)
def test_a_selection_that_matches_nothing_raises_when_it_is_used(selector: Any) -> None:
    """A call on an empty selection raises and changes nothing; asking for its length does not."""
    model = Net()
    selection = model[selector]
    assert len(selection) == 0
    with pytest.raises(SelectionError, match="matches nothing in Net"):
        selection.configure(bias=False)
    assert len(model.tape) == 0


def test_new_works_after_the_model_was_built_trained_and_pickled() -> None:
    """A built and trained model gives an unbuilt copy of its recipe, also after pickling."""
    built = Net().configure(width=6).build()
    optimizer = torch.optim.Adam(built.parameters())
    built(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    for model in (built, pickle.loads(pickle.dumps(built)), copy.deepcopy(built)):
        again = model.new()
        assert not again._has_built
        assert again.hidden[0].out_features == 6


class Tied(Module):
    """One whose layers share a weight once they are built."""

    def __init__(self) -> None:
        self.a = Layer(nn.Linear, 2, 2)
        self.b = Layer(nn.Linear, 2, 2)

    @after_build
    def tie(self) -> None:
        """Share the weight."""
        self.b.weight = self.a.weight


def test_an_after_build_hook_runs_once_and_again_in_a_copy() -> None:
    """A call that waits for the build runs once on each build of each copy."""
    model = Tied()
    model.tie()
    first, second = model.create(), model.create()
    for built in (first, second, first.new().build()):
        assert built.b.weight is built.a.weight
    assert first.a.weight is not second.a.weight


def test_the_arguments_recorded_are_the_callers() -> None:
    """Mixins, decorated and chained ``__init__`` do not change which arguments are recorded."""

    class Mixin:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.mixed = True

    class Mixed(Mixin, Net):
        def __init__(self, size: int = 1, *, width: int = 2) -> None:
            super().__init__(width=width + size)
            self.size = size

    class Derived(Net):
        def __init__(self, size: int = 2) -> None:
            super().__init__(size * 2)

    class Bare(Module):
        def __init__(self, width: int = 1) -> None:
            self.layer = Layer(nn.Linear, width, 1)

    mixed = Mixed(3, width=1)
    assert mixed._actual_init_args == {"args": (3,), "kwargs": {"width": 1}}
    assert (mixed.mixed, mixed.out.in_features, mixed.configure(width=7).new().out.in_features) == (True, 4, 10)
    assert Derived(3)._actual_init_args == {"args": (3,), "kwargs": {}}
    assert Derived(3).new().out.in_features == 6
    assert Derived(3).configure(size=5).out.in_features == 10
    assert Bare(4).configure(width=5).new().layer.in_features == 5


def test_signatures_stay_those_of_the_user() -> None:
    """``inspect.signature`` of a class shows the user's ``__init__``."""
    assert list(inspect.signature(Net).parameters) == ["width"]
    assert str(inspect.signature(Layer)).startswith("(classtype")
    assert replayml.Module is Module


def test_an_init_that_runs_again_gets_the_containers_as_they_are_recorded() -> None:
    """What an ``__init__`` takes out of a list, when it runs again, is there for the next run and for copies."""

    class Popping(Module):
        def __init__(self, sizes: Any = (2, 2)) -> None:
            sizes = list(sizes) if type(sizes) is tuple else sizes
            first = sizes.pop(0)
            self.layers = LayerList([Layer(nn.Linear, first, size) for size in sizes])

    model = Popping()
    model.configure(sizes=[1, 2, 3, 4])
    assert len(model.layers) == len(model.new().layers) == len(model.new().layers) == 3


def test_a_call_on_a_part_of_two_models_is_replayed_once() -> None:
    """A ``@stateful`` call that stands on the tapes of both models is made once in a copy of either."""

    class Counter(Module):
        def __init__(self) -> None:
            self.n = 0

        @stateful
        def add(self) -> None:
            self.n += 1

    class Around(Module):
        def __init__(self, part: Any = None) -> None:
            self.part: Any = Counter() if part is None else part

    first = Around()
    second = Around(first.part)
    first.part.add()
    second.part.add()
    assert first.new().part.n == second.new().part.n == 2


def test_buffers_and_parameters_of_the_user_are_recorded() -> None:
    """What the user registers on an unbuilt model, or on a layer of it, is in its copies and in the built model."""

    class Net(Module):
        def __init__(self, width: int = 2) -> None:
            self.layer = Layer(nn.Linear, 2, width)

    model = Net()
    model.register_buffer("mask", torch.ones(1))
    model.register_buffer("cache", torch.ones(1), persistent=False)
    model.register_parameter("scale", nn.Parameter(torch.ones(1)))
    model.layer.register_buffer("seen", torch.zeros(1))
    model.configure(width=3)
    expected = {"scale", "mask", "layer.weight", "layer.bias", "layer.seen"}
    for other in (model.new(), model):
        built = other.build()
        assert set(built.state_dict()) == expected
        assert "cache" in dict(built.named_buffers())


def test_a_call_that_fails_takes_back_what_it_did_to_lists_and_dicts() -> None:
    """Changes in place of lists, dicts and sets among the attributes are undone with the rest."""

    class Failing(Module):
        def __init__(self) -> None:
            self.numbers: list[int] = [1]
            self.names: dict[str, int] = {}
            self.kinds: set[int] = {3}

        @stateful
        def spoil(self) -> None:
            self.numbers.append(2)
            self.names["a"] = 1
            self.kinds.clear()
            raise ValueError("stop")

    model = Failing()
    numbers = model.numbers
    with pytest.raises(ValueError, match="stop"):
        model.spoil()
    assert (model.numbers, model.names, model.kinds) == ([1], {}, {3})
    assert model.numbers is numbers


def test_a_part_that_was_taken_out_and_put_back_is_the_users() -> None:
    """What made the part makes another one when it is constructed again, in the model as in its copies."""

    class Block(Module):
        def __init__(self, width: int) -> None:
            self.inner = Layer(nn.Linear, width, width)

    class Net(Module):
        def __init__(self, width: int = 32) -> None:
            self.body = LayerList([Block(width) for _ in range(3)])
            self.head: Any = Block(width)

    model = Net()
    model.body.append(model.body.pop(0))
    head = model.head
    model.head = model.body[0]
    model.body[0] = head
    model.configure(width=6)
    for other in (model, model.new(), model.new().new()):
        assert [block.inner.in_features for block in other.body] == [32, 6, 32]
        assert other.head.inner.in_features == 6


class Growing(Module):
    """A module that adds to the list that it is given."""

    def __init__(self, part: Any = None) -> None:
        self.part = part
        if isinstance(part, LayerList):
            part.append(Layer(nn.ReLU))


@pytest.mark.parametrize("is_shared", [False, True])
@pytest.mark.parametrize(("is_configured", "size"), [(True, 1), (False, 2)])
def test_a_part_that_leaves_is_what_its_record_says(is_shared: bool, is_configured: bool, size: int) -> None:
    """What an ``__init__`` did to an argument is undone when it runs again, stays otherwise, and is told once."""
    part = LayerList(Layer(nn.Tanh))
    other = LayerList(part) if is_shared else None
    model = Growing(part)
    if is_configured:
        model.configure(part=Layer(nn.GELU))
    else:
        model.part = Layer(nn.GELU)
    assert (len(part), len(part.new())) == (size, size)
    if other is not None:
        assert len(other.new()[0]) == size


def test_an_unbuilt_part_is_refused_by_a_built_model() -> None:
    """Assigning an unbuilt layer to a built model names the ways out, and changes nothing."""
    model: Any = Sequential(Layer(nn.Linear, 2, 2)).build()
    model.head = nn.Tanh()
    with pytest.raises(AlreadyBuiltError, match=r"is built, and what is assigned to 'head' is not.*replace\(new, x\)"):
        model.head = Layer(nn.ReLU)
    assert isinstance(model.head, nn.Tanh)
