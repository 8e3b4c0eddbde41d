"""The callbacks that an application brings along when it is trained: `Lifecycle`, and where it is saved `Start`.

Invariants:
    * A trainer has each once, however often it trains, and they leave other models alone.
    * Other callbacks find the weights in their ``setup``, unless a strategy wants to make them itself, or the data is
      the application's own, which prepares it later.
"""

from __future__ import annotations

from typing import Any

from lightning import LightningModule
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from torch import nn

from replayml.core.errors import RecipeError
from replayml.core.hooks import run_waiting
from replayml.core.meta import scope
from replayml.core.tape import CallRecord
from replayml.recipe import Recipe
from replayml.training.first_batch import example_inputs, hands_weights_back
from replayml.training.noting import EXPECTED, OF_TRAINING, again_of, require_recipe

__all__ = ["Lifecycle", "Start", "build", "is_of_run"]


class _Joining(Callback):
    """A callback that a trainer has at the most once."""

    @classmethod
    def join(cls, trainer: Any) -> None:
        """Put one in front of the callbacks of a trainer, if there is none yet."""
        if not any(isinstance(callback, cls) for callback in trainer.callbacks):
            trainer.callbacks.insert(0, cls())


class Lifecycle(_Joining):
    """Builds an application before other callbacks look at it, and runs what waits for the end of its training."""

    def setup(self, trainer: LightningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Build the application that is about to be trained, where nothing needs to be waited for."""
        strategy: Any = trainer.strategy
        if (
            stage == "fit"
            and not getattr(pl_module, "_has_built", True)
            and isinstance(strategy, (SingleDeviceStrategy, DDPStrategy))
            and not hands_weights_back(trainer)
            and trainer.fit_loop._data_source.instance is not pl_module
        ):
            # As Lightning does it around `configure_model`.
            with strategy.tensor_init_context(), trainer.precision_plugin.module_init_context():
                build(pl_module)

    def on_fit_end(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Run what waits for the end of the training."""
        run_waiting(pl_module, "after_fit")


class Start(_Joining):
    """Looks at an application once more at its first batch, after all that callbacks do before."""

    def __init__(self) -> None:
        self._is_due = False

    def on_train_start(self, trainer: LightningTrainer, pl_module: LightningModule) -> None:
        """Wait for the first batch."""
        self._is_due = EXPECTED in pl_module.__dict__

    def on_train_batch_start(
        self, trainer: LightningTrainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Raise when a checkpoint could not be loaded, and remember that the application has been trained."""
        if not self._is_due:
            return
        self._is_due = False
        if trainer.checkpoint_callbacks and _is_written_as_it_is(trainer, pl_module):
            require_recipe(pl_module, OF_TRAINING)
        again_of(pl_module).is_trained = True


def _is_written_as_it_is(trainer: Any, app: Any) -> bool:
    """Tell whether nobody has a say in what is written of an application, and its weights are at hand."""
    return (
        isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
        and type(app).on_save_checkpoint.__module__.startswith("replayml.")
        and all(type(each).on_save_checkpoint is Callback.on_save_checkpoint for each in trainer.callbacks)
    )


def is_of_run(app: Any, value: Any) -> bool:
    """Tell whether a value is a thing of a training that has begun, and not of the application, which is no data.

    A ``setup`` that runs before the build may keep a data set; modules that it makes are part of the application.
    """
    trainer = app.__dict__.get("_trainer")
    if trainer is None or app._has_built or scope() is not None or trainer.state.status is not TrainerStatus.RUNNING:
        return False
    return not (isinstance(value, nn.Parameter) or _holds_module(value) or _has_data_form(value))


def _holds_module(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return any(map(_holds_module, value)) if isinstance(value, (list, tuple)) else isinstance(value, nn.Module)


def _has_data_form(value: Any) -> bool:
    try:
        Recipe.of(CallRecord(nn.Identity, (value,)))
    except RecipeError:
        return False
    return True


def build(app: Any) -> None:
    """Build an application, from the first batch where sizes are open."""
    args, kwargs = example_inputs(app)
    app.build(*args, **kwargs)
