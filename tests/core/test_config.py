"""The config: what was set, by whom, and what wins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.core.config import Config, ConfigItem, DetachedConfigItem, next_serial
from replayml.core.errors import AlreadyBuiltError, ConfigurationError
from replayml.core.hooks import stateful
from replayml.core.tape import Path
from replayml.layers.containers import LayerList
from replayml.layers.layer import Layer
from replayml.module.module import Module

Plan = Sequence[Sequence[int]]
"""What each level sets on the leaf in its ``__init__``, the outermost level first."""

plans = st.lists(st.lists(st.integers(1, 99), max_size=2), min_size=1, max_size=4)


class Leaf(Module):
    """Takes one value; what it was constructed with is its attribute."""

    def __init__(self, x: int = 0) -> None:
        self.x = x


class Level(Module):
    """A chain of modules down to a leaf; each sets ``x`` of the leaf as its part of the plan says."""

    def __init__(self, plan: Plan, unused: int = 0) -> None:
        self.inner = Level(plan[1:]) if len(plan) > 1 else Leaf()
        for value in plan[0]:
            leaf_of(self).configure(x=value)


def leaf_of(module: Any) -> Any:
    """Return the leaf at the end of a chain."""
    while not isinstance(module, Leaf):
        module = module.inner
    return module


def path_of(plan: Plan) -> Path:
    """Return the key of the leaf's value in the config of a chain."""
    return (*["inner"] * len(plan), "x")


def expected(plan: Plan, user: Sequence[int]) -> int:
    """Return the value that wins: the user's latest, else the latest of the outermost level that sets one, else 0."""
    by_rank = [user, *plan]
    return next((values[-1] for values in by_rank if values), 0)


def winner_of(items: Sequence[Any]) -> Any:
    """Return the item that wins by the rule of the documentation."""
    return max(
        enumerate(items),
        key=lambda pair: (pair[1].source is None, -len(pair[1].source or ()), pair[0]),
    )[1]


def all_items(module: Any) -> Iterator[Any]:
    """Yield every item of the config that counts for a module."""
    for items in module._user_config.values():
        yield from items


# Which one wins ---------------------------------------------------------------------------------------------------


@given(plans, st.lists(st.integers(100, 199), max_size=3))
def test_the_user_wins_then_the_outermost_module_then_the_latest(plan: Plan, user: list[int]) -> None:
    """The value in force is that of the rule, and every candidate stands in the config with its source."""
    model: Any = Level(plan)
    assert leaf_of(model).x == expected(plan, [])
    for value in user:
        leaf_of(model).configure(x=value)
        assert leaf_of(model).x == value
    config, path = model._user_config, path_of(plan)
    found = config.get(path, [])
    by_level = [(("inner",) * depth, value) for depth, values in enumerate(plan) for value in values]
    assert sorted(((item.source, item.value) for item in found if item.source is not None), key=repr) == sorted(
        by_level, key=repr
    )
    assert [item.value for item in found if item.source is None] == user
    if found:
        assert winner_of(found).value == leaf_of(model).x
    assert model.get_user_configuration() == ({path: user[-1]} if user else {})


@given(plans, plans, st.lists(st.integers(100, 199), max_size=2))
def test_what_an_init_set_is_dropped_and_made_anew_when_it_runs_again(
    before: Plan, after: Plan, user: list[int]
) -> None:
    """After the root is constructed again, only what the new run set counts, and what the user set stays."""
    model: Any = Level(before)
    for value in user:
        leaf_of(model).configure(x=value)
    model.configure(plan=[*after[:1], *before[1:]])
    plan = [*after[:1], *before[1:]]
    found = model._user_config.get(path_of(plan), [])
    assert sorted(item.value for item in found) == sorted([*user, *(value for values in plan for value in values)])
    assert leaf_of(model).x == expected(plan, user)


@given(plan=plans, times=st.integers(1, 4))
def test_constructing_again_adds_no_items(plan: Plan, times: int) -> None:
    """However often a module is constructed again, its own settings stand in the config once."""
    model: Any = Level(plan)
    before = dict(model._user_config)
    for number in range(times):
        model.configure(unused=number)
    after = {key: items for key, items in model._user_config.items() if key != ("unused",)}
    assert after == before


