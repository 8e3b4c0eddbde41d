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
import operator
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType, EllipsisType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

import torch

from replayml.module.dry_run import made
from replayml.recipe.text.names import is_namedtuple
from replayml.recipe.text.torch_names import BUILTINS, CLASSES, FUNCTIONS, LAYERS

__all__ = ["Expressions", "Imports", "NoSourceError", "Special"]

Special = Callable[[Any], "str | None"]


class NoSourceError(Exception):
    """Raised for a value that no expression makes; says why."""


# Names ----------------------------------------------------------------------------------------------------------

_BY_MODULE: Mapping[str, str] = MappingProxyType(
    {
        "numpy": "np",
        "replayml": "replayml",
        "torch": "torch",
        "torch.nn": "nn",
        "torch.nn.functional": "F",
        "torch.nn.init": "init",
        "torch.optim": "optim",
    }
)
"""The modules that are imported as a whole, and what the field calls them."""

_PINNED: Mapping[int, str] = MappingProxyType(
    {id(thing): name for table in (LAYERS, CLASSES, FUNCTIONS, BUILTINS) for name, thing in table.items()}
)


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

    def bind(self, name: str, target: tuple[str, str] | None = None) -> str:
        """Return a name for a new variable, or for something that is imported.

        Args:
            name: The name that it should have, if that is free.
            target: The module that it is imported from and its name there, which is empty for the module itself.
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
        head, *rest = path.split(".")
        return ".".join([self.bind(head, (module, head)), *rest])

    def module(self, name: str) -> str:
        """Return an expression for a module, and note its import."""
        return self.bind(_BY_MODULE.get(name, name.rpartition(".")[2]), (name, ""))

    def lines(self) -> list[str]:
        """Return the import statements."""
        plain: list[str] = []
        taken: dict[str, list[str]] = {}
        for bound, target in self._bound.items():
            if target is None:
                continue
            module, name = target if target[1] else (target[0].rpartition(".")[::2])
            text = name if name == bound else f"{name} as {bound}"
            if module:
                taken.setdefault(module, []).append(text)
            else:
                plain.append(f"import {text}")
        return sorted(plain) + [f"from {module} import {', '.join(sorted(taken[module]))}" for module in sorted(taken)]


def _found_at(thing: Any) -> tuple[str, str]:
    """Return the module that a class or a function is best imported from, and its path there."""
    pinned = _PINNED.get(id(thing))
    if pinned is not None:
        module, _, path = pinned.rpartition(".")
        return module, path
    module, path = str(thing.__module__), str(thing.__qualname__)
    what = "class" if isinstance(thing, type) else "function"
    if "<" in path:
        raise NoSourceError(f"the {what} {path} cannot be imported. Define it at the top level of a module")
    packages = module.split(".")
    for length in range(1, len(packages) + 1):
        place = ".".join(packages[:length])
        for name in (path, thing.__name__):
            if place in sys.modules and _at(sys.modules[place], name) is thing:
                return place, name
    raise NoSourceError(f"the name {module}.{path} does not lead to this {what}")


def _at(module: ModuleType, path: str) -> Any:
    head, *rest = path.split(".")
    found = vars(module).get(head)
    for step in rest:
        found = getattr(found, step, None)
    return found


# Values ---------------------------------------------------------------------------------------------------------


class Expressions:
    """Writes values, and collects the imports.

    Example:
        >>> Expressions().of([1, float("inf"), torch.float16, {"a": (2,)}])
        "[1, float('inf'), torch.float16, {'a': (2,)}]"
    """

    def __init__(self) -> None:
        self.imports = Imports()

    def of(self, value: Any, special: Special | None = None) -> str:
        """Return the expression for a value.

        Args:
            value: The value.
            special: Asked first for each value, and each value in it; returns its expression, or None for no opinion.

        Raises:
            NoSourceError: When there is none.
        """
        text = None if special is None else special(value)
        return self.written(value, special) if text is None else text

    def written(self, value: Any, special: Special | None = None) -> str:
        """Return the expression for a value; ``special`` is asked for the values in it only."""
        write = _BY_TYPE.get(type(value))
        if write is not None:
            return write(self, value, special)
        for matches, write in _BY_NATURE:
            if matches(value):
                return write(self, value, special)
        return self._by_repr(value)

    def _call(self, cls: Any, args: Iterable[Any], kwargs: Mapping[str, Any], special: Special | None) -> str:
        texts = [self.of(value, special) for value in args]
        texts += [f"{name}={self.of(value, special)}" for name, value in kwargs.items()]
        return f"{self.imports.name(cls)}({', '.join(texts)})"

    def _items(self, values: Iterable[Any], special: Special | None) -> str:
        return ", ".join(self.of(value, special) for value in values)

    # By type --------------------------------------------------------------------------------------------------

    def _literal(self, value: Any, special: Special | None) -> str:
        return repr(value)

    def _float(self, value: float, special: Special | None) -> str:
        return repr(value) if math.isfinite(value) else f"float({str(value)!r})"

    def _complex(self, value: complex, special: Special | None) -> str:
        return f"complex({self._items((value.real, value.imag), special)})"

    def _ellipsis(self, value: Any, special: Special | None) -> str:
        return "..."

    def _list(self, value: list[Any], special: Special | None) -> str:
        return f"[{self._items(value, special)}]"

    def _tuple(self, value: tuple[Any, ...], special: Special | None) -> str:
        return f"({self._items(value, special)}{',' if len(value) == 1 else ''})"

    def _set(self, value: Any, special: Special | None) -> str:
        items = ", ".join(sorted(self.of(item, special) for item in value))
        name = type(value).__name__
        return f"{{{items}}}" if items and name == "set" else f"{name}({{{items}}})" if items else f"{name}()"

    def _dict(self, value: dict[Any, Any], special: Special | None) -> str:
        pairs = (f"{self.of(key, special)}: {self.of(item, special)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"

    def _ordered(self, value: OrderedDict[Any, Any], special: Special | None) -> str:
        return self._call(OrderedDict, [list(value.items())], {}, special)

    def _slice(self, value: slice, special: Special | None) -> str:
        return f"slice({self._items((value.start, value.stop, value.step), special)})"

    def _torch_constant(self, value: Any, special: Special | None) -> str:
        return f"{self.imports.module('torch')}.{str(value).rpartition('.')[2]}"

    def _torch_call(self, value: Any, special: Special | None) -> str:
        argument = repr(str(value)) if isinstance(value, torch.device) else repr(list(value))
        return f"{self.imports.module('torch')}.{type(value).__name__}({argument})"

    def _module(self, value: ModuleType, special: Special | None) -> str:
        if sys.modules.get(value.__name__) is not value:
            raise NoSourceError(f"the name {value.__name__} does not lead to this module")
        return self.imports.module(value.__name__)

    def _named(self, value: Any, special: Special | None) -> str:
        return self.imports.name(value)

    def _method(self, value: Any, special: Special | None) -> str:
        owner = value.__self__
        if isinstance(owner, type) and getattr(owner, value.__name__, None) == value:
            return f"{self.imports.name(owner)}.{value.__name__}"
        raise NoSourceError(f"the method {value.__qualname__} is bound to an object. Hand in a function")

    def _partial(self, value: functools.partial[Any], special: Special | None) -> str:
        return self._call(functools.partial, (value.func, *value.args), value.keywords, special)

    # By nature ------------------------------------------------------------------------------------------------

    def _enum(self, value: Enum, special: Special | None) -> str:
        name = self.imports.name(type(value))
        if value.name in type(value).__members__:
            return f"{name}.{value.name}"
        return f"{name}({self.of(value.value, special)})"

    def _namedtuple(self, value: Any, special: Special | None) -> str:
        if _is_same(value, made(type(value), value, {})[0]):
            return self._call(type(value), value, {}, special)
        return f"{self.imports.name(type(value))}._make({self._list(list(value), special)})"

    def _dataclass(self, value: Any, special: Special | None) -> str:
        cls = type(value)
        fields = dataclasses.fields(value)
        given = {field.name: getattr(value, field.name) for field in fields if field.init}
        extra = sorted(vars(value).keys() - {field.name for field in fields}) if hasattr(value, "__dict__") else []
        if extra:
            raise NoSourceError(f"this {cls.__name__} has attributes that are no fields: {', '.join(extra)}")
        text = self._call(cls, (), given, special)
        new, error = made(cls, (), given)
        if error is not None:
            raise NoSourceError(f"a {cls.__name__} cannot be made from its fields: {error}")
        for field in fields:
            if not _is_same(getattr(value, field.name), getattr(new, field.name)):
                raise NoSourceError(f"a {cls.__name__} made from the fields of this one has another {field.name!r}")
        return text

    def _path(self, value: PurePath, special: Special | None) -> str:
        return f"{self.imports.name(type(value))}({value.as_posix()!r})"

    def _array(self, value: Any, special: Special | None) -> str:
        what = "a tensor" if isinstance(value, torch.Tensor) else "an array"
        raise NoSourceError(f"{what} of shape {tuple(value.shape)} has no source form. Make it in an __init__")

    def _number(self, value: Any, special: Special | None) -> str:
        item = value.item()
        if type(item) not in (bool, int, float, complex):
            raise _no_form(value)
        return self._call(type(value), (item,), {}, special)

    def _dtype(self, value: Any, special: Special | None) -> str:
        if value.kind not in "biufc":
            raise _no_form(value)
        return f"{self.imports.module('numpy')}.dtype({value.str!r})"

    def _by_repr(self, value: Any) -> str:
        """Write a value whose ``repr`` is a call of its class, with literals, that makes an equal one."""
        cls = type(value)
        call = _parsed(repr(value))
        if call is None or ast.unparse(call.func).rpartition(".")[2] != cls.__name__:
            raise _no_form(value)
        try:
            args = [ast.literal_eval(part) for part in call.args]
            kwargs = {part.arg or "": ast.literal_eval(part.value) for part in call.keywords}
        except ValueError as error:  # an argument is no literal
            raise _no_form(value) from error
        if not _is_same(value, made(cls, args, kwargs)[0]):
            raise _no_form(value)
        return self._call(cls, args, kwargs, None)


_Write = Callable[[Expressions, Any, "Special | None"], str]

_BY_TYPE: Mapping[type, _Write] = MappingProxyType(
    {
        **dict.fromkeys((type(None), bool, int, str, bytes, range), Expressions._literal),
        float: Expressions._float,
        complex: Expressions._complex,
        EllipsisType: Expressions._ellipsis,
        list: Expressions._list,
        tuple: Expressions._tuple,
        set: Expressions._set,
        frozenset: Expressions._set,
        dict: Expressions._dict,
        OrderedDict: Expressions._ordered,
        slice: Expressions._slice,
        **dict.fromkeys((torch.dtype, torch.layout, torch.memory_format), Expressions._torch_constant),
        **dict.fromkeys((torch.device, torch.Size), Expressions._torch_call),
        ModuleType: Expressions._module,
        **dict.fromkeys((FunctionType, BuiltinFunctionType), Expressions._named),
        MethodType: Expressions._method,
        functools.partial: Expressions._partial,
    }
)


def _is_numpys(name: str) -> Callable[[Any], bool]:
    """Return a test for the instances of a class of NumPy, which need not be installed."""
    return lambda value: any((base.__module__, base.__name__) == ("numpy", name) for base in type(value).__mro__)


_BY_NATURE: tuple[tuple[Callable[[Any], bool], _Write], ...] = (
    (lambda value: isinstance(value, Enum), Expressions._enum),
    (lambda value: isinstance(value, type), Expressions._named),
    (lambda value: is_namedtuple(type(value)), Expressions._namedtuple),
    (dataclasses.is_dataclass, Expressions._dataclass),
    (lambda value: isinstance(value, PurePath), Expressions._path),
    (lambda value: isinstance(value, torch.Tensor), Expressions._array),
    (_is_numpys("ndarray"), Expressions._array),
    (_is_numpys("generic"), Expressions._number),
    (_is_numpys("dtype"), Expressions._dtype),
)


def _no_form(value: Any) -> NoSourceError:
    return NoSourceError(f"a {type(value).__module__}.{type(value).__qualname__} has no source form")


def _parsed(text: str) -> ast.Call | None:
    """Return a text as a call, if it is the source of one."""
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        return None
    return node if isinstance(node, ast.Call) else None


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether two values are one, or equal and of the same type."""
    if one is other:
        return True
    equal, _ = made(operator.eq, (one, other), {}) if type(one) is type(other) else (False, None)
    return equal is True
