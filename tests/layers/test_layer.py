"""`Layer`: a torch layer that is made later, with the sizes that it finds in its input."""

from __future__ import annotations

import copy
import inspect
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import ArgumentError, BuildError, ConfigurationError, NotBuiltError
from replayml.layers.containers import LayerList, Sequential
from replayml.layers.layer import Layer
from replayml.module.module import Module

sizes = st.integers(1, 6)

# Layers with the arguments that make them, without weights that differ from call to call.
LAYERS: dict[type[nn.Module], st.SearchStrategy[dict[str, Any]]] = {
    nn.Linear: st.fixed_dictionaries({"in_features": sizes, "out_features": sizes}, optional={"bias": st.booleans()}),
    nn.Bilinear: st.fixed_dictionaries({"in1_features": sizes, "in2_features": sizes, "out_features": sizes}),
    nn.Conv2d: st.fixed_dictionaries(
        {"in_channels": sizes, "out_channels": sizes, "kernel_size": st.integers(1, 3)},
        optional={"bias": st.booleans(), "padding": st.sampled_from([0, 1, "same"])},
    ),
    nn.BatchNorm1d: st.fixed_dictionaries({"num_features": sizes}, optional={"affine": st.booleans()}),
    nn.Embedding: st.fixed_dictionaries({"num_embeddings": sizes, "embedding_dim": sizes}),
    nn.Dropout: st.fixed_dictionaries({}, optional={"p": st.floats(0, 1), "inplace": st.booleans()}),
    nn.ReLU: st.fixed_dictionaries({}, optional={"inplace": st.booleans()}),
    nn.GELU: st.fixed_dictionaries({}, optional={"approximate": st.sampled_from(["none", "tanh"])}),
    nn.Tanh: st.just({}),
}
CALLS = st.sampled_from(list(LAYERS)).flatmap(lambda cls: st.tuples(st.just(cls), LAYERS[cls]))


def names_of(cls: type[nn.Module]) -> list[str]:
    """Return the names of the arguments of a torch layer, in order."""
    return list(inspect.signature(cls).parameters)


def looks(module: nn.Module) -> Any:
    """Return what tells one torch layer from another, without the values of its weights."""
    return type(module), repr(module), {name: tensor.shape for name, tensor in module.state_dict().items()}


# The torch layer itself -------------------------------------------------------------------------------------------


@given(call=CALLS, positional=st.booleans(), tree=st.booleans(), seed=st.integers(0, 99))
def test_a_built_layer_is_the_torch_layer(call: Any, positional: bool, tree: bool, seed: int) -> None:
    """The result of ``build`` is what the class makes of the same arguments, and draws the same weights."""
    cls, arguments = call
    leading = list(itertools.takewhile(arguments.__contains__, names_of(cls) if positional else ()))
    rest = {name: value for name, value in arguments.items() if name not in leading}
    layer: Any = Layer(cls, *[arguments[name] for name in leading], **rest)
    torch.manual_seed(seed)
    built = LayerList([layer]).build()[0] if tree else layer.build()
    torch.manual_seed(seed)
    expected = cls(**arguments)
    assert looks(built) == looks(expected)
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), expected.parameters(), strict=True))
    assert "_record" not in vars(built)


@given(before=CALLS, after=CALLS)
def test_another_class_takes_the_arguments_that_it_knows(before: Any, after: Any) -> None:
    """``configure(cls)`` drops the arguments that the new class does not take, and keeps the others."""
    (old, given_before), (new, given_after) = before, after
    layer: Any = Layer(old, **given_before)
    assert layer.configure(new, **given_after) is layer
    assert layer.classtype is new
    kept = {name: value for name, value in given_before.items() if name in names_of(new)}
    assert layer.kwargs == {**kept, **given_after}
    expected = new(**{**kept, **given_after})
    assert looks(layer.new().build()) == looks(expected)
    assert looks(layer.build()) == looks(expected)


@given(call=CALLS, others=st.lists(st.sampled_from(list(LAYERS)), max_size=3))
def test_only_the_last_class_counts(call: Any, others: list[type[nn.Module]]) -> None:
    """A layer whose class was swapped several times is the last one; a failed swap changes nothing."""
    cls, arguments = call
    layer: Any = Layer(nn.ReLU)
    for other in others:
        layer.configure(other)
    layer.configure(cls, **arguments)
    with pytest.raises(ArgumentError, match=f"{cls.__name__} takes no 'nothing'"):
        layer.configure(cls, nothing=1)
    assert looks(layer.build()) == looks(cls(**arguments))


