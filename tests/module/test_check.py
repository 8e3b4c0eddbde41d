"""`check`: every unset, mistyped or shape-inconsistent value, in one pass and before any weight exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.core.tape import Where
from replayml.layers.containers import LayerList, Parallel, Sequential
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.layers.optimizer import Adam
from replayml.module.annotations import contradicts
from replayml.module.checking import Problem, check
from replayml.module.module import Module

X = torch.zeros(2, 4)


def found(model: Any, *args: Any, **kwargs: Any) -> list[str]:
    """Return the problems as texts without lines."""
    return [str(Problem(problem.path, problem.name, problem.message)) for problem in model.check(*args, **kwargs)]


def named(model: Any, *args: Any) -> list[tuple[str, str | None]]:
    """Return where the problems are."""
    return [(".".join(problem.path), problem.name) for problem in model.check(*args)]


# Sizes ------------------------------------------------------------------------------------------------------------


def test_every_contradicted_size_is_listed_at_once() -> None:
    """After a mistake the pass goes on with what the input says, so that later mistakes are found as well."""
    net = Sequential(
        Layer(nn.Linear, 8, 16),
        Layer(nn.ReLU),
        Layer(nn.Linear, 8, 9),
        Layer(nn.BatchNorm1d, 3),
        Layer(nn.LayerNorm, [7]),
        Layer(nn.Linear, None, 2),
    )
    assert found(net, X) == [
        "0.in_features is 8, but its input says 4",
        "2.in_features is 8, but its input says 16",
        "3.num_features is 3, but its input says 9",
        "4.normalized_shape is [7], but its input says (9,)",
    ]


@pytest.mark.parametrize(
    ("layer", "shape", "name"),
    [
        (Layer(nn.Conv1d, 8, 3, 1), (2, 4, 5), "in_channels"),
        (Layer(nn.Conv2d, 8, 3, 1), (2, 4, 5, 5), "in_channels"),
        (Layer(nn.ConvTranspose2d, 8, 3, 1), (2, 4, 5, 5), "in_channels"),
        (Layer(nn.BatchNorm2d, 8), (2, 4, 5, 5), "num_features"),
        (Layer(nn.GroupNorm, 2, 8), (2, 4, 5), "num_channels"),
        (Layer(nn.PReLU, 8), (2, 4), "num_parameters"),
        (Layer(nn.LSTM, 8, 3), (2, 3, 4), "input_size"),
        (Layer(nn.GRUCell, 8, 3), (2, 4), "input_size"),
        (Layer(nn.TransformerEncoderLayer, 8, 8), (2, 3, 4), "d_model"),
    ],
)
def test_torchs_layers_are_compared_with_their_input(layer: Any, shape: tuple[int, ...], name: str) -> None:
    """Each layer whose size is one of its input is checked, also where the meta device itself does not."""
    assert named(layer, torch.zeros(shape)) == [("", name)]


def test_a_size_has_the_line_that_gave_it() -> None:
    """The line is that of the setting in force, not that of the layer."""
    net = Sequential(Layer(nn.Linear, 4, 8))
    net[0].configure(in_features=5)  # here
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    (problem,) = net.check(X)
    assert isinstance(problem.where, Where)
    assert lines[problem.where.line - 1].endswith("# here")
    assert str(problem) == f"0.in_features is 5, but its input says 4 ({problem.where})"


class Scale(nn.Module):
    """A layer without a rule; one that broadcasts."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Any) -> Any:
        return x * self.weight


class Broadcast(Scale):
    """One with a rule."""


@Layer.register_computed(Broadcast)
def features(x: Any) -> int:
    """Return the number of features."""
    return int(x.shape[-1])


def test_a_users_rule_counts_only_where_the_layer_refuses_the_input() -> None:
    """What runs is not complained about, even if a rule would have chosen another size."""
    assert found(Layer(Broadcast, 1), X) == []
    assert found(Sequential(Layer(Broadcast, 3), Layer(nn.Linear, 5, 1)), X) == [
        "0.features is 3, but its input says 4",
        "1.in_features is 5, but its input says 4",
    ]


