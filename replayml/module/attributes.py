"""Plain attributes of a built model that were set from outside, which its recipe does not set.

A number that a forward counts up is the model's own affair; one that a program puts on a layer changes what the model
computes, and would be gone when it is loaded.

Invariants:
    * What any class of the tree sets itself, outside of a constructor, is its own to change.
    * What a constructor makes differently each time (a date, a random number) is no change.
    * Only plain data and functions are compared: what holds tensors or lists may be a cache.
"""

from __future__ import annotations

import dis
import inspect
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from replayml.recipe.randomness import fixed_randomness

__all__ = ["Setting", "is_setting", "package_of", "set_from_outside"]

_PLAIN = (bool, int, float, complex, str, type(None))
_NOTHING = object()
_LONGEST = 60
_TIMES = 8  # a constructor that draws one of two values makes the same one so often in one case of 256

_FOREIGN = frozenset({"lightning", "lightning_fabric", "pytorch_lightning", "torchmetrics"})
_UNREAD = frozenset({"lightning", "lightning_fabric", "pytorch_lightning", "torch"})
_KNOWN = frozenset({"forward", "training"})  # which are compared, and kept, by others

# Which device a model was put on is no part of it.
_DEVICES = frozenset({"cpu", "cuda", "hpu", "meta", "mps", "xla", "xpu"})

_CONSTRUCTORS = frozenset({"__construct__", "__init__", "__new__", "__post_init__", "__pre_init__", "_initialize"})

# What sets attributes by strings, and by strings or keywords.
_BY_STRING = frozenset({"__setattr__", "setattr"})
_BY_KEYWORD = frozenset({"__dict__", "vars"})


class Setting(NamedTuple):
    """An attribute that was set from outside.

    Attributes:
        place: Its path in the model, with its name.
        found: A short text for its value.
        expected: The same for the value that the recipe makes; empty where it makes none.
        is_read: Whether it takes the place of another value that code of the model reads.
    """

    place: str
    found: str
    expected: str
    is_read: bool

    def __str__(self) -> str:
        return f"{self.place} is {self.found}" + (f" instead of {self.expected}" if self.expected else "")


class _Suspect(NamedTuple):
    path: str
    name: str
    value: object
    expected: object


def is_setting(value: object) -> bool:
    """Tell whether a value is plain data, or a function that has a name.

    Example:
        >>> [is_setting(value) for value in (0.5, (1, "a"), torch.relu, lambda: 0, [1], float("nan"))]
        [True, True, True, False, False, False]
    """
    if isinstance(value, FunctionType):
        return "<" not in value.__qualname__  # a lambda of a constructor is another one each time
    if isinstance(value, tuple):
        return all(is_setting(item) for item in value)
    return isinstance(value, BuiltinFunctionType) or (type(value) in _PLAIN and value == value)


def package_of(cls: type) -> str:
    """Return the name of the package of a class."""
    return cls.__module__.partition(".")[0]


def set_from_outside(
    found: dict[str, nn.Module], expected: dict[str, nn.Module], again: Callable[[], dict[str, nn.Module]]
) -> list[Setting]:
    """Return what was set on modules from outside.

    Args:
        found: The modules of a model, by path.
        expected: Those that its recipe makes, by the same paths.
        again: Makes these once more.

    Example:
        >>> class Scale(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.by = 2.0
        ...         self.calls = 0
        ...
        ...     def forward(self, x):
        ...         self.calls += 1
        ...         return x * self.by
        >>> scale = Scale()
        >>> result = scale(torch.ones(1))
        >>> scale.by = 3.0
        >>> [str(setting) for setting in set_from_outside({"": scale}, {"": Scale()}, lambda: {"": Scale()})]
        ['by is 3.0 instead of 2.0']
    """
    suspects = [suspect for path, module in found.items() for suspect in _suspects(path, module, expected[path])]
    if not suspects:
        return []
    code = _Code({cls for module in found.values() for cls in type(module).__mro__})
    suspects = [suspect for suspect in suspects if suspect.name not in code.stored]
    for number in range(1, _TIMES + 1):
        if all(suspect.expected is _NOTHING for suspect in suspects):
            break
        with fixed_randomness():
            for _ in range(number):
                _draw()
            remade = again()
        suspects = [suspect for suspect in suspects if _is_made_so(suspect, remade[suspect.path])]
    return [
        Setting(
            ".".join(filter(None, (suspect.path, suspect.name))),
            _text(suspect.value),
            "" if suspect.expected is _NOTHING else _text(suspect.expected),
            suspect.expected is not _NOTHING and suspect.name in code.read,
        )
        for suspect in suspects
    ]


