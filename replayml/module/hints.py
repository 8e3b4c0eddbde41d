"""What a user is told who meets something that is easily taken for something else.

Invariants:
    * A hint is given for what the user's own lines do, never for what an ``__init__``, a replay or a build does.
"""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Iterable
from inspect import Parameter
from typing import Any

from torch import nn

from replayml.core.signatures import CallSignature, signature_of
from replayml.recipe.migrate import is_same

__all__ = ["about_variadic", "warn_of_attribute"]

_OF_TORCH = frozenset(vars(nn.Module()))


def warn_of_attribute(module: Any, name: str, value: Any, place: str) -> None:
    """Warn where an assignment by the user looks like a setting: the attribute changes, what was made with it does not.

    Args:
        module: An unbuilt module, with an attribute of that name.
        name: The name.
        value: What is assigned.
        place: The class of the module, and where it stands.
    """
    old = module.__dict__[name]
    if name in _OF_TORCH or name not in signature_of(type(module)).names or is_same(old, value):
        return
    shown = reprlib.repr(value)
    warnings.warn(
        f"{place}: {name} = {shown} sets the attribute only; what its __init__ has made with {name} stays as it is. "
        f"To make it again with the new value: configure({name}={shown})",
        UserWarning,
        stacklevel=3,
    )


def about_variadic(cls: Any, signature: CallSignature, children: Iterable[str]) -> str:
    """Return a sentence on the ``*args`` of a class, for a message about what can be configured; empty without any.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self, *layers): ...
        >>> about_variadic(Net, signature_of(Net), ["0"])
        " What it got as *layers cannot be configured; modules in it can, by their paths, as in configure('0', ...). \
For other ones make a new Net(...)."
    """
    star = next((p.name for p in signature.parameters.values() if p.kind is Parameter.VAR_POSITIONAL), None)
    if star is None:
        return ""
    first = next(iter(children), None)
    below = "" if first is None else f"; modules in it can, by their paths, as in configure({first!r}, ...)"
    name = getattr(cls, "__name__", repr(cls))
    return f" What it got as *{star} cannot be configured{below}. For other ones make a new {name}(...)."
