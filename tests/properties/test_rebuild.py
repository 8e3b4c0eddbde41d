"""Rebuilding: a copy equals its original, at every step of every edit; and a call that fails leaves no trace."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import dill
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from replayml.core import hooks
from replayml.core.errors import ConfigurationError
from replayml.core.hooks import stateful
from replayml.layers.containers import LayerList, Sequential
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.module import Module
from replayml.recipe import Recipe
from tests.properties import strategies
from tests.properties.models import Holder, Pair, Refused, Scripted, below, make
from tests.properties.strategies import picture, recorded, trace, user_settings

# The promises that carry all others are tried on a thousand trees each. Shrinking takes longer than it is worth here.
trees = settings(max_examples=150, phases=(Phase.explicit, Phase.generate))
many_trees = settings(trees, max_examples=1000)
few = st.lists(strategies.edits(), min_size=1, max_size=5)
many = st.lists(strategies.edits(), min_size=1, max_size=8)


def without_sharing(edits: list[Any]) -> list[Any]:
    """Return the edits that do not put one module into several places, out of one, or others among the arguments."""
    other = {"delete", "replace", "rotate", "configure_extra", "set_fresh_around"}
    return [strategies.tidy_edit(edit) for edit in edits if not edit[0].endswith("shared") and edit[0] not in other]


def stands_alone(part: Any) -> bool:
    """Tell whether a part shares nothing with the rest of its model, and was given nothing of it."""
    inside = {id(part): part, **{id(module): module for module in below(part)}}
    shares = any(
        id(holder) not in inside
        for module in inside.values()
        for holder, _ in (module._record.links if module is not part else ())
    )
    given = [module for other in inside.values() for module in strategies.given_to(other)]
    configured = [module for other in inside.values() for module in strategies.configured_with(other)]
    return (
        len(part.tags) == 1
        and not shares
        and all(id(module) in inside for module in given)
        and not any(module.root_module is part.root_module for module in configured)
    )


def made(recipe: Any, edits: Any = ()) -> Any:
    """Return a model that was made and edited, or give up on the example."""
    model = strategies.attempt(recipe)
    assume(model is not None)
    for edit in edits:
        strategies.try_to_perform(model, edit)
    return model


def assert_same(model: Any, other: Any) -> None:
    """Compare all that can be seen of two models."""
    assert picture(other) == picture(model)
    assert recorded(other) == recorded(model)
    assert user_settings(other) == user_settings(model)


def assert_well_formed(model: Any) -> None:
    """Check that each module knows where it stands."""
    places: dict[int, tuple[Any, list[tuple[str, ...]]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Module):
            places.setdefault(id(module), (module, []))[1].append(tuple(path.split(".")) if path else ())
    for module, paths in places.values():
        assert set(module.tags) == set(paths)
        assert module.root_module is model
        assert not module.is_constructing
    assert not any(
        type(item).__name__ == "DetachedConfigItem" for items in model._user_config.values() for item in items
    )


@many_trees
@given(strategies.recipes(), many)
def test_a_copy_equals_its_original_after_every_edit(recipe: Any, edits: list[Any]) -> None:
    """``new()`` gives classes, arguments in force, paths, attributes, sharing and tape."""
    model = made(recipe)
    assert_well_formed(model)
    assert_same(model, model.new())
    for edit in edits:
        strategies.try_to_perform(model, edit)
        assert_well_formed(model)
        before = trace(model)
        new = model.new()
        assert_same(model, new)
        assert trace(model) == before
        assert_well_formed(new)
    assert_same(model, model.new().new())


@trees
@given(strategies.recipes(), many)
def test_an_edit_does_to_a_copy_what_it_does_to_the_original(recipe: Any, edits: list[Any]) -> None:
    """A copy made at any moment goes on like its original: the same edits succeed, fail and lead to the same model."""
    model = made(recipe)
    for edit in edits:
        twin = model.new()
        outcome = strategies.try_to_perform(model, edit)
        assert strategies.try_to_perform(twin, edit) is outcome
        assert_same(model, twin)


@trees
@given(strategies.recipes(), many)
def test_a_failed_call_leaves_no_trace(recipe: Any, edits: list[Any]) -> None:
    """When an edit raises, tape, settings, children, their order, attributes and hooks are the very same as before."""
    model = made(recipe)
    for edit in edits:
        before, copied = trace(model), picture(model.new())
        if strategies.try_to_perform(model, edit) is not None:
            assert trace(model) == before
            assert picture(model.new()) == copied


@many_trees
@given(strategies.recipes(), few)
def test_a_recipe_makes_an_equal_model(recipe: Any, edits: list[Any]) -> None:
    """A model that was written as JSON and read back equals its original, as does the recipe of it."""
    model = made(recipe, edits)
    before = trace(model)
    written = model.recipe()
    again: Any = Recipe.from_json(written.to_json()).model(trust=[Holder])
    assert_same(model, again)
    assert_well_formed(again)
    assert again.recipe() == written
    assert trace(model) == before


@many_trees
@given(strategies.recipes(), few)
def test_time_travel_gives_each_earlier_model(recipe: Any, edits: list[Any]) -> None:
    """``new(upto=k)`` equals the model as it was after its first k entries."""
    model = made(recipe)
    earlier = {0: picture(model)}
    for edit in edits:
        strategies.try_to_perform(model, edit)
        earlier[len(model.tape)] = picture(model)
    for entries, expected in earlier.items():
        assert picture(model.new(upto=entries)) == expected
        assert len(model.new(upto=entries).tape) == entries


@trees
@given(strategies.recipes().map(strategies.tidy), few.map(without_sharing))
def test_a_part_can_be_copied_alone(recipe: Any, edits: list[Any]) -> None:
    """``sub.new()`` equals the part, is the root of its own tree, and leaves the whole as it was."""
    model = made(recipe, edits)
    before = trace(model)
    for part in filter(stands_alone, below(model)):
        alone = part.new()
        assert picture(alone) == picture(part)
        assert_well_formed(alone)
        assert picture(alone.new()) == picture(alone)
    assert trace(model) == before


@many_trees
@given(strategies.recipes(), few, few)
def test_a_copy_and_its_original_are_independent(recipe: Any, edits: list[Any], later: list[Any]) -> None:
    """Edits of the copy do not reach the original, nor the other way round."""
    model = made(recipe, edits)
    new = model.new()
    model_before, new_before = (
        trace(model),
        picture(new),
    )
    for edit in later:
        strategies.try_to_perform(new, edit)
    assert trace(model) == model_before
    other = model.new()
    other_before = trace(other)
    for edit in later:
        strategies.try_to_perform(model, edit)
    assert trace(other) == other_before
    assert picture(other) == new_before


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: dill.loads(dill.dumps(m))],
    ids=["deepcopy", "pickle", "dill"],
)
@trees
@given(recipe=strategies.recipes(), edits=few)
def test_an_unbuilt_model_survives_copying_and_pickling(copied: Any, recipe: Any, edits: list[Any]) -> None:
    """``copy.deepcopy``, ``pickle`` and ``dill`` of an unbuilt model give an equal one, sharing and tape included."""
    model = made(recipe, edits)
    before = trace(model)
    new = copied(model)
    assert_same(model, new)
    assert_well_formed(new)
    assert trace(model) == before


@trees
@given(strategies.recipes(), few, st.integers(0, 20), st.integers(0, 20))
def test_handles_stay_valid(recipe: Any, edits: list[Any], first: int, second: int) -> None:
    """A part taken from the model before edits is edited in place of what stands there now, or not at all."""
    model = made(recipe)
    parts = below(model)
    assume(parts)
    for edit in edits:
        strategies.try_to_perform(model, edit)
    for number in (first, second):
        part = parts[number % len(parts)]
        try:
            part.set("handled", [number])
        except ConfigurationError:
            continue
        if part.root_module is model:
            assert part.handled == [number]
        assert_same(model, model.new())
        assert_well_formed(model)


# Single cases -------------------------------------------------------------------------------------------------------


class Wrap(Module):
    """A module around another one."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner


