"""The tensors of a ``state_dict`` as whole tensors: which of them are one, and what stands on several processes.

Invariants:
    * Tensors that are one memory are found as one group, in the order of their names in the ``state_dict``.
    * Tensors that share a part of their memory are refused: a file cannot say so.
    * What is sharded is gathered in the same order in every process.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from replayml.core.errors import CheckpointError, RecipeError

__all__ = ["gathered", "is_first_process", "is_sharded", "require_values", "shared"]

_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)


def _is_sharded(tensor: object) -> bool:
    """Tell whether a tensor stands on several processes; while none does, nothing is imported to find out."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Tell whether weights of a model stand on several processes."""
    return any(_is_sharded(parameter) for parameter in model.parameters())


def is_first_process() -> bool:
    """Tell whether this process is the one that writes what several have."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def require_values(name: str, value: object) -> torch.Tensor:
    """Return a value of a ``state_dict``, if it is a plain tensor that holds numbers.

    Raises:
        RecipeError: When it is not.
    """
    if not isinstance(value, torch.Tensor):
        raise RecipeError(
            "no-data-form",
            name,
            f"the state_dict holds a {type(value).__name__} here, and a model file holds tensors. "
            "Return a tensor from get_extra_state(), or hand the value to the constructor",
        )
    if is_lazy(value):
        raise RecipeError("no-data-form", name, "this weight has no shape yet. Call the model once before it is saved")
    if type(value) not in _PLAIN and not _is_sharded(value):
        raise RecipeError("no-data-form", name, f"a {type(value).__qualname__} is more than its values. Make it plain")
    if value.layout is not torch.strided:
        raise RecipeError("no-data-form", name, f"the layout of this tensor is {value.layout}. Make it dense")
    if value.is_meta:
        raise CheckpointError(f"{name} is on the meta device and has no values. Load or initialise the weights first")
    return value


def shared(state: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Return the names of each tensor that stands under several names.

    Raises:
        CheckpointError: When two tensors share a part of their memory, but are not the same.

    Example:
        >>> weight = torch.zeros(2, 3)
        >>> shared({"a": weight, "b": torch.zeros(2, 3), "c": weight.detach()})
        [['a', 'c']]
    """
    storages: dict[int, dict[tuple[Any, ...], list[str]]] = {}
    for name, tensor in state.items():
        local: Any = tensor._local_tensor if _is_sharded(tensor) else tensor  # type: ignore[attr-defined]
        view = (local.storage_offset(), tuple(local.shape), local.stride(), local.dtype)
        storages.setdefault(local.untyped_storage()._cdata, {}).setdefault(view, []).append(name)
    groups = []
    for views in storages.values():
        _require_apart(views)
        groups += [names for names in views.values() if len(names) > 1]
    return groups


def _require_apart(views: Mapping[tuple[Any, ...], list[str]]) -> None:
    """Raise when some of the views of one memory overlap."""
    end, before = 0, ""
    for start, stop, name in sorted((*_extent(view), names[0]) for view, names in views.items()):
        if start < end and start < stop:
            raise CheckpointError(
                f"{before} and {name} share a part of their memory, which a model file cannot say. "
                "Give one of them a copy: tensor.clone()"
            )
        if stop > end:
            end, before = stop, name


def _extent(view: tuple[Any, ...]) -> tuple[int, int]:
    """Return the first byte of a view in its memory, and the byte after its last one."""
    offset, shape, strides, dtype = view
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    start = offset * dtype.itemsize
    return start, start if 0 in shape else start + (last + 1) * dtype.itemsize


def gathered(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors as a whole; every process that has a part takes part."""
    return {name: tensor.full_tensor() if _is_sharded(tensor) else tensor for name, tensor in state.items()}  # type: ignore[attr-defined]
