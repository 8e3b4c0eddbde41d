"""After a reload, `explain` shows the lines of the program that made the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import replayml
from replayml.core.tape import Where
from replayml.recipe import Recipe

NETS = """
import replayml
from torch import nn


class Net(replayml.Module):
    def __init__(self, width=8):
        self.hidden = replayml.Layer(nn.Linear, 4, width)
        self.activation = replayml.Layer(nn.ReLU)
        self.activation.configure(nn.Tanh)

    def forward(self, x):
        return self.activation(self.hidden(x))
"""

TRAIN = """
import sys

import replayml
import torch
from torch import nn

from lab.nets import Net


def widen(net):
    net.configure(width=32)


net = Net(
    width=16,
)
model = replayml.Sequential(net, replayml.Layer(nn.Linear, None, 3))
widen(model[0])
model[..., "hidden"].configure(bias=False)
model.append(replayml.Layer(nn.Sigmoid))
model.build(torch.zeros(1, 4)).save(sys.argv[1])
"""

RELOAD = """
import sys

import replayml
from lab import nets

model = replayml.load(sys.argv[1])
again = replayml.Recipe.from_json(model.recipe().to_json()).model()
for each in (model, again):
    for path, name in [("0", "width"), ("0.hidden", "out_features"), ("0.hidden", "bias"), ("1", "out_features"),
                       ("2", "classtype"), ("0.activation", "classtype")]:
        found = each.explain(path, name)
        print(path, name, found.value if isinstance(found.value, (int, bool)) else found.value.__name__, found.where,
              *(f"{one.where}" for one in found.candidates[1:] if one.where), *(one.where for one in found.via))
"""


def test_the_lines_of_another_program_are_shown(tmp_path: Path) -> None:
    """A program that loads what another has saved sees the other's lines, relative to where its code was found.

    Lines of an ``__init__`` are those of the class that is loaded now.
    """
    lab = tmp_path / "project" / "lab"
    lab.mkdir(parents=True)
    (lab / "nets.py").write_text(NETS)
    (lab / "train.py").write_text(TRAIN)
    (tmp_path / "reload.py").write_text(RELOAD)
    model, project = tmp_path / "net.replayml", tmp_path / "project"
    for command in ([sys.executable, "-m", "lab.train"], [sys.executable, str(tmp_path / "reload.py")]):
        done = subprocess.run(
            [*command, str(model)],
            cwd=project,
            env={"PYTHONPATH": f"{project}:{Path.cwd()}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    nets = lab / "nets.py"
    expected = f"""\
0 width 32 lab/train.py:12 lab/train.py:15
0.hidden out_features 32 {nets}:8 lab/train.py:12
0.hidden bias False lab/train.py:20
1 out_features 3 lab/train.py:18
2 classtype Sigmoid lab/train.py:21
0.activation classtype Tanh {nets}:10 {nets}:9
"""
    assert done.stdout == expected * 2


def lines(model: Any) -> list[Where | None]:
    """Return the lines that `explain` shows for some settings."""
    return [model.explain(*place).where for place in [("", "in_features"), ("", "out_features"), ("", "bias")]]


@pytest.mark.parametrize("built", [False, True])
def test_the_lines_stay_through_many_reloads(built: bool) -> None:
    """A recipe of a reloaded model has the lines of the first program, and so has its recipe."""
    layer: Any = replayml.Layer(nn.Linear, None, 3).configure(bias=False)
    if built:
        layer = replayml.Sequential(layer).build(torch.zeros(1, 2))
    recipe = layer.recipe()
    texts = [recipe.to_json()]
    for _ in range(3):
        texts.append(Recipe.from_json(texts[-1]).model().recipe().to_json())
    assert len(set(texts)) == 1
    assert '"where":["tests/recipe/test_explain_after_reload.py",' in texts[0]


def test_a_line_on_the_tape_is_that_of_the_user() -> None:
    """Through a selection or a helper, the line is that of the call by the user, also on a copy from a recipe."""

    def widen(each: Any) -> None:
        each.configure(out_features=5)

    layer = replayml.Layer(nn.Linear, 2, 3)
    widen(layer)
    model = replayml.Sequential(layer)
    model[0].configure(bias=False)
    copied = model.recipe().model()
    for old, new in zip(lines(model[0]), lines(copied[0]), strict=True):
        assert old is not None
        assert new is not None
        assert (Path(old.file).name, old.line) == (Path(new.file).name, new.line)
        assert new.file == "tests/recipe/test_explain_after_reload.py"
