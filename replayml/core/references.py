"""References: what stands in a tree already, as an argument of a call on that tree.

A call such as ``model.decoder.tied = model.encoder.layer`` is about the place, not about a copy of the module. On the
tape such an argument is a `TreeRef`, also when it is hidden in a new module: ``model.encoder = Wrap(model.encoder)``.

Invariants:
    * The same call on an equal tree gets the equal modules.
    * Only what stands in the tree of the call is referred to; everything else is a value.
"""

from __future__ import annotations

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
        translated = _translated(value._record.call, root, by_slots, set())
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


def _translated(call: CallRecord, root: Any, by_slots: bool, seen: set[int]) -> CallRecord | None:
    """Return a record with references to the tree in it, or None when it holds nothing of the tree."""
    if id(call) in seen:
        return None
    seen.add(id(call))
    args = _translate(call.args, root, by_slots, seen, outer=False)
    kwargs = _translate(call.kwargs, root, by_slots, seen, outer=False)
    tape = []
    for entry in call.tape:
        entry_args = _translate(entry.args, root, by_slots, seen, outer=True)
        entry_kwargs = _translate(entry.kwargs, root, by_slots, seen, outer=True)
        if entry_args is not entry.args or entry_kwargs is not entry.kwargs:
            entry = TapeEntry(
                entry.tags, entry.method, entry_args, entry_kwargs, entry.where, entry.maker, entry.serial
            )
        tape.append(entry)
    if args is call.args and kwargs is call.kwargs and all(a is b for a, b in zip(tape, call.tape, strict=True)):
        return None
    return CallRecord(call.cls, args, kwargs, tape, call.where)


def _translate(value: Any, root: Any, by_slots: bool, seen: set[int], outer: bool) -> Any:
    kind = type(value)
    if kind in ATOMS:
        return value
    if kind is CallRecord:
        place = None if value.owner is None else _place(value.owner, root, by_slots)
        if place is not None:
            return TreeRef(place.tags, place.name, outer, place.also)
        new_call = _translated(value, root, by_slots, seen)
        return value if new_call is None else new_call
    if kind is tuple or kind is list:
        new = [_translate(item, root, by_slots, seen, outer) for item in value]
        return value if all(a is b for a, b in zip(new, value, strict=True)) else kind(new)
    if kind is dict:
        items = {key: _translate(item, root, by_slots, seen, outer) for key, item in value.items()}
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
