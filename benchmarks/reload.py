"""Reload of 100 M parameters to the first output.

A model file and a checkpoint, against Lightning's own ``load_from_checkpoint``; and a model file, whose bytes are all
checked, against reading the bytes of its weights into memory alone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from lightning import LightningModule
from lightning.pytorch import Trainer
from torch import nn

import replayml
from benchmarks.measure import Result, best_of, shown

WIDTH = 4096
DEPTH = 6


class Stack(nn.Module):
    """``depth`` wide linear layers: 100 M parameters with the defaults."""

    def __init__(self, width: int = WIDTH, depth: int = DEPTH) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, width)`` for ``(batch, width)``."""
        for layer in self.layers:
            x = layer(x)
        return x


class Plain(LightningModule):
    """The stack as a plain Lightning module with saved hyper-parameters."""

    def __init__(self, width: int = WIDTH, depth: int = DEPTH) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = Stack(width, depth)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the model's output."""
        return self.model(x)


def _save(model: LightningModule, path: Path) -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)


def run() -> list[Result]:
    """Measure the budgets."""
    x = torch.randn(1, WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, theirs, ours = (Path(folder) / name for name in ("ours.ckpt", "theirs.ckpt", "ours.replayml"))
        layers = [replayml.Layer(nn.Linear, WIDTH, WIDTH) for _ in range(DEPTH)]
        app = replayml.Regressor(replayml.Sequential(layers)).build()
        plain = Plain()
        _save(app, checkpoint)
        _save(plain, theirs)
        app.save(ours)
        count = sum(parameter.numel() for parameter in app.parameters())

        def use(model: nn.Module) -> None:
            with torch.inference_mode():
                model.eval()(x)

        times = best_of(
            lambda: use(Plain.load_from_checkpoint(theirs, map_location="cpu", weights_only=True)),
            lambda: use(replayml.Application.load_from_checkpoint(checkpoint)),
            lambda: use(replayml.load(ours)),
            ours.read_bytes,
            lambda: replayml.load(ours),
            rounds=4,
        )
    lightning, by_checkpoint, by_file, reading, loading = times
    size = f"{count / 1e6:.0f} M parameters: "
    against = f"{size}Lightning {shown(lightning)}, "
    return [
        Result(
            "reload of a checkpoint to first output, Lightning / replayml",
            lightning / by_checkpoint,
            8.0,
            f"{against}replayml {shown(by_checkpoint)}",
            at_least=True,
        ),
        Result(
            "reload of a model file to first output, Lightning / replayml",
            lightning / by_file,
            8.0,
            f"{against}replayml {shown(by_file)}",
            at_least=True,
        ),
        Result(
            "load of a model file / reading its bytes",
            loading / reading,
            1.5,
            f"{size}load {shown(loading)}, read {shown(reading)}",
        ),
    ]
