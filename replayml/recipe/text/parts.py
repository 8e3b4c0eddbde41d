"""A recipe that was read but not built: the tree of its parts.

Each part knows how to make its value. Parts with a name also know what must be true of the thing that the name
stands for.

Invariants:
    * A part is made of data; it holds no class and no function of the user.
    * ``make`` runs only after every name was found and every ``flaws`` came back empty.
    * An error of the user's own code keeps its type and gains its place.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, Flag
from types import MappingProxyType
from typing import Any

from replayml.core.tape import CallRecord, TapeEntry, Where
from replayml.recipe.codecs import Codec
from replayml.recipe.faults import Fault, Flaw, Place, noting, refuse, shown
from replayml.recipe.migrate import call_now, class_version, listed, misfits, version_flaws
from replayml.recipe.text.names import Kind, Names
from replayml.recipe.values.instances import make_pydantic, takes_more

__all__ = [
    "CallPart",
    "ClassPart",
    "CodecPart",
    "Constant",
    "DataclassPart",
    "EntryPart",
    "EnumPart",
    "ItemsPart",
    "LeafPart",
    "Maker",
    "NamedPart",
    "NamedTuplePart",
    "PairsPart",
    "Part",
    "PydanticPart",
    "Reference",
    "SharedPart",
]

_COLLECTIONS: Mapping[str, Callable[[list[Any]], Any]] = MappingProxyType(
    {"$list": list, "$tuple": tuple, "$set": set, "$frozenset": frozenset}
)


class Maker:
    """What the parts need to make their values.

    Args:
        found: What each name stands for.
    """

    def __init__(self, found: Mapping[tuple[Kind, str], Any]) -> None:
        self.found = found
        self.shared: dict[int, Any] = {}


class Part(ABC):
    """One value of a recipe."""

    __slots__ = ()

    @abstractmethod
    def make(self, maker: Maker) -> Any:
        """Return the value."""


@dataclass(frozen=True, slots=True)
class Constant(Part):
    """A value that JSON has itself."""

    value: object

    def make(self, maker: Maker) -> Any:
        """Return the value."""
        return self.value


@dataclass(frozen=True, slots=True)
class LeafPart(Part):
    """A value without parts; it is made anew each time, since a tensor can be changed."""

    read: Callable[[object], object]
    payload: object

    def make(self, maker: Maker) -> Any:
        """Return a new value."""
        return self.read(self.payload)


@dataclass(frozen=True, slots=True)
class SharedPart(Part):
    """A value that stands in more than one place: here for the first time."""

    number: int
    part: Part

    def make(self, maker: Maker) -> Any:
        """Return the value, and remember it."""
        value = self.part.make(maker)
        maker.shared[self.number] = value
        return value


@dataclass(frozen=True, slots=True)
class Reference(Part):
    """A value that stood earlier."""

    number: int

    def make(self, maker: Maker) -> Any:
        """Return the same object."""
        return maker.shared[self.number]


@dataclass(frozen=True, slots=True)
class ItemsPart(Part):
    """A list, a tuple, a set or a frozenset."""

    tag: str
    items: tuple[Part, ...]
    place: Place

    def make(self, maker: Maker) -> Any:
        """Return the collection."""
        items = [item.make(maker) for item in self.items]
        with noting(f"while the value at {self.place} of a recipe was made"):
            made = _COLLECTIONS[self.tag](items)
        _check_length(len(made), len(self.items), self.place)
        return made


@dataclass(frozen=True, slots=True)
class PairsPart(Part):
    """A dict, or an `OrderedDict`."""

    is_ordered: bool
    pairs: tuple[tuple[Part, Part], ...]
    place: Place

    def make(self, maker: Maker) -> Any:
        """Return the dict."""
        pairs = [(key.make(maker), value.make(maker)) for key, value in self.pairs]
        with noting(f"while the value at {self.place} of a recipe was made"):
            made: dict[Any, Any] = OrderedDict(pairs) if self.is_ordered else dict(pairs)
        _check_length(len(made), len(self.pairs), self.place)
        return made


def _check_length(made: int, written: int, place: Place) -> None:
    if made != written:
        refuse([Fault("duplicate-key", place, "two of the elements are equal, such as 1 and True.")], note="")


# Parts with a name --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NamedPart(Part):
    """A part with a name.

    Attributes:
        kind: What the name must stand for.
        name: The name.
        place: Where it stands.
    """

    kind: Kind
    name: str
    place: Place

    def flaws(self, found: Any, names: Names) -> Iterator[Flaw]:
        """Yield what does not fit the thing that the name stands for."""
        yield from ()

    def _found(self, maker: Maker) -> Any:
        return maker.found[self.kind, self.name]


@dataclass(frozen=True, slots=True)
class ClassPart(NamedPart):
    """A class or a function that is a value."""

    def make(self, maker: Maker) -> Any:
        """Return what the name stands for."""
        return self._found(maker)


@dataclass(frozen=True, slots=True)
class EnumPart(NamedPart):
    """A member of an enum; several for combined flags."""

    members: tuple[str, ...]
    is_combined: bool

    def flaws(self, found: Any, names: Names) -> Iterator[Flaw]:
        """Yield the members that the enum does not have."""
        known: Mapping[str, Enum] = found.__members__
        for member in self.members:
            if member not in known:
                yield Flaw("bad-value", f"{shown(member)} is no member of {self.name}: {listed(known)}.")
        if self.is_combined and not issubclass(found, Flag):
            yield Flaw("bad-value", f"members of {self.name} cannot be combined: it is no Flag.")

    def make(self, maker: Maker) -> Any:
        """Return the member."""
        enum = self._found(maker)
        members = [enum.__members__[member] for member in self.members]
        with noting(f"while the value at {self.place} of a recipe was made"):
            return functools.reduce(operator.or_, members, enum(0)) if self.is_combined else members[0]


@dataclass(frozen=True, slots=True)
class DataclassPart(NamedPart):
    """An instance of a dataclass, made by its constructor."""

    fields: tuple[tuple[str, Part], ...]
    is_key: bool

    def flaws(self, found: Any, names: Names) -> Iterator[Flaw]:
        """Yield the fields that the class does not have, and those that are not given."""
        wanted = {field.name for field in dataclasses.fields(found) if field.init}
        given = {name for name, _ in self.fields}
        for name in sorted(given - wanted):
            yield Flaw("bad-argument", f"{self.name} has no field {shown(name)}: {listed(wanted)}.")
        for name in sorted(wanted - given):
            yield Flaw("bad-argument", f"the field {name!r} of {self.name} is not given.")
        if self.is_key and found.__hash__ is None:
            yield Flaw("bad-value", f"an instance of {self.name} cannot be a key or stand in a set: it has no hash.")

    def make(self, maker: Maker) -> Any:
        """Return a new instance."""
        values = {name: value.make(maker) for name, value in self.fields}
        with noting(f"while the value at {self.place} of a recipe was made"):
            return self._found(maker)(**values)


@dataclass(frozen=True, slots=True)
class PydanticPart(NamedPart):
    """An instance of a pydantic model, made by its validation."""

    fields: tuple[tuple[str, Part], ...]
    given: tuple[str, ...]

    def flaws(self, found: Any, names: Names) -> Iterator[Flaw]:
        """Yield the fields that the model does not have, and those that it needs."""
        known = found.model_fields
        present = {name for name, _ in self.fields}
        for name in sorted(present - known.keys()) if not takes_more(found) else ():
            yield Flaw("bad-argument", f"{self.name} has no field {shown(name)}: {listed(known)}.")
        for name, field in known.items():
            if name not in present and field.is_required():
                yield Flaw("bad-argument", f"the field {name!r} of {self.name} is not given.")

    def make(self, maker: Maker) -> Any:
        """Return a new instance."""
        values = {name: value.make(maker) for name, value in self.fields}
        with noting(f"while the value at {self.place} of a recipe was made"):
            return make_pydantic(self._found(maker), values, self.given, self.place)


@dataclass(frozen=True, slots=True)
class NamedTuplePart(NamedPart):
    """An instance of a named tuple."""

    items: tuple[Part, ...]

    def flaws(self, found: Any, names: Names) -> Iterator[Flaw]:
        """Yield what tells that the number of items is wrong."""
        if len(found._fields) != len(self.items):
            yield Flaw("bad-argument", f"{self.name} has the fields {listed(found._fields)}, not {len(self.items)}.")

    def make(self, maker: Maker) -> Any:
        """Return a new instance, as pickle would: its own ``__new__`` is not run."""
        return tuple.__new__(self._found(maker), [item.make(maker) for item in self.items])


@dataclass(frozen=True, slots=True)
class CodecPart(NamedPart):
    """An instance of a type that has a codec."""

    data: Part

    def make(self, maker: Maker) -> Any:
        """Return what the codec makes of the data."""
        codec: Codec[Any] = self._found(maker)
        data = self.data.make(maker)
        with noting(f"while the value at {self.place} of a recipe was made"):
            return codec.decode(data)


@dataclass(frozen=True, slots=True)
class EntryPart:
    """One call on a tape."""

    method: str
    tags: tuple[str, ...]
    args: tuple[Part, ...]
    kwargs: tuple[tuple[str, Part], ...]
    where: Where | None
    place: Place

    def make(self, maker: Maker) -> TapeEntry:
        """Return the entry."""
        return TapeEntry(
            self.tags,
            self.method,
            tuple(value.make(maker) for value in self.args),
            {name: value.make(maker) for name, value in self.kwargs},
            self.where,
        )


@dataclass(frozen=True, slots=True)
class CallPart(NamedPart):
    """A constructor call with its tape."""

    args: tuple[Part, ...]
    kwargs: tuple[tuple[str, Part], ...]
    tape: tuple[EntryPart, ...]
    where: Where | None
    version: int

    def flaws(self, found: Any, names: Names) -> Iterator[Flaw]:
        """Yield the arguments that the class does not take; those of an older version it may still change."""
        known = list(version_flaws(found, self.name, self.version))
        yield from known
        if not known and self.version == class_version(found):
            yield from misfits(found, self.name, len(self.args), [name for name, _ in self.kwargs])

    def make(self, maker: Maker) -> CallRecord:
        """Return the record of the call; the class is not called."""
        cls = self._found(maker)
        args = tuple(value.make(maker) for value in self.args)
        kwargs = {name: value.make(maker) for name, value in self.kwargs}
        tape = [entry.make(maker) for entry in self.tape]
        (args, kwargs), tape = call_now(cls, self.name, self.version, (args, kwargs), tape, self.place)
        return CallRecord(cls, args, kwargs, tape, self.where)
