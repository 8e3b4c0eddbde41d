"""Merging: how what ran through a block and what went around it come together."""

from __future__ import annotations

from typing import ClassVar

import torch

from replayml.module.module import Module

__all__ = ["Add", "Cat", "MergeOp"]


class MergeOp(Module):
    """The base class: ``forward`` takes several tensors and returns one."""

    _is_network_part: ClassVar[bool] = True

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        """Merge tensors."""
        raise NotImplementedError(f"{type(self).__name__} lacks forward(*x)")

    def merged_size(self, *sizes: int | None) -> int | None:
        """Return the number of features or channels of the result, from those of the tensors; None if unknown."""
        return None


class Add(MergeOp):
    """The sum of tensors.

    Example:
        >>> Add().build()(torch.ones(2), torch.ones(2), torch.ones(2))
        tensor([3., 3.])
    """

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        """Return the sum.

        Args:
            *x: Tensors whose shapes can be broadcast to one.
        """
        first, *others = x
        for other in others:
            first = first + other
        return first

    def merged_size(self, *sizes: int | None) -> int | None:
        """Return the size that the tensors share."""
        return sizes[0]


class Cat(MergeOp):
    """Tensors one after another along a dimension.

    Args:
        dim: The dimension; by default that of the channels.

    Example:
        >>> Cat().build()(torch.ones(1, 2), torch.ones(1, 3)).shape
        torch.Size([1, 5])
    """

    def __init__(self, dim: int = 1) -> None:
        self.dim = dim

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        """Return the tensors as one.

        Args:
            *x: Tensors whose shapes differ in that dimension at most.
        """
        return torch.cat(x, dim=self.dim)

    def merged_size(self, *sizes: int | None) -> int | None:
        """Return the sum of the sizes along the dimension of the channels."""
        known = [size for size in sizes if size is not None]
        return sum(known) if self.dim == 1 and len(known) == len(sizes) else None
