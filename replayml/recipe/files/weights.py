"""From the tensors of a checkpoint to the weights of a model that was made for them.

    skeleton: the model without its weights ─► assign: the tensors of the file ─► complete: what no file has

Invariants:
    * No weight that the file gives is initialised, and the global generators are as they were before.
    * What was one parameter under several names stays one.
    * What the file does not hold (buffers that are not saved, the states of metrics) is as in a newly built model.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from replayml.core.errors import CheckpointError
from replayml.recipe.faults import shown
from replayml.recipe.randomness import fixed_randomness

__all__ = [
    "WRAPPERS",
    "Form",
    "assign",
    "by_path",
    "differences",
    "forms",
    "listed",
    "normal_name",
    "own_memory",
    "put",
    "require_fit",
    "skeleton",
]

T = TypeVar("T")

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Under which name torch keeps a module that it has put another one around."""

MAPPED = "_weights_are_mapped"

# A checkpoint that has so few of a model's weights is one of another model, whatever `strict` says.
_LEAST_MATCH = 0.1
_MOST_PLACES = 10
_LONGEST = 80

_LOAD_HOOKS = ("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
_EXTRA_STATE = "_extra_state"
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
    """Return the name of a weight without what ``torch.compile`` and the like put into it."""
    for wrapper in WRAPPERS:
        name = name.replace(f"{wrapper}.", "")
    return name


class Form(NamedTuple):
    """What must agree between a weight in a file and one of a model.

    Attributes:
        shape: Its shape.
        dtype: Its type; floating point ones are as good as one another, and so are complex ones.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def kind(self) -> str:
        """The type, as far as it must agree."""
        if self.dtype.is_floating_point:
            return "floating point"
        return "complex" if self.dtype.is_complex else str(self.dtype)


def forms(state: Mapping[str, Any]) -> dict[str, Form | None]:
    """Return the form of everything in a ``state_dict``, by normal name; None for what is no tensor or has none."""
    return {
        normal_name(name): Form(tuple(value.shape), value.dtype)
        if isinstance(value, torch.Tensor) and not is_lazy(value) and not value.is_nested
        else None
        for name, value in state.items()
    }


def differences(found: Mapping[str, Form | None], expected: Mapping[str, Form | None]) -> dict[str, list[str]]:
    """Return what differs between the weights in a file and those of a model, grouped by path.

    Example:
        >>> found = forms({"a.weight": torch.zeros(2, 3)})
        >>> differences(found, forms({"a.weight": torch.zeros(2, 4), "a.bias": torch.zeros(2)}))
        {'missing': ['a (bias)'], 'of another shape': ['a.weight: (2, 3) in the file, (2, 4) in the model']}
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes, types = [], []
    for name, form in expected.items():
        given = found.get(name, form)
        if form is None or given == form:
            continue
        if given is None or given.shape != form.shape:
            what = "no tensor" if given is None else given.shape
            shapes.append(f"{_shown(name)}: {what} in the file, {form.shape} in the model")
        elif given.kind != form.kind:
            types.append(f"{_shown(name)}: {given.dtype} in the file, {form.dtype} in the model")
    groups = {
        "missing": _grouped(missing),
        "unexpected": _grouped(unexpected),
        "of another shape": shapes,
        "of another type": types,
    }
    return {title: names for title, names in groups.items() if names}


def by_path(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the last parts of names, by what stands before them.

    Example:
        >>> by_path(["a.weight", "a.bias", "scale"])
        {'a': ['weight', 'bias'], '': ['scale']}
    """
    paths: dict[str, list[str]] = {}
    for name in names:
        path, _, last = name.rpartition(".")
        paths.setdefault(path, []).append(last)
    return paths


def _grouped(names: list[str]) -> list[str]:
    groups = by_path(names)
    return [f"{_shown(path) or 'the model itself'} ({_cut(list(map(_shown, last)))})" for path, last in groups.items()]


def _shown(name: str) -> str:
    """Return a name that a file may have given, as ASCII of a limited length."""
    return name if name.isascii() and name.isprintable() and len(name) <= _LONGEST else shown(name)


def _cut(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_PLACES} more" if len(names) > _MOST_PLACES else ""
    return ", ".join(names[:_MOST_PLACES]) + more


def listed(groups: Mapping[str, list[str]]) -> str:
    """Return differences as one line of text."""
    return "; ".join(f"{title}: {_cut(names)}" for title, names in groups.items())


# Assigning ------------------------------------------------------------------------------------------------------


def assign(
    model: nn.Module,
    state: Mapping[str, Any],
    strict: bool,
    make: Callable[[], nn.Module],
    follow_type: bool = True,
) -> None:
    """Give a model the tensors of a ``state_dict``, as they are, without copying them.

    Args:
        model: A model that `skeleton` made.
        state: The tensors by name.
        strict: Whether the file must have what the model has, and nothing else.
        make: Makes the model with all its values, for what the file does not hold.
        follow_type: Give buffers that are not saved the type that the file gives to all weights alike.

    Raises:
        CheckpointError: When the weights do not fit.
    """
    own = model.state_dict()
    names = {normal_name(name): name for name in own}
    given = {names.get(normal_name(name), name): value for name, value in state.items()}
    require_fit(model, forms(given), strict)
    old = {name: tensor.dtype for name, tensor in model.named_parameters() if tensor.is_floating_point()}
    tied = _tied(model)
    try:
        _Assignment(given).to(model)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the weights do not fit {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error
    for group in tied:
        source = next((name for name in group if name in given), group[0])
        for name in group:
            put(model, name, _get(model, source))
    _complete(model, make, given)
    if follow_type:
        _follow_type(model, old)


class _Assignment:
    """Assigns the tensors of a ``state_dict``, as torch does, but in a time that grows with their number only.

    Torch hands each module a copy of all that may concern it. Most modules only want their own tensors.

    Args:
        given: The tensors by name.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = given
        self._names = sorted(given)

    def to(self, model: nn.Module) -> None:
        """Give a model its tensors."""
        if _own_method(model, "load_state_dict"):
            model.load_state_dict(self._given, strict=False, assign=True)
        else:
            self._assign(model, "")

    def _assign(self, module: nn.Module, prefix: str) -> None:
        if _own_method(module, "_load_from_state_dict", "torch.nn.modules.module") or any(
            getattr(module, hooks) for hooks in _LOAD_HOOKS
        ):
            nn.Module.load_state_dict(module, self._below(prefix), strict=False, assign=True)
            return
        for name, parameter in list(module._parameters.items()):
            value = self._given.get(prefix + name)
            if parameter is not None and value is not None:
                is_parameter = isinstance(value, nn.Parameter)
                new = value if is_parameter else nn.Parameter(value, requires_grad=parameter.requires_grad)
                setattr(module, name, new.requires_grad_(parameter.requires_grad))
        for name in module._buffers.keys() - module._non_persistent_buffers_set:
            value = self._given.get(prefix + name)
            if module._buffers[name] is not None and value is not None:
                setattr(module, name, value)
        if prefix + _EXTRA_STATE in self._given and _own_method(module, "set_extra_state", "torch.nn.modules.module"):
            module.set_extra_state(self._given[prefix + _EXTRA_STATE])
        for name, child in module._modules.items():
            if child is not None:
                self._assign(child, f"{prefix}{name}.")

    def _below(self, prefix: str) -> dict[str, Any]:
        """Return the tensors whose names start so, by the rest of their names."""
        found = {}
        for index in range(bisect_left(self._names, prefix), len(self._names)):
            name = self._names[index]
            if not name.startswith(prefix):
                break
            found[name.removeprefix(prefix)] = self._given[name]
        return found


def _own_method(module: nn.Module, name: str, *homes: str) -> bool:
    """Tell whether a class has a method of its own, which is not from torch, Lightning or here (or from a home)."""
    home: str = getattr(type(module), name).__module__
    return home not in homes if homes else home.partition(".")[0] not in ("lightning", "replayml", "torch")


def require_fit(model: nn.Module, found: Mapping[str, Form | None], strict: bool = True) -> None:
    """Raise when the weights of a file are not those of a model.

    Args:
        model: The model; its weights need no memory.
        found: The forms of the weights in the file, by normal name.
        strict: Whether the file must have what the model has, and nothing else.

    Raises:
        CheckpointError: When they do not fit.
    """
    expected = forms(model.state_dict())
    groups = differences(found, expected)
    matching = sum(name in found for name in expected)
    is_other = "of another shape" in groups or "of another type" in groups
    if is_other or (strict and groups):
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


def put(model: nn.Module, name: str, tensor: Any) -> None:
    """Put a tensor in the place of another one, by name."""
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
