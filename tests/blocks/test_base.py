"""`BaseBlock`, `LinearBlock`, `Conv2dBlock`: activated, normalized, repeated, with a shortcut; their sizes."""

import itertools

import pytest
import torch
from torch import nn

from replayml.blocks.base import BaseBlock
from replayml.blocks.conv import Conv1dBlock, Conv2dBlock, Conv3dBlock
from replayml.blocks.linear import LinearBlock
from replayml.blocks.merge import Add, Cat
from replayml.core.errors import BuildError, ConfigurationError
from replayml.layers.containers import LayerList
from replayml.layers.layer import Layer

MODES = {"append": ["layer", "{}"], "prepend": ["{}", "layer"], "insert": ["layer", "{}"], "replace": ["layer"]}


class Doubled(LinearBlock):
    """A block with arguments of its own."""

    def __init__(self, width):
        super().__init__(width, 2 * width, activation=nn.ReLU)


# Adding -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mode", "there", "wrapped"),
    list(itertools.product(["activation", "normalization"], MODES, [True, False], [True, False])),
)
def test_where_something_is_added(name, mode, there, wrapped):
    """What is added comes where the mode says, or in the place of the one that is there."""
    block = BaseBlock(layer=Layer(nn.Linear, 1, 1), **({name: nn.Identity} if there else {}))
    method = block.activated if name == "activation" else block.normalized
    method(Layer(nn.Tanh) if wrapped else nn.Tanh, mode=mode, after="layer" if mode == "insert" else None)
    built = block.new().build()
    assert built.order == ["layer", name] if there else [part.format(name) for part in MODES[mode]]
    assert (name in built.order) == isinstance(built._modules.get(name), nn.Tanh)


def test_a_layer_given_to_several_blocks_is_copied_for_each():
    """One instance given to many blocks, a plain module too, stands in none of them itself."""
    layer, plain = Layer(nn.PReLU), nn.PReLU()
    blocks = LayerList(LinearBlock(2, 2), LinearBlock(2, 2))
    blocks[:].activated(layer)
    blocks[:].normalized(plain)
    built = blocks.build()
    assert built[0].activation is not built[1].activation
    assert plain not in (built[0].normalization, built[1].normalization)
    assert built[0].normalization is not built[1].normalization


def test_the_usual_ones():
    """Without an argument a block takes what is usual for it; a block without a usual one says what to give."""
    block = Conv2dBlock(1, 2).activated().normalized().pooled().upsampled().build()
    kinds = {"activation": nn.ReLU, "normalization": nn.BatchNorm2d, "pool": nn.MaxPool2d}
    assert {name: type(getattr(block, name)) for name in kinds} == kinds
    assert type(block.upsample) is nn.ConvTranspose2d
    with pytest.raises(ConfigurationError, match=r"no usual normalization. Give one: \.normalized"):
        BaseBlock(layer=Layer(nn.Linear, 1, 1)).normalized()


# Sizes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "size"), [("append", 3), ("prepend", 2)])
@pytest.mark.parametrize(
    ("cls", "name"),
    [(nn.BatchNorm1d, "num_features"), (nn.LayerNorm, "normalized_shape"), (nn.GroupNorm, "num_channels")],
)
def test_a_normalization_takes_the_size_at_its_place(cls, name, mode, size):
    """Open sizes of a normalization are those of what it gets, and change with the block."""
    block = LinearBlock(2, 3).normalized(cls, mode=mode)
    assert getattr(block.normalization, name) == size
    block.configure(in_features=4, out_features=6)
    assert getattr(block.normalization, name) == 2 * size
    block.configure(order=block.order[::-1])
    assert getattr(block.normalization, name) == {2: 6, 3: 4}[size]
    assert repr(block.new()) == repr(block)
    block.create()


def test_sizes_that_are_given_stay():
    """A size that the user gives, at once or later, is not replaced."""
    assert LinearBlock(2, 3).normalized(Layer(nn.LayerNorm, 7)).normalization.normalized_shape == 7
    block = LinearBlock(2, 3).normalized()
    block.normalization.configure(num_features=7)
    block.configure(out_features=5)
    assert block.normalization.num_features == block.new().normalization.num_features == 7


