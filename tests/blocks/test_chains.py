"""Chains of operations as they make residual networks: any block builds, runs, is copied and reads back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from replayml.blocks.base import BaseBlock
from replayml.blocks.conv import Conv1dBlock, Conv2dBlock, ConvBlock
from replayml.blocks.linear import LinearBlock
from replayml.blocks.merge import Add, Cat
from replayml.blocks.sizes import sizes_along
from replayml.core.errors import ConfigurationError
from replayml.layers.containers import Sequential
from replayml.layers.layer import Layer
from replayml.recipe import Recipe

ORDERS = ("lanlan|", "lnaln|a", "nal|d", "ld|na", "nalnal|", "l|", "dl|nad", "lalala|n")
SIDE = 16

Call = Callable[[Any, int], Any]


def _pooled(block: ConvBlock, pick: int) -> Any:
    given_pool = [None, getattr(nn, f"AvgPool{block._dimensions}d")][pick % 2]
    return block.pooled(given_pool, mode=("prepend", "append")[pick // 2 % 2])


LINEAR: dict[str, Call] = {
    "multi": lambda block, pick: block.multi(1 + pick % 3) if _parts(block) < 4 else None,
    "residual": lambda block, pick: (
        block.style("residual", order=ORDERS[pick]) if _parts(block) < 4 and "layer" in block.order else None
    ),
    "shortcut": lambda block, pick: block.shortcut(merge=Cat if pick == 0 else None),
    "activated": lambda block, pick: block.activated((nn.GELU, nn.PReLU, None)[pick % 3]),
    "normalized": lambda block, pick: block.normalized(mode=("append", "prepend")[pick % 2]),
    "dropout": lambda block, pick: block.set_dropout(pick / 10, on_missing=("append", "prepend")[pick % 2]),
    "size_in": lambda block, pick: block.configure(**{block._size_in: 3 + pick}),
    "size_out": lambda block, pick: block.configure(**{block._size_out: 3 + pick}),
    "bias": lambda block, pick: block.configure(bias=bool(pick % 2)),
    "inner": lambda block, pick: block.blocks[0].normalized().activated(nn.Tanh) if "blocks" in block.order else None,
}
CONVOLUTION: dict[str, Call] = {
    **LINEAR,
    "pooled": lambda block, pick: _pooled(block, pick) if _halvings(block) < 2 else None,
    "strided": lambda block, pick: block.strided(2) if _halvings(block) < 2 else None,
    "upsampled": lambda block, pick: block.upsampled(),
    "multi": lambda block, pick: block.multi(1 + pick % 2) if _parts(block) < 4 and _halvings(block) < 2 else None,
}
BLOCKS: dict[type[BaseBlock], dict[str, Call]] = {
    LinearBlock: LINEAR,
    Conv1dBlock: CONVOLUTION,
    Conv2dBlock: CONVOLUTION,
}


def _parts(block: BaseBlock) -> int:
    return sum(isinstance(part, BaseBlock) for part in block.modules())


def _halvings(block: BaseBlock) -> int:
    """Return how often a block halves the resolution at the most."""
    parts = [part for part in block.modules() if isinstance(part, ConvBlock)]
    return sum(("pool" in part.order) + (part.stride != 1 and "layer" in part.order) for part in parts)


def _resizes_inside(block: BaseBlock) -> bool:
    parts = [part for part in block.modules() if isinstance(part, ConvBlock) and part is not block]
    return any({"pool", "upsample"} & set(part.order) for part in parts)


def _made(cls: type[BaseBlock], size_in: int, size_out: int) -> Any:
    return cls(size_in, size_out) if cls is LinearBlock else cls(size_in, size_out, padding=1)


def _example(block: Any) -> Tensor:
    size = getattr(block, block._size_in)
    sides = () if isinstance(block, LinearBlock) else (SIDE,) * block._dimensions
    return torch.randn(2, size, *sides, generator=torch.Generator().manual_seed(0))


@st.composite
def chains(draw: st.DrawFn) -> BaseBlock:
    """Return a block after a chain of operations; a shortcut that cannot keep the resolution is refused or left out."""
    cls = draw(st.sampled_from(sorted(BLOCKS, key=lambda cls: cls.__name__)))
    block = _made(cls, 4, draw(st.sampled_from([4, 6])))
    for name, pick in draw(st.lists(st.tuples(st.sampled_from(sorted(BLOCKS[cls])), st.integers(0, 7)), max_size=6)):
        if name == "shortcut" and _resizes_inside(block):
            continue
        before = repr(block)
        try:
            BLOCKS[cls][name](block, pick)
        except ConfigurationError as error:
            if "would go around" not in str(error) or repr(block) != before:
                raise
    return block


@given(chains())
def test_every_chain_builds_runs_copies_and_reads_back(block: Any) -> None:
    """A copy and a recipe read back equal the block, and all three give the same output, of the size foretold."""
    copy = block.new()
    read = Recipe.from_json(block.recipe().to_json()).model()
    assert repr(copy) == repr(read) == repr(block)
    assert copy.recipe().fingerprint == read.recipe().fingerprint == block.recipe().fingerprint
    x = _example(block)
    built = [model.build(seed=1).eval() for model in (copy, read)]
    assert list(built[0].state_dict()) == list(built[1].state_dict())
    outputs = [model(x) for model in built]
    assert torch.equal(*outputs)
    size = sizes_along(block, getattr(block, block._size_in))[1]
    assert size is None or outputs[0].shape[1] == size


@given(chains(), st.integers(1, 5), st.integers(1, 5))
def test_every_chain_follows_other_sizes(block: Any, size_in: int, size_out: int) -> None:
    """A block of any chain takes other sizes afterwards, builds with them and runs."""
    block.configure(**{block._size_in: size_in, block._size_out: size_out})
    assert repr(block.new()) == repr(block)
    built = block.create(seed=1).eval()
    assert len(built(_example(block))) == 2


# Against torch, by hand -----------------------------------------------------------------------------------------


class Residual(nn.Module):
    """What a residual block of an order is, written without replayml."""

    def __init__(self, order: str, size_in: int, size_out: int, stride: int = 1) -> None:
        super().__init__()
        around, _, behind = order.partition("|")
        self.runs = nn.ModuleList()
        size = size_in
        for index, letter in enumerate(around):
            if letter == "l":
                step = stride if "l" not in around[:index] else 1
                self.runs.append(nn.Conv2d(size, size_out, 3, stride=step, padding=1))
                size = size_out
            else:
                self.runs.append(
                    {"a": nn.ReLU, "n": nn.BatchNorm2d, "d": nn.Dropout}[letter](*_arguments(letter, size))
                )
        same = size_in == size_out and stride == 1
        self.around = nn.Identity() if same else nn.Conv2d(size_in, size_out, 1, stride=stride)
        self.behind = nn.ModuleList(
            {"a": nn.ReLU, "n": nn.BatchNorm2d, "d": nn.Dropout}[letter](*_arguments(letter, size)) for letter in behind
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for module in self.runs:
            y = module(y)
        y = y + self.around(x)
        for module in self.behind:
            y = module(y)
        return y


def _arguments(letter: str, size: int) -> tuple[Any, ...]:
    return {"a": (), "n": (size,), "d": (0.1,)}[letter]


def _take(mine: nn.Module, theirs: nn.Module) -> None:
    """Give one model the weights of another, which has the same layers in the same order."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    layers = [[layer for layer in model.modules() if isinstance(layer, kinds)] for model in (mine, theirs)]
    layers = [
        sorted(found, key=lambda layer: isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1))
        for found in layers
    ]
    for own, other in zip(*layers, strict=True):
        own.load_state_dict(other.state_dict())