class Two(Module):
    """Two layers of a width."""

    def __init__(self, width: int = 1) -> None:
        self.a: Any = Layer(nn.Linear, 1, width)
        self.b: Any = Layer(nn.Tanh)


def test_a_new_module_around_one_of_the_tree_keeps_it() -> None:
    """``m.b = Wrap(m.a)`` shares ``a``; ``m.a = Wrap(m.a)`` wraps it; copies do the same."""
    model = Two()
    model.b = Wrap(model.a)
    model.b.inner.configure(out_features=3)
    for other in (model, model.new(), model.new().new()):
        assert other.b.inner is other.a
        assert other.a.out_features == 3
    model = Two()
    model.a = Wrap(model.a)
    model.a.inner.configure(bias=False)
    for other in (model, model.new()):
        assert isinstance(other.a.inner, Layer)
        assert other.a.inner.bias is False
    model.configure(width=7)
    assert model.a.inner.out_features == model.new().a.inner.out_features == 7


def test_a_holder_that_is_not_kept_does_not_count() -> None:
    """A module taken out of a replaced one, or put in one for a moment, has one place and one root."""

    class Encoder(Module):
        def __init__(self) -> None:
            self.features = Layer(nn.Linear, 2, 3)

    class Net(Module):
        def __init__(self) -> None:
            self.encoder: Any = Encoder()
            self.encoder = self.encoder.features

    model = Net()
    assert model.encoder.tags == [("encoder",)]
    assert model.encoder.root_module is model
    Wrap(model.encoder)
    assert model.encoder.tags == [("encoder",)]
    assert model.encoder.root_module is model


