"""Methods of every module that give way to what a user calls by the same name.

A module may well have a child called ``wait``, or wrap a class with an argument called ``start``. Where it has, that is
what the name means on it; the method is on every other module, and ``Module.wait`` is always the method.

Invariants:
    * An attribute, a child, a parameter, a buffer, and an argument of a wrapped class go before the method.
    * replayml itself never calls such a method by its name on a module of the user.
    * What reads such a name can be compiled by ``torch.compile``.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["hidden", "yielding", "yielding_property"]

_TABLES = ("_modules", "_parameters", "_buffers")
_NOTHING = object()

F = TypeVar("F", bound=Callable[..., Any])

_hidden: ContextVar[str] = ContextVar("replayml_hidden", default="")


def yielding(function: F) -> F:
    """Decorate a method that gives way; to an attribute of the instance it does so by itself.

    Example:
        >>> import replayml
        >>> from torch import nn
        >>> class Gate(replayml.Module):
        ...     def __init__(self):
        ...         self.wait = replayml.Layer(nn.Identity)
        ...         self.status = "open"
        >>> gate = Gate().build()
        >>> gate.wait, gate.status
        (Identity(), 'open')
    """
    return functools.update_wrapper(_Yielding(function), function)  # type: ignore[return-value,arg-type]


class _Yielding:
    """What stands in the class for a method that gives way."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self.function
        other = _other(instance, self.function.__name__)
        return types.MethodType(self.function, instance) if other is _NOTHING else other


def _yielding_property(function: Callable[[Any], Any]) -> property:
    """Decorate a method that is read like an attribute and gives way; a user may assign an attribute of that name."""
    name = function.__name__

    @functools.wraps(function)
    def read(self: Any) -> Any:
        if name in self.__dict__:
            return self.__dict__[name]
        other = _other(self, name)
        return function(self) if other is _NOTHING else other

    def assign(self: Any, value: Any) -> None:
        self.__dict__[name] = value

    def delete(self: Any) -> None:
        if name not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} of its own to delete")
        del self.__dict__[name]

    return property(read, assign, delete)


if TYPE_CHECKING:
    yielding_property = property  # what else returns a property is none to a type checker
else:
    yielding_property = _yielding_property


@contextmanager
def hidden(name: str) -> Iterator[None]:
    """Let a module have no method of that name while the block runs: torch refuses a tensor with the name of one."""
    token = _hidden.set(name)
    try:
        yield
    finally:
        _hidden.reset(token)


def _other(instance: Any, name: str) -> Any:
    """Return what a module has of that name besides the method, or `_NOTHING`."""
    attributes = instance.__dict__
    for table in _TABLES:
        if name in attributes.get(table, ()):
            return attributes[table][name]
    if instance.is_external and instance._record.constructed and name in instance.configurables:
        return instance.__getattr__(name)
    if _hidden.get() == name:
        raise AttributeError(name)
    return _NOTHING
