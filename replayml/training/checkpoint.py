"""Checkpoints: ordinary Lightning files that carry the recipe of their model.

The recipe stands as a JSON string among the hyper-parameters, with the sizes that were read off the example input.
``torch.load(weights_only=True)`` opens such a file, and every Lightning feature works with it.

Invariants:
    * Nothing is unpickled, here or in the metaclass's from-checkpoint path: a recipe that is no text is refused.
    * A model that could not be loaded is not saved: its recipe is written, read back and followed, without weights,
      before training starts.
    * Loading draws no random number and makes no weight that the file gives.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.cloud_io import get_filesystem

from replayml.core.copying import describe
from replayml.core.errors import ArgumentError, CheckpointError, NotBuiltError, RecipeError
from replayml.core.replay import realize
from replayml.core.tape import CallRecord
from replayml.module.sizes import (
    BUILD_DTYPE,
    built_again,
    default_dtype,
    note_taken,
    read_sizes,
    remember_call,
    sizes_of,
    write_sizes,
)
from replayml.recipe import Codec, Limits, Recipe
from replayml.recipe.faults import shown
from replayml.recipe.files import weights
from replayml.recipe.files.archive import check_archive
from replayml.recipe.files.atomic import replace_file
from replayml.recipe.files.reading import SUFFIX
from replayml.recipe.files.state import DEFAULT_DTYPES
from replayml.recipe.randomness import random_state, resume_randomness
from replayml.recipe.text.metering import free_memory, measured

__all__ = ["complete", "from_call", "load", "note_build", "note_recipe", "require_recipe", "resume", "save"]

RECIPE_KEY = "__from_ckpt_application"
ARGS_KEY = "__build_args"
KWARGS_KEY = "__build_kwargs"
SIZES_KEY = "sizes"
DTYPE_KEY = "default_dtype"
RANDOM_KEY = "replayml_random_state"

FAULT = "_recipe_fault"
EXPECTED = "_expected_weights"
DEFAULT_DTYPE = BUILD_DTYPE

_LIMITS = Limits()

_NO_CHECKPOINT = (
    "A checkpoint of this model could not be loaded again, so none is written. {remedy}, or train with "
    "enable_checkpointing=False"
)


# Saving ---------------------------------------------------------------------------------------------------------


def note_build(app: Any) -> None:
    """Note the recipe of an application that was just built."""
    note_taken(app)
    note_recipe(app)


def note_recipe(app: Any) -> None:
    """Put the recipe of a built application among its hyper-parameters, where Lightning saves it."""
    for name in (FAULT, EXPECTED):
        app.__dict__.pop(name, None)
    try:
        text = Recipe.of(describe(app), built=True).to_json()
        sizes = write_sizes(sizes_of(app))
    except RecipeError as error:
        app.__dict__[FAULT] = error.args
        for key in (RECIPE_KEY, ARGS_KEY, KWARGS_KEY):
            app.hparams.pop(key, None)
        return
    build = {SIZES_KEY: sizes}
    dtype = app.__dict__.setdefault(DEFAULT_DTYPE, torch.get_default_dtype())
    if dtype is not torch.float32:
        build[DTYPE_KEY] = str(dtype)
    app.hparams.update({RECIPE_KEY: text, ARGS_KEY: [], KWARGS_KEY: build})


def require_recipe(app: Any) -> None:
    """Raise when a checkpoint of an application could not be loaded.

    Raises:
        RecipeError: Naming the value that has no data form.
        CheckpointError: When the model is no longer what its recipe makes.
    """
    if FAULT not in app.__dict__ and RECIPE_KEY not in app.hparams:
        note_recipe(app)
    fault = app.__dict__.get(FAULT)
    if fault is not None:
        code, where, message = fault
        remedy = _NO_CHECKPOINT.format(remedy="Mend the value named here")
        raise RecipeError(code, where, f"{message} {remedy}")
    _check_weights(app, app.state_dict())


def _check_weights(app: Any, state: Mapping[str, Any]) -> None:
    """Raise when some weights would not fit what the recipe makes."""
    if EXPECTED not in app.__dict__:
        app.__dict__[EXPECTED] = _expected_weights(app)
    groups = weights.differences(weights.forms(state), app.__dict__[EXPECTED])
    if not app.strict_loading:
        groups.pop("missing", None)
    if groups:
        remedy = "Make the change before the build, or in a method that is decorated with @replayml.after_build"
        raise CheckpointError(
            f"{type(app).__name__} was changed after its build, and its recipe does not make it so; in the model, "
            f"against its recipe: {weights.listed(groups)}. {_NO_CHECKPOINT.format(remedy=remedy)}"
        )


def _expected_weights(app: Any) -> dict[str, weights.Form | None]:
    """Return the form of each weight that the recipe of an application makes."""
    try:
        with default_dtype(app.__dict__.get(DEFAULT_DTYPE)):
            made = weights.skeleton(lambda: _made(describe(app), sizes_of(app)))
    except Exception as error:
        error.add_note(f"while making {type(app).__name__} again, as loading its checkpoint would")
        raise
    return weights.forms(made.state_dict())


def complete(app: Any, checkpoint: dict[str, Any]) -> None:
    """Make sure that a checkpoint, which is about to be written, can be loaded.

    Args:
        app: The application.
        checkpoint: What Lightning is about to write.

    Raises:
        RecipeError: When the application has no recipe.
        CheckpointError: When the weights are not those that its recipe makes.
    """
    require_recipe(app)
    trainer = app._trainer
    state = checkpoint.get("state_dict")
    if state and (trainer is None or trainer.is_global_zero):
        _check_weights(app, state)
    # What a constructor's save_hyperparameters() kept is in the recipe as well; here stays what every reader can open.
    checkpoint["hyper_parameters"] = {name: value for name, value in app.hparams.items() if _is_plain(value)}
    if trainer is None or trainer.world_size == 1:
        checkpoint[RANDOM_KEY] = random_state()
    weights.own_memory(app)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return type(value) is dict and all(_is_plain(item) for pair in value.items() for item in pair)
    return type(value) in (type(None), bool, int, float, complex, str, bytes, torch.Tensor)


def resume(app: Any, checkpoint: Mapping[str, Any]) -> None:
    """Let the random generators go on where they stood when a checkpoint was written, if training resumes from it."""
    trainer = app._trainer
    if trainer is not None and trainer.training and trainer.world_size == 1 and RANDOM_KEY in checkpoint:
        resume_randomness(checkpoint[RANDOM_KEY])


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Tell whether a checkpoint is what is written to a path: neither a model file nor a model folder."""
    return Path(path).suffix not in ("", SUFFIX) and not Path(path).is_dir()