@given(plan=plans, level=st.integers(0, 3), user=st.lists(st.integers(100, 199), max_size=1))
def test_what_an_outer_module_set_outlives_the_reconstruction_of_an_inner_one(
    plan: Plan, level: int, user: list[int]
) -> None:
    """Constructing a module in the middle again leaves what the modules above it set, and their precedence."""
    model: Any = Level(plan)
    for value in user:
        leaf_of(model).configure(x=value)
    middle: Any = model
    for _ in range(level % len(plan)):
        middle = middle.inner
    middle.configure(unused=1)
    assert leaf_of(model).x == expected(plan, user)
    found = model._user_config.get(path_of(plan), [])
    assert sorted(item.value for item in found) == sorted([*user, *(value for values in plan for value in values)])


def test_a_setting_of_a_method_that_the_init_calls_is_derived_too() -> None:
    """What an ``__init__`` sets by way of a recorded method of the module goes and comes with that ``__init__``."""

    class Sets(Module):
        def __init__(self, x: int = 1) -> None:
            self.leaf = Leaf()
            self.widen(x)

        @stateful
        def widen(self, x: int) -> None:
            self.leaf.configure(x=x)

    model: Any = Sets()
    model.configure(x=2)
    assert [(item.source, item.value) for item in model._user_config[("leaf", "x")]] == [((), 2)]
    model.widen(7)
    assert model.leaf.x == 7
    model.configure(x=3)
    assert [(item.source, item.value) for item in model._user_config[("leaf", "x")]] == [(None, 7), ((), 3)]
    assert model.leaf.x == 7


def test_a_setting_of_a_child_that_is_gone_waits_for_the_next_one() -> None:
    """A setting of the user stays with its place while an ``__init__`` leaves the child out, and counts again later."""

    class Maybe(Module):
        def __init__(self, full: bool = True) -> None:
            if full:
                self.leaf = Leaf()

    model: Any = Maybe()
    model.leaf.configure(x=5)
    model.configure(full=False)
    assert not hasattr(model, "leaf")
    assert [item.value for item in model._user_config[("leaf", "x")]] == [5]
    model.configure(full=True)
    assert model.leaf.x == 5


# Sources ----------------------------------------------------------------------------------------------------------


class Detaches(Module):
    """Sets something on a child before the child stands anywhere."""

    def __init__(self, depth: int, x: int = 1) -> None:
        leaf = Leaf()
        leaf.configure(x=x)
        self.alone = list(leaf._user_config.values())
        holder: Any = leaf
        for _ in range(depth):
            holder = LayerList([holder])
        self.on_the_way = list(holder._user_config.values())
        self.leaf = holder
        self.attached = dict(self._user_config)


@given(st.integers(0, 3), st.integers(1, 9))
def test_a_setting_is_detached_until_source_and_target_stand_in_one_tree(depth: int, x: int) -> None:
    """Before its target is put in place a setting names its source itself; from then on, by the source's tags."""
    model: Any = Detaches(depth, x)
    for view in (model.alone, model.on_the_way):
        ((item,),) = view
        assert type(item) is DetachedConfigItem
        assert item.source is model
        assert item.value == x
    ((key, (attached,)),) = model.attached.items()
    assert key == ("leaf", *["0"] * depth, "x")
    assert type(attached) is ConfigItem
    assert (attached.source, attached.value) == ((), x)
    outer: Any = LayerList([Leaf(), model])
    ((item,),) = outer._user_config.values()
    assert (item.source, item.value) == (("1",), x)


@given(plans, st.integers(0, 2), st.lists(st.integers(100, 199), max_size=2))
def test_no_detached_item_outlives_the_construction(plan: Plan, depth: int, user: list[int]) -> None:
    """Once an ``__init__`` is over every item knows its source by tags, alone and inside of larger models."""

    def make() -> Any:
        model: Any = Level(plan)
        for value in user:
            leaf_of(model).configure(x=value)
        return model

    for outer in (make(), Detaches(depth), Level(plan).set("other", make()), LayerList([make(), Detaches(depth)])):
        assert all(type(item) is ConfigItem for item in all_items(outer))