def test_a_layer_without_a_rule_tells_its_error() -> None:
    """Where no size is to blame, the layer and torch's words are told."""
    (text,) = found(Sequential(Layer(Scale, 3), Layer(nn.Linear, 5, 1)), X)
    assert text.startswith("0 cannot run the example input: RuntimeError: ")


class Joined(Module):
    """A model whose own forward is wrong."""

    def __init__(self) -> None:
        self.left = Layer(nn.Linear, 4, 3)
        self.right = Layer(nn.Linear, 5, 2)
        self.unused = Layer(nn.Linear, None, 2)

    def forward(self, x: Any) -> Any:
        left, right = self.left(x), self.right(x)
        return left + right  # wrong


def test_a_forward_that_fails_is_told_with_its_line() -> None:
    """An error between the layers is a problem of the module whose forward it is."""
    joined, right = Joined().check(X)
    assert (joined.path, joined.name) == ((), None)
    assert joined.message.startswith("cannot run the example input: RuntimeError: ")
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert joined.where is not None
    assert lines[joined.where.line - 1].endswith("# wrong")
    assert (right.path, right.name) == (("right",), "in_features")


def test_a_layer_that_the_input_does_not_reach_keeps_its_open_size() -> None:
    """An open size that no input tells is unset, and building would say so."""

    class Skipping(Joined):
        def forward(self, x: Any) -> Any:
            return self.left(x)

    assert found(Skipping(), X) == [
        "unused.in_features has no value, and the example input does not come by. Configure it"
    ]


def test_a_shared_layer_with_two_inputs_is_compared_with_both() -> None:
    """A size that was read off the first input is held against the second."""
    layer = Layer(nn.Linear, None, 3)
    (problem,) = Sequential(layer, layer).check(X)
    assert (problem.name, problem.message) == ("in_features", "is 4, but its input says 3")


# Values that are missing ------------------------------------------------------------------------------------------


def test_unset_values_are_listed_without_an_input() -> None:
    """Required arguments that are absent or None are told, and how to give them."""
    net = Sequential(Layer(nn.Linear, None, 8), Layer(nn.Linear, 8), Layer(nn.Conv2d, 3, None, 1), External(divmod, 7))
    assert found(net) == [
        "0.in_features has no value. Configure it, or give an example input that tells it",
        "1.out_features has no value, and Linear needs one. Configure it",
        "2.out_channels has no value, and Conv2d needs one. Configure it",
        "3.y has no value, and divmod needs one. Configure it",
    ]


def test_an_input_tells_open_sizes_but_nothing_else() -> None:
    """With an input only what it cannot tell is unset; what lies behind is not made up."""
    assert found(Sequential(Layer(nn.Linear, None, None), Layer(nn.Linear, None, 2)), X) == [
        "0.out_features has no value, and Linear needs one. Configure it"
    ]


def test_an_optimizer_needs_no_parameters_yet() -> None:
    """What a class gets later is not missing now."""

    class Trained(Module):
        def __init__(self) -> None:
            self.optimizer = Adam(lr=0.1)

    assert found(Trained()) == []


