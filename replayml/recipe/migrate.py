"""Classes that changed since a recipe was written: other names, other arguments.

    record = recipe.record(rename={"old.package": "new.package"})

    class Net(replayml.Module):
        __recipe_version__ = 1

        @classmethod
        def migrate_recipe(cls, data, version):
            if "width" in data["kwargs"]:  # what version 0 called `hidden`
                data["kwargs"]["hidden"] = data["kwargs"].pop("width")
            return data

``migrate_recipe`` gets ``{"args": [...], "kwargs": {...}}``, the arguments of the constructor call. It is asked again
for each call of ``configure`` on the tape, with what was configured up to then among the ``kwargs``.

A recipe has the version of each class that it calls. A module that an ``__init__`` makes is not called in it, nor is
the class that a layer wraps. These are asked only where they do not take an argument, with what they do not take: for
one version after the other, the newest first, until they take what they return.

Invariants:
    * New names come from the caller, never from a file; what they lead to is looked up as any other name is.
    * What a class makes of old arguments is checked like any other call; no argument is dropped.
    * A recipe of a newer version of a class is refused, never guessed at.
    * The class is asked about copies of lists, dicts and sets; the values on a tape stay the objects that they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any

from replayml.core.arguments import fresh
from replayml.core.errors import ArgumentError, RecipeError, nearest
from replayml.core.meta import capture
from replayml.core.signatures import signature_of
from replayml.core.tape import CallRecord, TapeEntry
from replayml.recipe.faults import Flaw, Place, noting, refuse, shown

__all__ = ["Renames", "call_now", "class_version", "is_same", "listed", "misfits", "settings_now", "version_flaws"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_LISTED = 20
_PLAIN = frozenset({bool, int, float, complex, str, bytes, set, frozenset})
_LACKING = (AttributeError, LookupError, TypeError, ValueError)
"""What a ``migrate_recipe`` may raise where an argument is left out that it can otherwise rely on."""


def listed(names: Any) -> str:
    """Return some names in sorted order, for a message.

    Example:
        >>> listed(["b", "a"]), listed([])
        ('a, b', 'none')
    """
    known = sorted(map(str, names))
    return ", ".join(known[:_LISTED]) + (", ..." if len(known) > _LISTED else "") or "none"


class Renames:
    """The names that classes and functions have now, by those that a recipe gives.

    Args:
        rename: Old names to new ones; each is a whole name, or that of a module or class above what has moved.

    Raises:
        ArgumentError: When it is no dict of names.

    Example:
        >>> renames = Renames({"old": "new", "old.Net": "new.nets.Network"})
        >>> renames.of("old.Net"), renames.of("old.blocks.Conv"), renames.of("older.Net")
        ('new.nets.Network', 'new.blocks.Conv', 'older.Net')
    """

    def __init__(self, rename: Mapping[str, str] | None) -> None:
        if rename is None:
            rename = {}
        is_names = isinstance(rename, Mapping) and all(
            isinstance(name, str) and name and not name.endswith(".") for pair in rename.items() for name in pair
        )
        if not is_names:
            raise ArgumentError(
                'rename= takes a dict of old names and new ones, such as {"old.package": "new.package", '
                f'"package.OldNet": "package.NewNet"}}; not {rename!r}'
            )
        self._rename = sorted(rename.items(), key=lambda pair: len(pair[0]), reverse=True)

    def of(self, name: str) -> str:
        """Return the present name; the longest old name that fits counts."""
        for old, new in self._rename:
            if name == old or name.startswith(f"{old}."):
                return new + name[len(old) :]
        return name


# Versions of classes ------------------------------------------------------------------------------------------------


def class_version(cls: object) -> int:
    """Return the ``__recipe_version__`` of a class, 0 when it has none.

    Raises:
        Flaw: When it is no version.
    """
    version = getattr(cls, "__recipe_version__", 0)
    if type(version) is not int or version < 0:
        raise Flaw(
            "bad-version",
            f"__recipe_version__ of {getattr(cls, '__qualname__', cls)} is an integer from 0, not {version!r}.",
        )
    return version


def version_flaws(cls: object, name: str, version: int) -> Iterator[Flaw]:
    """Yield why arguments of one version of a class cannot be given to the present one."""
    try:
        current = class_version(cls)
    except Flaw as flaw:
        yield flaw
        return
    if version > current:
        yield Flaw(
            "newer-version",
            f"the recipe was written with version {version} of {name}; this program has version {current}. "
            "Use the program that wrote it, or a newer one.",
        )
    elif version < current and not isinstance(_migration(cls), MethodType):
        yield Flaw(
            "bad-version",
            f"the recipe was written with version {version} of {name}; this program has version {current}, and "
            "no way from one to the other. Give the class a classmethod migrate_recipe(data, version), which gets and "
            'returns {"args": [...], "kwargs": {...}}.',
        )


def call_now(
    cls: Any, name: str, version: int, arguments: Arguments, tape: list[TapeEntry], place: Place
) -> tuple[Arguments, list[TapeEntry]]:
    """Return the arguments and the tape of a call as its class takes them now, of those that an older version took.

    Args:
        cls: The class.
        name: Its name in the recipe.
        version: The version of the class that the call is of.
        arguments: The arguments; modules among them are `CallRecord`.
        tape: The calls on what it makes.
        place: Where the call stands.

    Raises:
        RecipeError: When the class does not take what its own ``migrate_recipe`` returned.
    """
    if version < class_version(cls):
        given = fresh(*arguments)  # a migration may change what it is given
        arguments = _asked(cls, name, version, arguments, place)
        new_args, new_kwargs = arguments
        faults = [flaw.at(place) for flaw in misfits(cls, name, len(new_args), list(new_kwargs))]
        if faults:
            refuse(faults, note="")
        tape = _Configured(cls, name, version, given).tape_now(tape, place)
    if getattr(cls, "is_external", False) and arguments[0]:
        arguments = _wrapped_now(arguments, place)
    return arguments, tape


def _asked(cls: Any, name: str, version: int, arguments: Arguments, place: object) -> Arguments:
    """Return what the ``migrate_recipe`` of a class makes of some arguments."""
    args, kwargs = arguments
    with noting(f"while {name}.migrate_recipe changed the arguments of version {version} at {place}"):
        data = cls.migrate_recipe({"args": list(args), "kwargs": dict(kwargs)}, version)
    match data:
        case {"args": list() | tuple() as new_args, "kwargs": dict() as new_kwargs, **rest} if not rest:
            return tuple(capture(list(new_args))), capture(dict(new_kwargs))
    message = f'{name}.migrate_recipe returns {{"args": [...], "kwargs": {{...}}}}, not {data!r}.'
    raise RecipeError("bad-argument", str(place), message)


def _wrapped_now(arguments: Arguments, place: Place) -> Arguments:
    """Return the arguments of a layer, or of another deferred class, as the class that it wraps takes them now."""
    (wrapped, *args), kwargs = arguments
    name = getattr(wrapped, "__qualname__", "")
    if not _older_versions(wrapped) or not any(misfits(wrapped, name, len(args), list(kwargs))):
        return arguments
    for version in _older_versions(wrapped):
        new_args, new_kwargs = _asked(wrapped, name, version, fresh(tuple(args), kwargs), place)
        if not any(misfits(wrapped, name, len(new_args), list(new_kwargs))):
            return (wrapped, *new_args), new_kwargs
    return arguments


def misfits(cls: Any, name: str, count: int, given: list[str]) -> Iterator[Flaw]:
    """Yield what a class does not take: so many arguments by position, and these by name."""
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):
        return  # a class of an extension module may have none; then the call itself is the check
    takes = [p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    unknown = [] if takes_any else [argument for argument in given if argument not in takes]
    for index, argument in enumerate(unknown):
        close = nearest(argument, takes) if index == 0 and len(argument) <= 80 else []
        hint = f" Did you mean {close[0]!r}?" if close else ""
        yield Flaw("bad-argument", f"{name} takes no {shown(argument)}.{hint} It takes: {listed(takes)}.")
    if not unknown:
        try:
            signature.bind(*range(count), **dict.fromkeys(given))
        except TypeError as error:
            yield Flaw("bad-argument", f"{name} cannot be called like this: {error}.")


def _migration(cls: object) -> object:
    return getattr(cls, "migrate_recipe", None)


def _older_versions(cls: object) -> Sequence[int]:
    """Return the versions from which a class may have a way to the present one, the newest first."""
    current = getattr(cls, "__recipe_version__", 0)
    return range(current - 1, -1, -1) if type(current) is int and isinstance(_migration(cls), MethodType) else ()


# What was configured ------------------------------------------------------------------------------------------------


class _Configured:
    """What is configured in a module of an older version, call by call.

    Args:
        cls: The class.
        name: Its name.
        version: The version.
        arguments: The arguments that the module was made with.
    """

    def __init__(self, cls: Any, name: str, version: int, arguments: Arguments) -> None:
        self._cls = cls
        self._name = name
        self._version = version
        self._args, self._state = arguments

    def tape_now(self, tape: list[TapeEntry], place: Place) -> list[TapeEntry]:
        """Return a tape with the names and values of today in what configures the module itself."""
        found = []
        for number, entry in enumerate(tape):
            settings = _own_settings(entry)
            at, now = place.below("tape").below(number), {}
            for name, value in settings.items():
                now.update(self._setting_now(name, value, at))
            if not is_same(now, dict(settings)):
                entry = TapeEntry(entry.tags, entry.method, (), now, entry.where)
            found.append(entry)
        return found

    def _setting_now(self, name: str, value: Any, place: Place) -> dict[str, Any]:
        """Return what is to be configured today, so that all is in force that would follow from the old arguments."""
        before = self._named(self._state, place)
        others = {other: known for other, known in self._state.items() if other != name}
        self._state = {**others, name: value}
        after = self._named(self._state, place)
        try:
            without = self._named(others, place)
        except _LACKING:
            without = before
        now = _added(after, without, {name: value})
        now |= {other: self._default(other, place) for other in before if other not in after}
        return now or {name: value}  # it is of no use any more, or a child's: the tree tells

    def _named(self, kwargs: dict[str, Any], place: Place) -> dict[str, Any]:
        """Return the arguments of today by name."""
        args, kwargs = _asked(self._cls, self._name, self._version, fresh(self._args, kwargs), place)
        return {**dict(zip(signature_of(self._cls).positional, args, strict=False)), **kwargs}

    def _default(self, name: str, place: Place) -> Any:
        """Return what an argument is that is not given any more."""
        parameter = signature_of(self._cls).parameters.get(name)
        if parameter is None or parameter.default is parameter.empty:
            message = f"with what is configured here, {self._name}.migrate_recipe leaves out {name!r}, which it needs."
            raise RecipeError("bad-argument", str(place), message)
        return parameter.default


def settings_now(cls: Any, settings: Mapping[str, Any], takes: Callable[[str], bool]) -> dict[str, Any]:
    """Return settings as a class takes them now; the version that they are of is not known.

    Args:
        cls: The class, or another callable.
        settings: Names and values.
        takes: Tells whether a name can be configured.

    Returns:
        The same where the class takes them, or has no way from an older version; empty where none is of use any more.

    Example:
        >>> class Net:
        ...     __recipe_version__ = 1
        ...
        ...     @classmethod
        ...     def migrate_recipe(cls, data, version):
        ...         if "width" in data["kwargs"]:
        ...             data["kwargs"]["hidden"] = data["kwargs"].pop("width")
        ...         return data
        >>> settings_now(Net, {"width": 3, "depth": 2}, ["hidden", "depth"].__contains__)
        {'depth': 2, 'hidden': 3}
    """
    known = {name: value for name, value in settings.items() if takes(name)}
    unknown = {name: value for name, value in settings.items() if name not in known}
    for version in _older_versions(cls) if unknown else ():
        name = getattr(cls, "__qualname__", repr(cls))
        _, after = _asked(cls, name, version, fresh((), unknown), "configure")
        try:
            _, without = _asked(cls, name, version, ((), {}), "configure")
        except _LACKING:
            without = {}
        added = _added(after, without, unknown)
        if all(map(takes, added)):
            return {**known, **added}
    return dict(settings)


def _own_settings(entry: TapeEntry) -> Mapping[str, Any]:
    """Return what an entry configures in the module whose tape it is on; what it configures below has a path."""
    if entry.tags or entry.method != "configure":
        return {}
    match entry.args:
        case ():
            return entry.kwargs
        case (str() as name, value) if not entry.kwargs:
            return {name: value}
    return {}


def _added(after: Mapping[str, Any], without: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the arguments of today that come of some settings; a copy of one is the very object again."""
    return {
        name: next((old for old in settings.values() if is_same(old, value)), value)
        for name, value in after.items()
        if name not in without
        or not is_same(value, without[name])
        or (name in settings and is_same(value, settings[name]))
    }


def is_same(one: Any, other: Any) -> bool:
    """Tell whether two values are the same data; modules are where they are made by the same calls."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, CallRecord):
        return one.cls is other.cls and is_same(
            [one.args, one.kwargs, [(e.tags, e.method, e.args, dict(e.kwargs)) for e in one.tape]],
            [other.args, other.kwargs, [(e.tags, e.method, e.args, dict(e.kwargs)) for e in other.tape]],
        )
    if type(one) in (list, tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    if type(one) is dict:
        return one.keys() == other.keys() and all(is_same(value, other[key]) for key, value in one.items())
    return type(one) in _PLAIN and bool(one == other)
