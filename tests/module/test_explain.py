"""`explain`: where a value comes from, by which line, and what it won over."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import ConfigurationError
from replayml.core.tape import Where, caller
from replayml.layers.containers import LayerList, Sequential
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.explain import Explanation, explain
from replayml.module.module import Module

HERE = Path(__file__)


def line_of(text: str) -> Where:
    """Return the one line of this file that ends with a comment."""
    lines = HERE.read_text(encoding="utf-8").splitlines()
    (number,) = [index for index, line in enumerate(lines, 1) if line.endswith(f"# {text}")]
    return Where(caller_file(), number)


def caller_file() -> str:
    """Return the name of this file, as a tape spells it."""
    where = caller()
    assert where is not None
    return where.file


class Block(Module):
    """A block whose depth its owner configures."""

    def __init__(self, width: int = 4, depth: int = 1) -> None:
        self.layers = LayerList([Layer(nn.Linear, width, width) for _ in range(depth)])  # made in Block

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


class Net(Module):
    """A model with every kind of candidate: open sizes, tied layers, settings from above."""

    def __init__(self, width: int = 8, activation: Any = None, sizes: Any = (3, 5)) -> None:
        self.hidden = Layer(nn.Linear, None, width)  # made in Net
        self.activation = activation or Layer(nn.ReLU)
        self.block = Block(width)
        self.block.configure(depth=2)  # configured in Net
        self.tied = self.block.layers[0]
        self.out = Layer(nn.Linear, width, sizes[1])

    def forward(self, x: Any) -> Any:
        return self.out(self.block(self.activation(self.hidden(x))))


def configured() -> Any:
    """Return a model whose width has three sources."""
    net = Net(width=16)  # given
    net.configure(width=32)  # first
    net.configure(width=64)  # second
    return net


def sources(explanation: Explanation) -> list[tuple[Any, Any]]:
    """Return the values and sources of all candidates."""
    return [(candidate.value, candidate.source) for candidate in explanation.candidates]


# Who wins ---------------------------------------------------------------------------------------------------------


def test_every_candidate_is_told_with_source_line_and_reason() -> None:
    """The winner comes first; each loser says where it came from and why it lost."""
    found = configured().explain("", "width")
    assert (found.path, found.name, found.owner, found.value, found.source) == ((), "width", "Net", 64, None)
    assert found.where == line_of("second")
    assert sources(found) == [(64, None), (32, None), (16, "argument"), (8, "default")]
    assert [candidate.where for candidate in found.candidates[1:]] == [line_of("first"), line_of("given"), None]
    assert [candidate.reason for candidate in found.candidates] == [
        "",
        "the user set it again later",
        "what is configured replaces the argument",
        "a default counts only where nothing else is given",
    ]


def test_the_text_answers_why() -> None:
    """``str`` is one headline and a line for each loser."""
    lines = str(configured().explain("", "width")).splitlines()
    assert lines[0] == f"width of Net is 64, configured by the user at {line_of('second')}"
    assert lines[1] == f"  not 32, configured by the user at {line_of('first')}: the user set it again later"
    assert lines[3] == "  not 8, the default of Net: a default counts only where nothing else is given"


def test_a_setting_of_an_outer_init_has_its_tags_as_source() -> None:
    """What an ``__init__`` configures below it loses against the user, and beats the argument."""
    net = Net()
    found = net.explain("block", "depth")
    assert (found.value, found.source, found.where) == (2, (), line_of("configured in Net"))
    net.block.configure(depth=3)
    found = net.explain("block", "depth")
    assert sources(found) == [(3, None), (2, ()), (1, "default")]
    assert found.candidates[1].reason == "the user's setting beats that of an __init__"


class Inner(Module):
    """The innermost of three levels."""

    def __init__(self, size: int = 1) -> None:
        self.size = size


class Middle(Module):
    """A level that configures the innermost."""

    def __init__(self) -> None:
        self.inner = Inner(0)
        self.inner.configure(size=2)
        self.inner.configure(size=3)


class Outer(Module):
    """A level that configures it as well."""

    def __init__(self) -> None:
        self.middle = Middle()
        self.middle.inner.configure(size=4)


def test_the_source_closest_to_the_root_wins() -> None:
    """Among settings of several levels the reasons follow the rule of the config."""
    found = Outer().explain("middle.inner", "size")
    assert sources(found) == [(4, ()), (3, ("middle",)), (2, ("middle",)), (0, "argument"), (1, "default")]
    reasons = [candidate.reason for candidate in found.candidates]
    assert reasons[1:3] == ["what is set from closer to the root counts"] * 2
    reasons = [candidate.reason for candidate in Middle().explain("inner", "size").candidates]
    assert reasons[1] == "it was set again later"


# Where a value came through ---------------------------------------------------------------------------------------


def test_an_argument_is_followed_to_the_setting_that_it_came_from() -> None:
    """A size that an ``__init__`` handed down is traced to the user's call, level by level."""
    found = configured().explain(("block", "layers", 1), "in_features")
    assert found == configured().explain("block.layers.1", "in_features")
    assert found == configured().explain("block.layers[1]", "in_features")
    assert (found.value, found.source, found.where) == (64, "argument", line_of("made in Block"))
    (block,) = found.via
    (net,) = block.via
    assert (block.path, block.name, net.path, net.name) == (("block",), "width", (), "width")
    assert net.where == line_of("second")
    assert f"    the same value: width of Net is 64, configured by the user at {net.where}" in str(found).splitlines()