# Values of a wrong kind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (Layer(nn.Linear, 4, "8"), "out_features is '8', a str; Linear takes int"),
        (Layer(nn.Linear, 4, 2.5), "out_features is 2.5, a float; Linear takes int"),
        (Layer(nn.Linear, 4, 8, bias="False"), "bias is 'False', a str; Linear takes bool"),
        (Layer(nn.LeakyReLU, [0.1]), "negative_slope is [0.1], a list; LeakyReLU takes float"),
        (Layer(nn.Conv2d, 3, 8, "3"), "kernel_size is '3', a str; Conv2d takes"),
        (Layer(nn.Linear, -1, 4), "in_features is -1: Trying to create tensor with negative dimension -1"),
        (Layer(nn.Dropout, 2), "p is 2: dropout probability has to be between 0 and 1, but got 2"),
        (Layer(nn.MultiheadAttention, 4, 3), "num_heads is 3: embed_dim must be divisible by num_heads"),
        (Layer(nn.Conv2d, 4, 8, 3, groups=3), "groups is 3: in_channels must be divisible by groups"),
        (Layer(nn.GRU, 4, "a"), "hidden_size is 'a', a str; GRU takes int"),
        (Layer(Scale, "a"), "features is 'a', a str; Scale takes int"),
        (Layer(Scale, -1), "the model cannot be made: RuntimeError: Trying to create tensor with negative"),
    ],
)
def test_a_value_that_a_layer_cannot_take_is_told(layer: Any, text: str) -> None:
    """A wrong kind of value, or one that the real layer refuses, is told with the argument that is at fault."""
    (only,) = found(layer)
    assert only.startswith(text)


def test_several_wrong_values_of_one_layer_are_told() -> None:
    """A value of a wrong kind does not hide one that the layer refuses, and does not blame others."""
    assert named(Layer(nn.Linear, -1, 4, bias="no")) == [("", "bias"), ("", "in_features")]
    assert named(Layer(nn.Conv2d, "8", 4, 1, groups=2)) == [("", "in_channels")]
    assert named(Layer(nn.Conv2d, 8, 4, 1, groups=2), torch.zeros(1, 3, 2, 2)) == [("", "in_channels")]


def test_a_wrong_value_in_a_layer_without_weights_does_not_end_the_pass() -> None:
    """Behind a dropout with a wrong probability sizes are still compared; behind a layer that may reshape, not."""
    tail = Layer(nn.Linear, 5, 1)
    assert named(Sequential(Layer(nn.Dropout, 2.0), tail), X) == [("0", "p"), ("1", "in_features")]
    assert named(Sequential(Layer(nn.Flatten, "a"), tail.new()), torch.zeros(2, 4, 3)) == [("0", "start_dim")]


class Wide(Module):
    """A model with annotations of its own."""

    def __init__(self, width: int = 8, rate: "float | None" = None, kind: Optional[str] = None) -> None:  # noqa: UP037, UP045 - spellings under test
        self.layer = Layer(nn.Linear, 4, width)
        self.rate = rate
        self.kind = kind

    def forward(self, x: Any) -> Any:
        return self.layer(x)


def test_arguments_of_ones_own_modules_are_compared_with_their_annotations() -> None:
    """The same holds for the modules that a user writes."""
    make: Any = Wide
    assert found(make(2.5, "high", 3)) == [
        "width is 2.5, a float; Wide takes int",
        "rate is 'high', a str; Wide takes float | None",
        "kind is 3, an int; Wide takes Optional[str]",
        "layer.out_features is 2.5, a float; Linear takes int",
    ]
    assert found(make(np.int64(3), 1, "x"), X) == []


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (True, int, False),
        (np.float32(1), float, False),
        (np.float32(1), int, True),
        (torch.tensor(3), int, False),
        (int, int, True),
        (1, bool, False),
        (nn.ReLU, bool, True),
        (nn.ReLU, str, False),
        (3, str, True),
        ((1, 2), int, True),
        ((1, 2), Union[int, tuple[int, int]], False),  # noqa: UP007 - both spellings are read
        ([1, 2], int | tuple[int, int], False),
        ("12", list[int], True),
        (None, int, False),
        ("x", nn.Module, False),
        ("x", "nn.Module", False),
        ("x", "list[int]", False),
        ("x", "int | None", True),
    ],
)
def test_only_certain_contradictions_count(value: Any, annotation: Any, expected: bool) -> None:
    """An annotation that is not one of the simple ones takes anything."""
    assert contradicts(value, annotation) is expected


# No false alarms --------------------------------------------------------------------------------------------------


