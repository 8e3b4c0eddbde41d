"""Values as Python expressions, and the imports that these need.

Invariants:
    * Evaluating an expression, after its imports, gives an equal value of the same type.
    * A class or a function is written by a name that leads to it now.
    * A value for which that cannot be had raises `NoSourceError`; no value is written in part.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import keyword
import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from enum import Enum, Flag
from pathlib import Path, PurePath
from types import BuiltinFunctionType, EllipsisType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import torch

from replayml.recipe.names import is_namedtuple
from replayml.recipe.torch_names import BUILTINS, CLASSES, FUNCTIONS, LAYERS

__all__ = ["Expressions", "Imports", "NoSourceError"]


class NoSourceError(Exception):
    """A value that no expression makes; says why."""


class Imports:
    """The import statements of a piece of source, and every name that is bound in it.

    Example:
        >>> imports = Imports()
        >>> imports.name(torch.nn.Linear), imports.name(OrderedDict), imports.name(int)
        ('nn.Linear', 'OrderedDict', 'int')
        >>> imports.lines()
        ['from collections import OrderedDict', 'from torch import nn']
    """

    def __init__(self) -> None:
        self._bound: dict[str, tuple[str, str] | None] = dict.fromkeys([*dir(builtins), *keyword.kwlist])

    def bind(self, name: str, target: tuple[str, str] | None) -> str:
        """Return a name for something that is imported, or for a new variable.

        Args:
            name: The name that it should have, if that is free.
            target: The module that it is imported from and its name there, which is empty for the module itself; None
                for a variable.
        """
        free, number = name, 1
        while free in self._bound and (target is None or self._bound[free] != target):
            number += 1
            free = f"{name}_{number}"
        self._bound[free] = target
        return free

    def name(self, thing: Any) -> str:
        """Return an expression for a class or a function, and note its import.

        Raises:
            NoSourceError: When no name leads to it.
        """
        module, path = _found_at(thing)
        if module == "builtins":
            return path
        if module in _BY_MODULE:
            return f"{self.module(module)}.{path}"
        head, _, rest = path.partition(".")
        head = self.bind(head, (module, head))
        return f"{head}.{rest}" if rest else head

    def module(self, name: str) -> str:
        """Return an expression for a module, and note its import."""
        parent, _, last = name.rpartition(".")
        return self.bind(_BY_MODULE.get(name, last), (name, ""))

    def lines(self) -> list[str]:
        """Return the import statements."""
        plain, by_parent = [], {}
        for name, target in self._bound.items():
            if target is None:
                continue
            module, thing = target
            parent, _, last = (module, "", thing) if thing else module.rpartition(".")
            text = last if name == last else f"{last} as {name}"
            if parent:
                by_parent.setdefault(parent, []).append(text)
            else:
                plain.append(f"import {text}")
        return [*sorted(plain), *(f"from {parent} import {', '.join(sorted(by_parent[parent]))}" for parent in sorted(by_parent))]


_BY_MODULE: Mapping[str, str] = MappingProxyType(
    {"numpy": "np", "replayml": "replayml", "torch": "torch", "torch.nn": "nn", "torch.nn.functional": "F", "torch.nn.init": "init", "torch.optim": "optim"}
)
"""Modules whose names are written with the module in front, and how the field calls them."""

_PINNED: Mapping[int, str] = MappingProxyType(
    {id(thing): name for table in (LAYERS, CLASSES, FUNCTIONS, BUILTINS) for name, thing in table.items()}
)


def _found_at(thing: Any) -> tuple[str, str]:
    """Return the module that a class or a function is best imported from, and its path there."""
    pinned = _PINNED.get(id(thing))
    if pinned is not None:
        module, _, path = pinned.rpartition(".")
        return module, path
    module, path = str(getattr(thing, "__module__", "")), str(getattr(thing, "__qualname__", ""))
    what = "class" if isinstance(thing, type) else "function"
    if "<" in path or not path:
        raise NoSourceError(f"the {what} {path or repr(thing)} stands at no module's top level, so no import finds it")
    packages = module.split(".")
    for length in range(1, len(packages) + 1):
        place = ".".join(packages[:length])
        if place in sys.modules and _at(sys.modules[place], path) is thing:
            return place, path
    raise NoSourceError(f"the name {module}.{path} does not lead to this {what}")


def _at(module: ModuleType, path: str) -> Any:
    head, *rest = path.split(".")
    found = vars(module).get(head)
    for step in rest:
        found = getattr(found, step, None)
    return found


class Expressions:
    """Writes values, and collects the imports.

    Example:
        >>> Expressions().of([1, float("inf"), torch.float16, {"a": (2,)}])
        "[1, float('inf'), torch.float16, {'a': (2,)}]"
    """

    def __init__(self) -> None:
        self.imports = Imports()

    def of(self, value: Any) -> str:
        """Return the expression for a value.

        Raises:
            NoSourceError: When there is none.
        """
        write = _BY_TYPE.get(type(value))
        if write is not None:
            return write(self, value)
        if isinstance(value, Enum):
            return self._enum(value)
        if isinstance(value, (type, FunctionType)):
            return self.imports.name(value)
        if is_namedtuple(type(value)):
            return self._call(type(value), *value) if _same(type(value), tuple(value), {}, value) else self._named(value)
        if dataclasses.is_dataclass(value):
            return self._dataclass(value)
        if isinstance(value, PurePath):
            return f"{self.imports.name(type(value))}({value.as_posix()!r})"
        if type(value).__module__ == "numpy" and hasattr(value, "dtype"):
            return self._number(value)
        if isinstance(value, torch.Tensor):
            raise NoSourceError(f"a tensor of shape {tuple(value.shape)} has no source form. Make it in an __init__")
        return self._by_repr(value)

    def _items(self, values: Any) -> str:
        return ", ".join(self.of(value) for value in values)

    def _call(self, cls: Any, *args: Any, **kwargs: Any) -> str:
        parts = [*(self.of(value) for value in args), *(f"{name}={self.of(value)}" for name, value in kwargs.items())]
        return f"{self.imports.name(cls)}({', '.join(parts)})"
