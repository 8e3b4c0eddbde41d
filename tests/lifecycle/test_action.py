"""`ActionModule`: a module around steps, its submodules and its tree."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import nn

import replayml
from replayml import ActionModule, NotBuiltError, bind, parallel, pipeline
from tests.lifecycle.seed import MyModule
from tests.lifecycle.steps import SPECS, TRUST, Maker, Shift, Spec, inc, negate, outcome


def test_modules_in_steps_are_submodules() -> None:
    """Modules that are given alone, or in flows inside of flows, are the submodules, in order."""
    m1, m2, m3 = MyModule("m1"), MyModule("m2"), MyModule("m3")
    assert ActionModule(m1, m2).submodules == [m1, m2]
    assert ActionModule(pipeline(m1, parallel(m2, m3))).submodules == [m1, m2, m3]
    assert ActionModule(len, pipeline(m1, bind(m2, 1)), m1).submodules == [m1, m2]


def test_the_tree_shows_flows_modules_and_functions() -> None:
    """The text of an action shows what is in it as a tree."""
    m1, m2, m3 = MyModule("m1"), MyModule("m2"), MyModule("m3")
    assert repr(ActionModule(pipeline(m1, parallel(a=m2, b=inc), m3))).splitlines() == [
        "<Module type=Action sub-category=Flow type=Pipeline items=[]>",
        "└- <Flow type=Pipeline items=[]>",
        "    |- <Module type=MyModule name=m1>",
        "    |- <Flow type=Parallel items=['a', 'b']>",
        "    |   |- <Module type=MyModule name=m2>",
        "    |   └- <Function type=inc>",
        "    └- <Module type=MyModule name=m3>",
    ]


def test_an_action_is_evaluated() -> None:
    """An action has a test set and results like any module."""
    action = ActionModule(MyModule("a"), str.upper)
    action.evalset(["x", "y"])
    assert action.eval().eval_result == ["[MODULE A GET INPUT: X]", "[MODULE A GET INPUT: Y]"]


@given(SPECS)
def test_an_action_does_what_its_flow_does(spec: Spec) -> None:
    """An action around a flow, its copies and what its recipe makes all return what the flow returns."""
    flow = Maker(in_order=True).make(spec)
    action = ActionModule(flow)
    read = replayml.Recipe.from_json(action.recipe().to_json()).model(trust=TRUST)
    others = [action, action.new(), read, pickle.loads(pickle.dumps(action)), action.create()]
    expected = _outcomes(flow.new())
    for other in others:
        assert _outcomes(other) == expected
        assert repr(other) == repr(action)


def _outcomes(action: Callable[[int], Any]) -> list[Any]:
    """Return the outcomes for some numbers, with the paths below the flow."""
    found = [outcome(functools.partial(action, x)) for x in range(-4, 5)]
    return [(*one[:2], one[2].removeprefix("action.0.")) if isinstance(one, tuple) else one for one in found]


def test_an_action_of_layers_is_built_and_saved(tmp_path: Any) -> None:
    """The layers in the steps of an action get weights, which are saved with it."""
    layer = replayml.Layer
    action = ActionModule(first=layer(nn.Linear, None, 3), both=parallel(layer(nn.ReLU), layer(nn.Tanh)).sum)
    x = torch.randn(2, 5)
    with pytest.raises(NotBuiltError, match=r"Linear at 'action.first' has no weights yet"):
        action(x)
    built = action.build(x)
    assert list(built.state_dict()) == ["action.first.weight", "action.first.bias"]
    built.save(tmp_path / "action.replayml")
    assert torch.equal(replayml.load(tmp_path / "action.replayml")(x), built(x))


def test_steps_of_an_action_are_left_out_and_configured() -> None:
    """What can be done with a pipeline can be done with an action around its steps."""
    action = ActionModule(a=inc, b=Shift(1), c=negate)
    action["action", "b"].configure(by=5)
    assert action(1) == action.new()(1) == -7
    assert action(1, _skip_items="b") == -2
