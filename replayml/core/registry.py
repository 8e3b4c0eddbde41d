"""The registry: things by exact names, each with the place where it was registered.

Invariants:
    * A name is found exactly or not at all; one that is not found raises with the nearest names.
    * Two different things never have one name: the second one is refused, with the places of both. Only what is defined
      again in a notebook or at a prompt takes the place of what it was there.
    * Threads may register and look up at the same time.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from replayml.core.errors import ConfigurationError, suggestion
from replayml.core.tape import caller

__all__ = ["Entry", "Table", "Words", "no_such", "place_of"]

T = TypeVar("T")


class Entry(NamedTuple, Generic[T]):
    """Something that is registered.

    Attributes:
        thing: What is registered.
        place: Where it was registered: ``file:line``, or the distribution whose entry point it is.
    """

    thing: T
    place: str


class Words(NamedTuple):
    """What messages say of a registry.

    Attributes:
        absent: Says that there is no such name, which stands for ``{}``: ``"Net has no style {}"``.
        listed: Comes before the list of names: ``"Registered"``.
        called: What something of that name is called: ``"the style {} of Net"``.
        remedy: What to do where a name is taken.
        more: What to do where it is not there, with ``{}`` for it.
    """

    absent: str
    listed: str
    called: str
    remedy: str
    more: str = ""


class Table(Generic[T]):
    """Things by name.

    Args:
        words: What messages say of it.

    Example:
        >>> colours = Table(Words("there is no colour {}", "Colours", "the colour {}", "Choose another name"))
        >>> colours.add("red", "#f00", "here")
        >>> colours.entry("red").thing
        '#f00'
        >>> colours.entry("rd")
        Traceback (most recent call last):
            ...
        replayml.core.errors.ConfigurationError: there is no colour 'rd'. Did you mean 'red'? Colours: red
        >>> colours.add("red", "#e00", "there")
        Traceback (most recent call last):
            ...
        replayml.core.errors.ConfigurationError: the colour red is registered twice: at here and at there. Choose ...
    """

    def __init__(self, words: Words) -> None:
        self.words = words
        self._entries: dict[str, Entry[T]] = {}
        self._lock = threading.RLock()

    def add(self, name: str, thing: T, place: str) -> None:
        """Register a thing.

        Args:
            name: Its name.
            thing: The thing.
            place: Where that is done, for messages.

        Raises:
            ConfigurationError: When the name is taken by something else.
        """
        with self._lock:
            known = self._entries.get(name)
            if known is not None and known.thing is thing:
                return
            if known is not None and not _is_defined_again(known.thing, thing):
                called = self.words.called.format(name)
                raise ConfigurationError(
                    f"{called} is registered twice: at {known.place} and at {place}. {self.words.remedy}"
                )
            self._entries[name] = Entry(thing, place)

    def remove(self, name: str) -> None:
        """Take something out; nothing happens when it is not there."""
        with self._lock:
            self._entries.pop(name, None)

    def entry(self, name: str) -> Entry[T]:
        """Return what is registered under a name.

        Raises:
            ConfigurationError: When there is no such name.
        """
        with self._lock:
            if name not in self._entries:
                raise no_such(self.words, name, self._entries)
            return self._entries[name]

    def things(self) -> dict[str, T]:
        """Return everything by name, in the order in which it was registered."""
        with self._lock:
            return {name: entry.thing for name, entry in self._entries.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)


def no_such(words: Words, name: str, known: Iterable[str]) -> ConfigurationError:
    """Return the error for a name that is not there, with the nearest one and all that are."""
    names = sorted(known)
    listed = f"{words.listed}: {', '.join(names) or 'none yet'}"
    text = f"{words.absent.format(repr(name))}.{suggestion(name, names)} {listed}"
    return ConfigurationError(f"{text}. {words.more.format(repr(name))}" if words.more else text)


def place_of(thing: Any) -> str:
    """Return where something is defined, or else the line of the user's program that asks.

    Example:
        >>> place_of(place_of).rpartition(":")[0] == __file__
        True
    """
    code = getattr(inspect.unwrap(thing) if callable(thing) else thing, "__code__", None)
    if code is not None:
        return f"{code.co_filename}:{code.co_firstlineno}"
    return str(caller() or "an unknown place")


def _is_defined_again(known: object, thing: object) -> bool:
    """Tell whether something is what a person has just typed anew for a thing of that name."""
    module = getattr(thing, "__module__", None)
    where = sys.modules.get(module) if isinstance(module, str) else None
    if where is None or hasattr(where, "__file__"):
        return False
    return all(getattr(known, name, None) == getattr(thing, name, ...) for name in ("__module__", "__qualname__"))
