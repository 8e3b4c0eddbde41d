"""Deferral: what an ``__init__`` configures in its children takes effect when it is needed, not at each call.

    self.inner = Inner(depth - 1)
    self.inner.configure(width=8)

Constructing ``inner`` again at once, here and in each ``__init__`` below, would run 2^depth constructors. Instead the
child waits; whoever looks at it, or the end of the outermost construction, constructs it again, from the top down.

Invariants:
    * Nobody sees a child that waits: the first look at it ends the waiting.
    * When the outermost construction is over, nothing waits.
    * An error is raised by the call that caused it, as if nothing had been deferred.
    * A module that waits has a stand-in class, a subclass of its own, and gets its own class back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from replayml.core import tags
from replayml.core.journal import note, transaction

__all__ = ["catch_up", "construct", "defer", "forget", "is_stand_in"]

T = TypeVar("T")


# What may be read of a module that waits, because it does not depend on its ``__init__``.
ALLOWED = frozenset({"_record", "__dict__", "__class__", "configure", "get_init_args", "_apply_settings"})


def _look(self: Any, name: str) -> Any:
    """Read an attribute of a module that waits: the ``__getattribute__`` of the stand-in classes."""
    if name in ALLOWED:
        own_class: Any = type(self).__mro__[1]
        return own_class.__getattribute__(self, name)
    catch_up(self)
    return getattr(self, name)


class Waiting:
    """The modules that wait until the outermost construction ends.

    Attributes:
        modules: The modules.
        used: Whether any module ever waited.
    """

    __slots__ = ("modules", "used")

    def __init__(self) -> None:
        self.modules: list[Any] = []
        self.used = False

    def catch_up(self) -> None:
        """Bring all in line, from the top down; more may come to wait meanwhile."""
        while self.modules:
            batch = sorted(self.modules, key=lambda module: len(tags.path(module)))
            self.modules.clear()
            for module in batch:
                catch_up(module)


AT_ONCE = Waiting()
_waiting: ContextVar[Waiting | None] = ContextVar("replayml_waiting", default=None)


def construct(action: Callable[[], T]) -> T:
    """Carry out a construction, all or nothing, and let modules wait meanwhile.

    When it fails and some module waited, it is carried out again with nothing deferred: then the error comes out of the
    very call that caused it, where the user's ``__init__`` may catch it.

    Args:
        action: The construction; what it changes is noted in the journal, so that it can be carried out twice.

    Returns:
        What the action returns.
    """
    if _waiting.get() is not None:
        with transaction():
            return action()
    waiting = Waiting()
    try:
        return _carry_out(action, waiting)
    except Exception:
        if not waiting.used:
            raise
    return _carry_out(action, AT_ONCE)


def _carry_out(action: Callable[[], T], waiting: Waiting) -> T:
    token = _waiting.set(waiting)
    try:
        with transaction():
            result = action()
            waiting.catch_up()
            return result
    finally:
        _waiting.reset(token)


def defer(module: Any, again: Callable[[Any], None]) -> None:
    """Let a module wait, to be constructed again when somebody looks at it.

    Args:
        module: The module.
        again: What brings it in line with its settings.
    """
    waiting = _waiting.get()
    record = module._record
    if waiting is None or waiting is AT_ONCE:
        again(module)
    elif record.deferred is None:
        note(setattr, record, "deferred", None)
        record.deferred = again
        _change_class(module, _stand_in(type(module)))
        waiting.modules.append(module)
        waiting.used = True


def catch_up(module: Any) -> None:
    """Bring a module that waits in line with its settings."""
    record = object.__getattribute__(module, "__dict__")["_record"]
    again = record.deferred
    if again is not None:
        note(setattr, record, "deferred", again)
        record.deferred = None
        _change_class(module, type(module).__mro__[1])
        again(module)


def forget(module: Any) -> None:
    """End the waiting of a module that is made anew from the start."""
    if is_stand_in(type(module)):
        _change_class(module, type(module).__mro__[1])


def _change_class(module: Any, cls: type) -> None:
    note(object.__setattr__, module, "__class__", type(module))
    object.__setattr__(module, "__class__", cls)


def is_stand_in(cls: type) -> bool:
    """Tell whether a class is a stand-in class."""
    return cls.__dict__.get("__getattribute__") is _look


def _stand_in(cls: type) -> type:
    """Return the stand-in class for a class, made once."""
    known: type | None = cls.__dict__.get("_stand_in_class")
    if known is None:
        namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__getattribute__": _look}
        known = type(cls)(cls.__name__, (cls,), namespace)
        type.__setattr__(cls, "_stand_in_class", known)
    return known
