"""Which sizes a block can tell without an example input: a walk along its modules, from the size that goes in.

A *size* is the number of features or channels of what runs through the block.

Invariants:
    * A size that the user gave is never changed.
    * Behind a module that is not known to keep the size or to tell it, the size is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from replayml.blocks.merge import MergeOp
from replayml.blocks.sequential import SequentialBlock
from replayml.layers.external import External
from replayml.layers.layer import Layer

__all__ = ["open_sizes", "size_after", "sizes_along"]

# What these modules of torch hold, without the exceptions, returns as many channels as it takes.
KEEPS_SIZE = (
    "torch.nn.modules.activation",
    "torch.nn.modules.batchnorm",
    "torch.nn.modules.dropout",
    "torch.nn.modules.instancenorm",
    "torch.nn.modules.normalization",
    "torch.nn.modules.pooling",
    "torch.nn.modules.upsampling",
)
CHANGES_SIZE = (nn.MultiheadAttention, nn.GLU)
NORMALIZED = ("num_features", "num_channels", "normalized_shape")


def sizes_along(block: SequentialBlock, size: int | None) -> tuple[list[tuple[str, Any, int | None]], int | None]:
    """Walk along the modules of a block.

    Args:
        block: The block.
        size: The size of what the block gets, or None.

    Returns:
        The name of each module, the module, and the size of what it gets; and the size of what the block returns.
    """
    around = size
    found = []
    for name in block.order:
        child = block._modules[name]
        found.append((name, child, size))
        if name == "shortcut_start":
            around = size_after(child, size)
        elif name == "shortcut_end":
            size = child.merged_size(size, around) if isinstance(child, MergeOp) else size
        else:
            size = size_after(child, size)
    return found, size


def size_after(module: Any, size: int | None) -> int | None:
    """Return the size of what a module returns, or None when it is unknown.

    Args:
        module: The module, built or not.
        size: The size of what it gets, or None.

    Example:
        >>> size_after(Layer(nn.Linear, 4, 8), 4), size_after(nn.Dropout(), 4), size_after(nn.Flatten(), 4)
        (8, 4, None)
    """
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        for child in module:
            size = size_after(child, size)
        return size
    if isinstance(module, SequentialBlock) and module.order:
        along = sizes_along(module, size)[1]
        if along is not None:
            return along
    for name in ("out_features", "out_channels"):
        out = getattr(module, name, None)
        if isinstance(out, int):
            return out
    cls = module.classtype if isinstance(module, External) else type(module)
    keeps = getattr(cls, "__module__", "") in KEEPS_SIZE and cls not in CHANGES_SIZE
    return size if keeps or cls is nn.Identity else None


def open_sizes(layer: Layer, given: Mapping[str, Any], size: int, out: int | None = None) -> dict[str, Any]:
    """Return values for the arguments of a layer that are sizes and are not given.

    Args:
        layer: The layer.
        given: Its arguments as far as they are given, by name; None counts as not given.
        size: The size of what it gets.
        out: The size of what it shall return, for a layer that takes it.

    Example:
        >>> open_sizes(Layer(nn.BatchNorm1d), {}, 8), open_sizes(Layer(nn.BatchNorm1d), {"num_features": 3}, 8)
        ({'num_features': 8}, {})
        >>> open_sizes(Layer(nn.GroupNorm), {}, 8)
        {'num_channels': 8, 'num_groups': 1}
    """
    found: dict[str, Any] = {**dict.fromkeys(NORMALIZED, size), "num_groups": 1}
    if out is not None:
        found |= {"in_features": size, "in_channels": size, "out_features": out, "out_channels": out}
    names = layer.configurables
    return {name: value for name, value in found.items() if name in names and given.get(name) is None}
