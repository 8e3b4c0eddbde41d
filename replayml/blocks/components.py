"""Networks made of blocks: `MultiLayerPerceptron`, `ConvolutionalNeuralNetwork`.

Invariants:
    * The blocks stand in the child ``blocks``, each with a ``layer`` and an ``activation``.
    * A change of the sizes or of the depth keeps what was done to the blocks that are still there; what was done to
      all blocks at once is done to the new ones as well.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import Any, Self

import torch
from torch import nn

from replayml.blocks.base import own_copy
from replayml.blocks.conv import Conv2dBlock, Size
from replayml.blocks.linear import LinearBlock
from replayml.core.errors import ArgumentError, ConfigurationError
from replayml.core.hooks import edit
from replayml.layers.containers import LayerList
from replayml.layers.layer import Layer
from replayml.module.module import Module

__all__ = ["ConvolutionalNeuralNetwork", "MultiLayerPerceptron"]


class BlockStack(Module):
    """Blocks that run one after another: what the networks share."""

    blocks: LayerList[Any]

    @property
    def input(self) -> Any:
        """The first block."""
        return self.blocks[0]

    @property
    def hidden(self) -> Any:
        """All blocks but the last one."""
        return self.blocks[:-1]

    @property
    def output(self) -> Any:
        """The last block."""
        return self.blocks[-1]

    @property
    def layer(self) -> Any:
        """The layers of all blocks."""
        return self.blocks.layer

    @property
    def activation(self) -> Any:
        """The activations of all blocks."""
        return self.blocks.activation

    @property
    def normalization(self) -> Any:
        """The normalizations of all blocks; configuring them adds them where there is none."""
        return self.blocks.normalization

    @property
    def dropout(self) -> Any:
        """The dropouts of all blocks; configuring them adds them where there is none."""
        return self.blocks.dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks.

        Args:
            x: What the first block takes.

        Returns:
            What the last block returns.
        """
        for block in self.blocks:
            x = block(x)
        return x

    @edit
    def normalized(
        self, normalization: Any = None, after_last_layer: bool = True, mode: str = "append", after: str | None = None
    ) -> Self:
        """Normalize every block: see `BaseBlock.normalized`.

        Args:
            normalization: A layer, of which copies are used, or its class; by default the blocks' usual one.
            after_last_layer: Whether to normalize the last block as well.
            mode: ``"append"``, ``"prepend"``, ``"insert"``, or ``"replace"`` to add nothing.
            after: For ``"insert"``, the name of the module that runs before it.
        """
        for block in self._blocks(last=after_last_layer):
            block.normalized(normalization, mode=mode, after=after)
        return self

    @edit
    def activated(
        self, activation: Any = None, after_last_layer: bool = False, mode: str = "append", after: str | None = None
    ) -> Self:
        """Give every block another activation: see `BaseBlock.activated`.

        Args:
            activation: A layer, of which copies are used, or its class; by default the blocks' usual one.
            after_last_layer: Whether to change the activation of the last block as well.
            mode: ``"append"``, ``"prepend"``, ``"insert"``, or ``"replace"`` to add nothing.
            after: For ``"insert"``, the name of the module that runs before it.
        """
        for block in self._blocks(last=after_last_layer):
            block.activated(activation, mode=mode, after=after)
        return self

    @edit
    def set_dropout(
        self, p: float, after_last_layer: bool = False, on_missing: str = "append", after: str | None = None
    ) -> Self:
        """Set the dropout of every block, adding it where there is none: see `SequentialBlock.set_dropout`.

        Args:
            p: The probability of dropping a value.
            after_last_layer: Whether the last block gets one as well.
            on_missing: How to add it: ``"append"``, ``"prepend"`` or ``"insert"``.
            after: For ``"insert"``, the name of the module that runs before it.
        """
        for block in self._blocks(last=after_last_layer):
            block.set_dropout(p, on_missing=on_missing, after=after)
        return self

    def _blocks(self, first: bool = True, last: bool = True) -> list[Any]:
        return list(self.blocks)[0 if first else 1 : None if last else -1]

    def _make_blocks(self, make: Callable[..., Any], sizes: Sequence[int | None], out_activation: Any) -> None:
        """Make a block between each two of the sizes: all with an activation, the last one with that of the output."""
        last = len(sizes) - 2
        self.blocks = LayerList(
            [
                make(*pair, activation=Layer(nn.ReLU) if index < last else _or_identity(out_activation))
                for index, pair in enumerate(pairwise(sizes))
            ]
        )

    def _check_sizes(self, **given: Any) -> None:
        """Refuse what is no size, and in the second of the arguments what is no list of sizes."""
        for (name, value), is_list in zip(given.items(), (False, True, False), strict=True):
            if is_list and (isinstance(value, (str, bytes, Mapping, Set)) or not isinstance(value, Collection)):
                hint = f": [{value}]" if isinstance(value, int) else ", such as [64, 32]"
                raise ArgumentError(f"{name} of {self._place()} is a list of sizes, not {reprlib.repr(value)}{hint}")
            for size in value if is_list else [value]:
                if size is None:
                    continue
                if isinstance(size, bool) or not isinstance(size, Integral):
                    among = f" in {reprlib.repr(list(value))}" if is_list else ""
                    raise ArgumentError(f"{name} of {self._place()} takes whole numbers, not {size!r}{among}")
                if size <= 0:
                    raise ConfigurationError(f"{name} of {self._place()} must be greater than 0, not {size}")


