"""The journal: how a call that fails leaves everything as it was.

While a transaction is open, whoever changes a model notes how to undo the change. When the call raises, the notes
made since its start are carried out, last first; when the outermost call returns, they are thrown away.

Invariants:
    * A transaction inside another one undoes its own part only.
    * Outside of a transaction nothing is noted.
    * Threads and asyncio tasks have journals of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

__all__ = ["note", "note_containers", "refill", "refill_set", "transaction"]

Note = tuple[Callable[..., Any], tuple[Any, ...]]

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


def note_containers(attributes: Mapping[str, Any]) -> None:
    """Note the content of the lists, dicts and sets among some attributes, which a call may change in place."""
    for value in attributes.values():
        kind = type(value)
        if kind is list:
            note(value.__setitem__, slice(None), list(value))
        elif kind is dict:
            note(refill, value, dict(value))
        elif kind is set:
            note(refill_set, value, set(value))


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
