"""The tree of a module and those in it, as text.

    <Module type=Action sub-category=Flow type=Pipeline items=[]>
    |- <Module type=Encoder name=first>
    └- <Flow type=Parallel items=['a', 'b']>
        |- <Module type=Head>
        └- <Function type=score>

Invariants:
    * Modules stand in the order in which they run, functions among them.
    * A class with a ``__repr__`` of its own is shown by it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import nn

from replayml.module.module import Module

__all__ = ["make_repr", "name_of", "tree"]

_OURS = (nn.Module.__repr__, Module.__repr__)


def make_repr(kind: str, cls: type | str, *, name: str | None = None, subs: Sequence[str] = (), **values: Any) -> str:
    """Return the text for something with what is in it.

    Args:
        kind: What it is: ``"Module"``, ``"Flow"``.
        cls: Its class, or what to call that.
        name: Its own name, if it has one.
        subs: The texts for what is in it.
        **values: What else to tell about it.

    Example:
        >>> print(make_repr("Module", "Chat", name="bot", subs=[make_repr("Module", "Head", size=3), "<Function f>"]))
        <Module type=Chat name=bot>
        |- <Module type=Head size=3>
        └- <Function f>
    """
    told = {"type": cls.__name__ if isinstance(cls, type) else cls}
    if name:
        told["name"] = name
    told |= {key: str(value) for key, value in values.items()}
    lines = [f"<{kind} {' '.join(f'{key}={value}' for key, value in told.items())}>"]
    for index, sub in enumerate(subs):
        is_last = index == len(subs) - 1
        first, *rest = sub.splitlines() or [""]
        lines.append(("└- " if is_last else "|- ") + first)
        lines += [("    " if is_last else "|   ") + line for line in rest]
    return "\n".join(lines)


def tree(thing: Any) -> str:
    """Return the tree of a module, a flow or a function, with the modules in it.

    A module tells its class, and its ``name`` where it has one; a class with a ``__repr__`` of its own is shown by it.

    Example:
        >>> import replayml
        >>> class Chat(replayml.Module):
        ...     def __init__(self, name):
        ...         self.name = name
        >>> print(tree(Chat("bot")))
        <Module type=Chat name=bot>
    """
    if not isinstance(thing, nn.Module):
        return f"<Function type={name_of(thing)}>"
    if hasattr(type(thing), "_tree"):
        return str(thing._tree())  # type: ignore[operator]
    if isinstance(thing, Module):
        if not any(type(thing).__repr__ is theirs for theirs in _OURS):
            return repr(thing)
        subs = [tree(sub) for sub in thing.submodules]
        return make_repr("Module", name_of(thing), name=_own_name(thing), subs=subs)
    return make_repr("Module", type(thing))


def name_of(thing: Any) -> str:
    """Return what to call a step: the name of a function, the class of a module.

    Example:
        >>> name_of(len), name_of(lambda x: x), name_of(functools.partial(print, end=""))
        ('len', 'lambda', 'print')
    """
    shown = getattr(type(thing), "_shown_name", None)
    if shown is not None:
        return str(thing._shown_name)
    while isinstance(thing, functools.partial):
        thing = thing.func
    name = getattr(thing, "__name__", None)
    return name.strip("<>") if isinstance(name, str) else type(thing).__name__


def _own_name(module: Any) -> str | None:
    name = getattr(module, "name", None)
    return name if isinstance(name, str) else None
