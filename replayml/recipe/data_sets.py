"""Data sets on a tape: what `evalset` and `trainset` were given is no part of a model file.

Invariants:
    * A recipe has the calls of these methods whose arguments are names, of functions and classes, and a few plain
      values. A call with anything else, such as arrays, a loader or a lambda, is left out as a whole, and so are those
      before it for which it came.
    * Whether a call is left out does not depend on how large its tensors are, nor on how the model is written.
    * All else of a record stays as it is, and what stood in several places still is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import torch

from replayml.core.tape import CallRecord, Path, PlainRecord, TapeEntry

__all__ = ["DATA_SETS", "is_plain", "without_data_sets"]

DATA_SETS = frozenset({"evalset", "trainset"})
"""The methods that are given data sets."""

MOST_VALUES = 1000
DEEPEST = 100  # what is nested deeper is not looked at; a writer refuses it

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device})


def is_plain(entry: TapeEntry, has_name: Callable[[Any], bool] = lambda thing: True) -> bool:
    """Tell whether the arguments of a call are names and a few plain values.

    Args:
        entry: The call.
        has_name: Tells whether a function or class can be found again by its name.

    Example:
        >>> is_plain(TapeEntry((), "evalset", (["one", "two"],), {"load_f": str.upper}))
        True
        >>> is_plain(TapeEntry((), "evalset", (torch.zeros(1),)))
        False
    """
    left, count = [*entry.args, *entry.kwargs.values()], 0
    while left:
        value = left.pop()
        count += 1
        if count > MOST_VALUES:
            return False
        if type(value) in (list, tuple, set, frozenset):
            left += list(value)[: MOST_VALUES + 1]
        elif type(value) is dict:
            left += [part for pair in list(value.items())[: MOST_VALUES + 1] for part in pair]
        elif not (type(value) in _PLAIN or isinstance(value, PurePath) or (_is_named(value) and has_name(value))):
            return False
    return True


def _is_named(value: Any) -> bool:
    return isinstance(getattr(value, "__qualname__", None), str)


def without_data_sets(record: CallRecord, is_kept: Callable[[TapeEntry], bool] = lambda entry: False) -> CallRecord:
    """Return a record without the calls that give data sets.

    Args:
        record: A model as data.
        is_kept: Tells which of these calls are kept.

    Returns:
        The same record where no call is left out.

    Example:
        >>> tape = [TapeEntry((), "evalset", (torch.zeros(1),)), TapeEntry((), "configure", (), {"width": 3})]
        >>> without_data_sets(CallRecord(object, (), {}, tape)).tape
        [<TapeEntry model.configure(width=3)>]
    """
    return _Trimmer(is_kept).call(record)


class _Trimmer:
    """Copies what holds a call that is left out."""

    def __init__(self, is_kept: Callable[[TapeEntry], bool]) -> None:
        self._is_kept = is_kept
        self._done: dict[int, Any] = {}
        self._held: list[Any] = []  # so that no id is used twice
        self._depth = 0

    def call(self, record: CallRecord) -> CallRecord:
        """Return the record without these calls."""
        if id(record) not in self._done:
            self._done[id(record)] = record
            args, kwargs = self._value(record.args), self._value(record.kwargs)
            tape = [self._entry(entry) for entry in self._staying(record.tape)]
            is_same = args is record.args and kwargs is record.kwargs and _are_same(tape, record.tape)
            self._done[id(record)] = (
                record if is_same else CallRecord(record.cls, args, kwargs, tape, record.where, record.owner)
            )
            self._held.append(record)
        found: CallRecord = self._done[id(record)]
        return found

    def _staying(self, tape: Sequence[TapeEntry]) -> list[TapeEntry]:
        gone: set[tuple[Path, str]] = set()
        staying = []
        for entry in reversed(tape):
            what = (entry.tags, entry.method)
            if entry.method in DATA_SETS and (what in gone or not self._is_kept(entry)):
                gone.add(what)
            else:
                staying.append(entry)
        return staying[::-1]

    def _entry(self, entry: TapeEntry) -> TapeEntry:
        args, kwargs = self._value(entry.args), self._value(entry.kwargs)
        return entry if args is entry.args and kwargs is entry.kwargs else replace(entry, args=args, kwargs=kwargs)

    def _value(self, value: Any) -> Any:
        kind = type(value)
        if kind is CallRecord:
            return self.call(value)
        if kind not in (tuple, list, dict, PlainRecord):
            return value
        if id(value) not in self._done and self._depth < DEEPEST:
            self._done[id(value)] = value
            self._depth += 1
            self._done[id(value)] = self._container(value)
            self._depth -= 1
            self._held.append(value)
        return self._done.get(id(value), value)

    def _container(self, value: Any) -> Any:
        if isinstance(value, PlainRecord):
            inside = tuple((below, self.call(call)) for below, call in value.inside)
            is_same = all(one[1] is other[1] for one, other in zip(inside, value.inside, strict=True))
            return value if is_same else PlainRecord(value.module, inside)
        if isinstance(value, Mapping):
            items = {key: self._value(item) for key, item in value.items()}
            return value if _are_same(items.values(), value.values()) else items
        new = [self._value(item) for item in value]
        return value if _are_same(new, value) else type(value)(new)


def _are_same(new: Any, old: Any) -> bool:
    return len(new) == len(old) and all(one is other for one, other in zip(new, old, strict=True))