def _suspects(path: str, module: nn.Module, remade: nn.Module) -> Iterator[_Suspect]:
    """Yield what differs in plain attributes; the settings of torch's own layers are compared elsewhere."""
    package = package_of(type(remade))
    if package in _FOREIGN:
        return
    untracked = getattr(type(module), "_untracked", _KNOWN) | _KNOWN
    for name, value in module.__dict__.items():
        if name.startswith("_") or name in untracked or not is_setting(value) or _is_device(value):
            continue
        if package == "torch" and name in remade.__dict__:
            continue
        expected = _expected(remade, name)
        is_new = expected is _NOTHING and value is not None and not callable(value)
        if is_new or (is_setting(expected) and expected != value):
            yield _Suspect(path, name, value, expected)


def _expected(remade: nn.Module, name: str) -> Any:
    """Return what a module that was made again has, or its class."""
    return remade.__dict__.get(name, inspect.getattr_static(type(remade), name, _NOTHING))


def _is_device(value: object) -> bool:
    return isinstance(value, str) and value.partition(":")[0] in _DEVICES


def _draw() -> None:
    """Let the global generators of torch, Python and NumPy move on."""
    torch.rand(1)
    torch.randn(1)  # of which the generator may have one in store
    random.random()  # noqa: S311 - the same
    np.random.random()  # noqa: NPY002 - the generator that a constructor may draw from


def _is_made_so(suspect: _Suspect, remade: nn.Module) -> bool:
    """Tell whether a constructor makes the expected value every time."""
    if suspect.expected is _NOTHING:
        return True
    return bool(_expected(remade, suspect.name) == suspect.expected)


def _text(value: object) -> str:
    text = str(value.__name__) if isinstance(value, (FunctionType, BuiltinFunctionType)) else repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


# Code -----------------------------------------------------------------------------------------------------------


class _Code:
    """What the methods of some classes do with attributes.

    Attributes:
        stored: The names that they set, or may set, outside of constructors.
        read: The names that they read there.
    """

    def __init__(self, classes: Iterable[type]) -> None:
        self.stored: set[str] = set()
        self.read: set[str] = set()
        for cls in classes:
            if package_of(cls) not in _UNREAD:
                for name, value in vars(cls).items():
                    if name not in _CONSTRUCTORS:
                        for function in _functions(value):
                            self._look(function.__code__)

    def _look(self, code: CodeType) -> None:
        texts = {text for constant in code.co_consts for text in _texts(constant)}
        self.read |= texts
        if not _BY_KEYWORD.isdisjoint(code.co_names):
            self.stored |= texts
        elif not _BY_STRING.isdisjoint(code.co_names):
            self.stored |= {constant for constant in code.co_consts if isinstance(constant, str)}
        for instruction in dis.get_instructions(code):
            if instruction.opname in ("STORE_ATTR", "DELETE_ATTR"):
                self.stored.add(instruction.argval)
            elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
                self.read.add(instruction.argval)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._look(constant)


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield the functions behind something in the body of a class, below its decorators too."""
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    if isinstance(value, property):
        for part in (value.fget, value.fset, value.fdel):
            yield from _functions(part)
        return
    while isinstance(value, partial):
        value = value.func
    seen = set()
    while value is not None and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, FunctionType):
            yield value
        value = getattr(value, "__wrapped__", None)


def _texts(constant: object) -> Iterator[str]:
    if isinstance(constant, str):
        yield constant
    elif isinstance(constant, (tuple, frozenset)):
        for item in constant:
            yield from _texts(item)
