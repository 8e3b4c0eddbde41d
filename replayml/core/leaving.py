"""Leaving: what goes along with a module that is taken out of its place.

Taken out by the user, it keeps what was in force for it: as its own when it is alone now, or where it still stands
(``model.a = Wrap(model.a)``). Taken out by an ``__init__`` that runs, it keeps what that ``__init__`` had set on
it; this is not for the child that comes in its place.

Invariants:
    * Who is about to take a module out asks `going` before, and calls what it returns when all stands where it will.
    * Every change is noted in the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from replayml.core import tags
from replayml.core.config import Config, Edit, Setting, displace
from replayml.core.journal import note
from replayml.core.meta import capture
from replayml.core.settings import config_of, put
from replayml.core.tape import CallRecord, Path, TapeEntry
from replayml.core.telling import Relocation, Told, with_settings_from_above

__all__ = ["forget_own", "forget_users", "going"]

Thing = tuple[Path, str | None, Setting | Edit]


def going(module: Any, parent: Any, slots: Path) -> Callable[[], None]:
    """Return what to call when a module has left a place, and stands where it will stand.

    Args:
        module: The module that is about to leave.
        parent: The module that it stands in.
        slots: Its slots below the parent.
    """
    if parent._record.constructing:
        return _taken_out_by(parent, module, slots)
    alone = _as_its_own(module)
    elsewhere = _at_its_other_places(module, parent, slots)
    abroad = _in_other_models(module, parent)

    def take() -> None:
        if module._record.links:
            elsewhere()
            abroad()
        else:
            alone()

    return take


def forget_users(parent: Any, slots: Path) -> None:
    """Take out what the user has set at or below a place; `going` has it."""
    for top, path in tags.paths(parent):
        config = top._record.config
        for _, node in () if config is None else list(config.below((*path, *slots))):
            for name, settings in node.items.items():
                for setting in [one for one in settings if one.by is None]:
                    displace((node, name, setting))
            for edit in [one for one in node.edits if one.by is None]:
                displace((node, None, edit))


def forget_own(maker: Any, slots: Path) -> None:
    """Take out what an ``__init__`` has set at or below a place: it runs again, and what it did there is undone."""
    for top, path in tags.paths(maker):
        for node, name, thing in _made_by(maker, top, (*path, *slots)):
            displace((node, name, thing))


def _made_by(maker: Any, top: Any, path: Path) -> Iterator[tuple[Any, str | None, Setting | Edit]]:
    """Yield what an ``__init__`` has set at or below a place: the node, the name (None for edits), the thing."""
    config = top._record.config
    for _, node in () if config is None else list(config.below(path)):
        for name, thing in [
            *((None, edit) for edit in node.edits),
            *((name, setting) for name, settings in node.items.items() for setting in settings),
        ]:
            if _first_maker(thing) is maker:
                yield node, name, thing


def _as_its_own(module: Any) -> Callable[[], None]:
    """Return what makes all that is in force for a module its own: it became a root."""
    record = module._record
    roots = tags.roots(module)
    call = with_settings_from_above(module, roots)
    config = Config(module)
    for top, path in tags.paths_below(module, roots):
        other = top._record.config
        for at, node in () if other is None else other.below(path):
            target = config.ensure(at[len(path) :])
            for name, settings in node.items.items():
                target.items[name] = [_own(setting, module) for setting in settings]
            target.edits = [_own(edit, module) for edit in node.edits]

    def take() -> None:
        note(setattr, record, "call", record.call)
        note(setattr, record, "config", record.config)
        note(setattr, record, "maker", record.maker)
        record.maker = None  # it is the user's now: who made it makes another one when constructed again
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


def _at_its_other_places(module: Any, parent: Any, slots: Path) -> Callable[[], None]:
    """Return what puts all that was set at one place of a module to the others that it has in the same trees."""
    places = [(top, (*path, *slots)) for top, path in tags.paths(parent)]
    things = [(top, *thing) for top, path in places for thing in _things(top, path)]

    def take() -> None:
        for top, path in tags.paths(module):
            for other, below, name, thing in things:
                if other is top:
                    _put_once(top, (*path, *below), name, thing.copy())

    return take


def _in_other_models(module: Any, parent: Any) -> Callable[[], None]:
    """Return what makes all that is in force in one model a module's own for the others that it stands in."""
    here = tags.roots(parent)
    others = [top for top in tags.roots(module) if all(top is not root for root in here)]
    if not others:
        return lambda: None
    record = module._record
    known = {entry.serial for top in others for entry in top._record.call.tape}
    known |= {entry.serial for entry in record.call.tape}
    call = with_settings_from_above(module, here, lambda thing: thing.serial in known or thing.during in known, known)
    told = call.tape[len(record.call.tape) :]
    things = [thing for top, path in tags.paths_below(module, here) for thing in _things(top, path)]

    def take() -> None:
        if any(top is root for top in tags.roots(module) for root in here):
            return
        tape = record.call.tape
        note(tape.__delitem__, slice(len(tape), None))
        tape.extend(told)
        for top, path in [(module, ()), *tags.paths(module)]:  # the module brings it along: its tape tells it
            for below, name, thing in things:
                _put_once(top, (*path, *below), name, _own(thing, module))

    return take


