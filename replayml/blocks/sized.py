"""Perceptrons of four sizes: `SmallMLP`, `MediumMLP`, `LargeMLP`, `XLargeMLP`.

Invariants:
    * Each is a `MultiLayerPerceptron` with hidden sizes of its own in the style "normed_leaky".
"""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from replayml.blocks.components import MultiLayerPerceptron
from replayml.layers.layer import Layer

__all__ = ["LargeMLP", "MediumMLP", "SmallMLP", "XLargeMLP", "normed_leaky"]


@MultiLayerPerceptron.register_style
def normed_leaky(mlp: MultiLayerPerceptron) -> None:
    """Give every block but the last one a batch normalization and a leaky rectifier: ``mlp.style("normed_leaky")``.

    Args:
        mlp: The network.

    Example:
        >>> MultiLayerPerceptron(2, [3], 1).style("normed_leaky").blocks[0].order
        ['layer', 'activation', 'normalization']
    """
    mlp.normalized(nn.BatchNorm1d, after_last_layer=False).activated(Layer(nn.LeakyReLU, negative_slope=0.05))


class SmallMLP(MultiLayerPerceptron):
    """A small network: two hidden layers of 32.

    Args:
        in_features: The size of the input; None to read it off the example input.
        out_features: The size of the output.

    Example:
        >>> SmallMLP(4, 2).blocks[0].activation
        Layer(LeakyReLU, negative_slope=0.05)
    """

    _sizes: ClassVar[tuple[int, ...]] = (32, 32)

    def __init__(self, in_features: int | None, out_features: int) -> None:
        super().__init__(in_features, list(self._sizes), out_features)
        self.style("normed_leaky")


class MediumMLP(SmallMLP):
    """A network of medium size: hidden layers of 64 and 128; see `SmallMLP`."""

    _sizes: ClassVar[tuple[int, ...]] = (64, 128)


class LargeMLP(SmallMLP):
    """A large network: three hidden layers of 128; see `SmallMLP`."""

    _sizes: ClassVar[tuple[int, ...]] = (128, 128, 128)


class XLargeMLP(SmallMLP):
    """A very large network: hidden layers of 128, 256, 512 and 512; see `SmallMLP`."""

    _sizes: ClassVar[tuple[int, ...]] = (128, 256, 512, 512)
