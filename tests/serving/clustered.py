"""What the tests of a cluster serve: a model that tells which processes it ran in, and does there what it is told."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

import replayml
from tests.serving.versions import DIES, RAISES, pass_by


class Clustered(replayml.Module):
    """A layer with a number, by which its versions are told apart."""

    def __init__(self, gate: str) -> None:
        self.layer = replayml.Layer(nn.Linear, 4, 3)
        self.gate = gate

    @property
    def number(self) -> int:
        """The number."""
        return int(self.layer.bias[0].item())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.number == RAISES:
            raise ValueError("the weights are bad")
        if self.number == DIES:
            os._exit(9)
        if self.gate:
            pass_by(Path(self.gate), self.number)
        if bool((x < -1000).any()):
            raise ValueError("a row is too low")
        result: torch.Tensor = self.layer(x)
        return result


def renumber(model: Clustered, number: int) -> None:
    """Give a model its number."""
    with torch.no_grad():
        model.layer.bias[0] = number
