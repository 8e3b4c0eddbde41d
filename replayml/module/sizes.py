"""The sizes that were read off the example input, as text beside the recipe in a model file.

    [[["model", "0"], {"in_features": 4}], ...]

Invariants:
    * The text is strict JSON; a tuple is ``{"$tuple": [...]}``, so that it comes back as one.
    * A size from a file reaches only a module of the model, and only an argument that an input can tell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from replayml.core.copying import describe
from replayml.core.errors import RecipeError
from replayml.core.meta import ExtendedConstructorMeta, quiet
from replayml.core.tags import walk
from replayml.core.tape import CallRecord, Path, PlainRecord
from replayml.module.checking import Sized
from replayml.recipe.format import Limits
from replayml.recipe.randomness import fixed_randomness
from replayml.recipe.text.strict import parse

__all__ = [
    "BUILD_DTYPE",
    "TAKEN",
    "built_again",
    "default_dtype",
    "note_taken",
    "read_sizes",
    "remember_call",
    "sizes_of",
    "take_sizes",
    "write_sizes",
]

_PLACE = "sizes"
_TUPLE = "$tuple"

BUILD_DTYPE = "_default_dtype"
"""Where a model keeps torch's default type at its build, if it keeps it."""

TAKEN = "_taken_sizes"
"""Where a model that is built again keeps the sizes that it was given, until it is built."""


def sizes_of(model: Any) -> dict[Path, dict[str, Any]]:
    """Return the sizes that the build of a model found, with paths below the model, which may be a part of it."""
    sizes, path = model._record.blueprint.sizes, model._record.path
    return {place[len(path) :]: values for place, values in sizes.items() if place[: len(path)] == path}


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


def take_sizes(model: Any, sizes: Mapping[Path, Mapping[str, Any]], changed: bool) -> dict[Path, dict[str, Any]]:
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
        is_recorded = isinstance(type(module), ExtendedConstructorMeta)
        told: Any = module.__dict__.get("_computed", ()) if is_recorded else ()
        names = module._told_by_input() if isinstance(module, Sized) else tuple(told)
        unknown = [name for name in values if name not in names]
        if is_recorded and not unknown:
            with quiet():
                module._take_sizes(values)
            taken[path] = dict(values)
        elif not changed:
            raise _refusal(
                f"nothing at {'.'.join(path)!a} takes {', '.join(map(ascii, unknown or values))} from its input"
            )
    return taken


def built_again(
    model: Any,
    sizes: Mapping[Path, Mapping[str, Any]],
    changed: bool = False,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Build a model with the sizes that were found when it was first built.

    Args:
        model: The unbuilt model.
        sizes: What was read off the example input then, by path.
        changed: As for `take_sizes`.
        args: What ``build`` gets besides.
        kwargs: What ``build`` gets besides, by keyword.

    Returns:
        What ``build`` returns.
    """
    model.__dict__[TAKEN] = take_sizes(model, sizes, changed)
    result = model.build(*args, **(kwargs or {}))
    note_taken(model)
    return result


def note_taken(model: Any) -> None:
    """Let a model that was built with given sizes keep them, as if it had found them itself."""
    model._record.blueprint.sizes.update(model.__dict__.pop(TAKEN, {}))


def remember_call(model: Any, unbuilt: Callable[[], Any]) -> None:
    """Let a model that was made without values keep a record with values.

    Torch layers that were given as arguments stand in the record themselves, and were made without values as well.

    Args:
        model: A built model, or a part of one.
        unbuilt: Makes the model again, unbuilt and with values.
    """
    record = getattr(model, "_record", None)
    if record is not None and _lacks_values(record.blueprint.call, set()):
        with fixed_randomness():
            record.blueprint.call = describe(unbuilt())


def _lacks_values(value: Any, seen: set[int]) -> bool:
    if isinstance(value, CallRecord):
        if id(value) in seen:
            return False
        seen.add(id(value))
        entries = ((entry.args, entry.kwargs) for entry in value.tape)
        return any(_lacks_values(part, seen) for part in (value.args, value.kwargs, *entries))
    if isinstance(value, PlainRecord):
        value = value.module
    if isinstance(value, nn.Module):
        return any(tensor.is_meta for tensor in (*value.parameters(), *value.buffers()))
    if isinstance(value, torch.Tensor):
        return value.is_meta
    if isinstance(value, (list, tuple)):
        return any(_lacks_values(item, seen) for item in value)
    return isinstance(value, dict) and any(_lacks_values(item, seen) for item in value.values())


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Let torch make floating point tensors of a type, as it did when a model was built; None for the type of now."""
    old = torch.get_default_dtype()
    if dtype is None or dtype is old:
        yield
        return
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(old)


def _refusal(message: str) -> RecipeError:
    return RecipeError("bad-build-arguments", _PLACE, f"the sizes of the built model cannot be used: {message}")
