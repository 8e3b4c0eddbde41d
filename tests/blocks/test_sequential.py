"""`SequentialBlock`: the order of its modules, and what changes it."""

import copy
import pickle

import pytest
import torch
from torch import nn

from replayml.blocks.linear import LinearBlock
from replayml.blocks.merge import Add, Cat, MergeOp
from replayml.blocks.plain import (
    LayerActivation,
    LayerActivationNormalization,
    LayerActivationNormalizationDropout,
    LayerActivationNormalizationUpsample,
    LayerSkip,
    PoolLayerActivationNormalization,
)
from replayml.blocks.sequential import SequentialBlock
from replayml.core.errors import AlreadyBuiltError, ConfigurationError
from replayml.layers.containers import LayerList
from replayml.layers.layer import Layer
from replayml.module.module import Module


def two() -> SequentialBlock:
    """Return a block of two layers."""
    return SequentialBlock(a=Layer(nn.Linear, 1, 2), b=Layer(nn.Linear, 2, 1))


class Recorder(nn.Module):
    """Appends a letter to a text: tells what ran, in which order."""

    def __init__(self, letter):
        super().__init__()
        self.letter = letter

    def forward(self, text):
        return text + self.letter


def letters(**names: str) -> SequentialBlock:
    """Return a block whose modules tell in which order they ran."""
    return SequentialBlock(**{name: Layer(Recorder, letter) for name, letter in names.items()})


class Holder(Module):
    """A network with a block that it makes itself."""

    def __init__(self, width=3):
        self.block = SequentialBlock(layer=Layer(nn.Linear, 2, width), activation=nn.ReLU)
        self.block.append_dropout(0.5)

    def forward(self, x):
        return self.block(x)


CHANGES = [
    (lambda block: block.append(Layer(Recorder, "c"), name="z"), "abc", ["x", "y", "z"]),
    (lambda block: block.prepend(Layer(Recorder, "c"), name="z"), "cab", ["z", "x", "y"]),
    (lambda block: block.insert(Layer(Recorder, "c"), after="x", name="z"), "acb", ["x", "z", "y"]),
    (lambda block: block.append(Layer(Recorder, "c")), "abc", ["x", "y", "recorder"]),
    (lambda block: block.set("z", Layer(Recorder, "c")), "abc", ["x", "y", "z"]),
    (lambda block: block.set("x", Layer(Recorder, "c")), "cb", ["x", "y"]),
    (lambda block: block.set("z", Layer(Recorder, "c"), mode="replace"), "ab", ["x", "y"]),
    (lambda block: block.set("z", Layer(Recorder, "c"), mode="insert", after="x"), "acb", ["x", "z", "y"]),
    (lambda block: block.set("order", ["y", "x"]), "ba", ["y", "x"]),
    (lambda block: block.set("x", None), "b", ["y"]),
    (lambda block: block.remove("x"), "b", ["y"]),
    (lambda block: block.remove("z", allow_missing=True), "ab", ["x", "y"]),
    (lambda block: block.reorder(["y", "x", "x"]), "baa", ["y", "x", "x"]),
    (lambda block: block.configure(order=["y"]), "b", ["y"]),
    (lambda block: block.configure("order", ["y", "x"]), "ba", ["y", "x"]),
    (lambda block: block.configure(x=Layer(Recorder, "c")), "cb", ["x", "y"]),
    (lambda block: block.configure("x", letter="c"), "cb", ["x", "y"]),
    (lambda block: block.configure(z=Layer(Recorder, "c"), order=["z", "y"]), "cb", ["z", "y"]),
    (lambda block: block.append_dropout(0.1), "ab", ["x", "y", "dropout"]),
    (lambda block: block.prepend_dropout(0.1, name="p"), "ab", ["p", "x", "y"]),
    (lambda block: block.insert_dropout(0.1, after="x"), "ab", ["x", "dropout", "y"]),
    (lambda block: block.set_dropout(0.1), "ab", ["x", "y", "dropout"]),
    (lambda block: block.set_dropout(0.1, on_missing="prepend"), "ab", ["dropout", "x", "y"]),
    (lambda block: block.set_dropout(0.1, on_missing="insert", after="x"), "ab", ["x", "dropout", "y"]),
    (lambda block: block.append_dropout(0.1).remove_dropout(), "ab", ["x", "y"]),
    (lambda block: block.remove_dropout(allow_missing=True), "ab", ["x", "y"]),
]


class Silent(nn.Dropout):
    """A dropout that lets texts pass."""

    def forward(self, text):
        return text


