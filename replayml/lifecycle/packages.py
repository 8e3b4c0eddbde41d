"""Packages: several values where a flow hands on one.

Invariants:
    * Only a `package` is several arguments; a tuple or a list that a step returns is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["call", "joined", "package", "spread"]


class package(tuple[Any, ...]):
    """Several values, which the next step gets as its positional arguments; an ordinary tuple is one argument.

    Example:
        >>> import replayml
        >>> replayml.pipeline(lambda x: package((x, 2)), divmod)(7)
        (3, 1)
    """

    __slots__ = ()


def call(step: Callable[..., Any], value: Any) -> Any:
    """Call a step with the output of another one."""
    return step(*value) if type(value) is package else step(value)


def joined(args: tuple[Any, ...]) -> Any:
    """Return positional arguments as the one value that they are."""
    return args[0] if len(args) == 1 else package(args)


def spread(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return positional arguments, those in a `package` that was given alone one by one."""
    return tuple(args[0]) if len(args) == 1 and type(args[0]) is package else args