def test_creating_leaves_the_layer_unbuilt() -> None:
    """``create`` makes another torch layer at each call; the layer can still be configured."""
    layer: Any = Layer(nn.Linear, 1, 2)
    one, two = layer.create(), layer.configure(out_features=3).create()
    assert (one.out_features, two.out_features) == (2, 3)
    assert not layer._has_built
    assert repr(layer) == "Layer(Linear, in_features=1, out_features=3)"


# What may be wrapped ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (dict, "Layer wraps a subclass of torch.nn.modules.module.Module, not <class 'dict'>"),
        (3, "Layer wraps a subclass of torch.nn.modules.module.Module, not 3"),
        (nn.ReLU(), r"not ReLU\(\)\. Give its class: ReLU"),
    ],
)
def test_only_a_class_of_torch_modules_is_wrapped(thing: Any, message: str) -> None:
    """Anything else is refused when it is given; a module in the place of a class gets a hint."""
    with pytest.raises(ArgumentError, match=message):
        Layer(thing)
    layer: Any = Layer(nn.Tanh)
    with pytest.raises((ArgumentError, ConfigurationError), match="not "):
        layer.configure(thing)
    assert layer.classtype is nn.Tanh
    assert len(layer.tape) == 0


def test_a_function_that_makes_a_module_is_wrapped() -> None:
    """A callable that returns a torch module has the place of a class; its arguments are checked like one's."""

    def stack(width: int, *, depth: int = 2) -> nn.Module:
        return nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])

    layer: Any = Layer(stack, 3)
    layer.configure(depth=4)
    assert len(layer.new().build()) == 4
    with pytest.raises(ArgumentError, match=r"stack takes no 'deep'\. Did you mean 'depth'"):
        Layer(stack, 3, deep=1)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (
            (1,),
            {"out_feature": 2},
            r"Linear takes no 'out_feature'\. Did you mean 'out_features'\? It takes: in_features, ",
        ),
        (
            (1, 2, True, None, None, 9),
            {},
            "Linear takes at most 5 positional arguments and got 6; the first one too many is 9",
        ),
        ((1,), {"in_features": 2}, "Linear got 'in_features' twice: 1 as positional argument 1 and 2 by keyword"),
    ],
)
def test_wrong_arguments_are_refused_when_they_are_given(args: Any, kwargs: Any, message: str) -> None:
    """A constructor and a swap of the class check the arguments at once, and say what is right."""
    with pytest.raises(ArgumentError, match=message):
        Layer(nn.Linear, *args, **kwargs)
    layer: Any = Layer(nn.ReLU)
    with pytest.raises(ArgumentError, match=message):
        layer.configure(nn.Linear, *args, **kwargs)
    assert layer.classtype is nn.ReLU


class Kinds(nn.Module):
    """Has parameters of every kind, with names that replayml uses itself."""

    def __init__(
        self, name: int, value: int = 2, /, method: int = 3, *args: int, where: int, tags: int = 6, **kwargs: int
    ):
        super().__init__()
        self.got = (name, value, method, args, where, tags, kwargs)


@pytest.mark.parametrize(
    ("make", "got"),
    [
        (lambda: Layer(Kinds, 1, where=5), (1, 2, 3, (), 5, 6, {})),
        (lambda: Layer(Kinds, 1, 7, 8, 9, 10, where=5, tags=0, x=4), (1, 7, 8, (9, 10), 5, 0, {"x": 4})),
        (lambda: Layer(Kinds, 1, where=5).configure(value=7, method=8), (1, 7, 8, (), 5, 6, {})),
        (lambda: Layer(Kinds, 1, 2, 3, 4, where=5).configure(name=0, kwargs=9), (0, 2, 3, (4,), 5, 6, {"kwargs": 9})),
        (lambda: Layer(Kinds, 1, 2, 3, 4, where=5).configure(Kinds, 9, where=8), (9, 2, 3, (4,), 8, 6, {})),
        (lambda: Layer(Kinds, 1, 2, 3, 4, where=5).configure(Kinds, 1, 1, 1, 1, where=1), (1, 1, 1, (1,), 1, 6, {})),
        (lambda: Layer(nn.ReLU, inplace=True).configure(Kinds, 1, where=5), (1, 2, 3, (), 5, 6, {"inplace": True})),
    ],
)
def test_each_kind_of_parameter_and_each_name_reaches_the_class(make: Any, got: Any) -> None:
    """Positional-only, keyword-only and variadic parameters, and names that replayml uses, are passed on as given."""
    layer = make()
    assert layer.new().build().got == got
    assert layer.build().got == got


