"""Replaying: data as a live model.

Invariants:
    * One record becomes one module, however often it is reached.
    * A replay runs at the user's level, whoever asks for it.
    * What is no module is deep-copied; classes, functions and Python modules stay as they are.
"""

from __future__ import annotations

import copy
import inspect
import types
from typing import Any

from replayml.core import tags
from replayml.core.arguments import ATOMS
from replayml.core.errors import ConfigurationError, ReplayError, nearest
from replayml.core.meta import REPLAY, Frame, entered
from replayml.core.tags import walk
from replayml.core.tape import CallRecord, PlainRecord, TapeEntry, TreeRef

__all__ = ["Replayer", "arguments_again", "is_recorded", "realize"]

Trees = tuple[Any, ...]
"""The roots of the trees that a call is made in, each given to the one before it."""


def is_recorded(function: object) -> bool:
    """Tell whether a function carries the mark of one of the decorators in `replayml.core.hooks`."""
    return isinstance(function, types.FunctionType) and hasattr(function, "__recorded__")


def realize(record: CallRecord, memo: dict[int, Any] | None = None, upto: int | None = None) -> Any:
    """Return a new module: make the call of a record and replay its tape.

    Args:
        record: The model as data.
        memo: What was copied already, as for ``copy.deepcopy``.
        upto: Replay only so many entries of the tape; a negative number leaves out that many at its end.

    Raises:
        ReplayError: When an entry cannot be replayed.
    """
    return Replayer({} if memo is None else memo).realize(record, (), upto)


def arguments_again(value: Any, root: Any) -> Any:
    """Return the arguments of a call that is made again on a tree.

    What stands in the tree is looked up by its slots, a new module around it is made anew, and the rest stays the
    same object.

    Args:
        value: The arguments, as `replayml.core.references.refer` left them.
        root: The root of the tree.
    """
    return Replayer({}, again=True).value(value, (root,))


class Replayer:
    """Makes modules from records.

    Args:
        memo: What was made so far, by the identity of its original.
        again: Whether a call is made again, with the same objects, instead of a copy of them.
    """

    def __init__(self, memo: dict[int, Any], again: bool = False) -> None:
        self._memo = memo
        self._again = again

    def realize(self, record: CallRecord, trees: Trees, upto: int | None = None) -> Any:
        """Return the module of a record; ``trees`` has the root of the tree that it is made for at its end."""
        if id(record) in self._memo:
            return self._memo[id(record)]
        args = self.value(record.args, trees)
        kwargs = self.value(record.kwargs, trees)
        with entered(Frame(REPLAY, None, where=record.where), fresh=True):
            module = record.cls(*args, **kwargs)
        self._remember(record, module)
        for number, entry in enumerate(record.tape if upto is None else record.tape[:upto]):
            self.replay(module, number, entry, trees)
        return module

    def _remember(self, original: Any, new: Any) -> None:
        self._memo[id(original)] = new
        self._memo.setdefault(id(self._memo), []).append(original)

    def replay(self, module: Any, number: int, entry: TapeEntry, trees: Trees = ()) -> None:
        """Make one call of a tape on a module, which is made for a tree."""
        target = walk(module, entry.tags)
        place = ".".join(entry.tags)
        if target is None:
            raise _replay_error(number, entry, f"there is no module at {place!r}.", module, place)
        method = inspect.getattr_static(type(target), entry.method, None)
        if not is_recorded(method):
            raise _replay_error(
                number, entry, f"{type(target).__name__} has no recorded method {entry.method!r}.", module
            )
        try:
            args = self.value(entry.args, (*trees, module))
            kwargs = self.value(dict(entry.kwargs), (*trees, module))
            if entry.method == "configure":
                args, kwargs = target._settings_now(args, kwargs)
                if not args and not kwargs and (entry.args or entry.kwargs):
                    return  # what it configured is of no use to the class any more
            with entered(Frame(REPLAY, None, where=entry.where), fresh=True):
                method(target, *args, **kwargs)
        except Exception as error:
            raise _replay_error(number, entry, f"{type(error).__name__}: {error}", module) from error

    def value(self, value: Any, trees: Trees) -> Any:
        """Return a value for a call on a tree: the last one, made for that before it."""
        kind = type(value)
        if kind in ATOMS or kind is types.ModuleType:
            return value
        if kind is TreeRef:
            return self._look_up(value, trees)
        if kind is CallRecord:
            return value.owner if self._again and value.owner is not None else self.realize(value, trees)
        if kind is PlainRecord:
            return value.module if self._again else self._plain(value, trees)
        if kind is not tuple and kind is not list and kind is not dict:
            return value if self._again else copy.deepcopy(value, self._memo)
        if id(value) in self._memo:
            return self._memo[id(value)]
        new: Any
        if kind is list:
            new = []
            self._remember(value, new)
            new += [self.value(item, trees) for item in value]
        elif kind is dict:
            new = {}
            self._remember(value, new)
            for key, item in value.items():
                new[self.value(key, trees)] = self.value(item, trees)
        else:
            new = tuple(self.value(item, trees) for item in value)
            if all(a is b for a, b in zip(new, value, strict=True)):
                return value
            self._remember(value, new)
        return new

    def _plain(self, value: PlainRecord, trees: Trees) -> Any:
        """Copy a plain module, with the recorded modules inside of it made from their records."""
        if id(value.module) not in self._memo:
            for below, call in value.inside:
                if id(below) not in self._memo:
                    self._remember(below, self.realize(call, trees))
        return copy.deepcopy(value.module, self._memo)

    def _look_up(self, reference: TreeRef, trees: Trees) -> Any:
        """Return what a reference stands for."""
        if reference.outer >= len(trees):
            raise ConfigurationError(f"{'.'.join(reference.tags)!r} is said to stand in a tree that there is not")
        root = trees[-1 - reference.outer]
        by_slots = self._again and reference.outer == len(trees) - 1  # as the call that is made again refers to it
        found = tags.child_at(root, reference.tags) if by_slots else walk(root, reference.tags)
        if found is None:
            raise ConfigurationError(f"nothing stands at {'.'.join(reference.tags)!r} of the model any more")
        if reference.name is None:
            return found
        tensor = found._parameters.get(reference.name)
        if tensor is None:
            raise ConfigurationError(f"{'.'.join(reference.tags)!r} of the model has no parameter {reference.name!r}")
        return tensor


def _replay_error(number: int, entry: TapeEntry, reason: str, module: Any, place: str = "") -> ReplayError:
    existing = [name for name, _ in module.named_modules() if name]
    closest = tuple(nearest(place, existing, 3)) if place else ()
    return ReplayError(number, str(entry), None if entry.where is None else str(entry.where), reason, closest)