def test_a_value_is_found_inside_a_list() -> None:
    """A setting that holds the value in a list or tuple is named as well."""
    (sizes,) = Net(sizes=[[3], 77]).explain("out", "out_features").via
    assert (sizes.name, sizes.value) == ("sizes", [[3], 77])


def test_truth_values_are_not_followed() -> None:
    """That two settings are both True or None says nothing."""
    assert Net().explain("hidden", "in_features").via == ()
    assert Layer(nn.Linear, 2, 3, bias=True).explain("", "bias").via == ()


def widen(net: Any) -> None:
    """Configure from a function of the user."""
    net.block.configure(width=9)  # in a helper


def test_a_line_inside_a_helper_is_told() -> None:
    """The line is that of the call itself, also when a helper makes it."""
    net = Net()
    widen(net)
    assert net.explain("block", "width").where == line_of("in a helper")


def test_a_line_with_a_selector_is_told() -> None:
    """A setting made through a selector has the selector's line."""
    net = Net()
    net[..., "layers"].configure(bias=False)  # selected
    for path in ("block.layers.0", "tied"):
        found = net.explain(path, "bias")
        assert (found.value, found.source, found.where) == (False, None, line_of("selected"))


def test_a_list_of_replayml_is_not_blamed() -> None:
    """What a container of replayml holds is put down to the user's line."""
    net = Sequential(Layer(nn.Linear, 2, 3))  # in a container
    assert net.explain("0", "out_features").where == line_of("in a container")


# What can be asked for --------------------------------------------------------------------------------------------


def test_the_class_of_a_layer_is_a_setting() -> None:
    """``classtype`` is explained like an argument."""
    net = Net(activation=Layer(nn.ReLU))
    net["activation"].configure(nn.GELU)
    found = net.explain("activation", "classtype")
    assert sources(found) == [(nn.GELU, None), (nn.ReLU, "argument")]
    assert str(found).startswith("classtype of Layer at 'activation' is GELU, configured by the user")


def test_arguments_of_any_wrapped_class_are_explained() -> None:
    """An `External` of a class that takes anything tells what it was given."""
    external = External(dict, a=1).configure(b=2)
    assert external.explain("", "a").source == "argument"
    assert external.explain("", "b").source is None
    module = Layer(nn.Sequential, Layer(nn.Linear, 2, 3))
    assert module.explain("0", "in_features").value == 2


def test_a_module_as_a_value_is_shown_by_its_call() -> None:
    """A module among the values does not fill the text."""
    assert "activation of Net is Layer(ReLU), the argument" in str(
        Net(activation=Layer(nn.ReLU)).explain("", "activation")
    )
    assert "is Tanh, the argument" in str(Net(activation=nn.Tanh()).explain("", "activation"))


def test_an_argument_without_value_and_default_is_told() -> None:
    """Something that nobody set is explained too."""
    found = Layer(nn.Linear, 4).explain("", "out_features")
    assert str(found) == "out_features of Linear is None, not set, and Linear has no default for it"


def test_a_module_inside_a_tree_explains_itself() -> None:
    """A path is taken from the module that is asked; the answer has the tags below the root."""
    net = configured()
    assert net.block.explain("layers.0", "in_features") == net.explain("block.layers.0", "in_features")


def test_a_shared_module_is_explained_by_each_of_its_paths() -> None:
    """A module that stands in two places has the same candidates by both."""
    net = Net()
    net.tied.configure(bias=False)
    one, other = net.explain("tied", "bias"), net.explain("block.layers.0", "bias")
    assert one.candidates == other.candidates
    assert (one.path, other.path) == (("tied",), ("block", "layers", "0"))


def test_a_setting_follows_its_element() -> None:
    """After an insertion the explanation is found at the new index."""
    net = Net()
    net.block.layers[1].configure(bias=False)
    net.block.layers.insert(0, Layer(nn.Tanh))
    assert net.explain("block.layers.2", "bias").value is False


@pytest.mark.parametrize(
    ("path", "name", "message"),
    [
        ("blok.layers", "width", r"no module at 'blok.layers' of Net. The nearest existing paths: block.layers"),
        ("hidden", "out_featurs", r"Linear at 'hidden' takes no 'out_featurs'. Did you mean 'out_features'\? It takes"),
        ("", "depth", r"Net takes no 'depth'.* It takes: width, activation, sizes"),
        ("plain.0", "p", r"'plain.0' is a Dropout, which records no settings. .*replayml.Layer\(Dropout, ...\)"),
        ("plain.0.x", "p", r"no module at 'plain.0.x'"),
    ],
)
def test_what_is_not_there_is_refused(path: str, name: str, message: str) -> None:
    """An unknown path or name raises, with the nearest that exist."""
    net = Net()
    net.plain = nn.Sequential(nn.Dropout())
    with pytest.raises(ConfigurationError, match=message):
        net.explain(path, name)


