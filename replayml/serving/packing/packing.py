"""How what is served reaches the worker: as a model file that it replays, or as the name of a function.

Invariants:
    * Nothing is pickled. What has no data form is refused when the service starts, by name.
    * The worker imports the modules that this program took the classes from, and no others.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from replayml.core.errors import ConfigurationError, NotBuiltError
from replayml.core.meta import ExtendedConstructorMeta
from replayml.recipe.files.reading import read_model_file
from replayml.recipe.recipe import Recipe
from replayml.serving.messages.wire import encode
from replayml.serving.packing.whole import unserved, whole

__all__ = ["Packed", "pack", "write_example"]

Packed = dict[str, Any]
"""Some of the fields of `replayml.serving.packing.spec.Spec`."""

_SCRIPT = "__main__"
_KNOWN = ("torch.", "torchmetrics.", "replayml.")


def pack(thing: Any, folder: Path) -> Packed:
    """Return what a worker needs to make something again.

    Args:
        thing: A module of replayml, built or without weights, or a function.
        folder: Where to write the model file.

    Raises:
        NotBuiltError: When a module lacks its weights.
        RecipeError: When something in it has no data form.
        ConfigurationError: When the worker could not find a function or class.
    """
    if isinstance(type(thing), ExtendedConstructorMeta):
        return _pack_model(thing, folder)
    if isinstance(thing, nn.Module):
        raise ConfigurationError(
            f"{type(thing).__name__} is a plain torch module, which has no recipe. Derive its class from "
            "replayml.Module, or wrap it: "
            f"model = replayml.Sequential(replayml.Layer({type(thing).__name__}, ...)).build(), then "
            "model[0].load_state_dict(...) with its weights"
        )
    return {"kind": "function", "place": _name_of(thing), "title": getattr(thing, "__qualname__", "function")}


def _pack_model(model: Any, folder: Path) -> Packed:
    if not model._record.built:
        lacking = next(
            (path for path, below in unserved(model) if getattr(below, "is_external", False) and not _built(below)),
            None,
        )
        if lacking is not None:
            raise NotBuiltError(
                f"the module to serve has no weights yet (at {lacking or 'its top'!r}). Build it first: "
                "model.build(example_input)"
            )
    path = folder / "model.replayml"
    found = whole(model)
    found.model.save(path)
    names = Recipe.from_json(read_model_file(path).recipe).names
    places = [_place_of(name) for name in names if not name.startswith(_KNOWN)]
    imports = {place.partition(":")[0] for place in places}
    imports |= {_module_of(name) for name in names if name.startswith("replayml.")}
    return {
        "kind": "model",
        "place": str(path),
        "title": type(model).__name__,
        "imports": tuple(sorted(imports)),
        "trust": tuple(sorted(places)),
        "owners": found.owners,
    }


def _built(module: Any) -> bool:
    record = module.__dict__.get("_record")
    return record is None or record.built


def _module_of(name: str) -> str:
    """Return the imported module in which a name of a recipe stands."""
    module = name.rpartition(".")[0]
    while module and module not in sys.modules:
        module = module.rpartition(".")[0]
    return module


def _place_of(name: str) -> str:
    module = _module_of(name)
    qualname = name[len(module) + 1 :]
    _require_importable(module, qualname)
    return f"{module}:{qualname}"


def _name_of(function: Callable[..., Any]) -> str:
    """Return where a function stands, as ``module:qualname``."""
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not callable(function) or not isinstance(module, str) or not isinstance(qualname, str):
        raise ConfigurationError(
            f"{function!r} cannot be served. Serve a module of replayml, or a function that stands in a module"
        )
    _require_importable(module, qualname)
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is not function:
        raise ConfigurationError(f"{module}.{qualname} is another object by now; serve what stands there")
    return f"{module}:{qualname}"


def _require_importable(module: str, qualname: str) -> None:
    if qualname.endswith("<lambda>"):
        raise ConfigurationError(
            f"{qualname!r} is a lambda, which the server process cannot find by name. Write it with def, at the top of "
            "a module"
        )
    if "<" in qualname:
        raise ConfigurationError(
            f"{qualname!r} stands inside a function, where the server process cannot find it. Define it at the top of "
            "a module"
        )
    if module in (_SCRIPT, ""):
        raise ConfigurationError(
            f"{qualname!r} stands in the script or notebook that runs, which the server process does not import. Put "
            "it into a module, and import it from there"
        )


def write_example(example: Sequence[torch.Tensor], folder: Path) -> str:
    """Write example inputs for the worker, and return the path."""
    path = folder / "example.tensors"
    path.write_bytes(encode(list(example)))
    return str(path)
