"""What differs between two recipes, and the calls that turn one model into the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import replayml
from replayml.core.errors import RecipeError
from replayml.recipe import Codec, Recipe
from replayml.recipe.views.diff import RecipeDiff, compare_weights
from tests.recipe.samples import MONEY, Money, Net


class Inner(replayml.Module):
    """A layer and an activation; it can be widened."""

    def __init__(self, width: int = 4, activation: Any = nn.ReLU, rate: float = 0.1) -> None:
        super().__init__()
        self.layer = replayml.Layer(nn.Linear, 4, width)
        self.activation = replayml.Layer(activation)
        self.dropout = replayml.Layer(nn.Dropout, rate)

    @replayml.stateful
    def widen(self, by: int) -> None:
        self.layer.configure(out_features=self.layer.out_features + by)


class Outer(replayml.Module):
    """Makes inner modules, and configures one of them."""

    def __init__(
        self, width: int = 4, depth: int = 2, activation: Any = nn.ReLU, *extra: Any, bias: bool = True
    ) -> None:
        super().__init__()
        self.blocks = replayml.LayerList(*(Inner(width, activation) for _ in range(depth)))
        self.head = replayml.Layer(nn.Linear, width, 2, bias=bias)
        if depth:
            self.blocks[0].dropout.configure(p=0.25)


def same(one: Any, other: Any) -> bool:
    """Tell whether two unbuilt models are equal in what is in force: their built trees, tensors and outputs."""
    ones, others = one.create(seed=1), other.create(seed=1)
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (ones, others)]
    return str(ones) == str(others) and shapes[0] == shapes[1]


# Random pairs -------------------------------------------------------------------------------------------------------

_WIDTH = st.integers(1, 5)
_ACTIVATION = st.sampled_from([nn.ReLU, nn.Tanh, nn.GELU, nn.ELU])

_SETTINGS: list[st.SearchStrategy[tuple[str, dict[str, Any]]]] = [
    st.tuples(st.just(""), st.fixed_dictionaries({}, optional={"width": _WIDTH, "activation": _ACTIVATION})),
    st.tuples(st.just(""), st.fixed_dictionaries({"bias": st.booleans()})),
    st.tuples(
        st.sampled_from(["blocks.0", "blocks.1"]),
        st.fixed_dictionaries(
            {}, optional={"width": _WIDTH, "activation": _ACTIVATION, "rate": st.sampled_from([0.5])}
        ),
    ),
    st.tuples(
        st.sampled_from(["blocks.0.layer", "blocks.1.layer", "head"]),
        st.fixed_dictionaries({}, optional={"bias": st.booleans(), "out_features": _WIDTH}),
    ),
    st.tuples(
        st.sampled_from(["blocks.0.activation", "blocks.1.activation"]),
        st.fixed_dictionaries({"classtype": _ACTIVATION}),
    ),
]


@st.composite
def models(draw: st.DrawFn) -> Any:
    """Return a model of one structure with random settings, given in the call or later."""
    kwargs: dict[str, Any] = draw(
        st.fixed_dictionaries({}, optional={"width": _WIDTH, "activation": _ACTIVATION, "bias": st.booleans()})
    )
    model = Outer(**kwargs)
    for path, settings in draw(st.lists(st.one_of(*_SETTINGS), max_size=4)):
        target: Any = model.get_submodule(path) if path else model
        if settings:
            target.configure(**settings)
    return model


@given(models(), models())
def test_the_calls_turn_one_model_into_the_other(one: Any, other: Any) -> None:
    """Where models differ in settings only, the calls reach everything: what is in force is equal afterwards."""
    a, b = one.recipe(), other.recipe()
    found = a.diff(b)
    assert found.is_complete, found
    reached = found.apply(a.model())
    assert same(reached, b.model())
    assert not reached.recipe().diff(b).config


@given(models(), models())
def test_a_diff_is_empty_where_nothing_differs(one: Any, other: Any) -> None:
    """A recipe does not differ from itself; the settings that differ are the same from both sides."""
    a, b = one.recipe(), other.recipe()
    assert a.diff(a).is_empty
    assert not a.diff(a)
    assert str(a.diff(a)) == "no difference"
    there, back = a.diff(b), b.diff(a)
    mirrored = {(change.path, change.name, change.new, change.old) for change in back.config}
    assert {(change.path, change.name, change.old, change.new) for change in there.config} == mirrored


@given(models(), st.lists(st.sampled_from(["widen", "width", "note", "initialize", "append"]), min_size=1, max_size=4))
def test_further_calls_of_any_kind_give_the_fingerprint(model: Any, calls: list[str]) -> None:
    """Where the second model is the first with more calls, the calls are these, and the result is the second."""
    edits: dict[str, Callable[[Any], Any]] = {
        "widen": lambda m: m.blocks[0].widen(2),
        "width": lambda m: m.configure(width=3),
        "note": lambda m: setattr(m, "note", "small"),
        "initialize": lambda m: m.initialize(replayml.initializers.Kaiming()),
        "append": lambda m: m.blocks.append(replayml.Layer(nn.Tanh)),
    }
    other = model.new()
    for call in calls:
        edits[call](other)
    found = model.recipe().diff(other.recipe())
    assert found.is_complete
    assert found.apply(model.recipe().model()).recipe() == other.recipe()


# What it tells ------------------------------------------------------------------------------------------------------


def test_what_is_set_above_is_set_above() -> None:
    """A difference that comes from an outer setting is undone by one call there, and every effect is listed."""
    found = Outer(4).recipe().diff(Outer(8).recipe())
    assert [str(call) for call in found.calls] == ["model.configure(width=8)"]
    assert "model.blocks[1].layer.out_features: 4 -> 8" in str(found)
    assert "model.head.in_features: 4 -> 8" in str(found)


def test_the_way_to_a_setting_plays_no_part() -> None:
    """An argument and the same value configured later are no difference, apart from the tape."""
    found = Outer(8).recipe().diff(Outer().configure(width=8).recipe())
    assert not found.config
    assert [str(change).partition("  (")[0] for change in found.tape] == ["+ 0: model.configure(width=8)"]
    assert (found.calls, found.is_complete, found.is_empty) == ((), True, False)


def test_a_class_of_a_layer_is_configured_with_its_arguments() -> None:
    """Another class of a layer is set together with what differs from its defaults."""
    one, other = Inner(), Inner()
    other.activation.configure(nn.LeakyReLU, negative_slope=0.3)
    other.layer.configure(bias=False)
    found = Recipe.from_json(one.recipe().to_json()).diff(other.configure(rate=0.2).recipe())
    assert "model.activation.classtype: ReLU -> LeakyReLU" in str(found)
    assert same(found.apply(one.recipe().model()), other)


def test_structure_is_told_as_not_reached() -> None:
    """Modules that one of the two does not have, other classes and ``*args`` are no settings, and the diff says so."""
    found = Outer(depth=1).recipe().diff(Outer(4, 1, nn.ReLU, "more").recipe())
    assert found.rest == ("model.*args: nothing -> ('more',)",)
    one: Any = Inner()
    other: Any = Inner()
    one.dropout = replayml.Sequential(replayml.Layer(nn.ReLU))
    del other.activation
    found = one.recipe().diff(other.recipe())
    assert not found.is_complete
    assert "model.activation: Layer(ReLU) -> nothing" in found.rest
    assert "model.dropout: Sequential -> Layer(Dropout)" in found.rest
    assert "only the first has the call model.set('dropout', Sequential(" in "\n".join(found.rest)
    assert "the second has the call model.unset('activation')" in found.rest
    assert "what these calls do not reach:" in str(found)


def test_calls_that_are_no_settings_are_told_as_not_reached() -> None:
    """Models that differ in an initializer or an attribute do not pass for equal."""
    one, other = Inner(), Inner()
    one.note, other.note = "a", "b"
    found = one.recipe().diff(other.recipe())
    assert not found.config
    assert found.rest == (
        "only the first has the call model.set('note', 'a')",
        "the second has the call model.set('note', 'b')",
    )


def test_plain_layers_are_compared_by_their_arguments() -> None:
    """A layer of torch that was given as an argument cannot be configured, and its difference is told."""
    found = Net(nn.Linear(2, 3)).recipe().diff(Net(nn.Linear(2, 4)).recipe())
    assert [(change.path, change.name) for change in found.config] == [((), "*args")]
    assert not found.is_complete
    one, other = replayml.Sequential(nn.Linear(2, 3)), replayml.Sequential(nn.Linear(2, 4))
    (change,) = one.recipe().diff(other.recipe()).config
    assert (change.path, change.name) == (("0",), "arguments")
    assert "out_features=3" in change.old


def test_values_of_ones_own_types_are_compared_by_their_codecs() -> None:
    """A codec is handed in with trust, as for reading."""
    recipes = [Net(width=Money(cents)).recipe(codecs=[MONEY]) for cents in (1, 2)]  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="untrusted-name"):
        recipes[0].diff(recipes[1])
    trust = [Codec(Money, MONEY.encode, MONEY.decode)]
    found = recipes[0].diff(recipes[1], trust=trust)
    assert [(change.path, change.name) for change in found.config] == [((), "width")]
    assert recipes[0].diff(recipes[0], trust=trust).is_empty
    assert found.apply(recipes[0].model(trust)).width == Money(2)


def test_a_diff_is_data() -> None:
    """`to_dict` gives plain data that JSON can hold."""
    one, other = Inner(), Inner(8)
    other.note = "x"
    found = one.recipe().diff(other.recipe(), weights=({"a": torch.ones(1)}, {"a": torch.zeros(1)}))
    data = json.loads(json.dumps(found.to_dict()))
    assert data["same"] is False
    assert data["calls"] == ["model.configure(width=8)"]
    assert {"path": ["layer"], "name": "out_features", "old": "4", "new": "8"} in data["config"]
    assert data["weights"] == [{"name": "a", "what": "other values, by up to 1"}]
    assert data["tape"][0]["call"] == "model.set('note', 'x')"
    assert data["tape"][0]["where"].rpartition(":")[0].endswith("test_diff.py")
    assert data["complete"] is False
    assert RecipeDiff((), (), (), (), ()).to_dict()["same"] is True


def test_a_long_diff_is_cut() -> None:
    """Of hundreds of differences the first are shown, and how many there are."""
    found = Outer(4, 60).recipe().diff(Outer(5, 60).recipe())
    assert f"{len(found.config)} settings differ:" in str(found)
    assert f"... and {len(found.config) - 50} more" in str(found)


def test_two_models_that_take_too_much_are_not_compared() -> None:
    """Both models are run dry first, like those that are made."""
    huge = Recipe.of(replayml.core.tape.CallRecord(nn.Linear, (10**9, 10**9)))
    with pytest.raises(RecipeError, match="too-much-memory"):
        huge.diff(huge)


# Weights ------------------------------------------------------------------------------------------------------------


def test_weights_are_compared_by_name() -> None:
    """Names, shapes, types and values are compared; equal ones are not listed."""
    one = {
        "same": torch.ones(2),
        "shape": torch.ones(2),
        "type": torch.ones(1),
        "gone": torch.ones(1),
        "v": torch.ones(3),
    }
    other = {
        "same": torch.ones(2),
        "shape": torch.ones(3),
        "type": torch.ones(1, dtype=torch.float64),
        "new": torch.ones(1, 2),
        "v": torch.tensor([1.0, 1.5, 1.0]),
    }
    assert [str(change) for change in compare_weights(one, other)] == [
        "shape: (2,) -> (3,)",
        "type: torch.float32 -> torch.float64",
        "gone: only in the first, (1,)",
        "v: other values, by up to 0.5",
        "new: only in the second, (1, 2)",
    ]


def test_models_may_differ_in_their_weights_only() -> None:
    """Two trained models of one recipe differ in their weights, and in nothing that calls could reach."""
    model = replayml.MultiLayerPerceptron(4, [8], 2)
    built = [model.create(seed=seed) for seed in (1, 2)]
    recipes = [each.recipe() for each in built]
    found = recipes[0].diff(recipes[1], weights=(built[0].state_dict(), built[1].state_dict()))
    assert len(found.weights) == 4
    assert (found.config, found.tape, found.calls, found.rest, found.is_empty) == ((), (), (), (), False)
    assert found
