"""The models that the benchmarks compare: one recorded, one written by hand."""

from __future__ import annotations

import torch
from torch import nn

import replayml

WIDTH = 64


class Recorded(replayml.Module):
    """``count`` layers, recorded."""

    def __init__(self, count: int = 10) -> None:
        self.layers = replayml.LayerList([replayml.Layer(nn.Linear, WIDTH, WIDTH) for _ in range(count)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, WIDTH)`` for ``(batch, WIDTH)``."""
        for layer in self.layers:
            x = layer(x)
        return x


class ByHand(nn.Module):
    """The same layers in plain torch."""

    def __init__(self, count: int = 10) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(count)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, WIDTH)`` for ``(batch, WIDTH)``."""
        for layer in self.layers:
            x = layer(x)
        return x
