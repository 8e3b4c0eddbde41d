"""Hints: what a user is told who takes an attribute for a setting, or `*args` for one."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import replayml
from replayml.core.errors import ConfigurationError


class Net(replayml.Module):
    """Keeps its width, and makes a layer of it; the scale is read when it runs."""

    def __init__(self, width: int = 3, sizes: Any = (1, 2), name: str = "net") -> None:
        self.width = width
        self.sizes = list(sizes)
        self.hidden = replayml.Layer(nn.Linear, 4, width)
        self.scale = 1.0

    def forward(self, x: Any) -> Any:
        """Return ``(batch, width)``."""
        self.width = x.shape[-1]
        return self.hidden(x) * self.scale

    @replayml.stateful
    def widen(self) -> None:
        """Change an attribute on purpose."""
        self.width = 2 * self.width

    @replayml.after_build
    def note_width(self) -> None:
        """Change an attribute of the built model."""
        self.width = -1


class Outer(replayml.Module):
    """Changes an attribute of what it makes."""

    def __init__(self, *layers: Any, width: int = 3) -> None:
        self.net = Net()
        self.net.width = width
        self.items = replayml.LayerList(*layers)


class Loose(replayml.Module):
    """Keeps what it gets in no child."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


def test_an_attribute_that_looks_like_a_setting_is_warned_of() -> None:
    """Assigning another value to what ``__init__`` made of an argument warns, with the place and what to do."""
    outer: Any = Outer()
    with pytest.warns(
        UserWarning, match=r"^Net at 'net': width = 5 sets the attribute only; .*configure\(width=5\)$"
    ) as found:
        outer.net.width = 5
    assert [Path(warning.filename).name for warning in found] == [Path(__file__).name]
    assert (outer.net.width, outer.net.hidden.out_features) == (5, 3)
    assert outer.net.configure(width=5).hidden.out_features == 5


def test_a_warning_that_is_an_error_changes_nothing() -> None:
    """Where warnings are errors, the attribute and the tape stay as they were."""
    net = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="Net: width = 5 sets the attribute only"):
            net.width = 5
    assert net.width == 3
    assert not net.tape


def test_other_assignments_are_not_warned_of() -> None:
    """Not an equal value, nor what is no argument, or a child, or has no attribute, nor a state of torch."""
    net: Any = Net()
    net.width = 3
    net.sizes = [1, 2]
    net.scale = 2.0
    net.name = "other"
    net.hidden = replayml.Layer(nn.Linear, 4, 5)
    net.training = False
    net.eval().train()
    assert len(net.tape) == 8


@pytest.mark.filterwarnings("error")
def test_nothing_but_the_user_is_warned() -> None:
    """Copies, recipes, files, pickles, builds, hooks, methods and an outer ``__init__`` assign in silence."""
    net: Any = Net()
    with pytest.warns(UserWarning, match="width = 7"):
        net.width = 7
    net.widen()
    net.note_width()
    for other in (net.new(), copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net.recipe().model()):
        assert other.width == 14
        built = other.build(torch.zeros(1, 4))
        assert built.width == -1
        built.width = 9
        assert built.new().width == 14
    assert Outer(width=8).configure(width=9).net.width == 9
    assert net.configure(sizes=(3,)).recipe() == net.new().recipe()


def test_args_that_cannot_be_configured_are_told() -> None:
    """The refusal says that ``*args`` are none, how to reach the modules in them, and how to take others."""
    with pytest.raises(
        ConfigurationError, match=r"Loose has no setting 'parts'\. What it got as \*parts cannot be"
    ) as bare:
        Loose(1).configure(parts=[2])
    assert "It takes no arguments" not in str(bare.value)
    assert str(bare.value).endswith("cannot be configured. For other ones make a new Loose(...).")
    with pytest.raises(
        ConfigurationError, match=r"It takes: width\. What it got as \*layers cannot be configured"
    ) as told:
        Outer(replayml.Layer(nn.ReLU)).configure("layers", [])
    assert "modules in it can, by their paths, as in configure('net', ...). For other ones" in str(told.value)
    with pytest.raises(ConfigurationError, match=r"Loose takes no 'parts'\..* What it got as \*parts cannot"):
        Loose(1).explain("", "parts")
