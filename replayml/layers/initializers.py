"""Initializers: how the tensors of built layers get their first values.

    model.initialize(Kaiming())                              every layer that Kaiming is for
    model[..., "layer"].initialize(Normal(std=0.02))         some
    model.initialize(Constant(targets=nn.BatchNorm2d))       one kind of layer

Invariants:
    * An initializer is data: two with equal settings are equal, and it can be recorded, copied and written to a file.
    * Layers that are not among the targets, and tensors that a layer does not have, stay as they are.
    * Values are written in place and without gradients: a tensor keeps its identity, type and device.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

__all__ = ["Constant", "Initializer", "Kaiming", "Normal", "Orthogonal", "Uniform", "Xavier"]

Classes = tuple[type[nn.Module], ...]
Targets = type[nn.Module] | Classes

WEIGHTED: Classes = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
NORMALIZING: Classes = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Initializer:
    """The base class: override `initialize_tensor`.

    Args:
        targets: The layer classes that it is for.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> class Halves(Initializer):
        ...     def initialize_tensor(self, tensor, name):
        ...         tensor.fill_(0.5)
        >>> layer = nn.Linear(2, 1)
        >>> Halves(nn.Linear).initialize(layer, tensors=("weight",))
        >>> layer.weight.tolist()
        [[0.5, 0.5]]
    """

    targets: Targets = (nn.Module,)

    def initialize(self, module: nn.Module, tensors: Iterable[str] = ("weight", "bias")) -> None:
        """Initialize tensors of one layer; those of the layers below it are not touched.

        Args:
            module: The layer; nothing happens if it is not one of the targets.
            tensors: The names of the tensors; those that the layer does not have are passed over.
        """
        if not isinstance(module, self.targets):
            return
        for name in tensors:
            tensor = getattr(module, name, None)
            if not isinstance(tensor, torch.Tensor):
                continue
            try:
                with torch.no_grad():
                    self.initialize_tensor(tensor, name)
            except Exception as error:
                error.add_note(f"while initializing {name!r} of {module} by {self}")
                raise

    def initialize_tensor(self, tensor: torch.Tensor, name: str) -> None:
        """Write first values into a tensor.

        Args:
            tensor: The tensor, to be changed in place.
            name: Its name in its layer.
        """
        raise NotImplementedError(f"{type(self).__name__} lacks initialize_tensor(tensor, name)")


@dataclass(frozen=True)
class Constant(Initializer):
    """One value for all weights, and one for all biases.

    Args:
        targets: The layer classes that it is for.
        weight: The value of every tensor but biases.
        bias: The value of tensors named ``bias``.

    Example:
        >>> from torch import nn
        >>> layer = nn.Linear(1, 2)
        >>> Constant(nn.Linear, weight=2.0).initialize(layer)
        >>> layer.weight.tolist(), layer.bias.tolist()
        ([[2.0], [2.0]], [0.0, 0.0])
    """

    targets: Targets = NORMALIZING
    weight: float = 1.0
    bias: float = 0.0

    def initialize_tensor(self, tensor: torch.Tensor, name: str) -> None:
        """Fill the tensor with its value."""
        tensor.fill_(self.bias if name == "bias" else self.weight)


@dataclass(frozen=True)
class Normal(Initializer):
    """Values from a normal distribution.

    Args:
        targets: The layer classes that it is for.
        mean: The mean.
        std: The standard deviation.
    """

    targets: Targets = (*WEIGHTED, *NORMALIZING)
    mean: float = 0.0
    std: float = 1.0

    def initialize_tensor(self, tensor: torch.Tensor, name: str) -> None:
        """Draw each value."""
        tensor.normal_(self.mean, self.std)


@dataclass(frozen=True)
class Uniform(Initializer):
    """Values that are equally likely between two bounds.

    Args:
        targets: The layer classes that it is for.
        low: The lower bound.
        high: The upper bound.
    """

    targets: Targets = WEIGHTED
    low: float = 0.0
    high: float = 1.0

    def initialize_tensor(self, tensor: torch.Tensor, name: str) -> None:
        """Draw each value."""
        tensor.uniform_(self.low, self.high)


@dataclass(frozen=True)
class Kaiming(Initializer):
    """Normal values with a spread that keeps the variance through layers with a rectifier (He et al., 2015).

    Args:
        targets: The layer classes that it is for; their weights need two dimensions or more.
        mode: ``"fan_in"`` keeps the variance in the forward pass, ``"fan_out"`` in the backward pass.
        nonlinearity: The name of the function after the layer, as ``torch.nn.init.calculate_gain`` takes it.
        fill_bias: Whether tensors named ``bias`` are filled with one value; else they are drawn as well.
        bias: That value.
    """

    targets: Targets = WEIGHTED
    mode: Literal["fan_in", "fan_out"] = "fan_out"
    nonlinearity: Literal["relu", "leaky_relu", "linear", "tanh", "sigmoid", "selu"] = "relu"
    fill_bias: bool = True
    bias: float = 0.0

    def initialize_tensor(self, tensor: torch.Tensor, name: str) -> None:
        """Draw each value; fill a bias."""
        if name == "bias" and self.fill_bias:
            tensor.fill_(self.bias)
        else:
            nn.init.kaiming_normal_(tensor, mode=self.mode, nonlinearity=self.nonlinearity)


@dataclass(frozen=True)
class Xavier(Initializer):
    """Values with a spread that suits layers between symmetric functions, such as tanh (Glorot and Bengio, 2010).

    Args:
        targets: The layer classes that it is for; their weights need two dimensions or more.
        gain: A factor for the spread.
        uniform: Whether to draw from a uniform distribution instead of a normal one.
        bias: The value of tensors named ``bias``.
    """

    targets: Targets = WEIGHTED
    gain: float = 1.0
    uniform: bool = False
    bias: float = 0.0

    def initialize_tensor(self, tensor: torch.Tensor, name: str) -> None:
        """Draw each value; fill a bias."""
        if name == "bias":
            tensor.fill_(self.bias)
        elif self.uniform:
            nn.init.xavier_uniform_(tensor, gain=self.gain)
        else:
            nn.init.xavier_normal_(tensor, gain=self.gain)


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """Weights that are orthogonal matrices, up to a factor (Saxe et al., 2013).

    Args:
        targets: The layer classes that it is for; their weights need two dimensions or more.
        gain: The factor.
        bias: The value of tensors named ``bias``.
    """

    targets: Targets = WEIGHTED
    gain: float = 1.0
    bias: float = 0.0

    def initialize_tensor(self, tensor: torch.Tensor, name: str) -> None:
        """Draw the matrix; fill a bias."""
        if name == "bias":
            tensor.fill_(self.bias)
        else:
            nn.init.orthogonal_(tensor, gain=self.gain)