@given(st.sampled_from(ORDERS), st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.booleans())
def test_a_residual_block_is_the_one_written_by_hand(
    order: str, size_in: int, size_out: int, stride: int, train: bool
) -> None:
    """Given the same weights, a residual block returns what the same block in plain torch returns."""
    if train and "d" in order:
        order = order.replace("d", "")  # what is dropped is drawn at random
    block = Conv2dBlock(size_in, size_out).style("residual", order=order)
    if stride > 1:
        block.strided(stride)
    built = block.build(seed=0).train(train)
    by_hand = Residual(order, size_in, size_out, stride).train(train)
    _take(by_hand, built)
    x = torch.randn(2, size_in, 8, 8)
    assert torch.equal(built(x), by_hand(x))


@given(st.lists(st.sampled_from([2, 4]), min_size=1, max_size=3), st.integers(1, 2))
def test_a_residual_network_is_the_one_written_by_hand(widths: list[int], depth: int) -> None:
    """A network of residual stages, each halving the resolution, is the one in plain torch, and its recipe too."""
    stages = [
        Conv2dBlock(before, width).style("residual", order="lnaln|a").strided(2 if index == 0 else 1)
        for before, width in zip([3, *widths], widths, strict=False)
        for index, before in enumerate([before, *[width] * (depth - 1)])
    ]
    network = Sequential(*stages, Layer(nn.AdaptiveAvgPool2d, 1), Layer(nn.Flatten), Layer(nn.Linear, None, 5))
    read = Recipe.from_json(network.recipe().to_json()).model()
    x = torch.randn(2, 3, 16, 16)
    built = network.build(x, seed=3)
    by_hand: list[nn.Module] = []
    for before, width in zip([3, *widths], widths, strict=False):
        by_hand += [Residual("lnaln|a", before if i == 0 else width, width, 2 if i == 0 else 1) for i in range(depth)]
    model = nn.Sequential(*by_hand, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 5))
    for own, other in zip(model, built, strict=True):
        _take(own, other)
    expected = model(x)
    assert torch.equal(built(x), expected)
    assert torch.equal(read.build(x, seed=3)(x), expected)


