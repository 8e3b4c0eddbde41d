"""References: what stands in a tree already, as an argument of a call on that tree.

A call such as ``model.decoder.tied = model.encoder.layer`` is about the place, not about a copy of the module. On the
tape such an argument is a `TreeRef`, also when it is hidden in a new module: ``model.encoder = Wrap(model.encoder)``.

Invariants:
    * The same call on an equal tree gets the equal modules.
    * Only what stands in the tree of the call is referred to; everything else is a value.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from replayml.core import tags
from replayml.core.arguments import ATOMS
from replayml.core.meta import ExtendedConstructorMeta, capture
from replayml.core.tape import CallRecord, Path, TapeEntry, TreeRef

__all__ = ["recorded", "refer"]


def refer(value: Any, root: Any, by_slots: bool) -> Any:
    """Return a value with everything that stands in the tree of ``root`` replaced by a `TreeRef`.

    A new module that holds something of the tree becomes a `CallRecord` that refers to it.

    Args:
        value: Arguments, in tuples, lists and dicts.
        root: The root of the tree.
        by_slots: Give paths of slots, which stay right when list elements move, instead of names.
    """
    kind = type(value)
    if kind in ATOMS:
        return value
    if isinstance(kind, ExtendedConstructorMeta):
        if value._record.built:
            return value
        place = _place(value, root, by_slots)
        if place is not None:
            return place
        translated = _Translation(root, by_slots).call(value._record.call, 0)
        return value if translated is None else translated
    if isinstance(value, nn.Module):
        found = _find_plain(value, root)
        return value if found is None else TreeRef(found)
    if isinstance(value, nn.Parameter):
        for name, parameter in root.named_parameters(remove_duplicate=False):
            if parameter is value:
                *path, last = name.split(".")
                return TreeRef(tuple(path), last)
        return value
    if kind is tuple or kind is list:
        new = [refer(item, root, by_slots) for item in value]
        return value if all(a is b for a, b in zip(new, value, strict=True)) else kind(new)
    if kind is dict:
        items = {key: refer(item, root, by_slots) for key, item in value.items()}
        return value if all(items[key] is item for key, item in value.items()) else items
    return value


def _place(module: Any, root: Any, by_slots: bool) -> TreeRef | None:
    """Return a reference to an unbuilt module, if it stands in the tree."""
    if module is root or module._record.links:
        found = [slots if by_slots else tags.visible(top, slots) for top, slots in tags.paths(module) if top is root]
        if found:
            return TreeRef(found[0], also=tuple(found[1:]))
    return None


class _Translation:
    """Puts references to a tree into records.

    Args:
        root: The root of the tree.
        by_slots: As for `refer`.
    """

    def __init__(self, root: Any, by_slots: bool) -> None:
        self._root = root
        self._by_slots = by_slots
        self._done: dict[tuple[int, int], CallRecord | None] = {}

    def call(self, call: CallRecord, outer: int) -> CallRecord | None:
        """Return a record with references to the tree in it, or None when it holds nothing of the tree.

        Args:
            call: The record.
            outer: How many trees there are between the one that its arguments are of and the tree.
        """
        key = (id(call), outer)
        if key not in self._done:
            self._done[key] = None
            self._done[key] = self._translated(call, outer)
        return self._done[key]

    def _translated(self, call: CallRecord, outer: int) -> CallRecord | None:
        args = self._value(call.args, outer)
        kwargs = self._value(call.kwargs, outer)
        tape = [self._entry(entry, outer + 1) for entry in call.tape]
        if args is call.args and kwargs is call.kwargs and all(a is b for a, b in zip(tape, call.tape, strict=True)):
            return None
        return CallRecord(call.cls, args, kwargs, tape, call.where)

    def _entry(self, entry: TapeEntry, outer: int) -> TapeEntry:
        args = self._value(entry.args, outer)
        kwargs = self._value(entry.kwargs, outer)
        return entry if args is entry.args and kwargs is entry.kwargs else replace(entry, args=args, kwargs=kwargs)

    def _value(self, value: Any, outer: int) -> Any:
        kind = type(value)
        if kind in ATOMS:
            return value
        if kind is CallRecord:
            place = None if value.owner is None else _place(value.owner, self._root, self._by_slots)
            if place is not None:
                return replace(place, outer=outer)
            return self.call(value, outer) or value
        if kind is tuple or kind is list:
            new = [self._value(item, outer) for item in value]
            return value if all(a is b for a, b in zip(new, value, strict=True)) else kind(new)
        if kind is dict:
            items = {key: self._value(item, outer) for key, item in value.items()}
            return value if all(items[key] is item for key, item in value.items()) else items
        return value


def recorded(value: Any, root: Any) -> Any:
    """Return a value as a tape keeps it: what stands in the tree by reference, other modules as records."""
    return capture(refer(value, root, by_slots=False))


def _find_plain(module: nn.Module, root: Any) -> Path | None:
    """Return the path of a plain module that stands in the tree already, or None."""
    known = root._record.plain
    if known is None or id(module) not in known:
        return None
    for name, other in root.named_modules(remove_duplicate=False):
        if other is module and name:
            return tuple(name.split("."))
    return None
