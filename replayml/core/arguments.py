"""Arguments, before they are recorded and before they are handed to an ``__init__``.

Invariants:
    * What can be read only once is read once, and then there for every copy.
    * What is done later to a list, a dict or a set that was given does not reach the record.
    * One such object that was given several times, unchanged, is one object in the record.
    * Neither a tensor nor a module is copied.
"""

from __future__ import annotations

import copy
import types
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

from replayml.core.errors import ArgumentError
from replayml.core.journal import note

__all__ = [
    "ATOMS",
    "CONTAINERS",
    "Kept",
    "as_given",
    "fresh",
    "keep",
    "modules_in",
    "note_content",
    "read_once",
    "rebuilt",
]

ATOMS = frozenset({int, float, bool, str, bytes, complex, type(None), type, types.FunctionType})
CONTAINERS = frozenset({list, dict, set, tuple, OrderedDict, defaultdict, Counter, deque, bytearray})

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Kept:
    """A container that was given, and the copy of it in the record.

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
    """Return arguments for the record, with a copy in the place of each container: see `CONTAINERS`.

    Raises:
        ArgumentError: When a container contains itself.

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
    found: dict[int, Kept | None] = {}
    kept_args = tuple(_keep(value, found) for value in args)
    kept_kwargs = {name: _keep(value, found) for name, value in kwargs.items()}
    return kept_args, kept_kwargs, [one for one in found.values() if one is not None]


def _holds_no_container(args: Collection[Any], kwargs: dict[str, Any]) -> bool:
    kinds = {*map(type, args), *map(type, kwargs.values())}
    return ATOMS.issuperset(kinds) or not any(map(_is_container, kinds))


def _is_container(kind: type) -> bool:
    return kind in CONTAINERS or _is_named_tuple(kind)


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_make")


def rebuilt(value: Any, each: Callable[[Any], Any]) -> Any:
    """Return a new container of the same kind, with what ``each`` returns for each value in it.

    Example:
        >>> rebuilt(deque([1, 2], maxlen=2), str), rebuilt({"a": 1}, str)
        (deque(['1', '2'], maxlen=2), {'a': '1'})
    """
    if isinstance(value, dict):
        new = copy.copy(value)
        for key, item in value.items():
            new[key] = each(item)
        return new
    if isinstance(value, deque):
        return deque(map(each, value), value.maxlen)
    if isinstance(value, bytearray):
        return bytearray(value)
    return type(value)._make(map(each, value)) if hasattr(value, "_make") else type(value)(map(each, value))


def _keep(value: Any, found: dict[int, Kept | None]) -> Any:
    kind = type(value)
    if kind in ATOMS or not _is_container(kind):
        return value
    if id(value) in found:
        known = found[id(value)]
        if known is None:
            raise ArgumentError(f"this {kind.__name__} contains itself, and cannot be recorded: {value!r}")
        return known.copy
    if issubclass(kind, tuple):
        new = rebuilt(value, lambda item: _keep(item, found))
        return value if all(a is b for a, b in zip(new, value, strict=True)) else new
    found[id(value)] = None
    new = rebuilt(value, lambda item: _keep(item, found))
    known = _known.get(id(value))
    if known is None or not _is_same(known.copy, new):
        known = _known[id(value)] = Kept(value, new)
    found[id(value)] = known
    return known.copy


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether two containers hold the very same objects, in the same order."""
    if type(one) is not type(other) or len(one) != len(other):
        return False
    if type(one) is set:
        return {id(item) for item in one} == {id(item) for item in other}
    if isinstance(one, dict) and any(a is not b for a, b in zip(one, other, strict=True)):
        return False
    values = zip(one.values(), other.values(), strict=True) if isinstance(one, dict) else zip(one, other, strict=True)
    return all(a is b for a, b in values)


def note_content(kept: list[Kept]) -> None:
    """Note what is in the containers that were given, which a call may change in place."""
    for one in kept:
        note(_refill, one.given, copy.copy(one.given))


def _refill(given: Any, content: Any) -> None:
    given.clear()
    given.update(content) if isinstance(given, (dict, set)) else given.extend(content)


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
    if kind in ATOMS or not _is_container(kind):
        return value
    if id(value) in memo:
        return memo[id(value)]
    new = rebuilt(value, lambda item: _fresh(item, memo))
    if issubclass(kind, tuple):
        return value if all(a is b for a, b in zip(new, value, strict=True)) else new
    memo[id(value)] = new
    return new


def modules_in(value: Any) -> Iterator[Any]:
    """Yield the recorded modules that are a value, or stand in it, in lists, tuples and dicts."""
    kind = type(value)
    if kind in ATOMS:
        return
    if "_record" in getattr(value, "__dict__", ()):
        yield value
    elif kind in CONTAINERS:
        for item in value.values() if isinstance(value, dict) else value:
            yield from modules_in(item)


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