def save(app: Any, path: Path, codecs: Sequence[Codec[Any]], allow_pickle: bool) -> None:
    """Write a checkpoint of a built application, without a trainer: see `Application.save`."""
    if codecs or allow_pickle:
        raise ArgumentError(
            f"a checkpoint takes no codecs and no pickles, since a trainer would write none. "
            f"Save a model file: {path.with_suffix(SUFFIX)}"
        )
    if not app._has_built:
        raise NotBuiltError(f"{type(app).__name__} has no weights yet. Build it first: app.build(x)")
    require_recipe(app)
    content: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": app.state_dict(),
    }
    app.on_save_checkpoint(content)
    replace_file(path, lambda file: torch.save(content, file))


# Loading --------------------------------------------------------------------------------------------------------


def load(
    cls: type,
    path: Any,
    *,
    map_location: Any,
    strict: bool | None,
    settings: Mapping[str, Any] = MappingProxyType({}),
    limits: Limits = _LIMITS,
    **options: Any,
) -> Any:
    """Return the trained application of a checkpoint: see `Application.load_from_checkpoint` and `replayml.load`."""
    content, is_mapped = _opened(path, "cpu" if map_location is None else map_location)
    state = _state_dict(path, content)
    parameters = content.get("hyper_parameters", {})
    record = _recipe_of(parameters, limits).record(**options)
    _require_class(cls, record)
    sizes, dtype = _build_arguments(parameters)

    def make() -> Any:
        with default_dtype(dtype):
            return _made(record, sizes, settings)

    app = measured(lambda: weights.skeleton(make), _for_mapped(limits, state) if is_mapped else limits)
    app.on_load_checkpoint(content)
    weights.assign(app, content["state_dict"], app.strict_loading if strict is None else strict, make)
    devices = {tensor.device for tensor in app.state_dict().values() if isinstance(tensor, torch.Tensor)}
    if len(devices) == 1:
        app.to(devices.pop())
    if is_mapped:
        app.__dict__[weights.MAPPED] = True
    remember_call(app, lambda: _configured(record, settings))
    return app


