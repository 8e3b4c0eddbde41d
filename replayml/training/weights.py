"""From the tensors of a checkpoint to the weights of a model that was made for them.

    skeleton: the model without its weights ─► assign: the tensors of the file ─► complete: what no file has

Invariants:
    * No weight that the file gives is initialised, and the global generators are as they were before.
    * What was one parameter under several names stays one.
    * What the file does not hold (buffers that are not saved, the states of metrics) is as in a newly built model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from replayml.core.errors import CheckpointError
from replayml.training.randomness import fixed_randomness

__all__ = ["assign", "differences", "own_memory", "shapes", "skeleton"]

T = TypeVar("T")

COMPILED = "_orig_mod."
MAPPED = "_weights_are_mapped"

# A checkpoint that has so few of a model's weights is one of another model, whatever `strict` says.
_LEAST_MATCH = 0.1
_MOST_PLACES = 10

_CHILDREN = ("_parameters", "_buffers", "_modules")


class _WithoutWeights(TorchFunctionMode):
    """Makes tensors that are not initialised, or random, on the meta device; those that are computed, for real."""

    _made: frozenset[Callable[..., Any]] = frozenset(
        {
            torch.empty,
            torch.empty_like,
            torch.empty_strided,
            torch.normal,
            torch.rand,
            torch.rand_like,
            torch.randn,
            torch.randn_like,
        }
    )

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._made:
            kwargs["device"] = "meta"
            kwargs.pop("pin_memory", None)
            kwargs.pop("generator", None)
        return func(*args, **kwargs)


def skeleton(make: Callable[[], T]) -> T:
    """Return what ``make`` makes, without random values and without memory for them: those are on the meta device.

    Example:
        >>> norm, linear = skeleton(lambda: (nn.BatchNorm1d(3), nn.Linear(3, 2)))
        >>> norm.running_var, linear.weight.is_meta
        (tensor([1., 1., 1.]), True)
    """
    with fixed_randomness():
        try:
            with _WithoutWeights():
                return make()
        except (NotImplementedError, RuntimeError):
            # A constructor that reads values, which tensors on the meta device lack; any other fault shows again.
            return make()


# Comparing ------------------------------------------------------------------------------------------------------


def normal_name(name: str) -> str:
    """Return the name of a weight without what ``torch.compile`` puts into it."""
    return name.replace(COMPILED, "")


def shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...] | None]:
    """Return the shape of everything in a ``state_dict``, by normal name; None for what is no tensor or has none."""
    return {
        normal_name(name): tuple(value.shape) if isinstance(value, torch.Tensor) and not is_lazy(value) else None
        for name, value in state.items()
    }


def differences(
    found: Mapping[str, tuple[int, ...] | None], expected: Mapping[str, tuple[int, ...] | None]
) -> dict[str, list[str]]:
    """Return what differs between the weights in a file and those of a model, grouped by path.

    Example:
        >>> differences({"a.weight": (2, 3)}, {"a.weight": (2, 4), "a.bias": (2,)})
        {'missing': ['a (bias)'], 'of another shape': ['a.weight: (2, 3) in the file, (2, 4) in the model']}
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    mismatched = [
        f"{name}: {'no tensor' if found[name] is None else found[name]} in the file, {shape} in the model"
        for name, shape in expected.items()
        if shape is not None and found.get(name, shape) != shape
    ]
    groups = {"missing": _by_path(missing), "unexpected": _by_path(unexpected), "of another shape": mismatched}
    return {title: names for title, names in groups.items() if names}


def _by_path(names: list[str]) -> list[str]:
    paths: dict[str, list[str]] = {}
    for name in names:
        path, _, last = name.rpartition(".")
        paths.setdefault(path, []).append(last)
    return [f"{path or 'the model itself'} ({', '.join(last)})" for path, last in paths.items()]


def listed(groups: Mapping[str, list[str]]) -> str:
    """Return differences as one line of text."""
    return "; ".join(
        f"{title}: {', '.join(names[:_MOST_PLACES])}"
        + (f" and {len(names) - _MOST_PLACES} more" if len(names) > _MOST_PLACES else "")
        for title, names in groups.items()
    )


