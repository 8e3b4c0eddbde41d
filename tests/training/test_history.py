"""`LogHistory`: what it records, what it keeps apart, and what survives a checkpoint."""

import copy
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from replayml.core.errors import CheckpointError, ConfigurationError
from replayml.training.history import LogHistory
from replayml.training.records import series_name


class Model(LightningModule):
    """Logs in every hook that may, and keeps what it logged, for comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.spread = MeanMetric()
        self.logged: dict[str, list[float]] = {}

    def note(self, key: str, value: Tensor | float) -> None:
        self.logged.setdefault(key, []).append(torch.as_tensor(value).detach().item())

    def loss(self, batch: Any) -> Tensor:
        return ((self.layer(batch[0]) - batch[1]) ** 2).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.note("train_loss", loss)
        self.log("loss", loss * 2, logger=False)
        if batch_idx % 2:
            self.log("odd", loss)
            self.note("odd", loss)
        self.spread(loss)
        self.log("spread", self.spread, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        late = self.layer.weight.detach().sum()
        self.log("late_step", late)
        self.note("late_step", late)

    def on_train_epoch_end(self) -> None:
        self.log("late_epoch", float(self.current_epoch) + 0.5)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = self.loss(batch)
        if not self.trainer.sanity_checking:
            self.note("val_loss", loss)
        self.log("val_loss", loss, on_step=True, on_epoch=True)
        self.log("loss", loss * 3)

    def on_validation_epoch_end(self) -> None:
        self.log("val_late", 7.0)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("accuracy", float(dataloader_idx), on_step=True, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(samples: int = 12, batch_size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 4, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=batch_size)


def trainer(folder: Path, history: LogHistory, *callbacks: Callback, **options: Any) -> Trainer:
    options = {"max_epochs": 2, "enable_checkpointing": False, **options}
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        callbacks=[history, *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Model, LogHistory]:
    """Return a model and the history of its training: 2 epochs of 3 batches, validated once per epoch."""
    model, history = Model(), LogHistory()
    trainer(tmp_path, history).fit(model, loader(), loader(8))
    return model, history


def test_step_values_are_those_that_were_logged(trained: tuple[Model, LogHistory]) -> None:
    """Each batch leaves the value that it logged, with its epoch and the optimizer steps taken."""
    model, history = trained
    assert history.step["train_loss"]["value"] == pytest.approx(model.logged["train_loss"])
    assert history.step["train_loss"]["epoch"] == [0, 0, 0, 1, 1, 1]
    assert history.step["train_loss"]["step"] == [1, 2, 3, 4, 5, 6]


def test_epoch_values_are_the_means_over_the_epoch(trained: tuple[Model, LogHistory]) -> None:
    """An epoch value is what Lightning reduced over the batches of the epoch, torchmetrics included."""
    model, history = trained
    losses = torch.tensor(model.logged["train_loss"]).reshape(2, 3).mean(1).tolist()
    assert history.epoch["train_loss"]["value"] == pytest.approx(losses)
    assert history.epoch["spread"]["value"] == pytest.approx(losses)
    assert history.epoch["train_loss"]["epoch"] == [0, 1]
    assert history.epoch["train_loss"]["step"] == [3, 6]


def test_names_are_those_given_to_log(trained: tuple[Model, LogHistory]) -> None:
    """A metric that is logged per step and per epoch stands at both levels under its own name."""
    _, history = trained
    assert set(history.step) == {"train_loss", "loss", "odd", "late_step", "val_loss"}
    assert set(history.epoch) == {"train_loss", "spread", "late_epoch", "val_loss", "val_late"}


def test_a_value_logged_now_and_then_is_recorded_only_then(trained: tuple[Model, LogHistory]) -> None:
    """A batch that logs nothing under a name adds nothing to its series."""
    model, history = trained
    assert history.step["odd"]["value"] == pytest.approx(model.logged["odd"])
    assert history.step["odd"]["step"] == [2, 5]


def test_what_the_modules_own_hooks_log_is_recorded(trained: tuple[Model, LogHistory]) -> None:
    """Values logged in hooks that run after the callbacks' count for their own batch and epoch."""
    model, history = trained
    assert history.step["late_step"]["value"] == pytest.approx(model.logged["late_step"])
    assert history.step["late_step"]["step"] == [1, 2, 3, 4, 5, 6]
    assert history.epoch["late_epoch"] == {"value": [0.5, 1.5], "epoch": [0, 1], "step": [3, 6]}
    assert history.epoch["val_late"] == {"value": [7.0, 7.0], "epoch": [0, 1], "step": [3, 6]}
