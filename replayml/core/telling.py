"""Telling: what was set on a part of a model from above, as if the user had set it on the part alone.

A setting or a call of a larger tree becomes an entry of the tape of one of its modules: its place is told by names
below that module, and what it refers to stands there as well, or is told along.

Invariants:
    * What was set comes in the order in which it took effect: from the inside out, the user last, each in its time.
    * The names are those that are right at that moment of the replay.
    * What the ``__init__`` of a copy does again is not told.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from replayml.core import tags
from replayml.core.config import Edit, Node, Setting, order
from replayml.core.meta import capture
from replayml.core.replay import arguments_again
from replayml.core.settings import in_force_before, settings_of
from replayml.core.tags import Site, walk
from replayml.core.tape import CallRecord, Path, TapeEntry, TreeRef

__all__ = ["Relocation", "Told", "with_settings_from_above"]


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
    found: list[tuple[Path, str | None, Setting | Edit]] = []
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
                found.append((at, name, setting))
        found += [
            (at, None, edit)
            for edit in node.edits
            if edit.serial not in told_edits and counts(edit) and edit.serial in (below._record.applied or ())
        ]
        told_of.add(id(below))
        told_edits |= {edit.serial for edit in node.edits}
    entries = _in_order(module, found, {key: calls[key] for key in calls if key not in told_already})
    call = record.call
    return CallRecord(call.cls, call.args, call.kwargs, call.tape + entries, call.where)


def _in_order(
    module: Any, things: list[tuple[Path, str | None, Setting | Edit]], calls: dict[int, TapeEntry]
) -> list[TapeEntry]:
    """Return what is told of a module, as the entries of a tape.

    What was set on a part before this came to stand below the module is told when all stands where it does now, and
    with it whatever was set on that part later.

    Args:
        module: The module.
        things: The slots of each place below the module, the name (None for edits), what was set there.
        calls: Entries of other calls, by serial.
    """
    found = [((False, 0, True, serial), entry) for serial, entry in calls.items()]
    places = [Told(module, at, thing.site, moves=_is_later(thing, module)) for at, _, thing in things]
    came = {told.came for told in places if told.came is not None}
    for (at, name, thing), told in zip(things, places, strict=True):
        late = max((depth for depth in range(len(at) + 1) if at[:depth] in came), default=None) if came else None
        if late is not None:
            told = Told(module, at, thing.site, after=late)
        if isinstance(thing, Edit):
            key = order(thing) if thing.again else (0, True, thing.serial)
            entry = Relocation(module, told, thing).entry()
        else:
            key = order(thing)
            entry = TapeEntry(told.tags, "configure", (name, capture(thing.value)), {}, thing.where)
        found.append(((late is not None, *key), entry))
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


def _is_later(thing: Setting | Edit, module: Any) -> bool:
    """Tell whether the module stood at its place when something was set: an ``__init__`` may put another one there."""
    return thing.first_by is None or thing.serial > module._record.constructed_at


class Told:
    """Where something stands below a module, by the names that were right when it was set.

    Args:
        module: The module.
        at: The slots of the place below the module.
        site: Where it stood when it was set.
        moves: Whether it is told how it came from another place below the module to this one.
        after: How many of these slots are to be told by the names that are right now, at least.

    Attributes:
        tags: The names below the module.
        above: The names from the root of that time down to what holds both, the module or a part that came there since.
        before: The names below the module down to the root of that time, or to that part.
        came: The slots of that part below the module; None when there is none.
    """

    def __init__(self, module: Any, at: Path, site: Site, moves: bool = False, after: int = 0) -> None:
        self.tags: Path
        self.above: Path
        self.before: Path
        self.came: Path | None = None
        same, slots, names = max(
            ((_common_end(slots, at), slots, names) for slots, names in site.places), key=lambda place: place[0]
        )
        is_here = same in (len(at), len(slots))
        if moves and not is_here:
            for top, (slots, names) in itertools.product(tags.slots_below(module, site.root), site.places):
                if slots[: len(top)] == top:
                    self.tags, self.above, self.before = names[len(top) :], names[: len(top)], ()
                    return
        same = min(same, len(at) - after)
        self.before = tags.visible(module, at)[: len(at) - same]
        self.above = names[: len(names) - same]
        self.tags = (*self.before, *names[len(names) - same :])
        self.came = None if is_here else at[: len(at) - same]


def _common_end(one: Path, other: Path) -> int:
    """Return how many slots at the end of two paths are the same."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


class Relocation:
    """Tells a call on a larger tree as a call on the tree below one of its modules.

    Args:
        module: The module whose tree it is about now.
        told: Where the call's target stands below that module.
        edit: The call.
    """

    def __init__(self, module: Any, told: Told, edit: Edit) -> None:
        self._module = module
        self._edit = edit
        self._told = told

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
        origin = tags.origin(self._module, self._edit.site)
        is_there = has_left and tags.child_at(origin, kept.tags) is not None
        value = arguments_again(kept, origin) if is_there or given is None else given
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
            for path in (told.tags, *told.also):
                if path[: len(above)] == above:
                    return TreeRef((*self._told.before, *path[len(above) :]), told.name, told.outer)
            return self._outside(replace(kept, outer=0), given)
        if kind is CallRecord and type(kept) is CallRecord and told.owner is None:
            record = getattr(given, "_record", None)
            args = self._value(told.args, kept.args, record and record.args, outer)
            kwargs = self._value(told.kwargs, kept.kwargs, record and record.kwargs, outer)
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
