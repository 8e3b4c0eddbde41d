"""Tensors that no ``state_dict`` has, and that a newly built model would have other values of.

Non-persistent buffers, and plain tensor attributes that a constructor draws: a model file holds those whose values the
recipe does not make again, under their names.

Invariants:
    * What the recipe computes again is not stored.
    * A tensor from a file takes only the place of such a tensor, of its shape and of its kind of numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from replayml.core.errors import CheckpointError
from replayml.recipe.files import weights
from replayml.recipe.files.dense import is_dense

__all__ = ["Places", "kept", "places", "put_back", "require_places"]


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


class Places(NamedTuple):
    """The tensors that no ``state_dict`` of a newly built model has.

    Attributes:
        tensors: The tensors, by normal name; those that were drawn are on the meta device.
        buffers: The names of those that are buffers.
    """

    tensors: Mapping[str, torch.Tensor]
    buffers: frozenset[str]

    @classmethod
    def of(cls, make: Callable[[], nn.Module]) -> Places:
        """Make a model without weights, and return its tensors."""
        remade = weights.skeleton(make)
        buffers = (weights.normal_name(name) for name, _ in remade.named_buffers(remove_duplicate=False))
        return cls(places(remade), frozenset(buffers))


def kept(model: nn.Module, saved: Iterable[str], expected: Callable[[], Places]) -> dict[str, torch.Tensor]:
    """Return copies of the tensors that a file must hold beside the weights.

    Args:
        model: A built model.
        saved: The names of its weights.
        expected: Returns those of a newly built model.
    """
    own = {name: tensor for name, tensor in places(model).items() if name not in saved and _has_values(tensor)}
    if not own:
        return {}
    made, buffers = expected()
    forms = weights.forms(own), weights.forms({name: tensor for name, tensor in made.items() if name in own})
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in own.items()
        if name in made
        and not weights.differences({name: forms[0][name]}, {name: forms[1][name]})
        and (made[name].is_meta or (name in buffers and not _equal(tensor, made[name])))
    }


def _has_values(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, nn.Buffer) and is_dense(tensor) and not tensor.is_meta


def _equal(tensor: torch.Tensor, remade: torch.Tensor) -> bool:
    """Tell whether loading makes the same values, in the type that the tensor has now."""
    one, other = tensor.detach().cpu(), remade.detach().cpu()
    if not is_dense(other):
        return False
    other = other.to(tensor.dtype)
    return bool(((one == other) | ((one != one) & (other != other))).all())


def require_places(found: Mapping[str, weights.Form | None], model: nn.Module) -> None:
    """Raise when tensors of a file do not fit those that a model has in their places.

    Raises:
        CheckpointError: When they do not.
    """
    own = places(model)
    groups = weights.differences(found, weights.forms({name: own[name] for name in found if name in own}))
    groups.pop("unexpected", None)
    if groups:
        raise CheckpointError(f"tensors do not fit those that the recipe makes: {weights.listed(groups)}")


def put_back(model: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Put tensors of a file in their places; what was one tensor under several names stays one."""
    found = list(_places(model))
    new = {id(old): tensors[weights.normal_name(name)] for name, old in found if weights.normal_name(name) in tensors}
    for name, old in found:
        if id(old) in new:
            weights.put(model, name, new[id(old)])