# Sizes ------------------------------------------------------------------------------------------------------------


@given(features=sizes, out=sizes, how=st.sampled_from(["none", "left out", "configured"]))
def test_an_open_size_is_read_off_the_example_input(features: int, out: int, how: str) -> None:
    """A size that is None or left out comes from the input of ``build``; the layer itself keeps it open."""
    layer: Any = Layer(nn.Linear, out_features=out) if how == "left out" else Layer(nn.Linear, None, out)
    if how == "configured":
        layer = Layer(nn.Linear, 9, out).configure(in_features=None)
    x = torch.zeros(2, features)
    assert layer.create(x).in_features == features
    chain: Any = Sequential([layer.new(), Layer(nn.ReLU), Layer(nn.Linear, None, 3)])
    built = chain.create(x)
    assert (built[0].in_features, built[2].in_features) == (features, out)
    assert chain[0].kwargs.get("in_features") is None
    assert built.new().tape == chain.tape


def test_a_size_that_is_still_open_stops_the_build() -> None:
    """The error names the place, what is lacking, the two ways on and the line; the model is as before."""

    class Net(Module):
        def __init__(self) -> None:
            self.block = LayerList([Layer(nn.Linear, None, 2)])

    model: Any = Net()
    with pytest.raises(
        BuildError,
        match=r"Linear at 'block\.0' lacks in_features\. Configure it, or let build\(.*\(made at .*test_layer\.py:\d+",
    ):
        model.build()
    assert not model._has_built
    model.block[0].configure(in_features=4)
    assert model.build().block[0].in_features == 4


def test_an_argument_without_a_size_rule_must_be_given() -> None:
    """What no input tells is lacking until it is configured, with or without an example."""
    layer: Any = Layer(nn.Linear, 3)
    with pytest.raises(BuildError, match="Linear lacks out_features"):
        layer.create(torch.zeros(1, 3))
    assert layer.configure(out_features=2).build(torch.zeros(1, 3)).out_features == 2


def test_a_layer_class_of_the_users_own_reads_its_sizes_too() -> None:
    """``register_computed`` tells how an argument follows from the input; a given value is kept."""

    class Scale(nn.Module):
        def __init__(self, features: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(features))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    @Layer.register_computed(Scale)
    def features(x: torch.Tensor) -> int:
        return x.shape[-1]

    assert features(torch.zeros(1, 4)) == 4
    assert Layer(Scale).build(torch.zeros(2, 5)).weight.shape == (5,)
    assert Layer(Scale, 1).build(torch.zeros(2, 5)).weight.shape == (1,)


# Before the build -------------------------------------------------------------------------------------------------


def test_an_unbuilt_layer_does_not_run() -> None:
    """Calling it names its place and ``build``."""
    x = torch.zeros(1, 1)
    with pytest.raises(NotBuiltError, match=r"Linear has no weights yet\. Build the model first: model\.build\(\)"):
        Layer(nn.Linear, 1, 1)(x)
    with pytest.raises(NotBuiltError, match=r"Linear at '0' has no weights yet"):
        Sequential([Layer(nn.Linear, 1, 1)])(x)


@given(call=CALLS)
def test_an_unbuilt_layer_has_no_weights(call: Any) -> None:
    """It holds no tensor and says so where weights are asked for; its attributes are its arguments."""
    cls, arguments = call
    layer: Any = Layer(cls, **arguments)
    assert not layer._parameters
    assert not layer._buffers
    with pytest.raises(NotBuiltError, match="needs weights, which do not exist yet"):
        layer.state_dict()
    assert layer.configurables >= {*arguments, "classtype"}
    for name, value in arguments.items():
        assert getattr(layer, name) == value
    for again in (layer.new(), copy.deepcopy(layer)):
        assert (again.classtype, again.kwargs) == (cls, arguments)