# Assigning ------------------------------------------------------------------------------------------------------


def assign(model: nn.Module, state: Mapping[str, Any], strict: bool, make: Callable[[], nn.Module]) -> None:
    """Give a model the tensors of a ``state_dict``, as they are, without copying them.

    Args:
        model: A model that `skeleton` made.
        state: The tensors by name.
        strict: Whether the file must have what the model has, and nothing else.
        make: Makes the model with all its values, for what the file does not hold.

    Raises:
        CheckpointError: When the weights do not fit.
    """
    own = model.state_dict()
    names = {normal_name(name): name for name in own}
    given = {names.get(normal_name(name), name): value for name, value in state.items()}
    _check(model, shapes(given), shapes(own), strict)
    old = {name: tensor.dtype for name, tensor in model.named_parameters() if tensor.is_floating_point()}
    tied = _tied(model)
    try:
        model.load_state_dict(given, strict=False, assign=True)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the weights do not fit {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error
    for group in tied:
        source = next((name for name in group if name in given), group[0])
        for name in group:
            _put(model, name, _get(model, source))
    _complete(model, make, given)
    _follow_type(model, old)


def _check(
    model: nn.Module,
    found: Mapping[str, tuple[int, ...] | None],
    expected: Mapping[str, tuple[int, ...] | None],
    strict: bool,
) -> None:
    groups = differences(found, expected)
    matching = sum(name in found for name in expected)
    if "of another shape" in groups or (strict and groups):
        hint = "" if strict or len(groups) > 1 else " strict=False does not change that"
        raise CheckpointError(f"the weights do not fit {type(model).__name__}: {listed(groups)}.{hint}")
    if expected and matching < _LEAST_MATCH * len(expected):
        raise CheckpointError(
            f"the file has {matching} of the {len(expected)} weights of {type(model).__name__}; it is of another "
            f"model: {listed(groups)}"
        )


def _tied(model: nn.Module) -> list[list[str]]:
    """Return the names of each tensor that stands under several names."""
    names: dict[int, list[str]] = {}
    for name, tensor in _named_tensors(model):
        names.setdefault(id(tensor), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _get(model: nn.Module, name: str) -> Any:
    path, _, last = name.rpartition(".")
    return getattr(model.get_submodule(path), last)


def _put(model: nn.Module, name: str, tensor: Any) -> None:
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, tensor)


def _complete(model: nn.Module, make: Callable[[], nn.Module], given: Mapping[str, Any]) -> None:
    """Replace what is still on the meta device, in attributes too, by what a newly built model has there."""
    left = [
        (path, name)
        for path, module in model.named_modules()
        for place in (module._parameters, module._buffers, module.__dict__)
        for name, value in place.items()
        if name not in _CHILDREN and ".".join(filter(None, (path, name))) not in given and _holds_meta(value)
    ]
    if not left:
        return
    with fixed_randomness():
        whole = make()
    for path, name in left:
        setattr(model.get_submodule(path), name, getattr(whole.get_submodule(path), name))


def _holds_meta(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.is_meta
    if isinstance(value, (list, tuple)):
        return any(_holds_meta(item) for item in value)
    return isinstance(value, dict) and any(_holds_meta(item) for item in value.values())


def _follow_type(model: nn.Module, old: Mapping[str, torch.dtype]) -> None:
    """Give buffers that are not saved the type of the weights, where the file changed that of all weights alike."""
    changes = {(old[name], tensor.dtype) for name, tensor in model.named_parameters() if name in old}
    if len(changes) != 1:
        return
    ((before, after),) = changes
    if before is not after:
        model._apply(lambda tensor: tensor.to(after) if tensor.dtype is before else tensor)  # type: ignore[no-untyped-call]


# Memory ---------------------------------------------------------------------------------------------------------


def own_memory(model: nn.Module) -> None:
    """Copy weights that are read from a file into memory: the file may be about to be written again."""
    if model.__dict__.pop(MAPPED, False):
        model._apply(lambda tensor: tensor.clone())  # type: ignore[no-untyped-call]
