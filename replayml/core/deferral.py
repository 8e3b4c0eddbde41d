"""Deferral: what an ``__init__`` configures in its children takes effect when it is needed, not at each call.

    self.inner = Inner(depth - 1)
    self.inner.configure(width=8)

Constructing ``inner`` again at once, here and in each ``__init__`` below, would run 2^depth constructors. Instead the
child waits; whoever looks at it, or the end of the outermost construction, constructs it again, from the top down.

Invariants:
    * Nobody sees a child that waits: the first look at it ends the waiting.
    * When the outermost construction is over, nothing waits.
    * A module that waits has a stand-in class, a subclass of its own, and gets its own class back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

from replayml.core import tags
from replayml.core.journal import note

__all__ = ["catch_up", "defer", "deferring", "forget", "is_stand_in"]

_waiting: ContextVar[list[Any] | None] = ContextVar("replayml_waiting", default=None)

# What may be read of a module that waits, because it does not depend on its ``__init__``.
ALLOWED = frozenset({"_record", "__dict__", "__class__", "configure", "get_init_args", "_apply_settings"})


def _look(self: Any, name: str) -> Any:
    """Read an attribute of a module that waits: the ``__getattribute__`` of the stand-in classes."""
    if name not in ALLOWED:
        catch_up(self)
    return object.__getattribute__(self, name)


class deferring:
    """Let modules wait while the block runs; at its end, if it is the outermost, all of them catch up."""

    __slots__ = ("_token",)

    def __enter__(self) -> None:
        self._token: Token[list[Any] | None] | None = _waiting.set([]) if _waiting.get() is None else None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is None:
            return
        try:
            waiting = _waiting.get()
            while waiting and kind is None:
                batch = sorted(waiting, key=lambda module: len(tags.path(module)))
                waiting.clear()
                for module in batch:
                    catch_up(module)
        finally:
            _waiting.reset(self._token)


def defer(module: Any, again: Callable[[Any], None]) -> None:
    """Let a module wait, to be constructed again when somebody looks at it.

    Args:
        module: The module.
        again: What brings it in line with its settings.
    """
    waiting = _waiting.get()
    record = module._record
    if waiting is None:
        again(module)
    elif record.deferred is None:
        note(setattr, record, "deferred", None)
        record.deferred = again
        _change_class(module, _stand_in(type(module)))
        waiting.append(module)


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
