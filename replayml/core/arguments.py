"""Arguments, before they are recorded and before they are handed to an ``__init__``.

Invariants:
    * What can be read only once is read once, and then there for every copy.
    * What is done later to a list, a dict or a set that was given does not reach the record.
    * One such object that was given several times, unchanged, is one object in the record.
    * Neither a tensor nor a module is copied.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Collection
from typing import Any

from replayml.core.journal import note, refill, refill_set

__all__ = ["ATOMS", "Kept", "as_given", "fresh", "keep", "note_content", "read_once"]

ATOMS = frozenset({int, float, bool, str, bytes, complex, type(None), type, types.FunctionType})
CONTAINERS = frozenset({list, dict, set, tuple})

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Kept:
    """A list, a dict or a set that was given, and the copy of it in the record.

    Attributes:
        given: The object that the user has.
        copy: What was in it when it was given; nobody changes it.
    """

    __slots__ = ("__weakref__", "copy", "given")

    def __init__(self, given: Any, copy: Any) -> None:
        self.given = given
        self.copy = copy


_known: weakref.WeakValueDictionary[int, Kept] = weakref.WeakValueDictionary()


def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], list[Kept]]:
    """Return arguments for the record, with a copy in the place of each list, dict and set.

    Returns:
        The arguments, and what was copied. The same copy is taken again for the same object, for as long as somebody
        holds that: who holds the record is to hold it too.

    Example:
        >>> given = [1]
        >>> (one,), _, kept = keep((given,), {})
        >>> (two,), _, _ = keep((given,), {})
        >>> given.append(2)
        >>> (three,), _, _ = keep((given,), {})
        >>> one, two is one, three
        ([1], True, [1, 2])
    """
    if _holds_no_container(args, kwargs):
        return args, kwargs, []
    found: dict[int, Kept] = {}
    kept_args = tuple(_keep(value, found) for value in args)
    kept_kwargs = {name: _keep(value, found) for name, value in kwargs.items()}
    return kept_args, kept_kwargs, list(found.values())


def _holds_no_container(args: Collection[Any], kwargs: dict[str, Any]) -> bool:
    return CONTAINERS.isdisjoint(map(type, args)) and CONTAINERS.isdisjoint(map(type, kwargs.values()))


def _keep(value: Any, found: dict[int, Kept]) -> Any:
    kind = type(value)
    if kind not in CONTAINERS:
        return value
    if id(value) in found:
        return found[id(value)].copy
    copy: Any
    if kind is tuple:
        items = [_keep(item, found) for item in value]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else tuple(items)
    if kind is list:
        copy = [_keep(item, found) for item in value]
    elif kind is dict:
        copy = {key: _keep(item, found) for key, item in value.items()}
    else:
        copy = set(value)
    known = _known.get(id(value))
    if known is None or not _is_same(known.copy, copy):
        known = _known[id(value)] = Kept(value, copy)
    found[id(value)] = known
    return known.copy


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether two containers hold the very same objects, in the same order."""
    if type(one) is not type(other) or len(one) != len(other):
        return False
    if type(one) is set:
        return bool(one == other)
    if type(one) is dict and any(a is not b for a, b in zip(one, other, strict=True)):
        return False
    values = zip(one.values(), other.values(), strict=True) if type(one) is dict else zip(one, other, strict=True)
    return all(a is b for a, b in values)


def note_content(kept: list[Kept]) -> None:
    """Note what is in the containers that were given, which a call may change in place."""
    for one in kept:
        given = one.given
        if type(given) is list:
            note(given.__setitem__, slice(None), list(given))
        elif type(given) is dict:
            note(refill, given, dict(given))
        else:
            note(refill_set, given, set(given))


def as_given(args: tuple[Any, ...], kwargs: dict[str, Any], kept: list[Kept]) -> Arguments:
    """Return arguments with the objects that were given in the places of their copies."""
    if not kept:
        return args, kwargs
    return _with(args, kwargs, {id(one.copy): one.given for one in kept})


def fresh(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Return arguments for an ``__init__``, which may change the lists, dicts and sets among them: they are new.

    What stands in several places stays one; nothing but these containers is copied.

    Example:
        >>> given = [[1], {2: 3}]
        >>> (again,), _ = fresh((given,), {})
        >>> again == given, again is given, again[0] is given[0]
        (True, False, False)
    """
    if _holds_no_container(args, kwargs):
        return args, kwargs
    return _with(args, kwargs, {})


def _with(args: tuple[Any, ...], kwargs: dict[str, Any], memo: dict[int, Any]) -> Arguments:
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


def read_once(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
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
