"""Opening checkpoints: which files are some, and what stands in one, checked as far as it can be without a model.

Invariants:
    * Nothing is unpickled: a checkpoint holds text, numbers and dense tensors.
    * What is said beside the weights may be missing, as in a checkpoint of an older version.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem

from replayml.core.errors import CheckpointError, ConfigurationError, RecipeError
from replayml.module.sizes import read_sizes
from replayml.recipe import Limits, Recipe
from replayml.recipe.faults import shown
from replayml.recipe.files.archive import check_archive
from replayml.recipe.files.dense import require_dense
from replayml.recipe.files.reading import SUFFIX
from replayml.recipe.files.state import DEFAULT_DTYPES, State

__all__ = [
    "ARGS_KEY",
    "DTYPE_KEY",
    "KWARGS_KEY",
    "RANDOM_KEY",
    "RECIPE_KEY",
    "SIZES_KEY",
    "STATE_KEY",
    "TENSORS_KEY",
    "bad_build",
    "beside",
    "build_arguments",
    "is_checkpoint",
    "is_plain",
    "opened",
    "recipe_of",
    "require_openable",
    "state_dict_of",
]


RECIPE_KEY = "__from_ckpt_application"
ARGS_KEY = "__build_args"
KWARGS_KEY = "__build_kwargs"
SIZES_KEY = "sizes"
DTYPE_KEY = "default_dtype"
RANDOM_KEY = "replayml_random_state"
STATE_KEY = "replayml_state"
TENSORS_KEY = "replayml_tensors"

CHECKPOINT = ".ckpt"


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Tell whether a checkpoint is what is written to a path, and what is read from it.

    Raises:
        ConfigurationError: When the name is of no kind that is read.
    """
    text, path = os.fspath(path), Path(path)
    if path.suffix in ("", SUFFIX) or path.is_dir() or text.endswith(os.sep):
        return False
    if path.suffix != CHECKPOINT:
        stem = path.name if path.suffix[1:2].isdigit() else path.stem
        raise ConfigurationError(
            f"{path} would not be loaded again: a name that ends in {path.suffix} is of none of the kinds that an "
            f"application is saved as. Save it to {stem}{CHECKPOINT} (a checkpoint), {stem}{SUFFIX} (a model file) or "
            "a name without an ending (a folder)"
        )
    return True


def opened(path: Any, map_location: Any) -> tuple[Any, bool]:
    """Return what is in a file, and whether its tensors stay in the file until they are read."""
    is_local = isinstance(path, (str, Path)) and "://" not in str(path)
    if is_local and Path(path).is_dir():
        raise CheckpointError(
            f"{path} is a folder, such as a strategy that shards writes. Make it one file first: "
            "python -m lightning.pytorch.utilities.consolidate_checkpoint"
        )
    if is_local:
        check_archive(Path(path), _shown(path))
    try:
        if is_local:
            return torch.load(path, map_location=map_location, weights_only=True, mmap=True), True
        if isinstance(path, (str, Path)):
            with get_filesystem(path).open(str(path), "rb") as file:
                path = io.BytesIO(file.read())
        check_archive(path, _shown(path))
        return torch.load(path, map_location=map_location, weights_only=True), False
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise RecipeError(
            "unsafe-file",
            _shown(path),
            "this is no checkpoint that can be opened without unpickling, and nothing was unpickled. Where a callback "
            "of yours keeps objects in its state, let it keep numbers, strings and tensors",
        ) from error


def _shown(path: Any) -> str:
    return str(path) if isinstance(path, (str, Path)) else "the file"


def require_openable(values: Mapping[str, Any]) -> None:
    """Raise when something beside tensors could not be opened without unpickling."""
    for name, value in values.items():
        file = io.BytesIO()
        try:
            torch.save(value, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:
            raise RecipeError(
                "no-data-form",
                name,
                f"the state_dict holds a {type(value).__name__} here that cannot be opened without unpickling. "
                "Return a tensor, or numbers and strings, from get_extra_state()",
            ) from error


def is_plain(value: Any) -> bool:
    """Tell whether a value is made of what every reader of checkpoints can open."""
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(is_plain(item) for item in value)
    if isinstance(value, dict):
        return type(value) is dict and all(is_plain(item) for pair in value.items() for item in pair)
    return type(value) in (type(None), bool, int, float, complex, str, bytes, torch.Tensor)


def recipe_of(parameters: Any, limits: Limits) -> Recipe:
    """Return the recipe that stands among hyper-parameters."""
    if not isinstance(parameters, Mapping) or RECIPE_KEY not in parameters:
        raise RecipeError(
            "no-recipe",
            "hyper_parameters",
            "the checkpoint carries no recipe, so it was not written by a replayml.Application. "
            "Build the model yourself and call load_state_dict(checkpoint['state_dict'])",
        )
    text = parameters[RECIPE_KEY]
    if not isinstance(text, str):
        raise RecipeError(
            "not-text",
            f"hyper_parameters.{RECIPE_KEY}",
            f"the recipe must be JSON text and is {type(text).__name__}. Nothing was unpickled. "
            "A checkpoint of this kind can run code when it is opened; train the model again with this version",
        )
    return Recipe.from_json(text, limits=limits)


def state_dict_of(path: Any, content: Any) -> dict[str, Any]:
    """Return the weights of a checkpoint."""
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{_shown(path)} is no Lightning checkpoint: it has no 'state_dict' with names")
    for name, value in state.items():
        require_dense(name, value, _shown(path))
    return state


def beside(path: Any, content: Mapping[str, Any]) -> tuple[State | None, dict[str, torch.Tensor]]:
    """Return what a checkpoint tells of a model beside its weights, and tensors that no ``state_dict`` has."""
    text, tensors = content.get(STATE_KEY), content.get(TENSORS_KEY, {})
    is_plain = isinstance(tensors, dict) and all(isinstance(name, str) for name in tensors)
    if not isinstance(text, (str, type(None))) or not is_plain:
        raise RecipeError(
            "bad-weights", _shown(path), "what is said of the model is not readable. Nothing was unpickled"
        )
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{_shown(path)} holds a {type(value).__name__} for the tensor {shown(name)}")
        require_dense(name, value, _shown(path))
    return None if text is None else State.from_text(text, _shown(path)), tensors


def build_arguments(parameters: Mapping[str, Any]) -> tuple[dict[tuple[str, ...], dict[str, Any]], torch.dtype | None]:
    """Return the sizes that a file gives, and torch's default type at the build; it may give nothing else."""
    given = parameters.get(KWARGS_KEY, {})
    if parameters.get(ARGS_KEY) or not isinstance(given, Mapping) or given.keys() - {SIZES_KEY, DTYPE_KEY}:
        raise bad_build("a checkpoint gives the sizes of the built model and torch's default type, and nothing else")
    name = given.get(DTYPE_KEY, str(torch.float32))
    if not isinstance(name, str) or name not in DEFAULT_DTYPES:
        raise bad_build(f"the default type is one of {', '.join(DEFAULT_DTYPES)}, not {shown(name)}")
    return read_sizes(given.get(SIZES_KEY, "[]")), DEFAULT_DTYPES[name]


def bad_build(message: str) -> RecipeError:
    """Return the refusal of what a checkpoint gives to ``build``."""
    return RecipeError("bad-build-arguments", f"hyper_parameters.{KWARGS_KEY}", message)