def test_a_part_that_leaves_keeps_what_was_in_force() -> None:
    """A part that is taken out of its model stays what it was, alone, copied, and put in again."""
    model: Any = Sequential(Layer(nn.Linear, 1, 1), Layer(nn.ReLU))
    model[0].configure(out_features=9)
    part = model.pop(0)
    assert part.root_module is part
    assert part.out_features == part.new().out_features == 9
    part.configure(bias=False)
    assert (part.out_features, part.bias) == (9, False)
    model.append(part)
    assert model[1] is part
    assert (model[1].out_features, model[1].bias) == (9, False)
    assert_same(model, model.new())
    assert model.new(upto=1)[0].out_features == 9
    assert model.new(upto=0)[0].out_features == 1


def test_edits_survive_a_reconstruction_in_their_order() -> None:
    """After the root is constructed again the user's edits are made again, on the new children."""

    class Net(Module):
        def __init__(self, width: int = 1) -> None:
            self.items = LayerList([Layer(nn.Linear, width, width) for _ in range(3)])

    model = Net()
    model.items.insert(1, Layer(nn.ReLU))
    model.items[2].configure(bias=False)
    model.items.pop(0)
    model.items[1].note = "kept"
    model.configure(width=6)
    assert [type(layer.classtype).__name__ and layer.classtype for layer in model.items] == [
        nn.ReLU,
        nn.Linear,
        nn.Linear,
    ]
    assert (model.items[1].bias, model.items[1].note, model.items[1].in_features) == (False, "kept", 6)
    assert_same(model, model.new())


def test_an_init_may_replace_what_it_made_and_edited() -> None:
    """What an ``__init__`` did to a child that it replaced later does not reach the replacement."""

    class Base(Module):
        def __init__(self, width: int = 2) -> None:
            self.net: Any = LayerList()
            self.net.append(Layer(nn.ReLU))
            self.head = Layer(nn.Linear, 1, width)
            self.head.configure(bias=False)

    class Derived(Base):
        def __init__(self, width: int = 3) -> None:
            super().__init__(width)
            self.net = Layer(nn.Linear, 1, width)
            self.head = Layer(nn.Linear, 2, width)

    model = Derived()
    assert model.head.bias is True
    model.configure(width=5)
    assert (model.net.out_features, model.head.out_features, model.head.bias) == (5, 5, True)
    assert_same(model, model.new())


def test_a_failed_reconstruction_does_not_lose_the_edits() -> None:
    """After a ``configure`` that the user's ``__init__`` refused, the next one keeps the user's edits."""
    model: Any = Scripted((("refuse", 1), ("make", "a", "list", 0)), 2)
    model.note = 7
    model.a.append(Layer(nn.Tanh))
    with pytest.raises(Refused):
        model.configure(width=1)
    with pytest.raises(Refused):
        model.spoil(0)
    assert list(model._modules) == ["a"]
    model.configure(width=3)
    assert model.note == 7
    assert len(model.a) == 3