class Reading(Module):
    """A model that reads the values of its tensors, when it is made and when it runs."""

    def __init__(self, depth: int = 3) -> None:
        self.rates = [Layer(nn.Dropout, rate).classtype for rate in torch.linspace(0, 0.5, depth).tolist()]
        self.layers = LayerList([Layer(nn.Linear, 4, 4) for _ in range(depth)])
        self.last = Layer(nn.Linear, None, 2)

    def forward(self, x: Any) -> Any:
        x = self.layers[0](x)
        if x.sum().item() > 0:
            x = self.layers[1](x)
        return self.last(x)


def test_what_the_meta_device_cannot_tell_is_no_problem() -> None:
    """A model that reads values of tensors is checked up to there."""
    assert found(Reading(), X) == []
    net = Reading()
    net.layers[0].configure(in_features=5)
    net.layers[1].configure(bias="no")
    assert named(net, X) == [("layers.0", "in_features"), ("layers.1", "bias")]


def test_inputs_of_any_structure_are_taken() -> None:
    """Dicts, lists and keywords reach the layers as they would in a build."""
    mapped = Layer(nn.Linear, 8, 3).set_input_map("x")
    assert named(mapped, {"x": X}) == [("", "in_features")]
    assert [problem.name for problem in Layer(nn.Linear, 8, 3).check(input=X)] == ["in_features"]

    class Second(Module):
        def __init__(self) -> None:
            self.layer = Layer(nn.Linear, 8, 3)

        def forward(self, both: Any, more: Any) -> Any:
            return self.layer(both["x"][1] + more)

    assert named(Second(), {"x": [None, X]}, X) == [("layer", "in_features")]


def test_a_size_that_is_computed_makes_new_children_that_are_checked() -> None:
    """Children that come with a computed setting are watched like the others."""

    class Computed(Module):
        def __init__(self, width: Any = None) -> None:
            self.layers = LayerList([Layer(nn.Linear, width, 3), Layer(nn.Linear, 7, 2)])

        def forward(self, x: Any) -> Any:
            return self.layers[1](self.layers[0](x))

    net = Computed()
    net.computed("width", lambda x: x.shape[-1])
    assert found(net, X) == ["layers.1.in_features is 7, but its input says 3"]


def test_modules_among_the_arguments_are_checked_where_they_stand() -> None:
    """A layer inside a layer has its own path; the outer one is not judged by it."""
    inner = Layer(nn.TransformerEncoderLayer, 8, 3)
    assert named(Layer(nn.TransformerEncoder, inner, 2, enable_nested_tensor=False)) == [("encoder_layer", "nhead")]
    good = Layer(nn.TransformerEncoderLayer, 8, 2)
    net = Layer(nn.TransformerEncoder, good, 2, enable_nested_tensor=False)
    assert found(net, torch.zeros(2, 3, 8)) == []
    assert found(net) == []


def test_a_wrapped_module_of_ones_own_is_checked_inside() -> None:
    """What a `Layer` of a replayml module holds has the path that it will have."""
    assert named(Sequential(Layer(Wide, -3))) == [("0.layer", "out_features")]


def test_a_class_that_is_no_module_is_never_called() -> None:
    """Checking opens no file and starts no process."""
    calls: list[int] = []
    assert found(External(calls.append, 1)) == []
    assert found(Layer(nn.Sequential, External(calls.append, 1))) == []
    assert calls == []


def test_hooks_before_the_build_are_heard() -> None:
    """A hook may set what is missing; one that fails is told, and those after the build are not run."""
    done: list[Any] = []
    layer = Layer(nn.Linear, 4).register_after_build_hook(done.append)
    layer.register_before_build_hook(lambda module: module.configure(out_features=3))
    assert found(layer) == []
    assert done == []
    layer.register_before_build_hook(lambda module: module.kwargs["none"])
    assert found(layer) == ["the model cannot be prepared for the build: KeyError: 'none'"]


