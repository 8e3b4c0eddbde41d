"""Reload of 100 M parameters to the first output, against Lightning's own ``load_from_checkpoint``."""

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
    """Measure the budget."""
    x = torch.randn(1, WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.ckpt", Path(folder) / "theirs.ckpt"
        layers = [replayml.Layer(nn.Linear, WIDTH, WIDTH) for _ in range(DEPTH)]
        app = replayml.Regressor(replayml.Sequential(layers)).build()
        plain = Plain()
        _save(app, ours)
        _save(plain, theirs)
        count = sum(parameter.numel() for parameter in app.parameters())

        def load(cls: type, path: Path) -> None:
            with torch.inference_mode():
                cls.load_from_checkpoint(path, map_location="cpu", weights_only=True).eval()(x)  # type: ignore[attr-defined]

        our_time, their_time = best_of(lambda: load(replayml.Application, ours), lambda: load(Plain, theirs), rounds=4)
    detail = f"{count / 1e6:.0f} M parameters: Lightning {shown(their_time)}, replayml {shown(our_time)}"
    return [Result("reload to first output, Lightning / replayml", their_time / our_time, 8.0, detail, at_least=True)]