# What cannot work is refused ------------------------------------------------------------------------------------


def test_a_shortcut_around_a_change_of_the_resolution_is_refused() -> None:
    """The default shortcut keeps the resolution, so it is refused where the block does not; one's own is taken."""
    block = Conv2dBlock(2, 2, padding=1).upsampled().activated()
    for merge in (None, Add, Cat, Cat()):
        with pytest.raises(
            ConfigurationError, match=r"shortcut of Conv2dBlock would go around 'upsample', .* \.shortcut\(shortcut="
        ):
            block.shortcut(merge=merge)
    assert block.order == ["layer", "upsample", "activation"]
    built = block.shortcut(shortcut=Layer(nn.Upsample, scale_factor=2)).build()
    assert built(torch.zeros(1, 2, 4, 4)).shape == (1, 2, 8, 8)
    with pytest.raises(ConfigurationError, match="would go around 'transpose'"):
        Conv2dBlock(2, 2).transposed().shortcut()
    outside = Conv2dBlock(2, 2, padding=1).pooled().upsampled().shortcut()
    assert outside.order == ["pool", "shortcut_start", "layer", "shortcut_end", "upsample"]


def test_a_style_needs_the_layer() -> None:
    """The style "residual" says so where the block's layer is gone; a shortcut that is there gives way to its own."""
    with pytest.raises(
        ConfigurationError, match=r"has no layer, for which the 'l' in 'nal\|' stands; it runs blocks. Gi"
    ):
        LinearBlock(2, 2).multi(2).style("residual", order="nal|")
    block = LinearBlock(2, 3).shortcut(merge=Cat).style("residual", order="lala|")
    assert [part.order for part in block.blocks] == [["layer", "activation"]] * 2
    assert block.build()(torch.zeros(1, 2)).shape == (1, 3)


def test_a_shortcut_around_wider_copies_is_as_wide() -> None:
    """The default shortcut projects to the size that comes out, which copies with a Cat of their own make wider."""
    block = LinearBlock(4, 6).shortcut(merge=Cat).multi(2).shortcut()
    assert block.shortcut_start.out_features == 12
    block.configure(out_features=5)
    assert block.shortcut_start.out_features == 10
    assert block.build()(torch.zeros(1, 4)).shape == (1, 10)
