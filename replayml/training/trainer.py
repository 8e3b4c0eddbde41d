"""Lightning's Trainer with a history and a progress bar of its own.

Invariants:
    * Every argument and method is Lightning's, with the same meaning and the same defaults but those that the class
      names; editors and `inspect.signature` see Lightning's signatures.
    * What the user gives wins: a history, a progress bar or a logger among the arguments is used as it is.
    * Neither warning filters nor log levels are changed.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Sized
from typing import Any, Concatenate, ParamSpec, TypeVar

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from replayml.core.errors import ConfigurationError
from replayml.training.history import LogHistory
from replayml.training.progress import ProgressBar

__all__ = ["Trainer"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_LIGHTNING_LOG_INTERVAL = 50


def _signed_like(
    method: Callable[Concatenate[Any, _Arguments], _Result],
) -> Callable[[Callable[..., _Result]], Callable[Concatenate[Any, _Arguments], _Result]]:
    """Give a method the signature and the documentation of Lightning's."""

    def sign(own: Callable[..., _Result]) -> Callable[Concatenate[Any, _Arguments], _Result]:
        return functools.wraps(method)(own)

    return sign


class Trainer(LightningTrainer):
    """Lightning's Trainer, which also keeps a history and shows a tidier progress bar.

    It takes what Lightning's takes. What differs, each only where the user has not decided it:

    * A `LogHistory` records every logged metric; ``trainer.history`` returns it. (Not with ``barebones=True``.)
    * The progress bar is `ProgressBar`; ``enable_progress_bar=False`` leaves it out.
    * Training without validation data is a choice, about which Lightning's warning is not repeated.
    * An epoch with fewer than 50 batches is logged once per epoch, where Lightning's interval of 50 steps would warn
      and log nothing.
    * Where TensorBoard is not installed, metrics are logged to CSV files, as in Lightning, without its advice.

    Example:
        >>> trainer = Trainer(max_epochs=3, logger=False, enable_checkpointing=False)
        >>> trainer.history
        LogHistory()
    """

    log_every_n_steps: int

    @_signed_like(LightningTrainer.__init__)
    def __init__(self, **kwargs: Any) -> None:
        given = kwargs.get("callbacks")
        given = [given] if isinstance(given, Callback) else list(given or ())
        kwargs["callbacks"] = list(given)  # a copy, for Lightning appends its own to the list
        own = {id(callback) for callback in given}
        if _falls_back_to_csv(kwargs):
            kwargs["logger"] = CSVLogger(save_dir=kwargs.get("default_root_dir") or os.getcwd())
        super().__init__(**kwargs)
        self._adapts_log_interval = (
            kwargs.get("log_every_n_steps") is None and self.log_every_n_steps == _LIGHTNING_LOG_INTERVAL
        )
        self.callbacks: list[Callback] = [
            ProgressBar()
            if type(callback) in (RichProgressBar, TQDMProgressBar) and id(callback) not in own
            else callback
            for callback in self.callbacks
        ]
        if not self.barebones and not any(isinstance(callback, LogHistory) for callback in self.callbacks):
            self.callbacks.insert(0, LogHistory())

    @property
    def history(self) -> LogHistory:
        """The record of every logged metric.

        Raises:
            ConfigurationError: When the Trainer keeps none.
        """
        for callback in self.callbacks:
            if isinstance(callback, LogHistory):
                return callback
        raise ConfigurationError(
            "this Trainer keeps no history, for barebones=True turns logging off; leave it out to keep one"
            if self.barebones
            else "this Trainer keeps no history, for it was taken out. Make another: Trainer(...)"
        )

    @_signed_like(LightningTrainer.fit)
    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Train a model, as Lightning does; its documentation takes the place of this line."""
        if self._adapts_log_interval:
            batches = self._batches_per_epoch(train_dataloaders)
            self.log_every_n_steps = max(1, min(_LIGHTNING_LOG_INTERVAL, batches))
        limit_val_batches = self.limit_val_batches
        if val_dataloaders is None and _gives_training_data_alone(model, train_dataloaders, datamodule):
            val_dataloaders, self.limit_val_batches = [], 0  # said so, Lightning does not warn that there is none
        try:
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, *args, **kwargs)
        finally:
            self.limit_val_batches = limit_val_batches

    @_signed_like(LightningTrainer.save_checkpoint)
    def save_checkpoint(self, filepath: Any, weights_only: bool | None = None, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint, as Lightning does; its documentation takes the place of this line."""
        # Lightning's default, said so that it logs no line about it
        super().save_checkpoint(filepath, bool(weights_only), *args, **kwargs)

    # Changing the callbacks later, under Deeplay's names ------------------------------------------------------

    def disable_history(self) -> None:
        """Keep no history."""
        self._take_out(LogHistory)

    def disable_progress_bar(self) -> None:
        """Show no progress bar."""
        self._take_out(LightningProgressBar)

    def tqdm_progress_bar(self, refresh_rate: int = 1) -> None:
        """Show Lightning's plain progress bar instead.

        Args:
            refresh_rate: After how many batches to draw it again.
        """
        self.disable_progress_bar()
        self.callbacks.append(TQDMProgressBar(refresh_rate=refresh_rate))

    def rich_progress_bar(self, refresh_rate: int = 1, leave: bool = False) -> None:
        """Show Lightning's colourful progress bar instead.

        Args:
            refresh_rate: After how many batches to draw it again.
            leave: Whether to keep the bars of past epochs.
        """
        self.disable_progress_bar()
        self.callbacks.append(RichProgressBar(refresh_rate=refresh_rate, leave=leave))

    def _take_out(self, kind: type[Callback]) -> None:
        self.callbacks[:] = [callback for callback in self.callbacks if not isinstance(callback, kind)]

    def _batches_per_epoch(self, loader: Any) -> int:
        """Return the training batches of an epoch, or Lightning's interval where they cannot be counted."""
        if not (isinstance(loader, DataLoader) and isinstance(loader.dataset, Sized)):
            return _LIGHTNING_LOG_INTERVAL
        batches = len(loader) // self.world_size
        limit = self.limit_train_batches
        return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _falls_back_to_csv(kwargs: dict[str, Any]) -> bool:
    """Whether Lightning would choose its CSV logger by itself, for want of TensorBoard."""
    logger_is_default = kwargs.get("logger") is True or (
        kwargs.get("logger") is None and not kwargs.get("barebones") and not os.environ.get("PL_TRAINER_LOGGER")
    )
    return logger_is_default and not any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX"))


def _gives_training_data_alone(model: LightningModule, train_dataloaders: Any, datamodule: Any) -> bool:
    """Whether the user passed training data, and validation data can come from nowhere else."""
    passed = train_dataloaders is not None and not isinstance(train_dataloaders, LightningDataModule)
    return passed and datamodule is None and not is_overridden("val_dataloader", model)