def test_a_setting_that_the_class_has_no_use_for_is_pointed_out() -> None:
    """After the class was swapped, a setting that it does not take is not in force; the message says so."""
    layer = Layer(nn.LeakyReLU).configure(negative_slope=0.3)
    layer.configure(nn.GELU)
    with pytest.raises(ConfigurationError, match=r"It was set at .*test_explain.py:\d+, but the class in force has no"):
        layer.explain("", "negative_slope")


# Built models and copies ------------------------------------------------------------------------------------------


def test_a_size_from_the_example_input_is_told() -> None:
    """In a built model an inferred size is one, and None has lost against it."""
    net = configured().build(torch.zeros(2, 7))
    found = net.explain("hidden", "in_features")
    assert sources(found) == [(7, "input"), (None, "argument")]
    assert found.candidates[1].reason == "None leaves it to the input"


def test_a_computed_value_is_told() -> None:
    """A value that a function computed from the input beats the user's, and is handed down from there."""
    net = Net(width=4)
    net.computed("width", lambda x: x.shape[-1] * 2)
    net.build(torch.zeros(1, 3))
    assert sources(net.explain("", "width"))[:2] == [(6, "input"), (4, "argument")]
    found = net.explain("out", "in_features")
    assert (found.value, found.via[0].name, found.via[0].source) == (6, "width", "input")


def test_a_plain_layer_of_a_built_model_is_explained_by_the_root() -> None:
    """Where a torch layer stands now, the record tells what it was made from; also from a part of the model."""
    net = configured()
    net.block.layers[0].configure(bias=False)
    before = net.explain("block.layers.0", "bias")
    built = net.create(torch.zeros(1, 3))
    assert type(built.block.layers[0]) is nn.Linear
    assert built.explain("block.layers.0", "bias") == before
    assert built.block.explain("layers.0", "bias") == before


def test_a_built_layer_is_explained_by_the_layer() -> None:
    """The `Layer` from which a torch layer was built still knows."""
    layer = Layer(nn.Linear, None, 2)
    layer.build(torch.zeros(1, 5))
    assert (layer.explain("", "in_features").value, layer.explain("", "out_features").value) == (5, 2)


def test_a_built_part_of_an_unbuilt_model_is_explained() -> None:
    """A path may lead into a module that was handed in built."""
    net = Net(activation=Block(3).build())
    found = net.explain("activation.layers.0", "in_features")
    assert (found.value, found.path) == (3, ("activation", "layers", "0"))


@pytest.mark.parametrize("copied", [lambda net: net.new(), lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_know_the_lines(copied: Any) -> None:
    """``new()`` and pickling keep every candidate with its line."""
    net = configured()
    net["block", "layers", 0].configure(bias=False)
    paths = [("", "width"), ("block", "depth"), ("block.layers.0", "bias"), ("hidden", "out_features")]
    for path, name in paths:
        assert str(copied(net).explain(path, name)) == str(net.explain(path, name))


def test_explaining_changes_nothing() -> None:
    """Neither the tape nor the model nor a built model's weights are touched."""
    net = configured()
    tape, text = list(net.tape), repr(net)
    net.explain("block", "width")
    assert (list(net.tape), repr(net)) == (tape, text)
    built = net.create(torch.zeros(1, 3))
    state = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    built.explain("block", "width")
    assert all(torch.equal(state[name], tensor) for name, tensor in built.state_dict().items())


# In general -------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("width"), st.integers(1, 9)),
        st.tuples(st.just("block"), st.integers(1, 9)),
        st.tuples(st.just("layer"), st.integers(0, 5)),
        st.tuples(st.just("insert"), st.integers(0, 2)),
        st.tuples(st.just("swap"), st.sampled_from([nn.GELU, nn.Tanh, nn.LeakyReLU])),
    ),
    max_size=8,
)


def carry_out(net: Any, what: str, value: Any) -> None:
    """Carry out one step on a model."""
    layers = net.block.layers
    if what == "width":
        net.configure(width=value)
    elif what == "block":
        net.block.configure(width=value)
    elif what == "layer":
        layers[value % len(layers)].configure(out_features=value + 1)
    elif what == "insert":
        layers.insert(value, Layer(nn.Linear, 1, 1))
    else:
        net.activation.configure(value)


@given(steps=steps)
def test_the_winner_is_what_is_in_force(steps: Any) -> None:
    """For any model, the explained value of each setting is the one that the module has."""
    net = Net()
    for what, value in steps:
        carry_out(net, what, value)
    for path, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, Layer):
            for name in ("in_features", "out_features", "bias"):
                if name in module.configurables:
                    assert explain(net, path, name).value == getattr(module, name)
            assert explain(net, path, "classtype").value is module.classtype
        elif isinstance(module, (Net, Block)):
            given_, named = module.get_init_args()
            assert explain(net, path, "width").value == (named.get("width", given_[0] if given_ else None) or 8)
