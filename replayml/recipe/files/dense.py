"""Which tensors a file can hold: those that are their numbers and their shape, and nothing more.

Invariants:
    * A sparse, nested or quantized tensor is refused by its name, where it is saved and where it is loaded.
"""

from __future__ import annotations

import torch

from replayml.core.errors import CheckpointError
from replayml.recipe.faults import shown

__all__ = ["is_dense", "require_dense"]

_LONGEST = 80


def is_dense(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is its numbers and its shape, and nothing more.

    Example:
        >>> is_dense(torch.eye(2)), is_dense(torch.eye(2).to_sparse())
        (True, False)
    """
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized


def require_dense(name: str, value: object, where: str = "") -> None:
    """Raise when a value is a sparse, nested or quantized tensor.

    Args:
        name: The name of the weight.
        value: Its value; what is no tensor passes.
        where: The file that it stands in, if it does.

    Raises:
        CheckpointError: When it is such a tensor.
    """
    if not isinstance(value, torch.Tensor) or is_dense(value):
        return
    kind = "nested" if value.is_nested else "quantized" if value.is_quantized else "sparse"
    form = f"type is {value.dtype}" if value.is_quantized else f"layout is {value.layout}"
    place = f"{where}: {_named(name)}" if where else name
    remedy = (
        "Let the program that wrote it write dense ones"
        if where
        else "Make it dense, or a buffer with persistent=False, which the constructor makes again"
    )
    raise CheckpointError(
        f"{place} is a {kind} tensor, whose {form}, and model files and checkpoints hold dense ones. {remedy}"
    )


def _named(name: str) -> str:
    """Return a name that a file gave: a path as it is, and anything else as ASCII of a limited length."""
    is_path = name.isascii() and all(part.isidentifier() or part.isdigit() for part in name.split("."))
    return name if is_path and len(name) <= _LONGEST else shown(name)
