"""The decorators that make a method part of the record: ``@stateful``, ``@after_init``, ``@after_build``, ...

    ===============  ==============================  ===============================  ==========
    decorator        runs                            again after the module is        on the tape
                                                     constructed again
    ===============  ==============================  ===============================  ==========
    ``stateful``     at once                         no                               yes
    ``edit``         at once                         yes                              yes
    ``after_init``   at once; inside the module's    yes                              yes
                     own ``__init__``: at its end
    ``before_...``,  when the phase comes            yes                              yes
    ``after_...``
    ===============  ==============================  ===============================  ==========

Invariants:
    * Only the outermost call of the user goes on the tape; what it calls in turn does not.
    * A call made by the ``__init__`` of an outer module is kept as long as that ``__init__`` is not run again.
    * A call that raises leaves tape, config, children and attributes as they were.
    * On a built model a decorated method is an ordinary one.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from replayml.core import tags
from replayml.core.arguments import Kept, keep, read_once
from replayml.core.config import Edit, next_serial
from replayml.core.errors import AlreadyBuiltError, ConfigurationError
from replayml.core.journal import note, note_containers, transaction
from replayml.core.meta import CALL, CONSTRUCT, QUIET, REPLAY, Frame, entered, scope
from replayml.core.record import HookCall, Record
from replayml.core.references import recorded, refer
from replayml.core.replay import is_recorded
from replayml.core.settings import add_edit
from replayml.core.tape import CallRecord, TapeEntry, Where, caller

__all__ = [
    "after_build",
    "after_deploy",
    "after_fit",
    "after_init",
    "before_build",
    "before_deploy",
    "before_fit",
    "edit",
    "is_recorded",
    "run_hooks",
    "run_waiting",
    "stateful",
]

F = TypeVar("F", bound=Callable[..., Any])

TORCH_TABLES = frozenset(vars(nn.Module()))  # their changes are noted where they are made
PHASES = frozenset({"before_build", "after_build", "before_fit", "after_fit", "before_deploy", "after_deploy"})


def stateful(function: F) -> F:
    """Record calls of a method on the tape, and do nothing else.

    Raises:
        TypeError: When it decorates something else than a function.

    Example:
        >>> import replayml
        >>> class Counter(replayml.Module):
        ...     def __init__(self):
        ...         self.count = 0
        ...
        ...     @replayml.stateful
        ...     def add(self, number):
        ...         self.count += number
        >>> counter = Counter()
        >>> counter.add(3)
        >>> counter.new().count
        3
    """
    return _recorded(function, "stateful")


def edit(function: F) -> F:
    """Run a method at once, and again whenever its module is constructed again."""
    return _recorded(function, "edit")


def after_init(function: F) -> F:
    """Run a method after each ``__init__`` of its module; at once when that is over already."""
    return _recorded(function, "after_init")


def before_build(function: F) -> F:
    """Run a method when the model is about to be built."""
    return _recorded(function, "before_build")


def after_build(function: F) -> F:
    """Run a method on the built module; on a layer, on the object that replaced it."""
    return _recorded(function, "after_build")


def before_fit(function: F) -> F:
    """Run a method when training is about to start."""
    return _recorded(function, "before_fit")


def after_fit(function: F) -> F:
    """Run a method when training is over."""
    return _recorded(function, "after_fit")


def before_deploy(function: F) -> F:
    """Run a method when the module is about to be deployed."""
    return _recorded(function, "before_deploy")


def after_deploy(function: F) -> F:
    """Run a method when the module is deployed."""
    return _recorded(function, "after_deploy")


def run_hooks(module: Any, phase: str, target: Any = None) -> None:
    """Run the calls that wait for a phase, once, in the order in which they were made.

    Args:
        module: The module whose calls wait.
        phase: The phase, such as ``"after_build"``.
        target: The object to run them on, if it is not the module.
    """
    hooks = module._record.hooks
    if hooks is None or phase not in hooks:
        return
    calls = hooks.pop(phase)
    note(hooks.__setitem__, phase, calls)
    record = module._record
    record.running = phase
    try:
        for call in calls:
            call(module if target is None else target)
    finally:
        record.running = None


def run_waiting(model: nn.Module, phase: str) -> None:
    """Run the calls that wait for a phase anywhere in a built model, once.

    Args:
        model: The model.
        phase: The phase, such as ``"before_fit"``.
    """
    for below in list(model.modules()):
        if "_record" in below.__dict__:
            run_hooks(below, phase)


def _recorded(function: F, kind: str) -> F:
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"@{kind} decorates a method (def ...), not {function!r}")
    name = function.__name__

    @functools.wraps(function)
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        record: Record | None = self.__dict__.get("_record")
        if record is None or record.built:
            if kind == "before_build":
                raise AlreadyBuiltError(
                    f"{name}() waits for the build of {type(self).__name__}, which is over. "
                    "Call it on an unbuilt copy: model.new()"
                )
            return function(self, *args, **kwargs)
        top = scope()
        if record.running == kind:
            return function(self, *args, **kwargs)
        if top is not None:
            if top.kind is QUIET:
                return function(self, *args, **kwargs)
            if top.module is self and top.kind is not REPLAY:
                return perform(self, args, kwargs, own_init=top.kind is CONSTRUCT)
        if record.gone is not None:
            successor = _successor(self, record)
            if successor is not self and successor._record.gone is None:
                return getattr(successor, name)(*args, **kwargs)
        return _record_call(self, record, top, args, kwargs)

    def perform(self: Any, args: tuple[Any, ...], kwargs: dict[str, Any], own_init: bool = False) -> Any:
        record: Record = self._record
        phase = kind if kind in PHASES else "after_init" if kind == "after_init" and own_init else None
        if phase is None:
            return function(self, *args, **kwargs)
        if record.hooks is None:
            record.hooks = {}
        waiting = record.hooks.setdefault(phase, [])
        waiting.append(HookCall(method, args, kwargs))
        note(waiting.pop)
        return self

    def _record_call(
        self: Any, record: Record, top: Frame | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        by = None if top is None else top.by
        nested = top is not None and top.kind is CALL
        args, kwargs = read_once(args, kwargs)
        where = top.where if top is not None and top.kind in (REPLAY, CALL) else caller()
        roots = tags.roots(self)
        outside = top is not None and _is_outside(roots, top)
        on_tape = (by is None and not nested) or outside
        with transaction():
            if name != "configure":
                note_containers({key: value for key, value in self.__dict__.items() if key not in TORCH_TABLES})
            kept_args, kept_kwargs, kept = keep(args, kwargs)
            if kept:
                _hold(self, kept)
            entries = [_entry(self, root, name, kept_args, kept_kwargs, where, by) for root in roots] if on_tape else []
            maker = by if not nested or top.edit is None else top.edit  # type: ignore[union-attr]
            made: Edit | None = None
            if kind != "stateful" or (by is not None and not nested and name != "configure"):
                told = entries[0] if entries else _entry(self, roots[0], name, kept_args, kept_kwargs, where, by)
                made = Edit(by, maker, name, *_by_slots(self, kept_args, kept_kwargs), told, tags.site(self))
                made.again = kind != "stateful"
                made.target = None if by is None else self
                made.given = (kept_args, kept_kwargs)
                made.during = top.during if nested else 0  # type: ignore[union-attr]
                _mark_rewrapped((*args, *kwargs.values()), (*made.args, *made.kwargs.values()))
                add_edit(self, made)
                record.apply(made.serial)
            serial = next_serial() if made is None else made.serial
            inner = made if made is not None and made.again else top.edit if nested else None  # type: ignore[union-attr]
            during = top.during if nested else serial  # type: ignore[union-attr]
            with entered(Frame(CALL, self, by=by, edit=inner, where=where, during=during, roots=roots)):
                result = perform(self, args, kwargs)
            for root, entry in zip(roots, entries, strict=False):
                tape = root._record.call.tape
                tape.append(_numbered(entry, serial))
                note(tape.pop)
        return result

    def as_edit(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return _record_call(self, self._record, scope(), args, kwargs)

    method.__recorded__ = kind  # type: ignore[attr-defined]
    method.__edit__ = as_edit  # type: ignore[attr-defined]
    method.__perform__ = perform  # type: ignore[attr-defined]
    return method  # type: ignore[return-value]


def _is_outside(roots: list[Any], top: Frame) -> bool:
    """Tell whether a call is on another tree than what goes on: its own tape tells it then."""
    if top.kind is REPLAY:
        return True
    here = tags.root(top.module)
    return all(root is not here and not any(root is other for other in top.roots) for root in roots)


def _numbered(entry: TapeEntry, serial: int) -> TapeEntry:
    return TapeEntry(entry.tags, entry.method, entry.args, entry.kwargs, entry.where, entry.maker, serial)


def _entry(
    module: Any, root: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], where: Where | None, by: Any
) -> TapeEntry:
    path = next(tags.visible(top, slots) for top, slots in tags.paths(module) if top is root)
    return TapeEntry(path, name, recorded(args, root), recorded(kwargs, root), where, by)


def _by_slots(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    root = tags.root(module)
    return refer(args, root, by_slots=True), refer(kwargs, root, by_slots=True)


def _hold(module: Any, kept: list[Kept]) -> None:
    """Hold what was given to a call on a module."""
    held: list[Kept] = module._record.kept
    note(held.__delitem__, slice(len(held), None))
    held.extend(kept)


def _mark_rewrapped(given: tuple[Any, ...], kept: tuple[Any, ...]) -> None:
    """Mark the new modules around something of the tree: they are made anew together with the tree."""
    for value, other in zip(given, kept, strict=True):
        if type(other) is CallRecord:
            note(setattr, value._record, "rewrapped", False)
            value._record.rewrapped = True


def _successor(module: Any, record: Record) -> Any:
    """Return the module that took the place of one whose parent was constructed again."""
    place, steps = record.gone, []
    seen = {id(module)}
    while place is not None:
        parent, slots = place
        steps.append(slots)
        place = parent._record.gone if id(parent) not in seen else None
        seen.add(id(parent))
    found: Any = parent
    for slots in reversed(steps):
        found = None if found is None else tags.child_at(found, slots)
    if type(found) is not type(module):
        raise ConfigurationError(
            f"this {type(module).__name__} stood at {'.'.join(steps[0])!r} of a module that was constructed again and "
            "has no such module there now. Take the module that you want from the model."
        )
    return found
