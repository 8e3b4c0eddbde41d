"""What an application notes of itself for checkpoints: its recipe, and whether it still is what that makes.

Invariants:
    * The recipe stands among the hyper-parameters, where Lightning saves it; where there can be none, the reason is
      kept, and raised when a checkpoint is to be written.
    * What is noted is of one application: a copy of it notes anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

from replayml.core.copying import describe
from replayml.core.errors import RecipeError
from replayml.module import sameness
from replayml.module.keeping import Again
from replayml.module.sizes import BUILD_DTYPE, note_taken, sizes_of, write_sizes
from replayml.recipe import Recipe
from replayml.recipe.files import weights
from replayml.recipe.files.dense import require_dense
from replayml.training.opening import ARGS_KEY, DTYPE_KEY, KWARGS_KEY, RECIPE_KEY, SIZES_KEY

__all__ = [
    "DEFAULT_DTYPE",
    "EXPECTED",
    "FAULT",
    "OF_TRAINING",
    "REFUSED",
    "again_of",
    "note_build",
    "note_recipe",
    "require_recipe",
]

FAULT = "_recipe_fault"
EXPECTED = "_expected_weights"
DEFAULT_DTYPE = BUILD_DTYPE

_NO_CHECKPOINT = (
    "A checkpoint of this model could not be loaded again, so none is written. {remedy}, or train with "
    "enable_checkpointing=False"
)
REFUSED = _NO_CHECKPOINT.format(
    remedy="Take the change back, make it before the build (on app.new()), or in a method that is decorated with "
    "@replayml.after_build"
)

# What no longer is as in the recipe, but costs a training no weights: hooks may only look, and a schedule of a callback
# changes settings, or an activation.
OF_CALLBACKS = (sameness.HOOKS,)
OF_TRAINING = (sameness.HOOKS, sameness.FORWARD, sameness.SETTINGS, sameness.ATTRIBUTES, sameness.LIGHT)


def note_build(app: Any) -> None:
    """Note the recipe of an application that was just built."""
    note_taken(app)
    note_recipe(app)


def note_recipe(app: Any) -> None:
    """Put the recipe of a built application among its hyper-parameters, where Lightning saves it."""
    app.__dict__.pop(FAULT, None)
    before = app.__dict__.pop(EXPECTED, None)
    if isinstance(before, Again) and before.is_of(app):
        again_of(app).is_trained = before.is_trained
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


def require_recipe(
    app: Any, told: Collection[str] = OF_CALLBACKS, written: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Raise when a checkpoint of an application could not be loaded.

    Args:
        app: The application.
        told: What is told in a warning instead, as for `replayml.module.keeping.Again.require_same`; of an application
            that has been trained, whatever costs no weights.
        written: Its weights, where others than those in its ``state_dict`` are about to be written.

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
    state = {weights.normal_name(name): value for name, value in app.state_dict().items()}
    if written:
        names = {weights.normal_name(name): value for name, value in written.items()}
        state = {name: state.get(name, value) for name, value in names.items()}
    for name, value in state.items():
        require_dense(name, value)
    told = OF_TRAINING if is_trained(app) else told
    again_of(app).require_same(state, partly=not app.strict_loading, told=told, end=REFUSED)


def again_of(app: Any) -> Again:
    """Return what makes an application again, as loading its checkpoint would; a copy of it gets one of its own."""
    found = app.__dict__.get(EXPECTED)
    if isinstance(found, Again) and found.is_of(app):
        return found
    new = app.__dict__[EXPECTED] = Again(app)
    return new


def is_trained(app: Any) -> bool:
    """Tell whether an application has been trained while the program runs, and remember it."""
    again, trainer = again_of(app), app._trainer
    if trainer is not None and not is_fitting(trainer) and trainer.lightning_module is app:
        again.is_trained |= trainer.fit_loop.epoch_loop.batch_progress.total.started > 0
    return again.is_trained


def is_fitting(trainer: Any) -> bool:
    return trainer.state.fn is TrainerFn.FITTING and trainer.state.status is TrainerStatus.RUNNING
