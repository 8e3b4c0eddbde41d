"""Children: how attributes and modules are put into a module, and taken out.

Invariants:
    * Before the build every change by the user is on the tape, an assignment of an attribute included.
    * What the user, or an outer module, puts in has a slot of its own, whether another child had the name or not.
    * After the build, and inside ``forward``, an assignment is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from replayml.core import rebuilding, tags, tree
from replayml.core.errors import AlreadyBuiltError, ConfigurationError, suggestion
from replayml.core.hooks import edit
from replayml.core.journal import note, refill, refill_set
from replayml.core.leaving import going
from replayml.core.meta import QUIET, REPLAY, scope
from replayml.core.record import Record
from replayml.module import surgery
from replayml.module.hints import warn_of_attribute
from replayml.module.yielding import hidden

__all__ = ["Children"]

RESERVED = frozenset({"build", "configure", "create", "new", "set", "unset"})
RECORDED = frozenset({"evalset", "trainset"})  # a replay finds them on the class; a child of that name would be hidden


class Children(nn.Module):
    """The part of `replayml.Module` that this file is about."""

    _untracked: ClassVar[frozenset[str]] = frozenset()
    if TYPE_CHECKING:  # TorchScript reads the annotations of a class and knows none of ours
        _record: Record

        def _place(self, *below: str) -> str: ...

    def __setattr__(self, name: str, value: Any) -> None:
        record: Record | None = self.__dict__.get("_record")
        if record is None or record.built or name in self._untracked:
            if record is not None and record.built and isinstance(value, Children) and not value._record.built:
                raise AlreadyBuiltError(
                    f"{type(self).__name__} is built, and what is assigned to {name!r} is not: {value!r}. Build it, "
                    f"let model[{name!r}].replace(new, x) build it, or assign it on an unbuilt copy: model.new()"
                )
            super().__setattr__(name, value)
            return
        top = scope()
        if record.constructing or (
            top is not None and (top.kind is QUIET or (top.module is self and top.kind is not REPLAY))
        ):
            self._assign(name, value)
        else:
            if top is None and name in self.__dict__:
                warn_of_attribute(self, name, value, self._place())
            self.set(name, value)

    def __delattr__(self, name: str) -> None:
        record: Record | None = self.__dict__.get("_record")
        top = scope()
        if record is None or record.built or name in self._untracked:
            super().__delattr__(name)
        elif record.constructing or (top is not None and top.kind is not REPLAY and top.module in (self, None)):
            self._remove(name)
        else:
            self.unset(name)

    @edit
    def set(self, name: str, value: Any) -> Self:
        """Set an attribute or a child; the same as an assignment.

        Args:
            name: The name of the attribute.
            value: Anything; a class is wrapped as a `Layer` by blocks only.
        """
        self._assign(name, value)
        return self

    @edit
    def unset(self, name: str) -> Self:
        """Delete an attribute or a child; the same as ``del``.

        When the module is constructed again and its ``__init__`` does not make it any more, nothing is left to do.
        """
        top = scope()
        if top is None or not top.again or hasattr(self, name):
            self._remove(name)
        return self

    @edit
    def replace(self, target: str, replacement: nn.Module) -> Self:
        """Put another module in the place of a child; in a built tree, an unbuilt one is built first.

        Args:
            target: The name of the child.
            replacement: The module to put there.
        """
        if target not in self._modules:
            raise ConfigurationError(
                f"{self._place()} has no child {target!r} to replace.{suggestion(target, self._modules)} "
                f"Its children: {', '.join(self._modules)}"
            )
        if self._record.built:
            surgery.replace(self, [(target,)], replacement)
        else:
            self._assign(target, replacement)
        return self

    def _assign(self, name: str, value: Any) -> None:
        """Assign without recording."""
        record = self._record
        if name in RESERVED or (name in RECORDED and isinstance(value, nn.Module) and hasattr(type(self), name)):
            raise ConfigurationError(
                f"{self._place(name)}: {name}() is a method of every replayml module, without which it cannot be "
                "copied or built. Choose another name"
            )
        old = self._modules.get(name)
        if old is not None and isinstance(value, type) and issubclass(value, nn.Module):
            raise ConfigurationError(
                f"{self._place(name)} takes a module, not the class {value.__name__}. Wrap it: Layer({value.__name__})"
            )
        if not record.constructing:
            self._note_attribute(name, leaves=not isinstance(value, nn.Module))
        gone = self._drop_child(name, old) if old is not None and old is not value else []
        super().__setattr__(name, value)
        if isinstance(value, nn.Module) and value is not old and self._modules.get(name) is value:
            if not record.constructing:
                self._new_occupant(name)
            self._take_child(name, value, gone)
        else:
            for keep in gone:
                keep()

    def _new_occupant(self, name: str) -> None:
        """Give the child that takes the place of another a slot of its own: what was set on the other is not for it."""
        record = self._record
        note(setattr, record, "replaced", record.replaced)
        record.replaced = {**(record.replaced or {}), name: self._own_slot(name, record.slot_of(name))}

    def _own_slot(self, name: str, slot: str) -> str:
        """Return a slot for what takes the place of another: the same one whenever the call is repeated."""
        top = scope()
        if top is None or top.by is not None:
            return f"{slot}@"
        return f"{name}@{top.edit.serial if top.edit is not None else top.during}"

    def _remove(self, name: str) -> None:
        """Delete without recording."""
        old = self._modules.get(name)
        if not self._record.constructing:
            self._note_attribute(name, leaves=True)
        gone = [] if old is None else self._drop_child(name, old)
        super().__delattr__(name)
        if old is not None and not self._record.constructing:
            self._new_occupant(name)
        for keep in gone:
            keep()

    def _note_attribute(self, name: str, leaves: bool) -> None:
        """Note an attribute's value; with ``leaves`` also its place in the order of children."""
        for place in (self.__dict__, self._modules, self._parameters, self._buffers):
            if name in place and leaves and place is not self.__dict__:
                note(refill, place, dict(place))
            elif name in place:
                note(place.__setitem__, name, place[name])
            else:
                note(place.pop, name, None)

    def _take_child(self, name: str, child: nn.Module, gone: Sequence[Callable[[], None]] = ()) -> None:
        """Note a new child: its place, and what waits for it there."""
        slot = self._record.slot_of(name)
        if isinstance(child, Children) and not child._record.built:
            rebuilding.attach(self, (slot,), child, gone)
            return
        for above in tags.ancestors(self):
            if above._record.plain is None:
                above._record.plain = set()
            above._record.plain |= {id(module) for module in child.modules()}
        for path, below in tags.unbuilt_inside(child):
            rebuilding.attach(self, (slot, *path), below)
        for keep in gone:
            keep()

    def _drop_child(self, name: str, child: nn.Module) -> list[Callable[[], None]]:
        """Forget a child that is taken out; return what to call when all stands where it will stand."""
        slot = self._record.slot_of(name)
        gone = []
        for slots, below in [(slots, below) for slots, below in self._record.children.items() if slots[0] == slot]:
            gone.append(going(below, self, slots))
            tree.detach(self, slots, below)
        return gone

    @edit
    def register_buffer(self, name: str, tensor: torch.Tensor | None, persistent: bool = True) -> None:
        """Add a buffer, as ``torch.nn.Module.register_buffer`` does; recorded before the build."""
        if not self._record.built:
            self._note_attribute(name, leaves=True)
            note(refill_set, self._non_persistent_buffers_set, set(self._non_persistent_buffers_set))
        with hidden(name):
            super().register_buffer(name, tensor, persistent)

    @edit
    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, as ``torch.nn.Module.register_parameter`` does; recorded before the build."""
        if not self._record.built:
            self._note_attribute(name, leaves=True)
        with hidden(name):
            super().register_parameter(name, param)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a child, as ``torch.nn.Module.add_module`` does."""
        if self._record.built or module is None:
            with hidden(name):
                super().add_module(name, module)
        else:
            setattr(self, name, module)

    def register_module(self, name: str, module: nn.Module | None) -> None:
        """Add a child; the same as `add_module`."""
        self.add_module(name, module)
