"""Files for the tests of the command: models of all kinds, and the command itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typer.testing import CliRunner

import replayml
from replayml.cli.main import app
from replayml.layers.layer import Layer
from replayml.module.module import Module

OWN = """
import pathlib
import replayml
from torch import nn

pathlib.Path("imported.txt").write_text("yes")

class Net(replayml.Module):
    def __init__(self, width=4):
        self.hidden = replayml.Layer(nn.Linear, 2, width)
        self.activation = replayml.Layer(nn.ReLU)
        self.out = replayml.Layer(nn.Linear, width, 1)

    def forward(self, x):
        return self.out(self.activation(self.hidden(x)))
"""
"""A module of a user; it leaves a trace where it is imported."""


class Net(Module):
    """A model that the command knows when the tests have imported this file."""

    def __init__(self, width: int = 4) -> None:
        self.hidden = Layer(nn.Linear, 2, width)
        self.out = Layer(nn.Linear, width, 1)

    def forward(self, x: torch.Tensor) -> Any:
        """Return ``(batch, 1)``."""
        return self.out(self.hidden(x))


def run(*words: object) -> Any:
    """Run the command in this process; gives ``exit_code``, ``stdout``, ``stderr``."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def run_json(*words: object) -> dict[str, Any]:
    """Run the command with ``--json`` and return the object that it prints, which has the exit code."""
    result = run(*words, "--json")
    found: dict[str, Any] = json.loads(result.stdout)
    assert found["exit_code"] == result.exit_code
    return found


def mlp() -> Any:
    """Return an unbuilt network that was varied by the user."""
    model = replayml.MultiLayerPerceptron(4, [8, 8], 2)
    model["blocks", 0, "activation"].configure(nn.GELU)
    model["blocks", 1, "layer"].configure(bias=False)
    return model


def write_recipe(path: Path, model: Any) -> Path:
    """Write the recipe of a model."""
    path.write_text(model.recipe().to_json(), encoding="ascii")
    return path


def write_checkpoint(path: Path) -> Path:
    """Write the checkpoint of a built application."""
    replayml.Regressor(mlp()).build(seed=0).save(path)
    return path
