"""Modules put in the place of others, in a tree that may have weights already.

    model[..., "activation"].replace(new)              for good
    with model.patched((..., "activation"), new): ...  while the block runs

What is put in is one of these:

* a module: it stands in every selected place, as the one module that it is;
* an unbuilt module: each place gets one of its own; in a built tree it is built with what arrives there;
* a function: it is called with the module that stands in the place, and returns the one to put there, which may be a
  new one around it: ``lambda old: Residual(old)``.

Invariants:
    * One module that stands in several selected places is replaced by one module.
    * Before the build a replacement is on the tape; a built tree records nothing, so its recipe does not have it.
    * All places are replaced, or none. After ``patched`` each place has the very module that it had before, and its
      parent has its children in the order that they had, whatever was done or raised in between.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from replayml.core.errors import ArgumentError, BuildError, ConfigurationError, NotBuiltError, SelectionError
from replayml.core.journal import transaction
from replayml.core.tags import walk
from replayml.core.tape import Path
from replayml.module.building import forked_rng
from replayml.module.sizes import default_dtype

__all__ = ["Replacement", "patched", "replace"]

Replacement = nn.Module | Callable[[Any], nn.Module]
"""A module, or a function from the module in a place to the one to put there."""


class _Place(NamedTuple):
    """One place of a tree.

    Attributes:
        path: The path below the root.
        parent: The module that has the child.
        name: The name of the child.
        old: The child.
    """

    path: Path
    parent: Any
    name: str
    old: Any

    def __str__(self) -> str:
        return ".".join(self.path)


def replace(root: Any, paths: Sequence[Path], new: Replacement, *args: Any, **kwargs: Any) -> None:
    """Put a module in each of some places of a tree, for good.

    Args:
        root: The module below which the places are.
        paths: The places.
        new: What to put there.
        *args: Example inputs of ``root``, which must be built: they run through it once, without gradients and in
            evaluation mode, to find out with what an unbuilt module is built.
        **kwargs: Example inputs by keyword.

    Raises:
        SelectionError: When a place is the root, or inside of another place.
        BuildError: When a module cannot be built, or no example input arrives at its place.

    Example:
        >>> import replayml
        >>> model = replayml.MultiLayerPerceptron(4, [8], 2).build()
        >>> model[..., "activation"].replace(lambda old: nn.Tanh() if isinstance(old, nn.ReLU) else old)
        Selection(blocks.0.activation, blocks.1.activation)
        >>> model["blocks", -1].replace(replayml.Layer(nn.Linear, None, 3), torch.zeros(1, 4))
        Selection(blocks.1)
        >>> model(torch.zeros(5, 4)).shape
        torch.Size([5, 3])
    """
    places = _places(root, paths)
    if _is_built(root):
        for place, module in _replacements(root, places, new, args, kwargs):
            place.parent._modules[place.name] = module
        return
    if args or kwargs:
        raise ArgumentError(
            f"{type(root).__name__} is not built; example inputs find out sizes in a built tree only. "
            "Replace without them, and give them to build()"
        )
    with transaction():
        for place, module in _copies(places, new):
            if module is not place.old:
                _edit(walk(root, place.path[:-1]), place, module)


def _edit(parent: Any, place: _Place, module: nn.Module) -> None:
    """Replace a child of an unbuilt module, as the user could."""
    method = getattr(parent, "replace", None)
    if not callable(method):
        raise ConfigurationError(
            f"{str(place)!r} is a child of a {type(parent).__name__}, which records nothing. Replace the "
            f"{type(parent).__name__} itself, or hold its children in a replayml container"
        )
    method(place.name, module)


@contextmanager
def patched(root: Any, paths: Sequence[Path], new: Replacement, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Put a module in each of some places of a built tree while the block runs.

    Args:
        root: The module below which the places are; it must be built.
        paths: The places.
        new: What to put there.
        *args: Example inputs, as for `replace`.
        **kwargs: Example inputs by keyword.

    Yields:
        ``root``.

    Raises:
        NotBuiltError: When the tree is not built.
        SelectionError: When a place is the root, or inside of another place.

    Example:
        >>> import replayml
        >>> model = replayml.MultiLayerPerceptron(4, [8], 2).build()
        >>> with model.patched("blocks.1", nn.Identity()) as features:
        ...     features(torch.zeros(5, 4)).shape
        torch.Size([5, 8])
        >>> model(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """
    if not _is_built(root):
        raise NotBuiltError(
            f"{type(root).__name__} is not built, and a change to it is recorded. Patch a built model: "
            "model.build(), or change a copy: model.new()[...].replace(...)"
        )
    places = _places(root, paths)
    chosen = _replacements(root, places, new, args, kwargs)
    orders = {id(place.parent): (place.parent, list(place.parent._modules)) for place in places}
    try:
        for place, module in chosen:
            place.parent._modules[place.name] = module
        yield root
    finally:
        for place in places:
            place.parent._modules[place.name] = place.old
        for parent, order in orders.values():
            _put_in_order(parent._modules, order)


def _put_in_order(children: dict[str, Any], order: Sequence[str]) -> None:
    """Give the children that there were before their order again; those that came meanwhile follow them."""
    for name in [*(name for name in order if name in children), *(name for name in children if name not in order)]:
        children[name] = children.pop(name)


