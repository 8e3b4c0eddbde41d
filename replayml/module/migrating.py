"""What a tape configures, as the modules of today take it.

A tape that was read from a recipe may configure an argument that has another name since. Where the recipe has the
version of the class, `replayml.recipe.migrate` has changed the tape already; what is left are the settings of modules
that an ``__init__`` made, and of classes that a layer wraps. These are changed when the tape is replayed, since only
then it is known what stands at a path.

Invariants:
    * A setting that the module, or a child of that name, takes stays as it is.
    * Whatever cannot be changed is left to ``configure``, which says what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from replayml.core.signatures import signature_of
from replayml.recipe import migrate

__all__ = ["settings_now"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def settings_now(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
    """Return the arguments of a call of ``configure`` as the module takes them now.

    Args:
        module: The module that is configured.
        args: Nothing; or a name and its value; or a class; or what leads to a module below, and what that is given.
        kwargs: Names and values.

    Returns:
        The arguments; none where nothing that was configured is of use any more.
    """
    if isinstance(module, nn.ModuleList):
        leads, below = _elements(module, args)
    else:
        leads, below = 1, _child(module, args, kwargs)
    if "_record" in getattr(below, "__dict__", ()):
        new_args, new_kwargs = settings_now(below, args[leads:], kwargs)
        return ((*args[:leads], *new_args), new_kwargs) if new_args or new_kwargs else ((), {})
    factory = module.__dict__.get("_classtype", type(module))
    match args:
        case ():
            return (), _now(module, factory, kwargs)
        case (type() as other, *_):
            return args, _now(module, other, kwargs)
        case (str() as name, value) if not kwargs:
            settings = _now(module, factory, {name: value})
            return (args, {}) if name in settings else ((), settings)
    return args, kwargs


def _child(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the child that the first argument leads to, or None."""
    if not args or not isinstance(args[0], str) or (len(args) == 1 and not kwargs):
        return None
    child = module._modules.get(args[0])
    if child is None or (len(args) == 2 and not kwargs and args[0] in module.configurables):
        return None
    return child


def _now(module: Any, factory: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    return migrate.settings_now(factory, settings, lambda name: _takes(module, factory, name))


def _takes(module: Any, factory: Any, name: Any) -> bool:
    signature = signature_of(factory)
    names = (*signature.names, *module._modules)
    return signature.accepts_kwargs or name in names or name in module.configurables


def _elements(module: nn.ModuleList, args: tuple[Any, ...]) -> tuple[int, Any]:
    """Return how many arguments choose elements of a list, and one of these, if all are of one class."""
    elements = list(module)
    leads = int(bool(args) and isinstance(args[0], (int, slice, list)))
    if leads:
        step = args[0]
        keys = range(len(elements))[step] if isinstance(step, slice) else step if isinstance(step, list) else [step]
        elements = [elements[key] for key in keys if -len(elements) <= key < len(elements)]
    same = len({(type(element), element.__dict__.get("_classtype")) for element in elements}) == 1
    return leads, elements[0] if same else None