def test_sizes_follow_a_layer_that_is_configured_directly():
    """A layer that the user changed by itself gives its size at the latest when the model is built."""
    block = LinearBlock(2, 3).normalized()
    block.layer.configure(out_features=5)
    assert block.build()(torch.randn(4, 2)).shape == (4, 5)


def test_a_swapped_normalization_is_completed():
    """Another class of normalization gets the sizes that it lacks."""
    block = Conv2dBlock(1, 4).normalized()
    block.normalization.configure(nn.GroupNorm)
    assert block.build().normalization.num_channels == 4


def test_an_open_input_is_read_off_the_example():
    """A block whose input is not known finds all sizes in the example, and says so without one."""
    block = Conv1dBlock(None, 4, padding=1).normalized(mode="prepend").shortcut()
    assert block.create(torch.randn(2, 3, 9)).normalization.num_features == 3
    with pytest.raises(BuildError, match="lacks"):
        block.create()


def test_unknown_modules_leave_sizes_open():
    """Behind a module that may change the size the size is not guessed."""
    block = LinearBlock(2, 3).append(nn.Flatten).append(nn.BatchNorm1d)
    assert "num_features" not in block.batchnorm1d.kwargs
    assert block.create(torch.randn(2, 2)).batchnorm1d.num_features == 3


def test_concatenation_adds_the_sizes():
    """Behind a shortcut that is put beside the output the size is the sum."""
    block = LinearBlock(2, 3).shortcut(merge=Cat, shortcut=nn.Identity).normalized()
    assert block.normalization.num_features == 5
    assert block.build()(torch.randn(4, 2)).shape == (4, 5)


# Shortcuts ----------------------------------------------------------------------------------------------------------


def test_a_shortcut_adds_the_input():
    """Between equal sizes the input itself is added, and the only parameters are those of the layer."""
    built = LinearBlock(3, 3).shortcut().build()
    x = torch.randn(2, 3)
    assert built.order == ["shortcut_start", "layer", "shortcut_end"]
    assert isinstance(built.shortcut_end, Add)
    assert torch.equal(built(x), built.layer(x) + x)
    assert list(built.state_dict()) == ["layer.weight", "layer.bias"]


def test_a_shortcut_between_unequal_sizes_projects():
    """Between unequal sizes a layer goes around, named as a hand-written one would be, and follows the sizes."""
    block = LinearBlock(2, 3).activated().shortcut()
    built = block.create()
    x = torch.randn(4, 2)
    assert torch.equal(built(x), built.activation(built.layer(x)) + built.shortcut_start(x))
    assert list(built.state_dict()) == [
        *["shortcut_start.weight", "shortcut_start.bias"],
        *["layer.weight", "layer.bias"],
    ]
    assert list(block.configure(in_features=3).create().state_dict()) == ["layer.weight", "layer.bias"]


def test_a_given_shortcut_gets_its_sizes():
    """A layer given for the way around is completed with the sizes; a merging is given as class or module."""
    block = LinearBlock(2, 3).shortcut(merge=Cat(), shortcut=Layer(nn.Linear, bias=False))
    assert block.build()(torch.randn(4, 2)).shape == (4, 6)


def test_a_second_shortcut_replaces_the_first():
    """A block has one shortcut."""
    block = LinearBlock(2, 2).shortcut().shortcut(merge=Cat)
    assert block.order == ["shortcut_start", "layer", "shortcut_end"]
    assert block.new().build()(torch.randn(4, 2)).shape == (4, 4)


@pytest.mark.parametrize("pooled_first", [True, False])
def test_pooling_stays_outside_of_a_shortcut(pooled_first):
    """A pooling comes before the shortcut, whichever was made first."""
    block = Conv2dBlock(1, 2, padding=1)
    block = block.pooled().shortcut() if pooled_first else block.shortcut().pooled()
    assert block.order == ["pool", "shortcut_start", "layer", "shortcut_end"]
    assert block.build()(torch.randn(1, 1, 8, 8)).shape == (1, 2, 4, 4)


# Several copies -----------------------------------------------------------------------------------------------------


