"""What the tests of new versions serve: a model whose one weight is the number that it answers with."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

import replayml

RAISES, DIES, HANGS, NOT_A_NUMBER = 100, 200, 300, 400
"""Numbers that a worker does not get ready with, but for the last, which is no fault."""


class Numbered(replayml.Module):
    """Answers with a number, and training makes it the next one."""

    def __init__(self, gate: str | None = None) -> None:
        self.layer = replayml.Layer(nn.Linear, 1, 1, bias=False)
        self.gate = gate

    def _get_train_tasks(self) -> Callable[[], None]:
        return lambda: teach(self, self.number + 1)

    @property
    def number(self) -> int:
        """The number."""
        return int(self.layer.weight.item())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        number = self.number
        if self.gate is not None:
            pass_by(Path(self.gate), number)
        if number == RAISES:
            raise ValueError("the weights are bad")
        if number == DIES:
            os._exit(9)
        if number == HANGS:
            time.sleep(600)
        result: torch.Tensor = self.layer(x)
        return result * float("nan") if number == NOT_A_NUMBER else result


def teach(model: Any, number: int) -> None:
    """Give a model its number."""
    with torch.no_grad():
        model.layer.weight.fill_(number)


def pass_by(gate: Path, number: int) -> None:
    """Tell that a process came by, and wait where the gate is shut for its number."""
    (gate / f"{number}-{os.getpid()}").touch()
    while (gate / f"shut-{number}").exists() or (gate / f"shut-{os.getpid()}").exists():
        time.sleep(0.01)


def comers(gate: Path, number: int) -> list[int]:
    """Return the processes that came by with a number."""
    return [int(path.name.partition("-")[2]) for path in gate.glob(f"{number}-*")]


def count_to(last: int, gate: str) -> Iterator[int]:
    """Count, and wait at a gate after the first number."""
    for number in range(last):
        yield number
        pass_by(Path(gate), number)
