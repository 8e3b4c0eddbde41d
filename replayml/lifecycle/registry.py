"""The registry: modules and functions by name, in groups.

    module_register.new_group("mymodules")

    @module_register("mymodules")
    def shout(text): ...

    replayml.mymodules.shout()                  a module that does what the function does

A package offers modules without being imported first by entry points: in the group ``replayml.modules``, an entry
``acme.segment = "acme.models:Segmenter"`` is what ``replayml.acme.segment`` stands for. It is imported when it is
first used.

Invariants:
    * What `replayml.core.registry` says of names holds for the groups, and for the things in each.
    * No group has the name of something that replayml itself offers.
    * Listing the entry points imports nothing, and no recipe can have a plug-in imported.
"""

from __future__ import annotations

import keyword
import pkgutil
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import metadata
from typing import Any, Generic, TypeVar

from torch import nn

from replayml.core.errors import ConfigurationError
from replayml.core.registry import Entry, Table, Words, no_such, place_of
from replayml.layers.layer import Layer
from replayml.module.module import Module

__all__ = ["Entry", "Group", "Registered", "Registry", "module_register"]

T = TypeVar("T")


class Group(Table[T]):
    """The things that are registered under one heading: ``group.name``, ``group.get("name")``, ``"name" in group``.

    Args:
        name: The heading.
        given: What a thing is handed out as; by default as it is.
        plugins: The entry points of this group, by name; each is loaded when its name is first asked for.
    """

    def __init__(
        self,
        name: str,
        given: Callable[[str, str, T], Any] | None = None,
        plugins: Callable[[], Mapping[str, list[metadata.EntryPoint]]] | None = None,
    ) -> None:
        super().__init__(
            Words(
                absent=f"{name} has no {{}}",
                listed="It has",
                called=f"{name}.{{}}",
                remedy="Give one of them another name: module_register(group, name=...)",
            )
        )
        self._name = name
        self._given = given
        self._plugins = plugins
        self._loaded: set[str] = set()

    def add(self, name: str, thing: T, place: str) -> None:
        """Register a thing, as `replayml.core.registry.Table.add`.

        Raises:
            ConfigurationError: When the name is taken by something else, or no attribute can have it.
        """
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_") or hasattr(type(self), name):
            raise ConfigurationError(
                f"{name!r} cannot be registered in {self._name!r}: {self._name}.{name} would be no way to reach it. "
                "Choose another name: module_register(group, name=...)"
            )
        super().add(name, thing, place)

    def entry(self, name: str, load: bool = True) -> Entry[T]:
        """Return what is registered under a name.

        Args:
            name: The name.
            load: Import the plug-in that offers it, if one does and it is not imported yet.

        Raises:
            ConfigurationError: When there is no such name.
        """
        with self._lock:
            if load:
                self._load(name)
            if name not in self._entries:
                raise no_such(self.words, name, {*self._entries, *(self._offered() if load else ())})
            return self._entries[name]

    def get(self, name: str) -> Any:
        """Return what a name stands for; see `entry`."""
        thing = self.entry(name).thing
        return thing if self._given is None else self._given(self._name, name, thing)

    def names(self) -> list[str]:
        """Return every name, those that plug-ins offer included."""
        with self._lock:
            return sorted({*self._entries, *self._offered()})

    def _offered(self) -> Mapping[str, list[metadata.EntryPoint]]:
        return {} if self._plugins is None else self._plugins()

    def _load(self, name: str) -> None:
        """Import what entry points offer under a name, in addition to what is registered."""
        for point in [] if name in self._loaded else self._offered().get(name, []):
            place = f"the entry point of {point.dist.name if point.dist is not None else 'an unknown distribution'}"
            try:
                thing = point.load()
            except Exception as error:
                error.add_note(f"while loading {self._name}.{name}, {point.value} by {place}")
                raise
            self.add(name, thing, place)
        self._loaded.add(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"a group has no {name!r}")
        try:
            return self.get(name)
        except ConfigurationError as error:
            raise AttributeError(str(error)) from error

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.names()]

    def __repr__(self) -> str:
        return f"Group({self._name}: {', '.join(self.names())})"