def test_what_the_user_set_before_stays_the_users() -> None:
    """A module that the user configured and then gave away brings its settings along, as the user's."""
    leaf: Any = Leaf()
    leaf.configure(x=5)

    class Outer(Module):
        def __init__(self, leaf: Any) -> None:
            self.leaf = leaf
            self.leaf.configure(x=7)

    model: Any = Outer(leaf)
    items = model._user_config[("leaf", "x")]
    assert [(item.source, item.value) for item in items] == [(None, 5), ((), 7)]
    assert model.leaf.x == 5


def test_an_item_tells_the_line_of_the_call() -> None:
    """Each item knows the file and the line of the ``configure`` that made it, a call in an ``__init__`` included."""
    model: Any = Detaches(0)
    model.leaf.configure(x=9)
    by_init, by_user = model._user_config[("leaf", "x")]
    assert by_init.where.file == by_user.where.file == __file__
    first = Detaches.__init__.__code__.co_firstlineno
    assert by_init.where.line == first + 2
    assert by_user.where.line == test_an_item_tells_the_line_of_the_call.__code__.co_firstlineno + 3


# As a mapping -----------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.integers(0, 2), st.integers(1, 9), max_size=3))
def test_a_config_reads_as_a_mapping_of_tags_and_names(values: dict[int, int]) -> None:
    """Its keys are the tags and the name of what was set, its values lists of items; it has no other keys."""
    model: Any = LayerList([Leaf() for _ in range(3)])
    for index, value in values.items():
        model[index].configure(x=value)
    config = model._user_config
    keys = {(str(index), "x") for index in values}
    assert isinstance(config, Config)
    assert set(config) == keys
    assert len(config) == len(keys)
    for index, value in values.items():
        assert (str(index), "x") in config
        assert [item.value for item in config[str(index), "x"]] == [value]
    with pytest.raises(KeyError, match="missing"):
        config[("missing",)]
    assert all(repr(value) in repr(config) for value in values.values())


def test_the_config_belongs_to_the_root() -> None:
    """Every module of a tree reads the one config of its root."""
    model: Any = Level([[1], [2]])
    assert model._user_config is model.inner._user_config
    assert model.inner._user_config is leaf_of(model)._user_config
    assert model._user_config.owner is model


def test_keys_follow_the_element_of_a_list() -> None:
    """What was set on an element stands under its index of now, and goes with it when it is taken out."""
    layers: Any = LayerList([Leaf(), Leaf()])
    layers[1].configure(x=4)
    layers.insert(0, Leaf())
    assert set(layers._user_config) == {("2", "x")}
    layers.pop(1)
    assert set(layers._user_config) == {("1", "x")}
    element = layers.pop(1)
    assert layers.get_user_configuration() == {}
    assert element.x == 4
    assert element.get_user_configuration() == {("x",): 4}


def test_serials_only_grow() -> None:
    """The order in which things are set is a number that only grows."""
    numbers = [next_serial() for _ in range(5)]
    assert numbers == sorted(set(numbers))


# What may be set --------------------------------------------------------------------------------------------------


class Variadic(Module):
    """Takes any number of modules, and settings of any name."""

    def __init__(self, first: int, /, *others: Any, width: int = 2, **options: Any) -> None:
        self.first, self.width, self.options = first, width, options
        for index, other in enumerate(others):
            setattr(self, f"other_{index}", other)


def test_the_values_of_variadic_arguments_are_not_settings_but_the_modules_in_them_are_configurable() -> None:
    """``*args`` has no name to be configured by; a module given in it is configured where it stands."""
    model: Any = Variadic(1, Leaf(), Leaf(3))
    assert model.configurables >= {"width"}
    assert "others" not in model.configurables
    model.other_1.configure(x=9)
    model.configure("other_0", x=8)
    assert (model.other_0.x, model.other_1.x) == (8, 9)
    copy = model.new()
    assert (copy.other_0.x, copy.other_1.x) == (8, 9)
    model.configure(width=5)
    assert (model.width, model.other_0.x, model.other_1.x) == (5, 8, 9)


