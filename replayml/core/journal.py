"""The journal: how a call that fails leaves everything as it was.

While a transaction is open, whoever changes a model notes how to undo the change. When the call raises, the notes
made since its start are carried out, last first; when the outermost call returns, they are thrown away.

Invariants:
    * A transaction inside another one undoes its own part only.
    * Outside of a transaction nothing is noted.
    * Threads and asyncio tasks have journals of their own.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

__all__ = ["note", "note_containers", "refill", "refill_set", "transaction"]

Note = tuple[Callable[..., Any], tuple[Any, ...]]

_CONTAINERS = frozenset({Counter, OrderedDict, defaultdict, deque, dict, list, set, tuple})

_notes: ContextVar[list[Note] | None] = ContextVar("replayml_journal", default=None)


def note(undo: Callable[..., Any], *args: Any) -> None:
    """Note how to undo the change that is about to be made."""
    notes = _notes.get()
    if notes is not None:
        notes.append((undo, args))


def refill(attributes: dict[str, Any], content: Mapping[str, Any]) -> None:
    """Give a dictionary a content, in its order; what undoes any change to it."""
    attributes.clear()
    attributes.update(content)


def refill_set(values: set[Any], content: Collection[Any]) -> None:
    """Give a set a content; what undoes any change to it."""
    values.clear()
    values.update(content)


def refill_deque(values: deque[Any], content: Collection[Any]) -> None:
    """Give a deque a content; what undoes any change to it."""
    values.clear()
    values.extend(content)


def note_containers(attributes: Mapping[str, Any]) -> None:
    """Note the content of lists, dicts, sets and deques, which a call may change in place, those inside included.

    Args:
        attributes: The attributes of an object; what is in them is looked at.
    """
    _note_inside(attributes.values(), set())


def _note_inside(values: Iterable[Any], seen: set[int]) -> None:
    for value in values:
        kind = type(value)
        if kind not in _CONTAINERS or id(value) in seen:
            continue
        seen.add(id(value))
        if kind is list:
            note(value.__setitem__, slice(None), list(value))
        elif kind is set:
            note(refill_set, value, set(value))
        elif kind is deque:
            note(refill_deque, value, list(value))
        elif kind is not tuple:
            note(refill, value, dict(value))
        inside = value.values() if isinstance(value, dict) else value
        if not _CONTAINERS.isdisjoint(map(type, inside)):
            _note_inside(inside, seen)


class transaction:
    """All or nothing: when the block raises, every noted change is undone.

    Example:
        >>> box = [1]
        >>> try:
        ...     with transaction():
        ...         note(box.pop)
        ...         box.append(2)
        ...         raise ValueError
        ... except ValueError:
        ...     print(box)
        [1]
    """

    __slots__ = ("_mark", "_notes", "_token")

    def __enter__(self) -> None:
        notes = _notes.get()
        self._token: Token[list[Note] | None] | None = None
        if notes is None:
            notes = []
            self._token = _notes.set(notes)
        self._notes = notes
        self._mark = len(notes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _notes.reset(self._token)
        if kind is not None:
            while len(self._notes) > self._mark:
                undo, args = self._notes.pop()
                undo(*args)
