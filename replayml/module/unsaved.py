"""Tensors that no ``state_dict`` has, and that a newly built model would have other values of.

Non-persistent buffers, and plain tensor attributes that a constructor draws: a model file holds those whose values the
recipe does not make again, under their names.

Invariants:
    * What the recipe computes again is not stored.
    * A tensor from a file takes only the place of such a tensor, of its shape and of its kind of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from replayml.recipe.files import weights

__all__ = ["kept", "places", "put_back"]


def places(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors that no ``state_dict`` has, by normal name.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> norm.register_buffer("scale", torch.ones(2), persistent=False)
        >>> list(places(norm))
        ['scale']
    """
    return {weights.normal_name(name): tensor for name, tensor in _places(model)}


def _places(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for path, module in model.named_modules(remove_duplicate=False):
        names = {name: module._buffers.get(name) for name in module._non_persistent_buffers_set}
        for name, value in (names | module.__dict__).items():
            if isinstance(value, torch.Tensor):
                yield ".".join(filter(None, (path, name))), value


def kept(model: nn.Module, saved: Iterable[str], make: Callable[[], nn.Module]) -> dict[str, torch.Tensor]:
    """Return copies of the tensors that a file must hold beside the weights.

    Args:
        model: A built model.
        saved: The names of its weights.
        make: Makes it again.
    """
    own = {name: tensor for name, tensor in places(model).items() if name not in saved and _has_values(tensor)}
    if not own:
        return {}
    remade = weights.skeleton(make)
    expected = places(remade)
    buffers = {weights.normal_name(name) for name, _ in remade.named_buffers(remove_duplicate=False)}
    forms = weights.forms(own), weights.forms(expected)
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in own.items()
        if name in expected
        and not weights.differences({name: forms[0][name]}, {name: forms[1][name]})
        and (expected[name].is_meta or (name in buffers and not _equal(tensor, expected[name])))
    }


def _has_values(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, nn.Buffer) and tensor.layout is torch.strided and not tensor.is_meta


def _equal(tensor: torch.Tensor, remade: torch.Tensor) -> bool:
    """Tell whether loading makes the same values, in the type that the tensor has now."""
    one, other = tensor.detach().cpu(), remade.detach().cpu().to(tensor.dtype)
    return bool(((one == other) | ((one != one) & (other != other))).all())


def put_back(model: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Put tensors of a file in their places; what was one tensor under several names stays one."""
    found = list(_places(model))
    new = {id(old): tensors[weights.normal_name(name)] for name, old in found if weights.normal_name(name) in tensors}
    for name, old in found:
        if id(old) in new:
            weights.put(model, name, new[id(old)])