def test_a_module_without_forward_says_so() -> None:
    """An example input for a list, or a wrong number of inputs, is a problem like any other."""
    assert found(LayerList(Layer(nn.ReLU)), X) == ["the model has no forward to take the example input"]
    (text,) = found(Wide(), X, X)
    assert text.startswith("the model cannot run the example input: TypeError: ")


def test_nothing_is_changed_or_allocated() -> None:
    """Model, inputs and random generators are as before, and terabytes of weights cost nothing."""
    net = Sequential(Layer(nn.Linear, 8, 1_000_000), Layer(nn.Linear, None, 1_000_000), nn.Linear(2, 2))
    x = torch.ones(2, 4, requires_grad=True)
    text, tape, state = repr(net), list(net.tape), torch.get_rng_state()
    assert named(net, x) == [("", None), ("0", "in_features")]
    assert (repr(net), list(net.tape)) == (text, tape)
    assert torch.equal(state, torch.get_rng_state())
    assert (x.device.type, net[2].weight.device.type) == ("cpu", "cpu")


def test_a_built_model_and_a_part_of_a_model_are_checked_like_new_ones() -> None:
    """A built model is checked as its record, a part as it stands in the tree."""
    net = Sequential(Layer(nn.Linear, None, 3), Wide())
    net[1].configure(width=5)
    assert named(net[1], torch.zeros(2, 9)) == [("layer", "in_features")]
    net[1].layer.configure(in_features=3)
    built = net.create(X)
    assert found(built, torch.zeros(2, 6)) == []
    assert named(built) == [("0", "in_features")]


# In general -------------------------------------------------------------------------------------------------------

widths = st.integers(1, 6)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Any, Any, list[int]]:
    """Return a chain of layers that fit together, an input for it, and the indices of those with a size to spoil."""
    width = draw(widths)
    x = torch.zeros(2, width)
    layers: list[Any] = []
    sized = []
    for index in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["linear", "open", "norm", "relu", "parallel", "plain", "nested"]))
        out = draw(widths)
        if kind in ("linear", "norm"):
            sized.append(index)
        if kind == "linear":
            layers.append(Layer(nn.Linear, width, out))
        elif kind == "open":
            layers.append(Layer(nn.Linear, None, out, bias=False))
        elif kind == "norm":
            layers.append(Layer(nn.LayerNorm, [width]))
        elif kind == "relu":
            layers.append(Layer(nn.ReLU, inplace=draw(st.booleans())))
        elif kind == "parallel":
            layers.append(Sequential(Parallel(Layer(nn.Linear, width, 1), Layer(nn.Tanh)), Joining()))
            out = width + 1
        elif kind == "plain":
            layers.append(nn.Linear(width, out))
        else:
            layers.append(Sequential(Layer(nn.Linear, None, out), Layer(nn.BatchNorm1d, None)))
        if kind not in ("norm", "relu"):
            width = out
    return Sequential(layers), x, sized


class Joining(Module):
    """Joins what comes side by side."""

    def forward(self, parts: Any) -> Any:
        """Return the parts as one."""
        return torch.cat(parts, dim=-1)


@given(chain=chains())
def test_what_can_be_built_has_no_problems(chain: Any) -> None:
    """A model that builds with an input has no problems with it."""
    net, x, _ = chain
    net.create(x)
    assert found(net, x) == []


@given(chain=chains(), data=st.data())
def test_exactly_the_spoiled_sizes_are_found(chain: Any, data: Any) -> None:
    """However many sizes are wrong, these and no others are listed."""
    net, x, sized = chain
    spoiled = data.draw(st.lists(st.sampled_from(sized), unique=True)) if sized else []
    for index in spoiled:
        if net[index].classtype is nn.Linear:
            net[index].configure(in_features=net[index].in_features + 10)
        else:
            net[index].configure(normalized_shape=[net[index].normalized_shape[0] + 10])
    assert [int(problem.path[0]) for problem in check(net, (x,))] == sorted(spoiled)
    assert all("give an example input" in problem.message for problem in check(net))