@pytest.mark.parametrize(("change", "text", "order"), CHANGES)
def test_changes_of_the_order(change, text, order):
    """Each change gives its order, in the block, in copies and in what is built; the modules run in it."""
    block = letters(x="a", y="b")
    change(block)
    for name in set(block.order) - {"x", "y", "z", "recorder"}:
        block.configure(name, Silent)
    for changed in (block, block.new(), pickle.loads(pickle.dumps(block))):
        built = changed.create()
        assert changed.order == built.order == order
        assert built("") == text
        names = list(dict.fromkeys(order))
        assert [name for name, _ in built.named_children()][: len(names)] == names


WRONG = [
    (lambda block: block.append(nn.ReLU, name="a"), "has a module 'a' already"),
    (lambda block: block.append(nn.ReLU, name="order"), "cannot have a module named 'order'"),
    (lambda block: block.append(nn.ReLU, name="forward"), "an attribute has that name"),
    (lambda block: block.append(nn.ReLU, name="a.b"), "a word without dots"),
    (lambda block: block.append(3, name="c"), "3 is no module"),
    (lambda block: block.insert(nn.ReLU, after="c"), "has no module 'c' to insert after"),
    (lambda block: block.insert_dropout(0.5, after="c"), "has no module 'c' to insert after"),
    (lambda block: block.set("c", nn.ReLU, mode="insert"), "lacks the module after which 'c' runs"),
    (lambda block: block.set("c", nn.ReLU, mode="prepnd"), "Did you mean 'prepend'"),
    (lambda block: block.remove("c"), "has no module 'c' to remove"),
    (lambda block: block.remove_dropout(), "has no module 'dropout' to remove"),
    (lambda block: block.reorder(["a", "c"]), "has no module 'c' to run"),
    (lambda block: block.configure(a=Layer(nn.ReLU), order=["c"]), "has no module 'c' to run"),
    (lambda block: block.configure(c=Layer(nn.ReLU)), "has no setting 'c'"),
    (lambda block: block.configure(ordr=["b"]), "Did you mean 'order'"),
    (lambda block: block.configure(a=nn.ReLU, c=3), "has no setting 'c'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_wrong_is_refused_and_changes_nothing(change, message):
    """A wrong call raises with the choices, and leaves the block and its tape as they were."""
    block = two().append(nn.ReLU, name="d")
    before, tape = repr(block), [str(entry) for entry in block.tape]
    with pytest.raises(ConfigurationError, match=message):
        change(block)
    assert repr(block) == before
    assert [str(entry) for entry in block.tape] == tape
    assert repr(block.new()) == before


def test_an_order_names_what_is_given():
    """An order in the constructor call that names nothing that is given is refused."""
    with pytest.raises(ConfigurationError, match="has no module 'activation' to run"):
        SequentialBlock(order=["layer", "activation"], layer=Layer(nn.Linear, 1, 1))


def test_classes_are_wrapped():
    """A class stands for a layer, or, if it is a replayml class, for an instance."""
    block = SequentialBlock(a=nn.ReLU, b=LayerList).append(nn.Tanh)
    assert repr(block.a) == "Layer(ReLU)"
    assert type(block.b) is LayerList
    assert block.order == ["a", "b", "tanh"]


def test_a_given_module_is_put_in_as_it_is():
    """What is appended is the module itself, which may be changed afterwards."""
    layer = Layer(nn.Linear, 1, 1)
    block = SequentialBlock().append(layer)
    layer.configure(bias=False)
    assert block.linear is layer
    assert block.new().linear.bias is False


def test_assignment_is_recorded_and_runs():
    """An assigned module runs after the others, and a deleted one does not run; copies do the same."""
    block = letters(x="a", y="b")
    block.z = Layer(Recorder, "c")
    del block.x
    assert block.new().create()("") == "bc"
    block.note = 7
    assert block.new().note == 7


def test_changes_survive_the_construction_of_an_outer_module():
    """What the user and the outer module did to a block is there after the outer one was constructed again."""
    net = Holder()
    net.block.prepend(nn.Tanh).remove("activation").configure(order=["layer", "tanh", "dropout"])
    net.block.dropout.configure(p=0.25)
    net.configure(width=7)
    for changed in (net, net.new()):
        assert changed.block.order == ["layer", "tanh", "dropout"]
        assert changed.block.layer.out_features == 7
        assert changed.block.dropout.p == 0.25
    assert list(net.create().state_dict()) == ["block.layer.weight", "block.layer.bias"]


def test_a_class_swaps_the_layer_of_that_name():
    """Configured with a class, a layer keeps its place; something else is replaced by a layer."""
    block = SequentialBlock(a=Layer(nn.Linear, 2, 2), b=nn.ReLU()).configure(a=nn.Identity, b=nn.Tanh)
    assert [type(module) for module in block.create().children()] == [nn.Identity, nn.Tanh]
    assert repr(block.new()) == repr(block)


def test_set_dropout_changes_one_that_is_there():
    """A dropout that is there keeps its place and takes the probability."""
    block = two().prepend_dropout(0.5).set_dropout(0.25)
    assert block.order == ["dropout", "a", "b"]
    assert block.new().build().dropout.p == 0.25


def test_a_built_block_is_changed_as_a_plain_one():
    """After the build modules are added and removed without a record; configuring is refused."""
    built = two().build()
    built.append(nn.ReLU()).remove("a")
    assert built.order == ["b", "relu"]
    assert built(torch.full((1, 2), -9.0)).min() >= 0
    assert len(built.new().order) == 2
    with pytest.raises(AlreadyBuiltError, match=r"model\.new\(\)"):
        built.configure(order=["b"])
    assert copy.deepcopy(built).order == ["b", "relu"]


def test_each_change_is_one_entry_of_the_tape():
    """The tape tells the calls as the user can type them."""
    block = two().append_dropout(0.1)
    block.configure(order=["a", "b"], a=nn.Identity)
    assert [str(entry) for entry in block.tape] == [
        "model.append_dropout(0.1)",
        "model.configure(a=Identity)",
        "model.reorder(['a', 'b'])",
    ]


PLAIN = [
    (LayerActivation, ["layer", "activation"]),
    (LayerActivationNormalization, ["layer", "activation", "normalization"]),
    (LayerActivationNormalizationDropout, ["layer", "activation", "normalization", "dropout"]),
    (LayerActivationNormalizationUpsample, ["layer", "activation", "normalization", "upsample"]),
    (PoolLayerActivationNormalization, ["pool", "layer", "activation", "normalization"]),
]


@pytest.mark.parametrize(("cls", "names"), PLAIN)
def test_blocks_with_fixed_names(cls, names):
    """Each takes its modules by position, runs them in that order, and takes another order."""
    block = cls(*[Layer(Recorder, letter) for letter in "abcd"[: len(names)]])
    assert block.order == names
    assert block.create()("") == "abcd"[: len(names)]
    block.configure(order=["activation", "layer"])
    assert block.new().create()("") == "".join("abcd"[names.index(name)] for name in block.order)


def test_skip_merges_the_output_with_the_input():
    """`LayerSkip` gives the layer's output and its input to the merging."""
    built = LayerSkip(Layer(nn.Linear, 2, 3), Cat()).build()
    x = torch.randn(4, 2)
    assert torch.equal(built(x), torch.cat([built.layer(x), x], dim=1))


def test_merging():
    """`Add` sums up, `Cat` puts side by side, and the base class says what it lacks."""
    a, b = torch.ones(1, 2), torch.full((1, 2), 2.0)
    assert torch.equal(Add().build()(a, b, b), torch.full((1, 2), 5.0))
    assert torch.equal(Cat(dim=0).build()(a, b), torch.cat([a, b]))
    assert Cat().configure(dim=-1).new().dim == -1
    with pytest.raises(NotImplementedError, match=r"MergeOp lacks forward\(\*x\)"):
        MergeOp().build()(a)


def test_an_absent_module_is_added_by_configuring_it():
    """What a block can have under a name of its own is added when it is configured, and shown as missing before."""
    block = LinearBlock(2, 3)
    assert repr(block.normalization) == "<no normalization>"
    block.normalization.configure(nn.LayerNorm, eps=0.5)
    block.configure(dropout=Layer(nn.Dropout, 0.1)).configure("activation", nn.LeakyReLU, negative_slope=0.5)
    assert block.order == ["layer", "normalization", "dropout", "activation"]
    assert repr(block.new()) == repr(block)
    assert (block.normalization.eps, block.activation.negative_slope) == (0.5, 0.5)
    with pytest.raises(ConfigurationError, match=r"has no activation to configure\. Add one"):
        LinearBlock(2, 3).activation.configure(inplace=True)
    with pytest.raises(AttributeError, match="no attribute 'dropout'"):
        LinearBlock(2, 3).build().dropout  # noqa: B018