def test_a_failing_construction_leaves_its_arguments_alone() -> None:
    """A module given to an ``__init__`` that raises has its tags, root, settings and tape as before."""
    inner = Pair(3)
    inner.first.configure(out_features=8)
    before = trace(inner)
    with pytest.raises(Refused):
        Scripted((("given", "a"), ("configure", 1, 5), ("setattr", 2, "v", 1), ("refuse", 4)), 4, inner)
    assert trace(inner) == before
    assert inner.root_module is inner
    assert_same(inner, inner.new())


def test_one_object_in_several_arguments_stays_one_and_others_are_copied() -> None:
    """Arguments are deep-copied; what is one object in two places of the record is one object in the copy."""

    class Keeping(Module):
        def __init__(self, first: Any, second: Any, table: Any, function: Any) -> None:
            self.first, self.second, self.table, self.function = first, second, table, function

    shared = Layer(nn.Linear, 1, 1)
    values = [1, 2]
    model = Keeping(shared, [shared, values], {"values": values, "layer": shared}, len)
    model.late = [values, shared]
    new: Any = model.new()
    assert new.first is new.second[0] is new.table["layer"] is new.late[1]
    assert new.second[1] is new.table["values"] is new.late[0]
    assert new.first is not shared
    assert new.second[1] is not values
    assert new.function is len
    new.second[1].append(3)
    assert values == [1, 2]


def test_plain_modules_hold_layers_that_are_recorded() -> None:
    """Layers inside a plain module are configured, copied at any time, and built; the record stays unbuilt."""
    model: Any = Wrap(nn.Sequential(Layer(nn.Linear, 2, 2), nn.ReLU()))
    model.inner[0].configure(out_features=5)
    assert model.new(upto=0).inner[0].out_features == 2
    assert model.new().inner[0].out_features == 5
    built = model.build()
    assert isinstance(built.inner[0], nn.Linear)
    assert isinstance(built.new().inner[0], Layer)
    assert built.new().inner[0].out_features == 5


def test_a_module_cannot_stand_below_itself() -> None:
    """A cycle is refused, at any depth, and nothing is changed."""
    model: Any = Wrap(Sequential(Wrap(Layer(nn.ReLU))))
    before = trace(model)
    for edit in (
        lambda: setattr(model.inner[0], "inner", model),
        lambda: model.inner.append(model.inner),
        lambda: model.inner[0].configure(inner=model.inner),
    ):
        with pytest.raises(ConfigurationError, match="cannot stand below itself"):
            edit()
        assert trace(model) == before


def test_a_method_goes_on_with_the_same_module_when_its_parent_is_constructed_again() -> None:
    """A recorded method whose ``configure`` reconstructs a shared part is one entry, and keeps what it sets."""

    class Inner(Module):
        def __init__(self, width: int = 2) -> None:
            self.width = width
            self.layer = Layer(nn.Linear, 1, width)

    class Outer(Module):
        def __init__(self) -> None:
            self.inner = Inner()
            self.same = self.inner.layer

    model = Outer()
    handle = model.inner
    model.inner.configure(width=3)
    handle.configure(width=4)
    assert model.same is model.inner.layer
    assert model.same.out_features == 4
    assert model.inner is handle
    assert_same(model, model.new())


@pytest.mark.parametrize("kind", ["list", "sequential", "parallel"])
def test_edits_of_a_part_that_is_gone_are_not_replayed_twice(kind: str) -> None:
    """Edits of a child that the user replaced later are replayed once, on the child, before it goes."""
    model: Any = Scripted((("make", "a", "linear", 0),))
    model.configure(a=Wrap(LayerList(make(kind, 2))))
    model.a.inner[0].pop(0)
    model.a.inner[0].append(nn.PReLU())
    model.a.inner.append(model.a.inner[0])
    part = model.a
    model.a = External(dict, part=Layer(nn.ReLU))
    assert_same(model, model.new())
    assert picture(part.new()) == picture(part)


