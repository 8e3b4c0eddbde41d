"""The tree of a module and those in it, as text.

    <Module type=Action sub-category=Flow type=Pipeline items=[]>
    |- <Module type=Encoder name=first>
    └- <Flow type=Parallel items=['a', 'b']>
        |- <Module type=Head>
        └- <Function type=score>

Invariants:
    * Modules stand in the order in which they run, functions among them.
    * A class with a ``__repr__`` of its own is shown by it.
    * What a network is made of inside, its layers and blocks and the lists of them, is left out below a module, unless
      it has tasks of the lifecycle or something in it is shown.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch import nn

from replayml.module.evaluating import Evaluating
from replayml.module.tasks import Tasks

__all__ = ["Showing", "make_repr", "name_of", "tree"]

_LIBRARIES = ("lightning", "replayml", "torch")
_TASKS = (Tasks._get_train_tasks, Tasks._get_deploy_tasks, Evaluating._get_eval_tasks)


class Showing:
    """The part of `replayml.Module` that this file is about.

    A module whose class has tasks of the lifecycle is shown as a tree, every other one as torch shows it.
    """

    _is_network_part: ClassVar[bool] = False  # a layer, a block, a list of these: nothing that has a life of its own

    def __repr__(self) -> str:
        return tree(self) if hasattr(type(self), "_tree") or _has_own_tasks(type(self)) else super().__repr__()


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
    if _shows_itself(thing):
        return repr(thing)
    subs = [tree(below) for below in _below(thing, set()) if _is_shown(below)]
    name = _own_name(thing) if isinstance(thing, Showing) else None
    return make_repr("Module", name_of(thing), name=name, subs=subs)


def _below(module: nn.Module, seen: set[int]) -> Iterator[Any]:
    """Yield the replayml modules right below one, flows among them, each once."""
    for child in module._modules.values():
        if child is None or id(child) in seen:
            continue
        seen.add(id(child))
        if isinstance(child, Tasks) and (hasattr(type(child), "_tree") or not child._passes_through):
            yield child
        else:
            yield from _below(child, seen)


def _is_shown(module: Any) -> bool:
    """Tell whether a module stands in the tree of the one that it is in."""
    return (
        not module._is_network_part
        or _shows_itself(module)
        or _has_own_tasks(type(module))
        or any(_is_shown(below) for below in _below(module, set()))
    )


def _has_own_tasks(cls: type) -> bool:
    """Tell whether a class that is not replayml's own says what there is to do in the lifecycle."""
    for task in _TASKS:
        owner = next((base for base in cls.__mro__ if task.__name__ in vars(base)), None)
        if owner is not None and owner.__module__.partition(".")[0] not in _LIBRARIES:
            return True
    return False


def _shows_itself(module: nn.Module) -> bool:
    """Tell whether the class of a replayml module has a ``__repr__`` of its own."""
    owner = next(cls for cls in type(module).__mro__ if "__repr__" in vars(cls))
    return isinstance(module, Showing) and owner.__module__.partition(".")[0] not in _LIBRARIES


def name_of(thing: Any) -> str:
    """Return what to call a step: the name of a function, the class of a module, that which a layer stands for.

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