def test_multi_makes_copies_of_all_that_the_block_is():
    """The copies have the modules, the order and the settings of the block, and sizes that fit."""
    block = LinearBlock(2, 3).activated(nn.Tanh).normalized(mode="insert", after="layer")
    block.layer.configure(bias=False)
    block.multi(3)
    assert block.order == ["blocks"]
    assert [inner.order for inner in block.blocks] == [["layer", "normalization", "activation"]] * 3
    assert [inner.layer.in_features for inner in block.blocks] == [2, 3, 3]
    built = block.new().build()
    assert built(torch.randn(4, 2)).shape == (4, 3)
    assert all(inner.layer.bias is None for inner in built.blocks)
    assert len({id(inner.layer) for inner in built.blocks}) == 3


def test_what_is_configured_later_reaches_the_copies():
    """Sizes reach the copies as they follow, other arguments all of them, and what the user set on one stays there."""
    block = Conv2dBlock(1, 2, padding=1).normalized().multi(2)
    block.blocks[1].configure(kernel_size=1, padding=0)
    block.configure(in_channels=3, out_channels=4, kernel_size=5, padding=2)
    for changed in (block, block.new()):
        assert [inner.layer.in_channels for inner in changed.blocks] == [3, 4]
        assert [inner.normalization.num_features for inner in changed.blocks] == [4, 4]
        assert [inner.layer.kernel_size for inner in changed.blocks] == [5, 1]
    assert block.build()(torch.randn(1, 3, 8, 8)).shape == (1, 4, 8, 8)


def test_multi_within_multi():
    """Copies may be repeated in turn; the sizes still fit."""
    block = Conv2dBlock(1, 2, padding=1).multi(2)
    block.blocks[0].multi(2)
    block.blocks[1].multi(2)
    sizes = [[(b.layer.in_channels, b.layer.out_channels) for b in inner.blocks] for inner in block.blocks]
    assert sizes == [[(1, 2), (2, 2)], [(2, 2), (2, 2)]]
    assert block.new().build()(torch.randn(1, 1, 4, 4)).shape == (1, 2, 4, 4)


def test_multi_of_a_class_with_other_arguments():
    """Copies of a subclass are of the subclass, and take the arguments that it has."""
    block = Doubled(2).multi(1)
    assert type(block.blocks[0]) is Doubled
    assert block.build()(torch.randn(3, 2)).shape == (3, 4)


def test_a_stride_is_taken_once():
    """Of several copies the first one takes the stride, whether it was given before or after."""
    for block in (Conv2dBlock(1, 1, padding=1, stride=2).multi(3), Conv2dBlock(1, 1, padding=1).multi(3).strided(2)):
        built = block.new().build()
        assert [inner.layer.stride for inner in built.blocks] == [(2, 2), (1, 1), (1, 1)]
        assert built(torch.randn(1, 1, 8, 8)).shape == (1, 1, 4, 4)


def test_a_block_cannot_repeat_itself_while_it_is_made():
    """`multi` inside of the block's own `__init__` is refused, with the way out."""

    class Endless(LinearBlock):
        def __init__(self):
            super().__init__(2, 2)
            self.multi(2)

    with pytest.raises(ConfigurationError, match=r"Call multi\(\) on the finished block"):
        Endless()


# Convolutions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "dims"), [(Conv1dBlock, 1), (Conv2dBlock, 2), (Conv3dBlock, 3)])
def test_every_number_of_dimensions(cls, dims):
    """The same calls make blocks for sequences, images and volumes."""
    block = cls(1, 2, padding=1).normalized().activated().pooled().upsampled().shortcut()
    built = block.new().build()
    x = torch.randn(1, 1, *[8] * dims)
    assert built(x).shape == (1, 2, *[8] * dims)
    assert type(built.layer).__name__ == f"Conv{dims}d"
    assert type(built.pool).__name__ == f"MaxPool{dims}d"
    assert type(cls(1, 2).transposed().build().transpose).__name__ == f"ConvTranspose{dims}d"
    assert cls(1, 2).transposed().build()(x).shape == (1, 2, *[16] * dims)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("strided_first", [True, False])