def test_an_argument_that_leaves_is_recorded_as_it_was_given() -> None:
    """What was done to a part that left later is not in the record of the arguments."""

    class Holding(Module):
        def __init__(self, extra: Any) -> None:
            self.a: Any = External(dict, x=extra)

    model = Holding(Two())
    model.a.x.unset("a")
    model.a = Layer(nn.Tanh)
    assert_same(model, model.new())


def test_a_list_that_leaves_below_another_part_is_recorded_as_it_was_given() -> None:
    """An edited list that leaves inside of a larger part is replayed as it was when it was given."""
    model = Two()
    model.a = Wrap(LayerList[Any]())
    model.a.inner.append(LayerList[Any]())
    model.a.inner[0].append(model.b)
    model.a = Layer(nn.Tanh)
    assert_same(model, model.new())


def test_settings_of_elements_that_are_gone_are_not_listed() -> None:
    """The user's settings are those of modules that stand in the model."""

    class Editing(Module):
        def __init__(self) -> None:
            self.items = LayerList[Any]()

        @stateful
        def narrow(self) -> None:
            self.items[0].configure(bias=False)

    model = Editing()
    model.items.append(Layer(nn.Linear, 1, 1))
    model.narrow()
    model.items.pop(0)
    assert model.get_user_configuration() == {}


def test_an_outer_edit_stays_with_the_module_that_it_was_made_on() -> None:
    """After ``m.a = Wrap(m.a)`` what the ``__init__`` did to ``a`` is done to the wrapped module."""

    class Filling(Module):
        def __init__(self, width: int = 1) -> None:
            self.a: Any = LayerList[Any]()
            self.a.append(Layer(nn.Linear, 1, width))

    model = Filling()
    model.a = Wrap(model.a)
    model.configure(width=2)
    assert model.a.inner[0].out_features == 2


def test_an_external_that_shares_its_argument_can_be_copied_alone() -> None:
    """``sub.new()`` of an external whose argument also stands beside it keeps what was set on the argument."""

    class Sharing(Module):
        def __init__(self) -> None:
            self.a = Layer(nn.ReLU)
            self.b = External(dict, x=self.a)

    model = Wrap(Sharing())
    model.inner.a.configure(nn.GELU)
    assert picture(model.inner.b.new()) == picture(model.inner.b)


def test_a_holder_that_an_init_replaced_does_not_count() -> None:
    """A part taken out of a container that the same ``__init__`` replaced has one place."""

    class Replacing(Module):
        def __init__(self) -> None:
            self.a: Any = LayerList(Layer(nn.ReLU))
            self.a = External(dict, x=self.a[0])

    assert Replacing().a.x.tags == [("a", "x")]


class Filled(Module):
    """A list and a layer that the ``__init__`` goes on to change."""

    def __init__(self, width: int = 1) -> None:
        self.layer: Any = Layer(nn.Linear, 1, width)
        self.layer.configure(bias=False)
        self.items: Any = LayerList[Any]()
        self.items.append(Layer(nn.ReLU))


def test_what_is_wrapped_in_its_place_keeps_what_was_set_on_it() -> None:
    """After ``m.a = Wrap(m.a)`` the settings of the user and of the ``__init__`` stay in force for the inner module."""
    model = Filled()
    model.layer.configure(in_features=4)
    model.layer, model.items = Wrap(model.layer), Wrap(model.items)
    model.layer.inner.configure(out_features=7)
    model.items.inner.append(Layer(nn.Tanh))
    model.configure(width=3)
    model.items.inner.append(Layer(nn.GELU))
    for other in (model, model.new()):
        inner = other.layer.inner
        assert (inner.in_features, inner.out_features, inner.bias) == (4, 7, False)
        assert [element.classtype for element in other.items.inner] == [nn.ReLU, nn.Tanh, nn.GELU]
        assert picture(other.layer.new()) == picture(other.layer)
        assert picture(other.items.new()) == picture(other.items)


def test_a_part_that_leaves_one_of_its_places_keeps_what_was_set_there() -> None:
    """What was set while a module stood in one place stays in force at its other place."""
    model = Filled()
    model.layer.configure(out_features=5)
    model.other = model.layer
    del model.layer
    model.other.configure(in_features=2)
    for other in (model, model.new(), model.new().new()):
        assert (other.other.in_features, other.other.out_features, other.other.bias) == (2, 5, False)


