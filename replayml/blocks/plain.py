"""Blocks with fixed names: `LayerActivation` and the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replayml.blocks.sequential import SequentialBlock

__all__ = [
    "LayerActivation",
    "LayerActivationNormalization",
    "LayerActivationNormalizationDropout",
    "LayerActivationNormalizationUpsampling",
    "LayerSkip",
]


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

    def __init__(self, layer: Any, activation: Any, order: Sequence[str] | None = None, **modules: Any) -> None:
        super().__init__(order=order, layer=layer, activation=activation, **modules)


class LayerActivationNormalization(SequentialBlock):
    """A layer, its activation and normalization; see `LayerActivation`.

    Args:
        layer: A module, or a class of modules.
        activation: Likewise.
        normalization: Likewise.
        order: The names of the modules in the order in which they run.
        **modules: Further modules.
    """

    def __init__(
        self, layer: Any, activation: Any, normalization: Any, order: Sequence[str] | None = None, **modules: Any
    ) -> None:
        super().__init__(order=order, layer=layer, activation=activation, normalization=normalization, **modules)


class LayerActivationNormalizationDropout(SequentialBlock):
    """A layer, its activation, normalization and dropout; see `LayerActivation`.

    Args:
        layer: A module, or a class of modules.
        activation: Likewise.
        normalization: Likewise.
        dropout: Likewise.
        order: The names of the modules in the order in which they run.
        **modules: Further modules.
    """

    def __init__(
        self,
        layer: Any,
        activation: Any,
        normalization: Any,
        dropout: Any,
        order: Sequence[str] | None = None,
        **modules: Any,
    ) -> None:
        super().__init__(
            order=order, layer=layer, activation=activation, normalization=normalization, dropout=dropout, **modules
        )


class LayerActivationNormalizationUpsampling(SequentialBlock):
    """A layer, its activation, normalization and upsampling; see `LayerActivation`.

    Args:
        layer: A module, or a class of modules.
        activation: Likewise.
        normalization: Likewise.
        upsampling: Likewise.
        order: The names of the modules in the order in which they run.
        **modules: Further modules.
    """

    def __init__(
        self,
        layer: Any,
        activation: Any,
        normalization: Any,
        upsampling: Any,
        order: Sequence[str] | None = None,
        **modules: Any,
    ) -> None:
        super().__init__(
            order=order,
            layer=layer,
            activation=activation,
            normalization=normalization,
            upsampling=upsampling,
            **modules,
        )


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
