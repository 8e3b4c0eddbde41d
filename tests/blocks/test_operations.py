"""What holds after any sequence of operations on blocks."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.blocks.base import BaseBlock
from replayml.blocks.components import ConvolutionalNeuralNetwork, MultiLayerPerceptron
from replayml.blocks.conv import Conv2dBlock
from replayml.blocks.linear import LinearBlock
from replayml.blocks.sizes import sizes_along
from tests.blocks.operations import operations

networks = st.sampled_from([MultiLayerPerceptron, ConvolutionalNeuralNetwork])
classes = st.sampled_from([LinearBlock, Conv2dBlock])


def block_of(cls: type[BaseBlock], size_in: int = 4, size_out: int = 6) -> BaseBlock:
    """Return a block that keeps the resolution of images."""
    return LinearBlock(size_in, size_out) if cls is LinearBlock else Conv2dBlock(size_in, size_out, padding=1)


def example(cls: type[nn.Module], size: int = 4) -> torch.Tensor:
    """Return an input for a block or network, of two samples."""
    return torch.randn(2, size) if cls in (LinearBlock, MultiLayerPerceptron) else torch.randn(2, size, 8, 8)


@given(classes, operations)
def test_a_copy_is_equal(cls, made):
    """A copy has the text, the orders and the tape of the original, and the original stays as it is."""
    block = block_of(cls)
    for operation in made:
        operation.apply(block)
    before = repr(block)
    copy = block.new()
    assert repr(copy) == before == repr(block)
    assert [inner.order for inner in copy.modules() if isinstance(inner, BaseBlock)] == [
        inner.order for inner in block.modules() if isinstance(inner, BaseBlock)
    ]
    assert [str(entry) for entry in copy.tape] == [str(entry) for entry in block.tape]


@given(classes, operations)
def test_what_is_built_runs_and_gives_the_size_that_was_foretold(cls, made):
    """A block builds without an example, and its output has the size that the walk along its modules tells."""
    block = block_of(cls)
    for operation in made:
        operation.apply(block)
    built = block.create().eval()
    assert built(example(cls)).shape[1] == sizes_along(block, 4)[1]
    assert list(built.state_dict()) == list(block.new().build().state_dict())
    assert not any(isinstance(inner, BaseBlock) and not inner._has_built for inner in built.modules())


@given(classes, operations, st.integers(0, 6))
def test_operations_survive_a_change_of_the_sizes(cls, made, when):
    """Sizes that change before, amid or after the operations give the block that had them from the start."""
    changed, direct = block_of(cls), block_of(cls, 5, 5)
    for number, operation in enumerate(made):
        if number == when:
            changed.configure(**{cls._size_in: 5, cls._size_out: 5})
        operation.apply(changed)
        operation.apply(direct)
    if when >= len(made):
        changed.configure(**{cls._size_in: 5, cls._size_out: 5})
    assert repr(changed) == repr(direct)
    assert repr(changed.new()) == repr(changed)


@given(networks, operations, operations, st.integers(0, 6))
def test_operations_on_blocks_survive_a_change_of_their_network(cls, on_first, on_second, when):
    """Operations on the blocks of a network stay when the network is constructed again, where the block still is."""
    name = "hidden_features" if cls is MultiLayerPerceptron else "hidden_channels"
    changed, direct = cls(4, [3, 3], 2), cls(4, [5, 5, 5], 2)
    made = [*[(0, operation) for operation in on_first], *[(1, operation) for operation in on_second]]
    for number, (index, operation) in enumerate(made):
        if number == when:
            changed.configure(**{name: [5, 5, 5]})
        operation.apply(changed.blocks[index])
        operation.apply(direct.blocks[index])
    if when >= len(made):
        changed.configure(**{name: [5, 5, 5]})
    assert repr(changed) == repr(direct)
    assert repr(changed.new()) == repr(changed)


@given(networks, operations)
def test_a_copy_of_a_block_of_a_network_is_equal(cls, made):
    """A copy of a block that stands in a network has all that was done to the block there."""
    network = cls(4, [3, 3], 2)
    for operation in made:
        operation.apply(network.blocks[1])
    block = network.blocks[1]
    assert repr(block.new()) == repr(block)
    built = block.new().build().eval()
    assert built(example(cls, 3)).shape[1] == sizes_along(block, 3)[1]
