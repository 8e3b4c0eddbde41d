"""Arguments, before they are recorded and before they are handed to an ``__init__``.

Invariants:
    * What can be read only once is read once, and then there for every copy.
    * Neither a tensor nor a module is copied.
"""

from __future__ import annotations

import types
from typing import Any

__all__ = ["ATOMS", "fresh", "read_once"]

ATOMS = frozenset({int, float, bool, str, bytes, complex, type(None), type, types.FunctionType})


CONTAINERS = frozenset({list, dict, set, tuple})


def fresh(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments for an ``__init__``, which may change the lists, dicts and sets among them: they are new.

    What stands in several places stays one; nothing but these containers is copied.

    Example:
        >>> given = [[1], {2: 3}]
        >>> (again,), _ = fresh((given,), {})
        >>> again == given, again is given, again[0] is given[0]
        (True, False, False)
    """
    if CONTAINERS.isdisjoint(map(type, args)) and CONTAINERS.isdisjoint(map(type, kwargs.values())):
        return args, kwargs
    memo: dict[int, Any] = {}
    return tuple(_fresh(value, memo) for value in args), {name: _fresh(value, memo) for name, value in kwargs.items()}


def _fresh(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind not in CONTAINERS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    new: Any
    if kind is tuple:
        items = [_fresh(item, memo) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else tuple(items)
    if kind is set:
        new = memo[id(value)] = set(value)
    elif kind is list:
        new = memo[id(value)] = []
        new.extend(_fresh(item, memo) for item in value)
    else:
        new = memo[id(value)] = {}
        new.update((key, _fresh(item, memo)) for key, item in value.items())
    return new


VIEWS = frozenset({type({}.keys()), type({}.values()), type({}.items())})


def read_once(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with a list in the place of each iterator, which could be read only once, or dict view.

    Example:
        >>> read_once((map(abs, [-1]), 2), {"keys": {3: 4}.keys()})
        (([1], 2), {'keys': [3]})
    """
    if not ATOMS.issuperset(map(type, args)) and any(_is_read_once(type(value)) for value in args):
        args = tuple(list(value) if _is_read_once(type(value)) else value for value in args)
    if not ATOMS.issuperset(map(type, kwargs.values())) and any(_is_read_once(type(v)) for v in kwargs.values()):
        kwargs = {name: list(value) if _is_read_once(type(value)) else value for name, value in kwargs.items()}
    return args, kwargs


def _is_read_once(kind: type) -> bool:
    return kind in VIEWS or (hasattr(kind, "__next__") and kind.__module__ in ("builtins", "itertools"))
