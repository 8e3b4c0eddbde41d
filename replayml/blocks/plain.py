"""Blocks with fixed names: `LayerActivation` and the others.

Invariants:
    * Each runs its modules in the order of its arguments, unless ``order`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replayml.blocks.sequential import SequentialBlock

__all__ = [
    "LayerActivation",
    "LayerActivationNormalization",
    "LayerActivationNormalizationDropout",
    "LayerActivationNormalizationUpsample",
    "LayerSkip",
    "PoolLayerActivationNormalization",
]

Order = Sequence[str] | None


class LayerActivation(SequentialBlock):
    """A layer and its activation.

    Args:
        layer: A module, or a class of modules.
        activation: Likewise.
        order: The names of the modules in the order in which they run.
        **modules: Further modules.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from replayml.layers.layer import Layer
        >>> block = LayerActivation(Layer(nn.Linear, 2, 3), nn.ReLU).configure(activation=nn.GELU)
        >>> block.build()(torch.zeros(1, 2)).shape
        torch.Size([1, 3])
    """

    def __init__(self, layer: Any, activation: Any, order: Order = None, **modules: Any) -> None:
        super().__init__(order=order, layer=layer, activation=activation, **modules)


class LayerActivationNormalization(LayerActivation):
    """A layer, its activation and normalization; see `LayerActivation`."""

    def __init__(self, layer: Any, activation: Any, normalization: Any, order: Order = None, **modules: Any) -> None:
        super().__init__(layer, activation, order, normalization=normalization, **modules)


class LayerActivationNormalizationDropout(LayerActivationNormalization):
    """A layer, its activation, normalization and dropout; see `LayerActivation`."""

    def __init__(
        self, layer: Any, activation: Any, normalization: Any, dropout: Any, order: Order = None, **modules: Any
    ) -> None:
        super().__init__(layer, activation, normalization, order, dropout=dropout, **modules)


class LayerActivationNormalizationUpsample(LayerActivationNormalization):
    """A layer, its activation, normalization and upsampling; see `LayerActivation`."""

    def __init__(
        self, layer: Any, activation: Any, normalization: Any, upsample: Any, order: Order = None, **modules: Any
    ) -> None:
        super().__init__(layer, activation, normalization, order, upsample=upsample, **modules)


class PoolLayerActivationNormalization(SequentialBlock):
    """A pooling, a layer, its activation and normalization; see `LayerActivation`."""

    def __init__(
        self, pool: Any, layer: Any, activation: Any, normalization: Any, order: Order = None, **modules: Any
    ) -> None:
        named = {"pool": pool, "layer": layer, "activation": activation, "normalization": normalization}
        super().__init__(order=order, **named, **modules)


class LayerSkip(SequentialBlock):
    """A layer, and a merging of its output with its input.

    Args:
        layer: A module, or a class of modules.
        skip: A module that takes the output and the input of the layer, such as `Add`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from replayml.blocks.merge import Add
        >>> from replayml.layers.layer import Layer
        >>> LayerSkip(Layer(nn.Identity), Add()).build()(torch.ones(1, 2))
        tensor([[2., 2.]])
    """

    layer: Any
    skip: Any

    def __init__(self, layer: Any, skip: Any) -> None:
        super().__init__(layer=layer, skip=skip)

    def forward(self, x: Any) -> Any:
        """Run the layer and merge.

        Args:
            x: What the layer takes.

        Returns:
            What the merging makes of the layer's output and ``x``.
        """
        return self.skip(self.layer(x), x)
