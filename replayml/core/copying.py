"""Copying: a live model as data.

`describe` turns a module into a `CallRecord`; `realize` turns a record into a new module. ``new()``,
``copy.deepcopy``, pickling and the recipe are these two.

Invariants:
    * One module becomes one record, however often it is reached.
    * What a module's ``__init__`` does is not in the record: the copy's ``__init__`` does it again.
    * A module inside a tree is described with all that is in force for it, what was set from above included.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from replayml.core import tags
from replayml.core.arguments import ATOMS
from replayml.core.config import Edit, Node, Setting, order
from replayml.core.meta import capture
from replayml.core.record import Blueprint
from replayml.core.replay import arguments_again, realize
from replayml.core.settings import in_force_before, settings_of
from replayml.core.tags import Site, walk
from replayml.core.tape import CallRecord, Path, PlainRecord, TapeEntry, TreeRef

__all__ = ["Relocation", "Told", "describe", "realize", "with_settings_from_above"]

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


def _nothing(thing: Setting | Edit) -> bool:
    return False


def with_settings_from_above(
    module: Any,
    roots: list[Any],
    is_known: Callable[[Setting | Edit], bool] = _nothing,
    told_already: Collection[int] = (),
) -> CallRecord:
    """Return the record of a module as if all that is in force for it below some roots had been set by the user.

    Args:
        module: The module.
        roots: The roots.
        is_known: Tells what comes about without the record.
        told_already: The serials of calls that are made without the record.
    """
    record = module._record
    found: list[tuple[tuple[int, bool, int], TapeEntry]] = []
    calls = _calls_from_above(module, roots)
    inside = {edit.serial for _, _, node in _below(module, roots) for edit in node.edits}
    by_call = {*calls, *(edit.serial for _, _, node in _below(module, roots) for edit in node.edits if not edit.again)}
    told_of: set[int] = set()  # modules, by identity
    told_edits: set[int] = set()  # by serial
    for below, at, node in _below(module, roots):
        own = _came_along(module, at)

        def counts(thing: Setting | Edit, own: set[int] = own) -> bool:
            return (
                _from_above(thing, module, inside)
                and thing.serial not in own
                and thing.during not in by_call
                and not is_known(thing)
            )

        settings = {} if id(below) in told_of else settings_of(below)
        for name, setting in settings.items():
            if setting.during in by_call:
                setting = in_force_before(below, name, setting.during) or setting  # what the call met
            if counts(setting) and below._takes(name):
                told = Told(module, at, setting.site)
                entry = TapeEntry(told.tags, "configure", (name, capture(setting.value)), {}, setting.where)
                found.append((order(setting), entry))
        found += [
            (order(edit) if edit.again else (0, True, edit.serial), Relocation(module, at, edit).entry())
            for edit in node.edits
            if edit.serial not in told_edits and counts(edit) and edit.serial in (below._record.applied or ())
        ]
        told_of.add(id(below))
        told_edits |= {edit.serial for edit in node.edits}
    found += [((0, True, serial), entry) for serial, entry in calls.items() if serial not in told_already]
    entries = [entry for _, entry in sorted(found, key=lambda pair: pair[0])]
    call = record.call
    return CallRecord(call.cls, call.args, call.kwargs, call.tape + entries, call.where)


class Told:
    """Where something stands below a module, by the names that were right when it was set.

    Args:
        module: The module.
        at: The slots of the place below the module.
        site: Where it stood when it was set.

    Attributes:
        tags: The names below the module.
        above: The names from the root of that time down to the module; None when it was not below the module then.
        before: The names below the module down to the root of that time.
    """

    def __init__(self, module: Any, at: Path, site: Site) -> None:
        self.tags: Path
        self.above: Path | None
        self.before: Path
        for slots, names in site.places:
            cut = len(slots) - len(at)
            if cut >= 0 and slots[cut:] == at:
                self.tags, self.above, self.before = names[cut:], names[:cut], ()
                return
            if cut < 0 and at[-cut:] == slots:
                self.before = tags.visible(module, at)[:-cut]
                self.tags, self.above = (*self.before, *names), ()
                return
        self.tags, self.above, self.before = tags.visible(module, at), None, ()


class Relocation:
    """Tells a call on a larger tree as a call on the tree below one of its modules.

    Args:
        module: The module whose tree it is about now.
        at: The slots of the call's target below that module.
        edit: The call.
    """

    def __init__(self, module: Any, at: Path, edit: Edit) -> None:
        self._module = module
        self._edit = edit
        self._told = Told(module, at, edit.site)

    def entry(self) -> TapeEntry:
        """Return the call."""
        edit, told = self._edit, self._edit.told
        args = self._value(told.args, edit.args, edit.given[0])
        kwargs = self._value(dict(told.kwargs), edit.kwargs, edit.given[1])
        return TapeEntry(self._told.tags, told.method, args, kwargs, told.where)

    def _outside(self, kept: Any, given: Any) -> Any:
        """Return what stands elsewhere, or stood there: a module with all that is in force for it."""
        record = getattr(given, "_record", None)
        has_left = record is None or record.gone is not None
        is_there = has_left and tags.child_at(tags.root(self._module), kept.tags) is not None
        value = arguments_again(kept, tags.root(self._module)) if is_there or given is None else given
        record = getattr(value, "_record", None)
        if record is None:
            return value
        if any(above is self._module for above in tags.ancestors(value)):
            return record.call  # what is in force for it is told where it stands now
        return with_settings_from_above(value, tags.roots(value))

    def _value(self, told: Any, kept: Any, given: Any, outer: int = 0) -> Any:
        """Translate a value: as the tape tells it, as the edit keeps it, and as it was given (None when not known).

        On the tape of a module in it, references are ``outer`` trees further out.
        """
        kind = type(told)
        if kind is TreeRef:
            if told.outer != outer:
                return told
            above = self._told.above
            if above is not None:
                for path in (told.tags, *told.also):
                    if path[: len(above)] == above:
                        return TreeRef((*self._told.before, *path[len(above) :]), told.name, told.outer)
            return self._outside(replace(kept, outer=0), given)
        if kind is CallRecord and type(kept) is CallRecord and told.owner is None:
            args = self._value(told.args, kept.args, None, outer)
            kwargs = self._value(told.kwargs, kept.kwargs, None, outer)
            tape = [
                replace(
                    entry,
                    args=self._value(entry.args, other.args, None, outer + 1),
                    kwargs=self._value(entry.kwargs, other.kwargs, None, outer + 1),
                )
                for entry, other in zip(told.tape, kept.tape, strict=True)
            ]
            return CallRecord(told.cls, args, kwargs, tape, told.where)
        if kind in (tuple, list):
            items = [None] * len(told) if given is None else given
            return kind(self._value(*three, outer) for three in zip(told, kept, items, strict=True))
        if kind is dict:
            return {key: self._value(item, kept[key], given and given[key], outer) for key, item in told.items()}
        return told


def _calls_from_above(module: Any, roots: list[Any]) -> dict[int, TapeEntry]:
    """Return the calls of ``@stateful`` methods, at or below a module, that are still in force."""
    found: dict[int, TapeEntry] = {}
    for top, path in tags.paths_below(module, roots):
        prefix = tags.visible(top, path)
        for entry in top._record.call.tape:
            if entry.serial > module._record.constructed_at and entry.tags[: len(prefix)] == prefix:
                below = entry.tags[len(prefix) :]
                method = getattr(type(walk(module, below)), entry.method, None)
                if entry.method != "configure" and getattr(method, "__recorded__", None) == "stateful":
                    found[entry.serial] = TapeEntry(below, entry.method, entry.args, entry.kwargs, entry.where)
    return found


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


def _below(module: Any, roots: list[Any]) -> Iterator[tuple[Any, Path, Node]]:
    """Yield (the recorded module that stands there, its slots below ``module``, its node) for each place."""
    for top, path in tags.paths_below(module, roots):
        config = top._record.config
        for at, node in () if config is None else config.below(path):
            found = tags.child_at(top, at)
            if hasattr(found, "_record"):
                yield found, at[len(path) :], node


def _from_above(thing: Setting | Edit, module: Any, inside: set[int]) -> bool:
    """Tell whether something was set by the user or from outside of a module, and not as a part of an edit inside."""
    maker = thing.maker
    while isinstance(maker, Edit):
        if maker.serial in inside:
            return False
        maker = maker.maker
    return thing.by is None or not any(above is module for above in tags.ancestors(thing.by))
