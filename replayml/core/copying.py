"""Copying: a live model as data.

`describe` turns a module into a `CallRecord`; `realize` turns a record into a new module. ``new()``,
``copy.deepcopy``, pickling and the recipe are these two.

Invariants:
    * One module becomes one record, however often it is reached.
    * What a module's ``__init__`` does is not in the record: the copy's ``__init__`` does it again.
    * A module inside a tree is described with all that is in force for it, what was set from above included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from replayml.core import tags
from replayml.core.config import Config, Edit, Node, Setting
from replayml.core.journal import note
from replayml.core.meta import ATOMS, capture
from replayml.core.record import Blueprint
from replayml.core.references import walk
from replayml.core.replay import arguments_again, realize
from replayml.core.tape import CallRecord, Path, TapeEntry, TreeRef
from replayml.core.tree import settings_of

__all__ = ["describe", "realize"]

# A live model as data -------------------------------------------------------------------------------------------


def describe(module: Any) -> CallRecord:
    """Return a module as data.

    A module inside a tree is described with all that is in force for it, what was set from above included.

    Args:
        module: A replayml module; a built one gives the record of how it was when it was built.
    """
    record = module._record
    if record.built:
        return _from_blueprint(record.blueprint, record.path)
    top: CallRecord = _with_settings_from_above(module, tags.roots(module)) if record.links else record.call
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


class _Copier:
    """Copies a graph of records, without the entries that the copy will make by itself."""

    def __init__(self, reached: dict[int, CallRecord], module: Any) -> None:
        self._reached = reached
        self._module = module
        self._owners = {id(record.owner) for record in reached.values()}
        self._above = list(tags.ancestors(module))
        self._copies: dict[int, CallRecord] = {}
        self._replayed: set[int] = set()

    def call(self, record: CallRecord) -> CallRecord:
        known = self._copies.get(id(record))
        if known is None:
            full = self._completed(record)
            known = CallRecord(full.cls, self.value(full.args), self.value(full.kwargs), [], full.where)
            self._copies[id(record)] = known
            known.tape.extend(self._entries(full.tape))
        return known

    def _completed(self, record: CallRecord) -> CallRecord:
        """Add to the record of a given module what is in force for it in trees that are not copied along."""
        owner = record.owner
        if owner is None or owner is self._module or not owner._record.links:
            return record
        others = [
            root
            for root in tags.roots(owner)
            if id(root) not in self._owners
            and not any(root is above for above in self._above)
            and not self._made_again(root._record.maker)
        ]
        return _with_settings_from_above(owner, others) if others else record

    def _entries(self, tape: list[TapeEntry]) -> Iterator[TapeEntry]:
        for entry in tape:
            if self._made_again(entry.maker) or (entry.serial and entry.serial in self._replayed):
                continue
            self._replayed.add(entry.serial)
            yield TapeEntry(entry.tags, entry.method, self.value(entry.args), self.value(entry.kwargs), entry.where)

    def _made_again(self, maker: Any) -> bool:
        while maker is not None:
            if maker is self._module or id(maker._record.call) in self._reached:
                return True
            maker = maker._record.maker
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
        return value


def _with_settings_from_above(module: Any, roots: list[Any]) -> CallRecord:
    """Return the record of a module as if all that is in force for it below some roots had been set by the user."""
    record = module._record
    found: list[tuple[tuple[int, int], TapeEntry]] = []
    calls = _calls_from_above(module, roots)
    inside = {edit.serial for _, _, node in _below(module, roots) for edit in node.edits}
    for below, at, node in _below(module, roots):
        own = _came_along(module, at)
        for name, setting in settings_of(below).items() if below is not None else _latest(node):
            if _from_above(setting, module, inside) and setting.serial not in own and setting.during not in calls:
                told = _told(module, at, setting.told)
                entry = TapeEntry(told, "configure", (name, capture(setting.value)), {}, setting.where)
                found.append((_order(setting), entry))
        found += [
            (_order(edit), _Relocation(module, at, edit).entry())
            for edit in node.edits
            if _from_above(edit, module, inside) and edit.serial not in own and edit.during not in calls
        ]
    found += [((1, serial), entry) for serial, entry in calls.items()]
    entries = [entry for _, entry in sorted(found, key=lambda pair: pair[0])]
    call = record.call
    return CallRecord(call.cls, call.args, call.kwargs, call.tape + entries, call.where)


def _told(module: Any, at: Path, told: Path) -> Path:
    """Return the tags below a module of something that stood at ``told`` when it was set, and has the slots ``at``."""
    cut = len(told) - len(at)
    return told[cut:] if cut >= 0 else (*tags.visible(module, at)[:-cut], *told)


class _Relocation:
    """Tells a call on a larger tree as a call on the tree below one of its modules.

    Args:
        module: The module whose tree it is about now.
        at: The slots of the call's target below that module.
        edit: The call.
    """

    def __init__(self, module: Any, at: Path, edit: Edit) -> None:
        self._module = module
        self._edit = edit
        told = edit.told.tags
        cut = len(told) - len(at)
        self._above = told[:cut] if cut > 0 else ()
        self._below = tags.visible(module, at)[:-cut] if cut < 0 else ()
        self.tags = (*self._below, *told[len(self._above) :])

    def entry(self) -> TapeEntry:
        """Return the call."""
        edit, told = self._edit, self._edit.told
        args = self._value(told.args, edit.args)
        kwargs = self._value(dict(told.kwargs), edit.kwargs)
        return TapeEntry(self.tags, told.method, args, kwargs, told.where)

    def _value(self, told: Any, kept: Any) -> Any:
        """Translate a value, given as the tape tells it and as the edit keeps it."""
        kind = type(told)
        if kind is TreeRef:
            if told.tags[: len(self._above)] == self._above:
                return TreeRef((*self._below, *told.tags[len(self._above) :]), told.name, told.outer)
            outside = arguments_again(kept, tags.root(self._module))
            record = getattr(outside, "_record", None)
            return outside if record is None else _with_settings_from_above(outside, tags.roots(outside))
        if kind is CallRecord and type(kept) is CallRecord and told.owner is None:
            args = self._value(told.args, kept.args)
            kwargs = self._value(told.kwargs, kept.kwargs)
            return CallRecord(told.cls, args, kwargs, told.tape, told.where)
        if kind in (tuple, list):
            return kind(self._value(item, other) for item, other in zip(told, kept, strict=True))
        if kind is dict:
            return {key: self._value(item, kept[key]) for key, item in told.items()}
        return told


def along(module: Any) -> Callable[[], None]:
    """Return what lets a module that leaves its tree take along what is in force for it; call it when it has left."""
    record = module._record
    roots = tags.roots(module)
    call = _with_settings_from_above(module, roots)
    config = Config(module)
    for top, path in _paths_below(module, roots):
        other = top._record.config
        for at, node in () if other is None else other.below(path):
            target = config.ensure(at[len(path) :])
            for name, settings in node.items.items():
                target.items[name] = [_own(setting, module) for setting in settings]
            target.edits = [_own(edit, module) for edit in node.edits]

    def take() -> None:
        note(setattr, record, "call", record.call)
        note(setattr, record, "config", record.config)
        record.call = CallRecord(call.cls, call.args, call.kwargs, call.tape, call.where, module)
        record.config = config

    return take


def _own(thing: Any, module: Any) -> Any:
    """Return a copy of a setting or edit for a module that became a root: what came from outside is the user's now."""
    new = thing.copy()
    new.carried = False
    if new.by is not None and not any(above is module for above in tags.ancestors(new.by)):
        new.by = new.maker = None
    return new


