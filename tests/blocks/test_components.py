"""`MultiLayerPerceptron` and `ConvolutionalNeuralNetwork`: their blocks, shorthands, and what survives."""

import copy
import pickle
from inspect import signature

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.blocks.components import ConvolutionalNeuralNetwork, MultiLayerPerceptron
from replayml.blocks.conv import Conv2dBlock
from replayml.blocks.linear import LinearBlock
from replayml.blocks.sequential import SequentialBlock
from replayml.core.errors import ArgumentError, BuildError, ConfigurationError
from replayml.layers.initializers import Constant
from replayml.layers.layer import Layer

NETWORKS = [
    (MultiLayerPerceptron, "hidden_features", (4,), nn.BatchNorm1d),
    (ConvolutionalNeuralNetwork, "hidden_channels", (4, 8, 8), nn.BatchNorm2d),
]
sizes = st.integers(1, 9)


@given(sizes, st.lists(sizes, max_size=3), sizes)
def test_a_perceptron_is_what_one_writes_by_hand(size_in, hidden, size_out):
    """A built perceptron has the sizes, the keys and the outputs of linear layers with rectifiers between them."""
    built = MultiLayerPerceptron(size_in, hidden, size_out).build()
    layers = [built.blocks[index].layer for index in range(len(hidden) + 1)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == list(
        zip([size_in, *hidden], [*hidden, size_out], strict=True)
    )
    assert list(built.state_dict()) == [
        f"blocks.{index}.layer.{name}" for index in range(len(layers)) for name in ("weight", "bias")
    ]
    x = torch.randn(3, size_in)
    expected = layers[0](x)
    for layer in layers[1:]:
        expected = layer(torch.relu(expected))
    assert torch.equal(built(x), expected)


@given(sizes, st.lists(sizes, max_size=2), sizes)
def test_convolutions_keep_the_resolution(channels_in, hidden, channels_out):
    """A built network of convolutions has the channels asked for and keeps the resolution."""
    built = ConvolutionalNeuralNetwork(channels_in, hidden, channels_out).build()
    assert built(torch.randn(2, channels_in, 5, 6)).shape == (2, channels_out, 5, 6)
    assert len(built.blocks) == len(hidden) + 1


@pytest.mark.parametrize(("cls", "hidden", "shape", "norm"), NETWORKS)
def test_shorthands(cls, hidden, shape, norm):
    """The shorthands reach the blocks and their parts, for all blocks at once."""
    network = cls(shape[0], [3, 5], 2)
    assert network.input is network.blocks[0]
    assert network.output is network.blocks[-1]
    assert list(network.hidden) == list(network.blocks)[:-1]
    network.layer.configure(bias=False)
    network.activation.configure(nn.Tanh)
    network.hidden.normalization.configure(norm)
    network.dropout.configure(nn.Dropout, 0.25)
    built = network.new().build()
    assert [block.order for block in built.blocks] == [
        *[["layer", "activation", "normalization", "dropout"]] * 2,
        ["layer", "activation", "dropout"],
    ]
    assert all(block.layer.bias is None and type(block.activation) is nn.Tanh for block in built.blocks)
    assert [block.normalization.num_features for block in built.blocks[:2]] == [3, 5]
    assert built(torch.randn(2, *shape)).shape[:2] == (2, 2)


@pytest.mark.parametrize(("cls", "hidden", "shape", "norm"), NETWORKS)
def test_calls_for_all_blocks_hold_for_the_blocks_that_come_later(cls, hidden, shape, norm):
    """What was done to all blocks is done to those of another depth too, and their sizes follow."""
    network = cls(shape[0], [3], 2).normalized().activated(nn.GELU).set_dropout(0.1)
    network.configure(**{hidden: [3, 5, 7]})
    for changed in (network, network.new()):
        assert [block.normalization.num_features for block in changed.blocks] == [3, 5, 7, 2]
        assert [block.activation.classtype for block in changed.blocks] == [nn.GELU] * 3 + [nn.Identity]
        assert ["dropout" in block.order for block in changed.blocks] == [True, True, True, False]
    assert type(network.build().blocks[0].normalization) is norm
    assert "normalization" not in cls(1, [1], 1).normalized(after_last_layer=False).blocks[-1].order


@pytest.mark.parametrize(("cls", "hidden", "shape", "norm"), NETWORKS)
def test_changes_of_one_block_survive_where_the_block_still_is(cls, hidden, shape, norm):
    """What the user did to one block stays when the network changes; blocks that are gone take it along."""
    network = cls(shape[0], [3, 3], 2)
    network.blocks[0].normalized(mode="insert", after="layer")
    network.blocks[1].append_dropout(0.5)
    network.configure("blocks", 0, "layer", bias=False)
    network.configure("blocks", 1, activation=nn.SELU)
    network.configure(**{hidden: [7, 8]})
    for changed in (network, network.new()):
        assert changed.blocks[0].order == ["layer", "normalization", "activation"]
        assert changed.blocks[0].normalization.num_features == 7
        assert changed.blocks[0].layer.bias is False
        assert changed.blocks[1].order == ["layer", "activation", "dropout"]
        assert changed.blocks[1].activation.classtype is nn.SELU
    network.configure(**{hidden: []})
    assert network.new().build()(torch.randn(2, *shape)).shape[1] == 2


@pytest.mark.parametrize(("cls", "hidden", "shape", "norm"), NETWORKS)
@pytest.mark.parametrize("given_as", [nn.Sigmoid, nn.Sigmoid(), Layer(nn.Sigmoid)], ids=["class", "module", "layer"])
def test_the_output_has_its_own_activation(cls, hidden, shape, norm, given_as):
    """`out_activation` is a class, a module or a layer, given at once or configured; without it there is none."""
    assert type(cls(1, [], 1).build().output.activation) is nn.Identity
    for network in (cls(shape[0], [3], 2, given_as), cls(shape[0], [3], 2).configure(out_activation=given_as)):
        built = network.new().build()
        assert type(built.output.activation) is nn.Sigmoid
        assert type(built.input.activation) is nn.ReLU
    shared = Layer(nn.PReLU)
    one, two = cls(1, [], 1, shared).build(), cls(1, [], 1, shared).build()
    assert one.output.activation is not two.output.activation


def test_open_sizes_are_read_off_the_example():
    """Without its input size a network needs an example, and says so."""
    assert MultiLayerPerceptron(None, [4], 2).build(torch.zeros(1, 2, 3)).input.layer.in_features == 6
    assert ConvolutionalNeuralNetwork(None, [4], 2).build(torch.zeros(1, 3, 8, 8)).input.layer.in_channels == 3
    with pytest.raises(BuildError, match=r"Linear at 'blocks\.0\.layer' lacks in_features"):
        MultiLayerPerceptron(None, [4], 2).build()


def test_flattening_may_be_left_out():
    """Without flattening the layers work on the last dimension."""
    built = MultiLayerPerceptron(4, [], 2, flatten_input=False).build()
    assert built(torch.randn(3, 5, 4)).shape == (3, 5, 2)


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d, nn.MaxPool2d(2), Layer(nn.MaxPool2d, 2)], ids=["class", "module", "layer"]
)
def test_pooling_between_the_blocks(pool):
    """A pooling stands, as a copy, before every block but the first, whichever way it is given."""
    for network in (ConvolutionalNeuralNetwork(3, [4, 4], 2, pool=pool), ConvolutionalNeuralNetwork(3, [4, 4], 2)):
        network.configure(pool=pool)
        built = network.new().build()
        assert ["pool" in block.order for block in built.blocks] == [False, True, True]
        assert built.blocks[1].pool is not built.blocks[2].pool
        assert built(torch.randn(1, 3, 16, 16)).shape == (1, 2, 4, 4)
    assert "pool" in ConvolutionalNeuralNetwork(3, [4], 2).pooled(before_first=True).input.order


