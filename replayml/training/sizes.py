"""The sizes that were read off the example input, as text among the hyper-parameters of a checkpoint.

    [[["model", "0"], {"in_features": 4}], ...]

Invariants:
    * The text is strict JSON; a tuple is ``{"$tuple": [...]}``, so that it comes back as one.
    * A size from a file reaches only a module of the model, and only an argument that an input can tell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from replayml.core.errors import RecipeError
from replayml.core.meta import quiet
from replayml.core.references import walk
from replayml.core.tape import Path
from replayml.layers.layer import Layer
from replayml.module.module import Module
from replayml.recipe.format import Limits
from replayml.recipe.strict import parse

__all__ = ["read_sizes", "take_sizes", "write_sizes"]

_PLACE = "hyper_parameters.__build_kwargs.sizes"
_TUPLE = "$tuple"


def write_sizes(sizes: Mapping[Path, Mapping[str, Any]]) -> str:
    """Return sizes as text.

    Raises:
        RecipeError: When a value that was computed from the input has no data form.

    Example:
        >>> write_sizes({("0",): {"in_features": 4}, ("1",): {"normalized_shape": (3, 2)}})
        '[[["0"], {"in_features": 4}], [["1"], {"normalized_shape": {"$tuple": [3, 2]}}]]'
    """
    listed = [
        [list(path), {name: _to_data(value, (*path, name)) for name, value in values.items()}]
        for path, values in sizes.items()
    ]
    return json.dumps(listed)


def _to_data(value: Any, place: Path) -> Any:
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (list, tuple)):
        items = [_to_data(item, place) for item in value]
        return {_TUPLE: items} if isinstance(value, tuple) else items
    raise RecipeError(
        "no-data-form",
        ".".join(place),
        f"the value {value!r}, computed from the example input, cannot be written. Compute numbers, strings, or lists "
        "or tuples of them",
    )


def read_sizes(text: Any) -> dict[Path, dict[str, Any]]:
    """Return the sizes that a text tells.

    Raises:
        RecipeError: When it is no text that `write_sizes` wrote.

    Example:
        >>> read_sizes('[[["0"], {"shape": {"$tuple": [3, 2]}}]]')
        {('0',): {'shape': (3, 2)}}
    """
    if not isinstance(text, str):
        raise _refusal(f"they are {type(text).__name__}, not text. Nothing was unpickled")
    try:
        listed = parse(text, Limits())
    except RecipeError as error:
        raise _refusal(f"{error.message} ({error.code} at {error.where})") from error
    if not isinstance(listed, list):
        raise _refusal("they are no list")
    sizes: dict[Path, dict[str, Any]] = {}
    for item in listed:
        match item:
            case [list() as path, dict() as values] if all(isinstance(name, str) for name in path):
                sizes[tuple(path)] = {name: _from_data(value) for name, value in values.items()}
            case _:
                raise _refusal("an entry is no pair of a path and its sizes")
    return sizes


def _from_data(value: Any) -> Any:
    match value:
        case list():
            return [_from_data(item) for item in value]
        case {"$tuple": list() as items} if len(value) == 1:
            return tuple(_from_data(item) for item in items)
        case dict():
            raise _refusal("a value is an object that is no tuple")
        case _:
            return value


def take_sizes(model: Module, sizes: Mapping[Path, Mapping[str, Any]], changed: bool) -> dict[Path, dict[str, Any]]:
    """Give an unbuilt model the sizes that were found when it was first built, and return those that it took.

    Args:
        model: The model.
        sizes: What was read off the example input then, by path.
        changed: Whether the model may differ from the one of that time; what finds no place is left out then.

    Raises:
        RecipeError: When a size is for something that cannot take it.
    """
    taken = {}
    for path, values in sizes.items():
        module = walk(model, path)
        told = module.__dict__.get("_computed", ()) if isinstance(module, Module) else ()
        names = module._told_by_input() if isinstance(module, Layer) else tuple(told)
        unknown = [name for name in values if name not in names]
        if isinstance(module, Module) and not unknown:
            with quiet():
                module._take_sizes(values)
            taken[path] = dict(values)
        elif not changed:
            raise _refusal(
                f"nothing at {'.'.join(path)!a} takes {', '.join(map(ascii, unknown or values))} from its input"
            )
    return taken


def _refusal(message: str) -> RecipeError:
    return RecipeError("bad-build-arguments", _PLACE, f"the sizes of the built model cannot be used: {message}")
