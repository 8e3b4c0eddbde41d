"""`Lifecycle`: the callback that an application brings along when it is trained.

Invariants:
    * A trainer has it once, however often it trains, and it leaves other models alone.
    * Other callbacks find the weights in their ``setup``, unless a strategy wants to make them itself, or the data is
      the application's own, which prepares it later.
"""

from __future__ import annotations

from typing import Any

from lightning import LightningModule
from lightning.pytorch import Callback
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from replayml.core.hooks import run_waiting
from replayml.training.first_batch import example_inputs, hands_weights_back

__all__ = ["Lifecycle", "build"]


class Lifecycle(Callback):
    """Builds an application before other callbacks look at it, and runs what waits for the end of its training."""

    @classmethod
    def join(cls, trainer: Any) -> None:
        """Put one in front of the callbacks of a trainer, if there is none yet."""
        if not any(isinstance(callback, cls) for callback in trainer.callbacks):
            trainer.callbacks.insert(0, cls())

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


def build(app: Any) -> None:
    """Build an application, from the first batch where sizes are open."""
    args, kwargs = example_inputs(app)
    app.build(*args, **kwargs)
