"""Copying: a live model as data.

`describe` turns a module into a `CallRecord`; `realize` turns a record into a new module. ``new()``,
``copy.deepcopy``, pickling and the recipe are these two.

Invariants:
    * One module becomes one record, however often it is reached.
    * What a module's ``__init__`` does is not in the record: the copy's ``__init__`` does it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from replayml.core import tags
from replayml.core.arguments import ATOMS
from replayml.core.config import Edit, Setting
from replayml.core.record import Blueprint
from replayml.core.replay import realize
from replayml.core.tags import walk
from replayml.core.tape import CallRecord, Path, PlainRecord, TapeEntry
from replayml.core.telling import with_settings_from_above

__all__ = ["describe", "realize"]


def describe(module: Any) -> CallRecord:
    """Return a module as data.

    A module inside a tree is described with all that is in force for it, what was set from above included.

    Args:
        module: A replayml module; a built one gives the record of how it was when it was built.
    """
    record = module._record
    if record.built:
        return _from_blueprint(record.blueprint, record.path)
    top: CallRecord = with_settings_from_above(module, tags.roots(module)) if record.links else record.call
    reached: dict[int, CallRecord] = {}
    _reach(top, reached)
    reached[id(record.call)] = record.call
    return _Copier(reached, module).call(top)


def _from_blueprint(blueprint: Blueprint, path: Path) -> CallRecord:
    if not path:
        return blueprint.call
    return describe(walk(realize(blueprint.call), path))


def _reach(value: Any, reached: dict[int, CallRecord]) -> None:
    kind = type(value)
    if kind in ATOMS:
        return
    if kind is CallRecord:
        if id(value) not in reached:
            reached[id(value)] = value
            _reach(value.args, reached)
            _reach(value.kwargs, reached)
            for entry in value.tape:
                _reach(entry.args, reached)
                _reach(entry.kwargs, reached)
    elif kind is tuple or kind is list:
        for item in value:
            _reach(item, reached)
    elif kind is dict:
        for item in value.values():
            _reach(item, reached)
    elif kind is PlainRecord:
        for _, call in value.inside:
            _reach(call, reached)


class _Copier:
    """Copies a graph of records, without the entries that the copy will make by itself."""

    def __init__(self, reached: dict[int, CallRecord], module: Any) -> None:
        self._module = module
        self._told = {entry.serial for record in reached.values() for entry in record.tape if entry.serial}
        self._owners = {id(record.owner) for record in reached.values()}
        self._above = list(tags.ancestors(module))
        self._copies: dict[int, CallRecord] = {}
        self._replayed: set[int] = set()
        self._later: set[int] = set()

    def call(self, record: CallRecord) -> CallRecord:
        known = self._copies.get(id(record))
        if known is None:
            full = self._completed(record)
            own = {entry.serial for entry in full.tape if entry.serial} - self._later
            self._later |= own  # what the arguments tell of too is made after the call that they are given to
            known = CallRecord(full.cls, self.value(full.args), self.value(full.kwargs), [], full.where)
            self._copies[id(record)] = known
            known.tape.extend(self._entries(full.tape, own))
        return known

    def _completed(self, record: CallRecord) -> CallRecord:
        """Add to the record of a given module what is in force for it in trees that are not copied along."""
        owner = record.owner
        if owner is None or owner is self._module or not owner._record.links:
            return record
        is_below = any(above is self._module for above in tags.ancestors(owner))
        others = [
            root
            for root in tags.roots(owner)
            if id(root) not in self._owners
            and not (is_below and any(root is above for above in self._above))
            and not self._made_again(root._record.maker)
        ]
        return with_settings_from_above(owner, others, self._is_known, self._told) if others else record

    def _entries(self, tape: list[TapeEntry], own: set[int]) -> Iterator[TapeEntry]:
        for entry in tape:
            if entry.serial in own:
                self._later.discard(entry.serial)
            if self._made_again(entry.maker) or entry.serial in self._later or entry.serial in self._replayed:
                continue
            if entry.serial:
                self._replayed.add(entry.serial)
            yield TapeEntry(entry.tags, entry.method, self.value(entry.args), self.value(entry.kwargs), entry.where)

    def _is_known(self, thing: Setting | Edit) -> bool:
        """Tell whether an ``__init__`` sets something again, or a tape that is copied tells of it."""
        if self._made_again(thing.first_by):
            return True
        return thing.serial in self._told or thing.during in self._told

    def _made_again(self, maker: Any) -> bool:
        while maker is not None:
            if maker is self._module or id(maker) in self._owners:
                return True
            maker = maker._record.first_maker
        return False

    def value(self, value: Any) -> Any:
        kind = type(value)
        if kind in ATOMS:
            return value
        if kind is CallRecord:
            return self.call(value)
        if kind is tuple or kind is list:
            new = [self.value(item) for item in value]
            return value if all(a is b for a, b in zip(new, value, strict=True)) else kind(new)
        if kind is dict:
            items = {key: self.value(item) for key, item in value.items()}
            return value if all(items[key] is item for key, item in value.items()) else items
        if kind is PlainRecord:
            return PlainRecord(value.module, tuple((below, self.call(call)) for below, call in value.inside))
        return value