def _calls_from_above(module: Any, roots: list[Any]) -> dict[int, TapeEntry]:
    """Return the calls of ``@stateful`` methods, at or below a module, that are still in force."""
    found: dict[int, TapeEntry] = {}
    for top, path in _paths_below(module, roots):
        prefix = tags.visible(top, path)
        for entry in top._record.call.tape:
            if entry.serial > module._record.constructed_at and entry.tags[: len(prefix)] == prefix:
                below = entry.tags[len(prefix) :]
                method = getattr(type(walk(module, below)), entry.method, None)
                if entry.method != "configure" and getattr(method, "__recorded__", None) == "stateful":
                    found[entry.serial] = TapeEntry(below, entry.method, entry.args, entry.kwargs, entry.where)
    return found


def _order(thing: Setting | Edit) -> tuple[int, int]:
    return (0 if thing.by is not None else 1, thing.serial)


def _came_along(module: Any, at: Path) -> set[int]:
    """Return the serials of what a module, and those on the way down to a place below it, brought into the tree."""
    serials: set[int] = set()
    for depth in range(len(at) + 1):
        record = getattr(tags.child_at(module, at[:depth]), "_record", None)
        node = None if record is None or record.config is None else record.config.find(at[depth:])
        if node is not None:
            serials |= {setting.serial for settings in node.items.values() for setting in settings}
            serials |= {edit.serial for edit in node.edits}
    return serials


def _paths_below(module: Any, roots: list[Any]) -> list[tuple[Any, Path]]:
    return [(top, path) for top, path in tags.paths(module) if any(top is root for root in roots)]


def _below(module: Any, roots: list[Any]) -> Iterator[tuple[Any, Path, Node]]:
    """Yield (the module that stands there or None, its slots below ``module``, its node), each place once."""
    seen: set[int] = set()
    for top, path in _paths_below(module, roots):
        config = top._record.config
        for at, node in () if config is None else config.below(path):
            found = tags.child_at(top, at)
            if not hasattr(found, "_record"):
                found = None
            if found is None or id(found) not in seen:
                seen.add(id(found))
                yield found, at[len(path) :], node


def _latest(node: Node) -> Iterator[tuple[str, Setting]]:
    """Yield what the user set at a place where nothing stands now."""
    for name, settings in node.items.items():
        by_user = [setting for setting in settings if setting.by is None]
        if by_user:
            yield name, by_user[-1]


def _from_above(thing: Setting | Edit, module: Any, inside: set[int]) -> bool:
    """Tell whether something was set by the user or from outside of a module, and not as a part of an edit inside."""
    maker = thing.maker
    while isinstance(maker, Edit):
        if maker.serial in inside:
            return False
        maker = maker.maker
    return thing.by is None or not any(above is module for above in tags.ancestors(thing.by))