def test_a_given_module_is_not_changed_twice_by_the_same_init() -> None:
    """What an ``__init__`` does to a module that it was given is undone before it does it again."""

    class Headed(Module):
        def __init__(self, body: Any, width: int = 1) -> None:
            self.body = body
            self.body.append(Layer(nn.Linear, 1, width))

    model = Headed(Sequential(Layer(nn.ReLU)))
    model.body.append(Layer(nn.Tanh))
    model.configure(width=5)
    model.body[1].configure(bias=False)
    model.configure(width=6)
    for other in (model, model.new()):
        assert [layer.classtype for layer in other.body] == [nn.ReLU, nn.Linear, nn.Tanh]
        assert (other.body[1].out_features, other.body[1].bias) == (6, False)
    assert picture(model.body.new()) == picture(model.body)


class Widening(Module):
    """A module with a method that is done again after each construction, and one that is not."""

    def __init__(self) -> None:
        self.layer = Layer(nn.Linear, 1, 1)
        self.count = 0

    @hooks.edit
    def widen(self) -> None:
        """Set something below."""
        self.layer.configure(out_features=9)

    @stateful
    def add(self) -> None:
        """Change an attribute, and set something below."""
        self.count += 1
        self.layer.configure(bias=False)


def test_what_an_edit_set_goes_with_the_edit() -> None:
    """When an ``__init__`` does not make its call again, what the call had set elsewhere is gone."""

    class Net(Module):
        def __init__(self, wide: bool = True) -> None:
            self.inner = Widening()
            if wide:
                self.inner.widen()
            self.inner.add()

    model = Net()
    assert picture(model.inner.new()) == picture(model.inner)
    model.configure(wide=False)
    assert (model.inner.layer.out_features, model.inner.layer.bias, model.inner.count) == (1, False, 1)
    assert picture(model.inner.new()) == picture(model.inner)
    assert_same(model, model.new())


def test_an_assignment_by_the_user_wins_however_often_all_is_made_again() -> None:
    """What the user did to a part is done after what an ``__init__`` did to it, in each construction."""

    class Net(Module):
        def __init__(self, width: int = 1) -> None:
            self.layer: Any = Layer(nn.Linear, 1, width)
            self.layer.note = "init"

    model = Net()
    model.layer.note = "user"
    model.configure(width=2)
    model.layer.configure(bias=False)
    assert model.layer.note == model.new().layer.note == "user"


def test_a_module_that_configure_puts_in_stays_when_the_model_is_constructed_again() -> None:
    """``configure(child=module)`` is an edit like an assignment, and what is set on the new child stays with it."""
    for put in (lambda m: m.configure(layer=Wrap(Layer(nn.Tanh))), lambda m: setattr(m, "layer", Wrap(Layer(nn.Tanh)))):
        model = Filled()
        put(model)
        model.layer.inner.configure(nn.GELU)
        model.configure(width=3)
        for other in (model, model.new()):
            assert other.layer.inner.classtype is nn.GELU
        assert_same(model, model.new())


def test_a_new_child_keeps_its_settings_when_its_name_comes_to_be_used_or_not() -> None:
    """Settings of a child of the user do not depend on whether the ``__init__`` makes a child of that name."""

    class Net(Module):
        def __init__(self, with_head: bool = True) -> None:
            if with_head:
                self.head: Any = Layer(nn.Linear, 1, 1)

    for first in (True, False):
        model = Net(first)
        model.head = Layer(nn.Linear, 2, 2)
        model.head.configure(bias=False)
        model.configure(with_head=not first)
        assert (model.head.in_features, model.head.bias) == (2, False)
        assert_same(model, model.new())


def test_a_child_in_the_place_of_a_deleted_one_gets_none_of_its_settings() -> None:
    """After ``del m.a; m.a = new`` the settings of the old child do not apply to the new one."""
    model = Two()
    model.a.configure(out_features=9)
    del model.a
    model.a = Layer(nn.Linear, 1, 1)
    assert model.a.out_features == 1
    model.configure(width=4)
    assert model.a.out_features == model.new().a.out_features == 1