def test_strides_instead_of_pooling():
    """A stride takes the place of the poolings, in the blocks that come later too."""
    network = ConvolutionalNeuralNetwork(3, [4], 2, pool=nn.MaxPool2d).strided(2).configure(hidden_channels=[4, 4])
    built = network.new().build()
    assert [block.layer.stride for block in built.blocks] == [(1, 1), (2, 2), (2, 2)]
    assert built(torch.randn(1, 3, 16, 16)).shape == (1, 2, 4, 4)


WRONG_SIZES = [
    ((64, 32, 10), r"hidden_\w+ of {} is a list of sizes, not 32: \[32\]"),
    ((64, "abc", 10), r"hidden_\w+ of {} is a list of sizes, not 'abc', such as \[64, 32\]"),
    ((64, None, 10), r"hidden_\w+ of {} is a list of sizes, not None"),
    ((64, {64, 32}, 10), r"hidden_\w+ of {} is a list of sizes, not \{{"),
    (("64", [32], 10), r"in_\w+ of {} takes whole numbers, not '64'$"),
    ((64, [32, 3.5], 10), r"hidden_\w+ of {} takes whole numbers, not 3.5 in \[32, 3.5\]"),
    ((64, [True], 10), r"hidden_\w+ of {} takes whole numbers, not True"),
    ((64, torch.tensor([3]), 10), r"hidden_\w+ of {} takes whole numbers, not tensor\(3\)"),
    ((64, [32], 10.0), r"out_\w+ of {} takes whole numbers, not 10.0$"),
]