# Places ---------------------------------------------------------------------------------------------------------


def _is_built(root: Any) -> bool:
    record = root.__dict__.get("_record")
    return record is None or record.built


def _places(root: Any, paths: Sequence[Path]) -> list[_Place]:
    """Return the places at these paths, each once."""
    found: dict[tuple[int, str], _Place] = {}
    for path in paths:
        if not path:
            raise SelectionError(f"{type(root).__name__} itself stands in no place of its own. Select modules below it")
        above = next((other for other in paths if other != path and other == path[: len(other)]), None)
        if above is not None:
            raise SelectionError(
                f"{'.'.join(path)!r} is inside of {'.'.join(above)!r}, which is selected as well. "
                "Narrow the selection: .filter(...), .isinstance(...) or .first"
            )
        parent = walk(root, path[:-1])
        old = walk(parent, path[-1:])
        found.setdefault((id(parent), path[-1]), _Place(path, parent, path[-1], old))
    return list(found.values())


# What to put there ----------------------------------------------------------------------------------------------


def _replacements(
    root: Any, places: Sequence[_Place], new: Replacement, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[_Place, nn.Module]]:
    """Return the built module for each place of a built tree."""
    first = {id(place.old): place for place in reversed(places)}
    wanted = {key: (place, _wanted(place, new)) for key, place in reversed(first.items())}
    unbuilt = [place for place, module in wanted.values() if not _is_built(module)]
    inputs = _inputs_at(root, unbuilt, args, kwargs) if args or kwargs else {}
    made: dict[int, nn.Module] = {}
    for key, (place, module) in wanted.items():
        made[key] = module if _is_built(module) else _built(root, place, module, inputs.get(key))
    return [(place, made[id(place.old)]) for place in places]


def _copies(places: Sequence[_Place], new: Replacement) -> list[tuple[_Place, nn.Module]]:
    """Return the module for each place of an unbuilt tree; of an unbuilt module each place gets one of its own."""
    made: dict[int, nn.Module] = {}
    for place in places:
        if id(place.old) not in made:
            module = _wanted(place, new)
            taken = any(module is other for other in made.values())
            made[id(place.old)] = module if _is_built(module) or not taken else module.new()  # type: ignore[operator]
    return [(place, made[id(place.old)]) for place in places]


def _wanted(place: _Place, new: Replacement) -> nn.Module:
    module = new if isinstance(new, (nn.Module, type)) or not callable(new) else new(place.old)
    if not isinstance(module, nn.Module):
        given = f"the class {module.__name__}" if isinstance(module, type) else f"{type(module).__name__}"
        hint = f"Give a module, such as Layer({module.__name__})" if isinstance(module, type) else "Give a module"
        raise ArgumentError(
            f"the place {str(place)!r} takes a module, not {given}. {hint}, or a function that returns one"
        )
    return module


def _built(root: Any, place: _Place, module: Any, inputs: tuple[tuple[Any, ...], dict[str, Any]] | None) -> nn.Module:
    """Return a module of its own for a place, made where, of which type, and in which mode the one there is.

    One around the module that stands there, such as ``lambda old: Residual(old)`` makes, is built around that very one,
    with its parameters; any other one is copied.
    """
    args, kwargs = inputs or ((), {})
    device, dtype = _device_and_type(place.old, root)
    kept = {id(below) for below in place.old.modules()}
    try:
        if _is_around(module, kept):
            with device or nullcontext(), default_dtype(dtype):
                made = module.build(*args, **kwargs)
        else:
            made = module.create(*args, device=device, dtype=dtype, **kwargs)
    except Exception as error:
        hint = "" if inputs else "; where sizes are open, give example inputs of the model: replace(new, x)"
        error.add_note(f"while building {type(module).__name__} for the place {str(place)!r}{hint}")
        raise
    if not isinstance(made, nn.Module):
        raise ArgumentError(f"what is built for the place {str(place)!r} is no module but {type(made).__name__}")
    for below in made.modules():
        if id(below) not in kept:
            below.training = place.old.training
    return made


def _is_around(module: Any, kept: Collection[int]) -> bool:
    """Tell whether a new module holds, or was given, one of some modules."""
    given = (*module._record.args, *module._record.kwargs.values())
    return any(id(below) in kept for below in (*module.modules(), *given))


def _device_and_type(old: nn.Module, root: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
    for module in (old, root):
        tensors = [*module.parameters(), *module.buffers()]
        if tensors:
            floating = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), None)
            return tensors[0].device, floating
    return None, None


def _inputs_at(
    root: Any, places: Sequence[_Place], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[int, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Run example inputs through a built tree and return the first input of the module in each place."""
    found: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def note_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.setdefault(id(module), (args, kwargs))

    modes = [(module, module.training) for module in root.modules()]
    handles = [nn.Module.register_forward_pre_hook(place.old, note_inputs, with_kwargs=True) for place in places]
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad(), forked_rng():
            root(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    for place in places:
        if id(place.old) not in found:
            raise BuildError(
                f"no example input arrives at {str(place)!r}: the forward of {type(root).__name__} does not call it. "
                "Build the new module before: new.build(...)"
            )
    return found
