"""The tape: the calls that changed a model after it was made, and a model as plain data.

A `CallRecord` is a model before it is an object: the class, the arguments of the call that made it, and its
tape. It holds no unbuilt module: such a one among the arguments stands as its own `CallRecord`, one object for one
module, so that what was shared stays shared. Everything that copies, pickles or writes a model goes through it.

Invariants:
    * Only the outermost call of the user makes an entry; a tape never holds a change twice.
    * A call that raised leaves no entry.
    * ``where`` tells the line of the user's call; it takes no part in equality.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

__all__ = ["CallRecord", "PlainRecord", "Tape", "TapeEntry", "TreeRef", "Where", "caller"]

Path = tuple[str, ...]


class Where(NamedTuple):
    """A line of the user's code.

    Example:
        >>> str(Where("train.py", 41))
        'train.py:41'
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def caller() -> Where | None:
    """Return the line of the innermost frame that is not replayml's own, or None when there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        package = frame.f_globals.get("__name__", "")
        if not (package.startswith("replayml.") or package == "replayml"):
            return Where(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None


@dataclass(frozen=True, slots=True)
class TreeRef:
    """Stands on a tape for something that was in the tree already: a module, or one of its tensors.

    Attributes:
        tags: The module's path below the root of the tape, at the time of the call.
        name: None for the module itself, else the name of its parameter or buffer.
        outer: On the tape of a module that was given to a larger one: how many trees further out the path is one of;
            0 is the tree of the call, 1 that which its root was given to.
        also: The other paths at which it stood at the time of the call; they take no part in equality.
    """

    tags: Path
    name: str | None = None
    outer: int = 0
    also: tuple[Path, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TapeEntry:
    """One recorded call.

    Attributes:
        tags: The path of the module that was called, below the root; ``()`` is the root.
        method: The name of the method.
        args: The positional arguments; modules stand as `CallRecord` or `TreeRef`.
        kwargs: The keyword arguments, likewise.
        where: The line of the user's call; takes no part in equality.
        maker: The module in whose ``__init__`` the call stood, if it did; it takes no part in equality and leaves
            the entry when a record is copied.
        serial: When the call was made; equal in the tapes of two models that share the module that was called.
    """

    tags: Path
    method: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    where: Where | None = None
    maker: Any = None
    serial: int = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TapeEntry):
            return NotImplemented
        return (self.tags, self.method, self.args, dict(self.kwargs)) == (
            other.tags,
            other.method,
            other.args,
            dict(other.kwargs),
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<TapeEntry {self}{f' at {self.where}' if self.where else ''}>"

    def __str__(self) -> str:
        """Return the call as the user would type it."""
        target = "".join(f"[{tag}]" if tag.isdigit() else f".{tag}" for tag in self.tags)
        parts = [_short(value) for value in self.args]
        parts += [f"{name}={_short(value)}" for name, value in self.kwargs.items()]
        return f"model{target}.{self.method}({', '.join(parts)})"


@dataclass(slots=True, eq=False)
class CallRecord:
    """A module as data: the call that made it and the tape of what was done to it since.

    Attributes:
        cls: The class.
        args: The positional arguments of the call.
        kwargs: The keyword arguments of the call.
        tape: The calls made on it, and below it, since.
        where: The line of the user's constructor call.
        owner: The module, on the record that a live module has; None on every copy.
    """

    cls: type
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    tape: list[TapeEntry] = field(default_factory=list)
    where: Where | None = None
    owner: Any = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CallRecord):
            return NotImplemented
        return (self.cls, self.args, self.kwargs, self.tape) == (other.cls, other.args, other.kwargs, other.tape)

    __hash__ = object.__hash__

    def __deepcopy__(self, memo: dict[int, Any]) -> CallRecord:
        """A record is never changed once it left its module, so a copy of its holder may share it."""
        return self

    def __str__(self) -> str:
        parts = [_short(value) for value in self.args]
        parts += [f"{name}={_short(value)}" for name, value in self.kwargs.items()]
        return f"{self.cls.__name__}({', '.join(parts)})"


@dataclass(frozen=True, slots=True, eq=False)
class PlainRecord:
    """A plain module that holds unbuilt ones, as data.

    Attributes:
        module: The plain module.
        inside: The topmost unbuilt modules inside of it, each with its record.
    """

    module: Any
    inside: tuple[tuple[Any, CallRecord], ...]

    def __str__(self) -> str:
        return str(self.module)


class Tape(Sequence[TapeEntry]):
    """The recorded calls of one model, read as a sequence.

    Example:
        >>> tape = Tape([TapeEntry(("layer",), "configure", (), {"out_features": 4})])
        >>> print(tape[0])
        model.layer.configure(out_features=4)
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Sequence[TapeEntry] = ()) -> None:
        self._entries = tuple(entries)

    @overload
    def __getitem__(self, index: int) -> TapeEntry: ...
    @overload
    def __getitem__(self, index: slice) -> Tape: ...
    def __getitem__(self, index: int | slice) -> TapeEntry | Tape:
        if isinstance(index, slice):
            return Tape(self._entries[index])
        return self._entries[index]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[TapeEntry]:
        return iter(self._entries)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (Tape, list, tuple)):
            return list(self) == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        lines = [f"  {i}: {entry}" for i, entry in enumerate(self._entries)]
        return "\n".join(["Tape(", *lines, ")"]) if lines else "Tape()"


def _short(value: Any, limit: int = 60) -> str:
    """Return a short text for a value in a message."""
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, CallRecord):
        return str(value)
    if isinstance(value, PlainRecord):
        value = value.module
    if isinstance(value, TreeRef):
        text = "model" + "".join(f"[{tag}]" if tag.isdigit() else f".{tag}" for tag in value.tags)
        return f"{text}.{value.name}" if value.name else text
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    text = _container(value) if type(value) in (list, tuple, dict) else repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _container(value: Any) -> str:
    if type(value) is dict:
        return "{" + ", ".join(f"{key!r}: {_short(item)}" for key, item in value.items()) + "}"
    items = ", ".join(_short(item) for item in value)
    if type(value) is list:
        return f"[{items}]"
    return f"({items},)" if len(value) == 1 else f"({items})"
