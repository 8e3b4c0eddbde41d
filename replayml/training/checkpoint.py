"""Checkpoints: ordinary Lightning files that carry the recipe of their model.

The recipe stands as a JSON string among the hyper-parameters, with the sizes that were read off the example input.
``torch.load(weights_only=True)`` opens such a file, and every Lightning feature works with it.

Beside them stands what a model file keeps too: modes, frozen parameters, and tensors that no ``state_dict`` has.
A checkpoint without these, of a plain trainer or of an older version, is loaded as far as it goes.

Invariants:
    * Nothing is unpickled, here or in the metaclass's from-checkpoint path: a recipe that is no text is refused.
    * A model that could not be loaded is not saved: its recipe is written, read back and followed, without weights,
      before training starts. What changes while it trains, and costs no weights, is told and does not end the training,
      nor does it make a checkpoint of the trained application impossible later.
    * An error that ends a training stays the one that is raised, whether or not a checkpoint can be written then.
    * Loading draws no random number and makes no weight that the file gives.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn

from replayml.core.copying import describe
from replayml.core.errors import ArgumentError, CheckpointError, NotBuiltError, RecipeError
from replayml.core.replay import realize
from replayml.core.tape import CallRecord
from replayml.module.gathering import is_sharded, require_values
from replayml.module.keeping import note_state, restore, set_modes
from replayml.module.sizes import (
    built_again,
    default_dtype,
    remember_call,
)
from replayml.module.unsaved import kept, put_back, require_places
from replayml.recipe import Codec, Limits
from replayml.recipe.files import weights
from replayml.recipe.files.atomic import replace_file
from replayml.recipe.files.dense import require_dense
from replayml.recipe.files.reading import SUFFIX
from replayml.recipe.randomness import random_state, resume_randomness
from replayml.recipe.text.metering import free_memory, measured
from replayml.training.noting import OF_TRAINING, REFUSED, again_of, require_recipe
from replayml.training.opening import (
    ARGS_KEY,
    DTYPE_KEY,
    KWARGS_KEY,
    RANDOM_KEY,
    RECIPE_KEY,
    SIZES_KEY,
    STATE_KEY,
    TENSORS_KEY,
    bad_build,
    beside,
    build_arguments,
    is_checkpoint,
    is_plain,
    opened,
    recipe_of,
    require_openable,
    state_dict_of,
)

__all__ = [
    "complete",
    "from_call",
    "is_checkpoint",
    "load",
    "resume",
    "save",
]

_LIMITS = Limits()


# Saving ---------------------------------------------------------------------------------------------------------


def complete(app: Any, checkpoint: dict[str, Any]) -> None:
    """Make sure that a checkpoint, which is about to be written, can be loaded, and put into it what it lacks.

    Args:
        app: The application.
        checkpoint: What Lightning is about to write.

    Raises:
        RecipeError: When the application has no recipe.
        CheckpointError: When the weights are not those that its recipe makes.
    """
    cause = _end_of(app._trainer)
    if cause is None:
        _complete(app, checkpoint)
        return
    try:
        _complete(app, checkpoint)
    except Exception as error:  # noqa: BLE001 - told with the error that is raised
        if str(error) != str(cause):
            cause.add_note(f"After this no checkpoint was written: {error}")
    else:
        return
    raise cause


def _end_of(trainer: Any) -> BaseException | None:
    """Return the error that ends a training at the moment, while callbacks may write a last checkpoint."""
    is_ending = trainer is not None and trainer.interrupted and trainer.state.stage is not None
    return sys.exception() if is_ending else None


def _complete(app: Any, checkpoint: dict[str, Any]) -> None:
    trainer = app._trainer
    state = checkpoint.get("state_dict") or {}
    is_in_training = trainer is not None and trainer.state.fn is TrainerFn.FITTING
    require_recipe(app, OF_TRAINING if is_in_training else (), state)
    if state and (trainer is None or trainer.is_global_zero):
        _check_written(app, state)
    # What a constructor's save_hyperparameters() kept is in the recipe as well; here stays what every reader can open.
    checkpoint["hyper_parameters"] = {name: value for name, value in app.hparams.items() if is_plain(value)}
    names = {weights.normal_name(name) for name in app.state_dict()}
    recipe: str = app.hparams[RECIPE_KEY]
    checkpoint[STATE_KEY] = note_state(app, recipe, names, _modes_of_training(app, trainer)).to_text()
    checkpoint[TENSORS_KEY] = {} if is_sharded(app) else kept(app, names, again_of(app).places)
    if trainer is None or trainer.world_size == 1:
        checkpoint[RANDOM_KEY] = random_state()
    weights.own_memory(app)


def _check_written(app: Any, state: Mapping[str, Any]) -> None:
    """Raise when weights that are about to be written would not come back."""
    others = {}
    for name, value in state.items():
        require_dense(name, value)
        if isinstance(value, torch.Tensor):
            require_values(name, value)
        else:
            others[name] = value
    require_openable(others)
    groups = weights.differences(weights.forms(state), weights.forms(again_of(app).whole().state_dict()))
    if not app.strict_loading:
        groups.pop("missing", None)
    if groups:
        raise CheckpointError(
            f"what is written for {type(app).__name__} is not what its recipe makes; against its recipe: "
            f"{weights.listed(groups)}. {REFUSED}"
        )


def _modes_of_training(app: Any, trainer: Any) -> dict[int, bool]:
    """Return the modes that modules have while they are trained, if the trainer evaluates them at the moment."""
    if trainer is None or not trainer.evaluating:
        return {}
    captured = trainer._evaluation_loop._module_mode.mode
    return {id(module): captured[name] for name, module in app.named_modules() if name in captured}


def resume(app: Any, checkpoint: Mapping[str, Any]) -> None:
    """Let the random generators go on where they stood when a checkpoint was written, if training resumes from it."""
    trainer = app._trainer
    if trainer is not None and trainer.training and trainer.world_size == 1 and RANDOM_KEY in checkpoint:
        resume_randomness(checkpoint[RANDOM_KEY])


def save(app: Any, path: Path, codecs: Sequence[Codec[Any]], allow_pickle: bool) -> None:
    """Write a checkpoint of a built application, without a trainer: see `Application.save`."""
    if codecs or allow_pickle:
        raise ArgumentError(
            f"a checkpoint takes no codecs and no pickles, since a trainer would write none. "
            f"Save a model file: {path.with_suffix(SUFFIX)}"
        )
    if not app._has_built:
        raise NotBuiltError(f"{type(app).__name__} has no weights yet. Build it first: app.build(x)")
    require_recipe(app, ())
    content: dict[str, Any] = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": app.state_dict(),
    }
    app.on_save_checkpoint(content)
    replace_file(path, lambda file: torch.save(content, file), partial(_require_opens, app))


def _require_opens(app: Any, path: Path) -> None:
    """Raise when a checkpoint that was just written could not be opened."""
    try:
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:
        raise RecipeError(
            "no-data-form",
            "checkpoint",
            f"what on_save_checkpoint() of {type(app).__name__} put into the checkpoint cannot be opened without "
            "unpickling. Let it be numbers, strings and tensors",
        ) from error


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
    content, is_mapped = opened(path, "cpu" if map_location is None else map_location)
    stored = state_dict_of(path, content)
    parameters = content.get("hyper_parameters", {})
    record = recipe_of(parameters, limits).record(**options)
    _require_class(cls, record)
    sizes, dtype = build_arguments(parameters)
    state, tensors = beside(path, content)

    def make() -> Any:
        with default_dtype(dtype):
            made = _made(record, sizes, settings)
        if state is not None:
            set_modes(made, state.modes)
        return made

    app = measured(lambda: weights.skeleton(make), _for_mapped(limits, stored) if is_mapped else limits)
    app.on_load_checkpoint(content)
    require_places(weights.forms(tensors), app)
    put_back(app, {name: tensor.cpu().clone() for name, tensor in tensors.items() if not tensor.is_meta})
    weights.assign(app, content["state_dict"], app.strict_loading if strict is None else strict, make)
    if state is not None:
        restore(app, state)
    devices = {tensor.device for tensor in app.state_dict().values() if isinstance(tensor, torch.Tensor)}
    if len(devices) == 1:
        app.to(devices.pop())
    if is_mapped:
        app.__dict__[weights.MAPPED] = True
    remember_call(app, lambda: _configured(record, settings))
    return app


def load_unbuilt(cls: type, path: Path, *, limits: Limits = _LIMITS, **options: Any) -> Any:
    """Return the application of a checkpoint without its weights: see `replayml.load`."""
    content, _ = opened(path, "cpu")
    state_dict_of(path, content)
    app = recipe_of(content.get("hyper_parameters", {}), limits).model(**options)
    _require_class(cls, describe(app))
    return app


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
        raise bad_build(f"they are {type(build_kwargs).__name__}, not a dict. Nothing was unpickled")
    build_kwargs = dict(build_kwargs)
    own = {key: build_kwargs.pop(key) for key in (SIZES_KEY, DTYPE_KEY) if key in build_kwargs}
    sizes, dtype = build_arguments({KWARGS_KEY: own})
    record = recipe_of(keywords, _LIMITS).record()
    _require_class(cls, record)
    with default_dtype(dtype):
        return _made(record, sizes, settings, tuple(keywords.get(ARGS_KEY) or ()), build_kwargs)


def _require_class(cls: type, record: CallRecord) -> None:
    if not (isinstance(record.cls, type) and issubclass(record.cls, cls)):
        raise CheckpointError(
            f"the checkpoint holds a {record.cls.__name__}, which is no {cls.__name__}. "
            f"Load it with {record.cls.__name__}.load_from_checkpoint or replayml.Application.load_from_checkpoint"
        )


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
