"""Applications of a user, data that comes with scikit-learn, and the options that keep a trainer quiet.

The classes stand in a module of their own, so that another process can import them.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import LightningDataModule
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import replayml

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "enable_checkpointing": False,
}


def saving(folder: Path, **options: Any) -> dict[str, Any]:
    """Return the options of a quiet trainer that writes checkpoints into a folder."""
    return {**QUIET, "enable_checkpointing": True, "default_root_dir": folder, **options}


def best_path(trainer: Any) -> str:
    """Return where a trainer wrote its best checkpoint."""
    path: str = trainer.checkpoint_callback.best_model_path
    return path


# Data -----------------------------------------------------------------------------------------------------------


@functools.cache
def digits(rows: int = 600) -> tuple[Tensor, Tensor]:
    """Return handwritten digits: ``(rows, 64)`` in [0, 1], and the classes 0 to 9."""
    data = load_digits()
    return torch.tensor(data.data[:rows] / 16, dtype=torch.float32), torch.tensor(data.target[:rows])


@functools.cache
def tumours(rows: int = 400) -> tuple[Tensor, Tensor]:
    """Return measurements of tumours: ``(rows, 30)``, standardised, and whether they are benign."""
    data = load_breast_cancer()
    x = torch.tensor(data.data[:rows], dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.tensor(data.target[:rows])


@functools.cache
def diabetes() -> tuple[Tensor, Tensor]:
    """Return ten measurements of each of 442 patients, standardised, and the progression of their illness."""
    data = load_diabetes()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target, dtype=torch.float32)
    return x / x.std(0), (y - y.mean()) / y.std()


def loader(data: tuple[Tensor, ...], batch_size: int = 100, **options: Any) -> DataLoader[Any]:
    """Return a loader of arrays."""
    return DataLoader(TensorDataset(*data), batch_size=batch_size, **options)


class Digits(LightningDataModule):
    """Digits to train, validate, test and predict with."""

    def __init__(self, batch_size: int = 100) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        self.data = TensorDataset(*digits())

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=self.batch_size)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader


# Models ---------------------------------------------------------------------------------------------------------


def network(outputs: int = 10, width: int = 16, inputs: int | None = None) -> Any:
    """Return a small network, whose first size is read off the input if it is not given."""
    return replayml.Sequential(
        replayml.Layer(nn.Linear, inputs, width),
        replayml.Layer(nn.ReLU),
        replayml.Layer(nn.Linear, width, outputs),
    )


def classifier(**options: Any) -> replayml.Classifier:
    """Return a classifier of digits with open sizes."""
    return replayml.Classifier(network(), **{"num_classes": 10, "optimizer": replayml.Adam(lr=0.03), **options})


class Scaled(replayml.Application):
    """An application with steps, an optimizer and arguments of its own."""

    def __init__(self, width: int, scale: float = 1.0, *, depth: int = 1, **options: Any) -> None:
        self.scale = scale
        self.layers = replayml.LayerList(*[replayml.Layer(nn.Linear, None, width) for _ in range(depth)])
        self.head = replayml.Layer(nn.Linear, None, 10)
        super().__init__(loss=nn.functional.cross_entropy, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        for layer in self.layers:
            x = layer(x).relu()
        result: Tensor = self.head(x)
        return result

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss: Tensor = self.compute_loss(self(x), y)
        self.log("my_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9),
        }


class Positions(nn.Module):
    """Adds a constant that is in no ``state_dict``: one as a buffer, one as an attribute."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("waves", torch.sin(torch.arange(size) / math.pi), persistent=False)
        self.register_buffer("filled", torch.empty(size), persistent=False)
        self.filled.copy_(torch.arange(size) / size)
        self.steps = torch.linspace(0, 1, size)

    waves: Tensor
    filled: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return x + self.waves + self.filled + self.steps.to(x)


class Tied(replayml.Module):
    """An encoder whose decoder has the same weight, and a normalisation with statistics."""

    def __init__(self, inputs: int = 64, width: int = 16) -> None:
        self.inner = replayml.Layer(nn.Linear, inputs, width, bias=False)
        self.norm = replayml.Layer(nn.BatchNorm1d, width)
        self.outer = replayml.Layer(nn.Linear, width, inputs, bias=False)
        self.again = self.inner
        self.tie()

    @replayml.after_build
    def tie(self) -> None:
        self.outer.weight = nn.Parameter(torch.empty(64, 16).normal_())
        self.copy = nn.Linear(16, 64, bias=False)
        self.copy.weight = self.outer.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.inner(x)) + self.again(x)
        result: Tensor = self.outer(hidden) + self.copy(hidden)
        return result


class Hooked(replayml.Classifier):
    """Notes when its hooks run."""

    def __init__(self, model: Any = None, **options: Any) -> None:
        super().__init__(model=network() if model is None else model, num_classes=10, **options)
        self.seen: list[Any] = []

    @replayml.before_fit
    def still(self, index: int) -> None:
        self.seen.append(("still", self._has_built, self.trainer.global_step, len(self.trainer.optimizers)))
        self.model[index].requires_grad_(False)

    @replayml.after_fit
    def thaw(self, index: int) -> None:
        self.seen.append(("thaw", self._has_built, self.trainer.global_step, self.training))
        self.model[index].requires_grad_(True)


def plain_trainer(**options: Any) -> lightning.Trainer:
    """Return Lightning's own trainer, quiet."""
    return lightning.Trainer(**{**QUIET, "max_epochs": 1, **options})
