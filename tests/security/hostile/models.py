"""The modules of the program that opens the hostile files."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import replayml


class Small(replayml.Module):
    """A network with a buffer and an open size."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.hidden = replayml.Layer(nn.Linear, None, width)
        self.norm = replayml.Layer(nn.BatchNorm1d, width)
        self.head = replayml.Layer(nn.Linear, width, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.norm(self.hidden(x)))


class Deep(replayml.Module):
    """Takes as many layers as it is told."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = replayml.LayerList(*(replayml.Layer(nn.ReLU) for _ in range(depth)))


class Tensors(replayml.Module):
    """Makes as many tensors as it is told, of any size, in one of several ways."""

    def __init__(self, count: int, rows: int = 1, how: str = "zeros") -> None:
        super().__init__()
        for _ in range(count):
            if how == "zeros":
                self.last = torch.zeros(rows, device="cpu")
            elif how == "repeat":
                self.last = torch.zeros(1).repeat(rows)
            else:
                self.last = torch.zeros(1).expand(rows).clone()
        self.count = count

    def __len__(self) -> int:
        return self.count


class Waiting(replayml.Module):
    """Works on one small tensor for as long as it is told."""

    def __init__(self, rounds: int) -> None:
        super().__init__()
        tensor = torch.zeros(1)
        for _ in range(rounds):
            tensor.add_(1)
