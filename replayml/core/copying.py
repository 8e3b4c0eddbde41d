"""Copying: a live model as data, and data as a live model.

`describe` turns a module into a `CallRecord`; `realize` turns a record into a new module by making the call and
replaying the tape. ``new()``, ``copy.deepcopy``, pickling and the recipe are these two.

Invariants:
    * One module becomes one record and one record one module, however often it is reached.
    * What a module's ``__init__`` does is not in the record: the copy's ``__init__`` does it again.
    * A replay runs at the user's level, whoever asks for it.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from typing import Any

from replayml.core import tags
from replayml.core.config import Edit, Node, Setting
from replayml.core.errors import ReplayError, nearest
from replayml.core.hooks import is_recorded
from replayml.core.meta import REPLAY, Frame, capture, entered
from replayml.core.record import Blueprint
from replayml.core.tape import CallRecord, Path, TapeEntry
from replayml.core.tree import nodes_of, resolve, settings_of, walk

__all__ = ["describe", "realize"]

_ATOMS = frozenset({int, float, bool, str, bytes, complex, type(None), type, types.FunctionType})


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
    top: CallRecord = _with_settings_from_above(module) if record.links else record.call
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
    if kind in _ATOMS:
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
        self._copies: dict[int, CallRecord] = {}
        self._replayed: set[int] = set()

    def call(self, record: CallRecord) -> CallRecord:
        known = self._copies.get(id(record))
        if known is None:
            known = self._copies[id(record)] = CallRecord(
                record.cls, self.value(record.args), self.value(record.kwargs), [], record.where
            )
            known.tape.extend(self._entries(record.tape))
        return known

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
        if kind in _ATOMS:
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


def _with_settings_from_above(module: Any) -> CallRecord:
    """Return the record of a module as if all that is in force for it had been set by the user."""
    record = module._record
    own = _serials(module)
    found: list[tuple[tuple[int, int], TapeEntry]] = []
    calls = _calls_from_above(module)
    for below, at, node in _below(module):
        names = tags.visible(module, at)
        for name, setting in settings_of(below).items() if below is not None else _latest(node):
            if _from_above(setting, module) and setting.serial not in own and setting.during not in calls:
                entry = TapeEntry(names, "configure", (name, capture(setting.value)), {}, setting.where)
                found.append((_order(setting), entry))
        for edit in node.edits:
            if _from_above(edit, module) and edit.serial not in own and edit.during not in calls:
                top = tags.root(module)
                args = capture(resolve(edit.args, top, by_slots=True))
                kwargs = capture(resolve(edit.kwargs, top, by_slots=True))
                found.append((_order(edit), TapeEntry(names, edit.method, args, kwargs, edit.where)))
    found += [((1, serial), entry) for serial, entry in calls.items()]
    entries = [entry for _, entry in sorted(found, key=lambda pair: pair[0])]
    call = record.call
    return CallRecord(call.cls, call.args, call.kwargs, call.tape + entries, call.where)


def _calls_from_above(module: Any) -> dict[int, TapeEntry]:
    """Return the calls of ``@stateful`` methods, at or below a module, that are still in force."""
    found: dict[int, TapeEntry] = {}
    for top, path in tags.paths(module):
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


def _serials(module: Any) -> set[int]:
    config = module._record.config
    if config is None:
        return set()
    things: set[int] = set()
    for _, node in config.below(()):
        things |= {setting.serial for settings in node.items.values() for setting in settings}
        things |= {edit.serial for edit in node.edits}
    return things


def _below(module: Any) -> Iterator[tuple[Any, Path, Node]]:
    """Yield (the module that stands there or None, its slots below ``module``, its node), each place once."""
    seen: set[int] = set()
    for top, path in tags.paths(module):
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


def _from_above(thing: Setting | Edit, module: Any) -> bool:
    """Tell whether something was set by the user or from outside of a module, and not as a part of another edit."""
    if isinstance(thing.maker, Edit):
        return False
    return thing.by is None or not any(above is module for above in tags.ancestors(thing.by))


# Data as a live model -------------------------------------------------------------------------------------------


def realize(record: CallRecord, memo: dict[int, Any] | None = None, upto: int | None = None) -> Any:
    """Return a new module: make the call of a record and replay its tape.

    Args:
        record: The model as data.
        memo: What was copied already, as for ``copy.deepcopy``.
        upto: Replay only so many entries of the outermost tape; a negative number leaves out that many at its end.

    Raises:
        ReplayError: When an entry cannot be replayed.
    """
    memo = {} if memo is None else memo
    known = memo.get(id(record))
    if known is not None:
        return known
    args = _copy(record.args, memo)
    kwargs = _copy(record.kwargs, memo)
    with entered(Frame(REPLAY, None, where=record.where), fresh=True):
        module = record.cls(*args, **kwargs)
    memo[id(record)] = module
    memo.setdefault(id(memo), []).append(record)
    for number, entry in enumerate(record.tape[:upto] if upto is not None else record.tape):
        _replay(module, number, entry, memo)
    return module


def _replay(module: Any, number: int, entry: TapeEntry, memo: dict[int, Any]) -> None:
    target = walk(module, entry.tags)
    place = ".".join(entry.tags)
    if target is None:
        raise _replay_error(number, entry, f"there is no module at {place!r}.", module, place)
    method = getattr(type(target), entry.method, None)
    if method is None or not is_recorded(method):
        raise _replay_error(number, entry, f"{type(target).__name__} has no recorded method {entry.method!r}.", module)
    args = resolve(_copy(entry.args, memo), module)
    kwargs = resolve(_copy(entry.kwargs, memo), module)
    try:
        with entered(Frame(REPLAY, None, where=entry.where), fresh=True):
            method(target, *args, **kwargs)
    except Exception as error:
        raise _replay_error(number, entry, f"{type(error).__name__}: {error}", module) from error


def _replay_error(number: int, entry: TapeEntry, reason: str, module: Any, place: str = "") -> ReplayError:
    existing = [name for name, _ in module.named_modules() if name]
    closest = tuple(nearest(place, existing, 3)) if place else ()
    return ReplayError(number, str(entry), None if entry.where is None else str(entry.where), reason, closest)


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    """Return a deep copy in which records have become modules; classes, functions and modules stay as they are."""
    kind = type(value)
    if kind in _ATOMS or kind is types.ModuleType:
        return value
    if kind is CallRecord:
        return realize(value, memo)
    if kind is not tuple and kind is not list and kind is not dict:
        return copy.deepcopy(value, memo)
    if id(value) in memo:
        return memo[id(value)]
    new: Any
    if kind is list:
        new = memo[id(value)] = []
        new += [_copy(item, memo) for item in value]
    elif kind is dict:
        new = memo[id(value)] = {}
        new.update((_copy(key, memo), _copy(item, memo)) for key, item in value.items())
    else:
        new = tuple(_copy(item, memo) for item in value)
        if all(a is b for a, b in zip(new, value, strict=True)):
            return value
        memo[id(value)] = new
    memo.setdefault(id(memo), []).append(value)
    return new
