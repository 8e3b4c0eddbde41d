"""`LinearBlock`: a linear layer and what stands around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from replayml.blocks.base import BaseBlock
from replayml.blocks.residual import residual
from replayml.layers.layer import Layer

__all__ = ["LinearBlock"]


class LinearBlock(BaseBlock):
    """A linear layer, to be activated, normalized, repeated, or given a shortcut.

    Args:
        in_features: The size of the input's last dimension; None to read it off the example input.
        out_features: The size of the output's last dimension.
        bias: Whether the layer adds a bias.
        order: The names of the modules in the order in which they run.
        **modules: Further modules, or classes of modules, which run after the layer unless ``order`` says otherwise.

    Example:
        >>> LinearBlock(4, 8).activated(nn.ReLU).normalized(mode="insert", after="layer")
        LinearBlock(
          (layer): Layer(Linear, in_features=4, out_features=8, bias=True)
          (normalization): Layer(BatchNorm1d, num_features=8)
          (activation): Layer(ReLU)
        )
    """

    _arguments = ("in_features", "out_features", "bias")
    _size_in = "in_features"
    _size_out = "out_features"

    def __init__(
        self,
        in_features: int | None,
        out_features: int,
        bias: bool = True,
        order: Sequence[str] | None = None,
        **modules: Any,
    ) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self.bias = bias
        layer = Layer(nn.Linear, in_features, out_features, bias=bias)
        super().__init__(order=order, **{"layer": layer, **modules})

    def get_default_normalization(self) -> Any:
        """Return a batch normalization."""
        return Layer(nn.BatchNorm1d)

    def get_default_shortcut(self) -> Any:
        """Return nothing but the input where the sizes agree, else a linear layer."""
        size = self._size_inside()
        return Layer(nn.Identity) if self.in_features == size else Layer(nn.Linear, self.in_features, size)


LinearBlock.register_style(residual)