@given(st.dictionaries(st.sampled_from(["width", "colour", "others_2"]), st.integers(), min_size=1, max_size=3))
def test_settings_of_a_variadic_init_reach_its_keywords(values: dict[str, int]) -> None:
    """An ``__init__`` with ``**options`` takes any name, as it does in a call."""
    model: Any = Variadic(1).configure(**values)
    assert model.width == values.get("width", 2)
    assert model.options == {name: value for name, value in values.items() if name != "width"}
    assert model.new().options == model.options


def test_an_unknown_name_is_refused_with_the_choices() -> None:
    """The error says where, what was meant, and what there is; nothing is set."""
    model: Any = LayerList([Level([[]])])
    with pytest.raises(
        ConfigurationError, match=r"Level at '0' has no setting 'plam'\. Did you mean 'plan'\? It takes: plan, unused\."
    ):
        model[0].configure(plam=1)
    assert len(model._user_config) == 0
    assert len(model.tape) == 0


def test_configuring_a_built_module_is_refused() -> None:
    """The weights of a built model fit its settings; the error names ``new``."""
    model: Any = Level([[]]).set("layer", Layer(nn.Linear, 2, 2)).build()
    with pytest.raises(AlreadyBuiltError, match=r"is built; its configuration is fixed\. .*new\(\)"):
        model.configure("layer", out_features=3)
    assert model.layer.out_features == 2


@given(st.lists(st.tuples(st.sampled_from(["x", "y"]), st.integers()), max_size=4), st.integers(0, 4))
def test_a_failed_call_leaves_the_config_as_it_was(values: list[tuple[str, int]], before: int) -> None:
    """Settings made by a recorded method that raises are gone, the earlier ones are the very same."""

    class Both(Module):
        def __init__(self) -> None:
            self.x = Leaf()
            self.y = Leaf()

        @stateful
        def fail(self) -> None:
            for name, value in values[before:]:
                self._modules[name].configure(x=value)  # type: ignore[union-attr, operator]
            raise KeyError("stop")

    model: Any = Both()
    for name, value in values[:before]:
        getattr(model, name).configure(x=value)
    items, shown = list(all_items(model)), dict(model._user_config)
    with pytest.raises(KeyError, match="stop"):
        model.fail()
    assert dict(model._user_config) == shown
    assert list(all_items(model)) == items
    assert (model.x.x, model.y.x) == tuple(
        next((value for name, value in reversed(values[:before]) if name == wanted), 0) for wanted in ("x", "y")
    )


class Sourced(Module):
    """A leaf that its holder sets."""

    def __init__(self) -> None:
        self.leaf = Leaf()
        self.leaf.configure(x=1)


class Boxed(Module):
    """A module around another one, which may set its leaf."""

    def __init__(self, inner: Any, value: int = 0) -> None:
        self.inner = inner
        if value:
            self.inner.leaf.configure(x=value)


def test_the_outer_module_wins_also_where_a_part_stands_in_two_models() -> None:
    """The rank of a source does not depend on which of the models came first."""
    source = Sourced()
    shallow = Boxed(source)
    deep = Boxed(Boxed(Boxed(Boxed(source, 2))))
    assert source.leaf.x == 2
    assert all(type(item) is ConfigItem for items in deep._user_config.values() for item in items)
    kinds = [type(item) for items in shallow._user_config.values() for item in items]
    assert kinds == [ConfigItem, DetachedConfigItem]  # that of the other model has its source there


def test_settings_of_an_element_that_is_gone_are_not_those_of_its_successor() -> None:
    """After ``pop`` the config does not show what was set on the element under the index of another one."""
    items: Any = LayerList([Leaf(), Leaf(), Leaf()])
    items[1].configure(x=4)
    items.pop(1)
    assert dict(items._user_config) == {}
