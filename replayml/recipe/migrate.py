"""Classes that changed since a recipe was written: other names, other arguments.

    record = recipe.record(rename={"old.package": "new.package"})

    class Net(replayml.Module):
        __recipe_version__ = 1

        @classmethod
        def migrate_recipe(cls, data, version):
            data["kwargs"]["hidden"] = data["kwargs"].pop("width")  # what version 0 called `width`
            return data

Invariants:
    * New names come from the caller, never from a file; what they lead to is looked up as any other name is.
    * What a class makes of old arguments is checked like any other call; no argument is dropped.
    * A recipe of a newer version of a class is refused, never guessed at.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any

from replayml.core.errors import ArgumentError, nearest
from replayml.core.meta import capture
from replayml.recipe.faults import Fault, Flaw, Place, noting, refuse, shown

__all__ = ["Renames", "class_version", "listed", "migrated", "misfits", "version_flaws"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

_LISTED = 20


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


def migrated(
    cls: Any, name: str, version: int, args: tuple[Any, ...], kwargs: dict[str, Any], place: Place
) -> Arguments:
    """Return the arguments that a class takes now, of those that it took.

    Args:
        cls: The class, which has a ``migrate_recipe``.
        name: Its name.
        version: The version of the class whose arguments these are.
        args: Its positional arguments; modules among them are `CallRecord`.
        kwargs: Its keyword arguments.
        place: Where the call stands.

    Raises:
        RecipeError: When the class does not take what its own ``migrate_recipe`` returned.
    """
    with noting(f"while {name}.migrate_recipe changed the arguments of version {version} at {place}"):
        data = cls.migrate_recipe({"args": list(args), "kwargs": dict(kwargs)}, version)
    match data:
        case {"args": list() | tuple() as new_args, "kwargs": dict() as new_kwargs, **rest} if not rest:
            faults = [flaw.at(place) for flaw in misfits(cls, name, len(new_args), list(new_kwargs))]
        case _:
            message = f'{name}.migrate_recipe returns {{"args": [...], "kwargs": {{...}}}}, not {data!r}.'
            faults = [Fault("bad-argument", place, message)]
    if faults:
        refuse(faults, note="")
    return tuple(capture(list(new_args))), capture(dict(new_kwargs))


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