def load_unbuilt(cls: type, path: Path, *, limits: Limits = _LIMITS, **options: Any) -> Any:
    """Return the application of a checkpoint without its weights: see `replayml.load`."""
    content, _ = _opened(path, "cpu")
    _state_dict(path, content)
    app = _recipe_of(content.get("hyper_parameters", {}), limits).model(**options)
    _require_class(cls, describe(app))
    return app


def _state_dict(path: Any, content: Any) -> dict[str, Any]:
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise CheckpointError(f"{_shown(path)} is no Lightning checkpoint: it has no 'state_dict' with names")
    return state


def _for_mapped(limits: Limits, state: Mapping[str, Any]) -> Limits:
    """Return limits that allow what stands in the file, which is mapped and not allocated."""
    if limits.memory is not None:
        return limits
    mapped = sum(tensor.nbytes for tensor in state.values() if isinstance(tensor, torch.Tensor))
    return replace(limits, memory=free_memory() // 2 + mapped)


def from_call(cls: type, keywords: Mapping[str, Any]) -> Any:
    """Return the application, built but untrained, for ``cls(__from_ckpt_application=..., ...)``.

    Args:
        cls: The class that was called.
        keywords: The recipe, ``__build_args`` and ``__build_kwargs`` for ``build``; all others are settings to change.

    Raises:
        RecipeError: When the recipe is no text, or not safe to follow.
        CheckpointError: When the application is of another class.
    """
    settings = {name: value for name, value in keywords.items() if name not in (RECIPE_KEY, ARGS_KEY, KWARGS_KEY)}
    build_kwargs = keywords.get(KWARGS_KEY) or {}
    if not isinstance(build_kwargs, Mapping):
        raise _bad_build(f"they are {type(build_kwargs).__name__}, not a dict. Nothing was unpickled")
    build_kwargs = dict(build_kwargs)
    own = {key: build_kwargs.pop(key) for key in (SIZES_KEY, DTYPE_KEY) if key in build_kwargs}
    sizes, dtype = _build_arguments({KWARGS_KEY: own})
    record = _recipe_of(keywords, _LIMITS).record()
    _require_class(cls, record)
    with default_dtype(dtype):
        return _made(record, sizes, settings, tuple(keywords.get(ARGS_KEY) or ()), build_kwargs)


def _opened(path: Any, map_location: Any) -> tuple[Any, bool]:
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


def _recipe_of(parameters: Any, limits: Limits) -> Recipe:
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


def _require_class(cls: type, record: CallRecord) -> None:
    if not (isinstance(record.cls, type) and issubclass(record.cls, cls)):
        raise CheckpointError(
            f"the checkpoint holds a {record.cls.__name__}, which is no {cls.__name__}. "
            f"Load it with {record.cls.__name__}.load_from_checkpoint or replayml.Application.load_from_checkpoint"
        )


def _build_arguments(parameters: Mapping[str, Any]) -> tuple[dict[tuple[str, ...], dict[str, Any]], torch.dtype | None]:
    """Return the sizes that a file gives, and torch's default type at the build; it may give nothing else."""
    given = parameters.get(KWARGS_KEY, {})
    if parameters.get(ARGS_KEY) or not isinstance(given, Mapping) or given.keys() - {SIZES_KEY, DTYPE_KEY}:
        raise _bad_build("a checkpoint gives the sizes of the built model and torch's default type, and nothing else")
    name = given.get(DTYPE_KEY, str(torch.float32))
    if not isinstance(name, str) or name not in DEFAULT_DTYPES:
        raise _bad_build(f"the default type is one of {', '.join(DEFAULT_DTYPES)}, not {shown(name)}")
    return read_sizes(given.get(SIZES_KEY, "[]")), DEFAULT_DTYPES[name]


def _bad_build(message: str) -> RecipeError:
    return RecipeError("bad-build-arguments", f"hyper_parameters.{KWARGS_KEY}", message)


def _made(
    record: CallRecord,
    sizes: Mapping[tuple[str, ...], Mapping[str, Any]],
    settings: Mapping[str, Any] | None = None,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Return a built application from its record."""
    return built_again(_configured(record, settings), sizes, bool(settings), args, kwargs)


def _configured(record: CallRecord, settings: Mapping[str, Any] | None) -> Any:
    app = realize(record)
    return app.configure(**settings) if settings else app