class MultiLayerPerceptron(BlockStack):
    """A fully connected network.

    Args:
        in_features: The size of the input; None to read it off the example input.
        hidden_features: The sizes between the layers; empty for a single layer.
        out_features: The size of the output.
        out_activation: The activation of the last block: a layer, of which a copy is used, or its class; by default
            none.
        flatten_input: Whether to flatten all dimensions of the input but the first.

    Raises:
        ArgumentError: When something is no size.
        ConfigurationError: When a size is not greater than 0.

    Example:
        >>> mlp = MultiLayerPerceptron(28 * 28, [64, 32], 10).normalized(after_last_layer=False)
        >>> mlp.hidden.activation.configure(nn.GELU)
        LayerView(...)
        >>> mlp.configure(hidden_features=[128, 64]).configure("blocks", 0, "layer", bias=False).blocks[0]
        LinearBlock(
          (layer): Layer(Linear, in_features=784, out_features=128, bias=False)
          (activation): Layer(GELU)
          (normalization): Layer(BatchNorm1d, num_features=128)
        )
        >>> mlp.build()(torch.zeros(2, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int | None,
        hidden_features: Sequence[int],
        out_features: int,
        out_activation: Any = None,
        flatten_input: bool = True,
    ) -> None:
        self._check_sizes(in_features=in_features, hidden_features=hidden_features, out_features=out_features)
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.out_features = out_features
        self.flatten_input = flatten_input
        self._make_blocks(LinearBlock, [in_features, *hidden_features, out_features], out_activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks.

        Args:
            x: The input, ``(batch, *sizes)``; ``(batch, ..., features)`` if it is not flattened.

        Returns:
            The output, ``(batch, out_features)``; ``(batch, ..., out_features)`` if the input is not flattened.
        """
        if self.flatten_input:
            x = torch.flatten(x, 1)
        for block in self.blocks:
            x = block(x)
        return x


class ConvolutionalNeuralNetwork(BlockStack):
    """Convolutions over images.

    Args:
        in_channels: The number of channels of the input; None to read it off the example input.
        hidden_channels: The numbers of channels between the layers; empty for a single layer.
        out_channels: The number of channels of the output.
        out_activation: The activation of the last block: a layer, of which a copy is used, or its class; by default
            none.
        pool: What pools before every block but the first: a layer, of which copies are used, or its class; by default
            nothing.

    Raises:
        ArgumentError: When something is no number of channels.
        ConfigurationError: When a number of channels is not greater than 0.

    Example:
        >>> cnn = ConvolutionalNeuralNetwork(3, [16, 32], 8, pool=Layer(nn.MaxPool2d, 2)).normalized()
        >>> cnn.build()(torch.zeros(1, 3, 16, 16)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(
        self,
        in_channels: int | None,
        hidden_channels: Sequence[int],
        out_channels: int,
        out_activation: Any = None,
        pool: Any = None,
    ) -> None:
        self._check_sizes(in_channels=in_channels, hidden_channels=hidden_channels, out_channels=out_channels)
        self.in_channels = in_channels
        self.hidden_channels = hidden_channels
        self.out_channels = out_channels
        self._make_blocks(
            partial(Conv2dBlock, padding=1), [in_channels, *hidden_channels, out_channels], out_activation
        )
        if pool is not None:
            self.pooled(pool)

    @property
    def pool(self) -> Any:
        """The poolings of all blocks; configuring them adds them where there is none."""
        return self.blocks.pool

    @edit
    def pooled(
        self, pool: Any = None, before_first: bool = False, mode: str = "prepend", after: str | None = None
    ) -> Self:
        """Pool in every block: see `Conv2dBlock.pooled`.

        Args:
            pool: A layer, of which copies are used, or its class; by default the maximum over two by two points.
            before_first: Whether to pool in the first block as well.
            mode: ``"append"``, ``"prepend"``, ``"insert"``, or ``"replace"`` to add nothing.
            after: For ``"insert"``, the name of the module that runs before it.
        """
        for block in self._blocks(first=before_first):
            block.pooled(pool, mode=mode, after=after)
        return self

    @edit
    def strided(self, stride: Size, apply_to_first: bool = False, remove_pool: bool = True) -> Self:
        """Give the blocks a stride: see `Conv2dBlock.strided`.

        Args:
            stride: The stride.
            apply_to_first: Whether to give it to the first block as well.
            remove_pool: Whether to take out the poolings.
        """
        for block in self._blocks(first=apply_to_first):
            block.strided(stride, remove_pool)
        return self


def _or_identity(activation: Any) -> Any:
    return Layer(nn.Identity) if activation is None else own_copy(activation)