class Registry(Generic[T]):
    """Groups of things with names; ``@registry("group")`` registers what it decorates.

    Args:
        entry_points: The group of entry points by which other packages offer things.
        taken: Returns the names that no group may have.
        check: Called with a thing before it is registered; raises when it does not belong here.
        given: Called with the names of the group and the thing, and the thing; returns what is handed out.

    Example:
        >>> colours = Registry()
        >>> colours.new_group("warm")
        >>> colours("warm", name="red")("#f00")
        '#f00'
        >>> colours.warm.red, colours.warm.get("rd")
        Traceback (most recent call last):
        replayml.core.errors.ConfigurationError: warm has no 'rd'. Did you mean 'red'? It has: red
    """

    def __init__(
        self,
        entry_points: str | None = None,
        taken: Callable[[], Collection[str]] | None = None,
        check: Callable[[str, T], None] | None = None,
        given: Callable[[str, str, T], Any] | None = None,
    ) -> None:
        self._entry_points = entry_points
        self._taken = taken
        self._check = check
        self._given = given
        self._groups: Table[Group[T]] = Table(
            Words(
                absent="there is no group {}",
                listed="Groups",
                called="the group {}",
                remedy="To make it anew: remove_group(name)",
                more="Make it: new_group({})",
            )
        )
        self._points: dict[str, dict[str, list[metadata.EntryPoint]]] | None = None
        self._lock = threading.RLock()

    # Groups ---------------------------------------------------------------------------------------------------

    def new_group(self, name: str) -> None:
        """Make a group.

        Args:
            name: Its name.

        Raises:
            ConfigurationError: When there is such a group, or the name is no name or taken by something else.
        """
        with self._lock:
            self._make(name, place_of(None))

    def remove_group(self, name: str) -> None:
        """Forget a group with all that is in it; for tests, which leave nothing behind."""
        with self._lock:
            self._groups.remove(name)

    def group(self, name: str, load: bool = True) -> Group[T]:
        """Return a group.

        Args:
            name: Its name.
            load: Look for it among what plug-ins offer too.

        Raises:
            ConfigurationError: When there is no such group.
        """
        with self._lock:
            if load and name not in self._groups and name in self._plugins():
                self._make(name, f"an entry point in {self._entry_points!r}")
            if name not in self._groups:
                raise no_such(self._groups.words, name, self.groups() if load else self._groups)
            return self._groups.entry(name).thing

    def groups(self) -> list[str]:
        """Return the names of all groups, those of plug-ins included."""
        with self._lock:
            return sorted({*self._groups, *self._plugins()})

    def _make(self, name: str, place: str) -> None:
        if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
            raise ConfigurationError(
                f"{name!r} is no name for a group: it is to be an identifier without a leading '_'"
            )
        if hasattr(type(self), name) or (self._taken is not None and name in self._taken()):
            raise ConfigurationError(f"a group {name!r} would hide another thing of that name. Choose another name")
        self._groups.add(name, Group(name, self._given, lambda: self._plugins().get(name, {})), place)

    def _plugins(self) -> dict[str, dict[str, list[metadata.EntryPoint]]]:
        """Return the entry points by group and name; nothing is imported."""
        if self._points is None:
            self._points = {}
            points = () if self._entry_points is None else metadata.entry_points(group=self._entry_points)
            for point in points:
                group, _, name = point.name.partition(".")
                self._points.setdefault(group, {}).setdefault(name, []).append(point)
        return self._points

    def refresh(self) -> None:
        """Read the entry points again, after a package was installed while the program runs."""
        with self._lock:
            self._points = None

    # Registering ----------------------------------------------------------------------------------------------

    def __call__(self, group: str, *, name: str | None = None) -> Callable[[Any], Any]:
        """Return a decorator that registers what it decorates, and leaves it as it is.

        Args:
            group: The group, which was made before.
            name: The name; that of the function or the class by default.
        """
        found = self.group(group)

        def register(thing: Any) -> Any:
            own = name if name is not None else getattr(thing, "__name__", None)
            if own is None:
                raise ConfigurationError(f"{thing!r} has no name of its own. Give one: name=...")
            if self._check is not None:
                self._check(own, thing)
            found.add(own, thing, place_of(thing))
            return thing

        return register

    def __getattr__(self, name: str) -> Group[T]:
        if name.startswith("_"):
            raise AttributeError(f"a registry has no {name!r}")
        try:
            return self.group(name)
        except ConfigurationError as error:
            raise AttributeError(str(error)) from error

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.groups()]

    def __repr__(self) -> str:
        return f"Registry({', '.join(self.groups())})"


# Modules --------------------------------------------------------------------------------------------------------


class Registered(Module):
    """A module that does what a registered function does; what ``replayml.GROUP.NAME()`` returns.

    Args:
        group: The group.
        name: The name in it.
        *args: For a class, the arguments of the object that is called.
        **kwargs: Likewise.
    """

    def __init__(self, group: str, name: str, *args: Any, **kwargs: Any) -> None:
        thing = module_register.group(group, load=False).entry(name, load=False).thing
        self._name = name
        if isinstance(thing, type):
            self._function = thing(*args, **kwargs)
        elif args or kwargs:
            raise ConfigurationError(
                f"{group}.{name} is a function: {group}.{name}() takes no arguments. Give them when you call the "
                f"module: {group}.{name}()(...)"
            )
        else:
            self._function = thing

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self._function(*args, **kwargs)

    @property
    def _shown_name(self) -> str:
        return self._name


def _check_module(name: str, thing: object) -> None:
    """Refuse what makes no module."""
    if not callable(thing):
        raise ConfigurationError(f"{name!r} is {thing!r}; functions, modules and classes are registered")
    if isinstance(thing, type) and not any("__call__" in vars(base) for base in thing.__mro__):
        raise ConfigurationError(f"the objects of {thing.__name__} cannot be called. Give the class a __call__")


def _as_module(group: str, name: str, thing: Any) -> Callable[..., Any]:
    """Return what makes the module of something that is registered."""
    if isinstance(thing, type) and issubclass(thing, Module):
        return thing
    if isinstance(thing, type) and issubclass(thing, nn.Module):
        return lambda *args, **kwargs: Layer(thing, *args, **kwargs)
    return lambda *args, **kwargs: Registered(group, name, *args, **kwargs)


def _taken() -> set[str]:
    """Return the names that replayml itself offers."""
    package = sys.modules[__name__.partition(".")[0]]
    return {*dir(package), *package.__all__, *(module.name for module in pkgutil.iter_modules(package.__path__))}


module_register: Registry[Any] = Registry("replayml.modules", _taken, _check_module, _as_module)
"""Modules and functions by name: see the top of this file."""