@pytest.mark.parametrize("cls", [MultiLayerPerceptron, ConvolutionalNeuralNetwork])
@pytest.mark.parametrize(("sizes", "message"), WRONG_SIZES)
def test_what_is_no_size_is_refused(cls, sizes, message):
    """A size of a wrong type is told with its argument, given or configured, and changes nothing."""
    with pytest.raises(ArgumentError, match=message.format(cls.__name__)):
        cls(*sizes)
    network = cls(64, [32], 10)
    before = repr(network)
    for name, wrong, right in zip(list(signature(cls).parameters)[:3], sizes, (64, [32], 10), strict=True):
        if wrong is not right and wrong != right and type(wrong) is not torch.Tensor:
            with pytest.raises(ArgumentError, match=message.format(cls.__name__)):
                network.configure(name, wrong)
    assert repr(network) == before


@given(st.lists(st.integers(1, 9), max_size=3))
def test_sizes_come_in_any_collection(sizes):
    """A tuple, a range or an array of whole numbers is as good as a list."""
    for given_sizes in (tuple(sizes), np.array(sizes, dtype=np.int64), torch.Size(sizes)):
        built = MultiLayerPerceptron(2, given_sizes, 3).build()
        assert [block.layer.out_features for block in built.blocks] == [*sizes, 3]
        assert built(torch.zeros(1, 2)).shape == (1, 3)


@pytest.mark.parametrize("arguments", [(0, [1], 1), (1, [1, -1], 1), (1, [1], 0)])
@pytest.mark.parametrize("cls", [MultiLayerPerceptron, ConvolutionalNeuralNetwork])
def test_sizes_are_positive(cls, arguments):
    """A size that is not positive is refused by name, also when it is configured, which changes nothing."""
    with pytest.raises(ConfigurationError, match=rf"of {cls.__name__} must be greater than 0, not (0|-1)"):
        cls(*arguments)
    network = cls(1, [2], 3)
    before = repr(network)
    with pytest.raises(ConfigurationError, match="must be greater than 0"):
        network.configure(
            **{name: 0 for name in network.configurables if name.startswith("out_") and "act" not in name}
        )
    assert repr(network) == before


def test_selectors_reach_the_parts():
    """A selection of activations swaps them all, and survives a change of the network."""
    network = MultiLayerPerceptron(2, [3, 3], 1)
    network[..., "activation"].configure(nn.GELU)
    network["blocks", :-1].normalized(nn.LayerNorm)
    network.configure(hidden_features=[4, 4])
    assert [block.activation.classtype for block in network.new().blocks] == [nn.GELU] * 3
    assert [block.normalization.normalized_shape for block in network.blocks[:-1]] == [4, 4]


def test_initial_values():
    """Initializers reach the layers of all blocks."""
    built = MultiLayerPerceptron(2, [3], 1).initialize(Constant(nn.Linear, weight=0.5, bias=0.25)).build()
    assert built(torch.zeros(1, 2)).item() == pytest.approx(3 * 0.25 * 0.5 + 0.25)


# What is built ------------------------------------------------------------------------------------------------------

BUILT = {
    "perceptron": (lambda: MultiLayerPerceptron(4, [8, 8], 2).normalized().set_dropout(0.1), (4,)),
    "convolutions": (lambda: ConvolutionalNeuralNetwork(4, [5], 2, pool=nn.MaxPool2d).normalized(), (4, 8, 8)),
    "sequence": (lambda: SequentialBlock(layer=Layer(nn.Linear, 4, 3), activation=nn.ReLU), (4,)),
    "linear shortcut": (lambda: LinearBlock(4, 8).activated().shortcut(), (4,)),
    "residual": (lambda: LinearBlock(4, 4).style("residual", order="lnaln|a"), (4,)),
    "image shortcut": (lambda: Conv2dBlock(4, 8, padding=1).normalized().pooled().shortcut(), (4, 8, 8)),
}


@pytest.mark.parametrize("name", BUILT)
def test_what_is_built_compiles_exports_and_is_copied(name):
    """A built block or network compiles as one graph, exports, traces, pickles and deep-copies, with equal outputs."""
    make, shape = BUILT[name]
    built = make().build(seed=0).eval()
    x = torch.randn(3, *shape)
    expected = built(x)
    forms = [
        torch.compile(built, fullgraph=True, backend="eager"),
        torch.export.export(built, (x,)).module(),
        torch.fx.symbolic_trace(built),
        copy.deepcopy(built),
        pickle.loads(pickle.dumps(built)),
    ]
    for form in forms:
        assert torch.equal(form(x), expected)
    assert type(built).__call__ is nn.Module.__call__


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, while it imports its compiler
def test_a_residual_block_compiles_to_machine_code():
    """The compiled block computes what the block computes."""
    built = LinearBlock(4, 8).style("residual", order="lnaln|a").build(seed=0).eval()
    x = torch.randn(3, 4)
    assert torch.allclose(torch.compile(built, fullgraph=True)(x), built(x), atol=1e-6)