def test_a_strided_block_strides_its_shortcut(channels, strided_first):
    """The way around takes the stride too, whichever came first; without a stride equal sizes need no layer."""
    block = Conv2dBlock(1, channels, padding=1).pooled()
    block = block.strided(2).shortcut() if strided_first else block.shortcut().strided(2)
    built = block.new().build()
    assert built.order == ["shortcut_start", "layer", "shortcut_end"]
    assert built.shortcut_start.layer.stride == (2, 2)
    assert built(torch.randn(1, 1, 8, 8)).shape == (1, channels, 4, 4)
    unstrided = Conv2dBlock(1, 1, padding=1).shortcut().build()
    assert isinstance(unstrided.shortcut_start.layer, nn.Identity)
    assert list(unstrided.state_dict()) == ["layer.weight", "layer.bias"]


@pytest.mark.parametrize("around", [nn.Identity, Layer(nn.Conv2d, kernel_size=1), Conv2dBlock(2, 2, 1)])
def test_a_given_shortcut_is_strided(around):
    """A way around that the user gave takes the stride as well."""
    block = Conv2dBlock(2, 2, padding=1).shortcut(shortcut=around).strided(2)
    assert block.new().build()(torch.randn(1, 2, 8, 8)).shape == (1, 2, 4, 4)


def test_pooling_may_stay():
    """A stride takes out the pooling unless it is told not to."""
    assert "pool" not in Conv2dBlock(1, 1).pooled().strided(2).order
    assert "pool" in Conv2dBlock(1, 1).pooled().strided(2, remove_pool=False).order
    inner = Conv2dBlock(1, 1).pooled().multi(2).strided(2).blocks
    assert [block.order for block in inner] == [["layer"], ["pool", "layer"]]


def test_upsampling_keeps_the_channels_at_its_place():
    """The usual upsampling has as many channels as there are at its place; a given layer stays as it is."""
    block = Conv2dBlock(1, 4, padding=1).upsampled().configure(out_channels=6)
    assert (block.upsample.in_channels, block.upsample.out_channels) == (6, 6)
    block.upsampled(Layer(nn.Upsample, scale_factor=2))
    assert block.new().build()(torch.randn(1, 1, 4, 4)).shape == (1, 6, 8, 8)


# The style "residual" -----------------------------------------------------------------------------------------------

L, A, N, D = "layer", "activation", "normalization", "dropout"


@pytest.mark.parametrize("make", [lambda: LinearBlock(4, 4), lambda: Conv2dBlock(4, 4).activated(nn.PReLU)])
@pytest.mark.parametrize(
    ("order", "around", "behind"),
    [
        ("lanlan|", [[L, A, N], [L, A, N]], []),
        ("lanl|an", [[L, A, N], [L]], [A, N]),
        ("lllaaa|", [[L], [L], [L, A], [A], [A]], []),
        ("|na", [], [N, A]),
        ("nadlal|an", [[N, A, D, L], [A, L]], [A, N]),
        ("ln", [[L, N]], []),
    ],
)
def test_residual_orders(make, order, around, behind):
    """The letters tell what runs around and behind the shortcut; nothing else is left in the blocks."""
    built = make().style("residual", order=order).new().build()
    assert [inner.order for inner in built.blocks] == around
    assert [list(inner._modules) for inner in built.blocks] == around
    assert built.order == ["shortcut_start", "blocks", "shortcut_end", *behind]
    x = torch.randn(2, 4) if isinstance(built, LinearBlock) else torch.randn(2, 4, 8, 8)
    assert built(x).shape == x.shape


def test_residual_survives_a_change_of_the_sizes():
    """A residual block follows its sizes and its stride."""
    block = Conv2dBlock(1, 1).style("residual", order="lnaln|a").configure(in_channels=2, out_channels=4).strided(2)
    for changed in (block, block.new()):
        assert [inner.normalization.num_features for inner in changed.blocks] == [4, 4]
        assert changed.create()(torch.randn(2, 2, 8, 8)).shape == (2, 4, 4, 4)


@pytest.mark.parametrize("order", ["lx|", "l|l", "l|aa", "l|a|n"])
def test_residual_orders_that_mean_nothing(order):
    """A letter that means nothing at its place is refused with those that do."""
    with pytest.raises(ConfigurationError, match=r"is no order of a residual block\. Before the '\|'"):
        LinearBlock(2, 2).style("residual", order=order)