def test_deleting_a_child_that_is_not_made_any_more_is_no_fault() -> None:
    """A deletion that is done again after a construction without that child does nothing."""

    class Net(Module):
        def __init__(self, with_head: bool = True) -> None:
            if with_head:
                self.head = Layer(nn.Linear, 1, 1)

    model = Net()
    del model.head
    model.configure(with_head=False)
    assert not hasattr(model, "head")
    with pytest.raises(AttributeError, match="head"):
        del model.head
    assert_same(model, model.new())


def test_an_edit_that_fits_no_more_says_what_stands_there() -> None:
    """When another kind of module comes to stand where an edit was made, the change is refused with the reason."""

    class Net(Module):
        def __init__(self, is_list: bool = True) -> None:
            self.inner: Any = Sequential(Layer(nn.ReLU)) if is_list else Layer(nn.ReLU)

    model = Net()
    model.inner.append(Layer(nn.Tanh))
    before = trace(model)
    with pytest.raises(ConfigurationError, match="a Layer stands there now, which has no recorded method 'append'"):
        model.configure(is_list=False)
    assert trace(model) == before


@pytest.mark.parametrize("wraps", [True, False])
def test_what_was_done_to_an_argument_goes_along_with_it_when_another_one_is_configured(wraps: bool) -> None:
    """Edits and settings below an argument stay with the module that was given, and do not meet the next one."""
    model = Wrap(Sequential(Layer(nn.Linear, 1, 1)))
    model.inner.append(Layer(nn.Tanh))
    model.inner[0].configure(out_features=5)
    old = model.inner
    expected = picture(old.new())
    model.configure(inner=Wrap(old) if wraps else Sequential(Layer(nn.Linear, 2, 2)))
    assert picture(old.new()) == expected
    for other in (model, model.new(), model.new().new()):
        new = other.inner
        assert picture(new.inner.new()) == expected if wraps else (len(new), new[0].out_features) == (1, 2)
    assert_same(model, model.new())


def test_what_an_init_set_on_a_child_goes_along_when_it_moves_the_child() -> None:
    """A child that an ``__init__`` takes out of its place, into another module, keeps what was set on it."""

    class Net(Module):
        def __init__(self) -> None:
            self.a: Any = Layer(nn.Linear, 1, 1)
            self.a.configure(out_features=6)
            self.a.note = "kept"
            self.a = Wrap(self.a)

    model = Net()
    for part in (model, model.a, model.a.inner):
        assert picture(part.new()) == picture(part)
    model.a.inner.configure(bias=False)
    assert (model.a.inner.out_features, model.a.inner.note) == (6, "kept")
    assert_same(model, model.new())


@pytest.mark.parametrize("is_shared_before", [True, False])
@pytest.mark.parametrize(
    "act",
    [
        lambda first: first.inner[0].configure(out_features=5),
        lambda first: first.configure("inner", 0, out_features=5),
        lambda first: first.inner.append(Layer(nn.Tanh)),
        lambda first: first.inner[0].set("note", "kept"),
        lambda first: first.set("inner", first.inner),
    ],
    ids=["setting", "from above", "edit", "attribute", "nothing"],
)
def test_a_part_of_two_models_keeps_what_was_set_in_the_one_that_it_leaves(is_shared_before: bool, act: Any) -> None:
    """A part that leaves one of two models has all that was in force for it in the other, and in copies of that."""
    part = Sequential(Layer(nn.Linear, 1, 1))
    first = Wrap(part)
    second = Wrap(part) if is_shared_before else None
    act(first)
    second = Wrap(part) if second is None else second
    before = picture(second)
    assert picture(second.new()) == before
    del first.inner
    second.inner[0].configure(bias=False)
    assert second.inner[0].bias is False
    second.inner[0].configure(bias=True)
    for other in (second, second.new(), second.new().new()):
        assert [type(layer).__name__ for layer in other.inner] == [type(layer).__name__ for layer in part]
        assert (other.inner[0].out_features, len(other.inner)) == (part[0].out_features, len(part))
        assert getattr(other.inner[0], "note", None) == getattr(part[0], "note", None)