def _things(top: Any, path: Path) -> Iterator[Thing]:
    """Yield all that was set at or below a place: the slots below it, the name (None for edits), the thing."""
    config = top._record.config
    for at, node in () if config is None else config.below(path):
        for name, settings in node.items.items():
            for setting in settings:
                yield at[len(path) :], name, setting
        for edit in node.edits:
            yield at[len(path) :], None, edit


def _taken_out_by(maker: Any, module: Any, slots: Path) -> Callable[[], None]:
    """Return what lets a module that an ``__init__`` takes out take along what this ``__init__`` had set on it."""
    found: dict[tuple[Path, str | None, int], Thing] = {}
    entries: dict[int, TapeEntry] = {}
    for top, path in tags.paths(maker):
        config = top._record.config if maker._record.made else None
        for at, node in () if config is None else list(config.below((*path, *slots))):
            below = at[len(path) + len(slots) :]
            things: list[tuple[str | None, Any]] = [(None, edit) for edit in node.edits]
            things += [(name, setting) for name, settings in node.items.items() for setting in settings]
            for name, thing in things:
                if _first_maker(thing) is maker:
                    displace((node, name, thing))
                    found[below, name, thing.serial] = below, name, thing
                    if thing.maker is maker:
                        entries[thing.serial] = _entry(module, below, name, thing)

    def take() -> None:
        if module._record.links:
            for top, path in tags.paths(module):
                for below, name, thing in found.values():
                    _put_once(top, (*path, *below), name, thing)
            return
        for below, name, thing in found.values():
            own = thing.copy()
            own.carried = False
            put(config_of(module).ensure(below), name, own)
        tape = module._record.call.tape
        for serial in sorted(entries):
            tape.append(entries[serial])
            note(tape.pop)

    return take


def _put_once(top: Any, path: Path, name: str | None, thing: Setting | Edit) -> None:
    """Put a setting or an edit at a place, if it is not there already."""
    node = config_of(top).ensure(path)
    kept: list[Any] = node.edits if name is None else node.items.get(name, [])
    if all(one.serial != thing.serial for one in kept):
        put(node, name, thing)


def _first_maker(thing: Setting | Edit) -> Any:
    maker = thing.maker
    while isinstance(maker, Edit):
        maker = maker.maker
    return maker


def _entry(module: Any, below: Path, name: str | None, thing: Any) -> TapeEntry:
    """Return a setting or edit as an entry of the tape of a module that it goes along with."""
    told = Told(module, below, thing.site)
    if name is None:
        entry = Relocation(module, told, thing).entry()
        return TapeEntry(entry.tags, entry.method, entry.args, entry.kwargs, entry.where, thing.maker, thing.serial)
    return TapeEntry(told.tags, "configure", (name, capture(thing.value)), {}, thing.where, thing.maker, thing.serial)
