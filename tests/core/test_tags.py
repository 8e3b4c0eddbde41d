"""Tags: the places of a module below its root."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.core import tags
from replayml.core.errors import ConfigurationError
from replayml.layers.containers import LayerList, Parallel
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.module import Module

# A tree is data: a leaf, or a dict of trees by name (a module), or a list of trees (a list).
TREES = st.recursive(
    st.just("leaf"),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(("a", "b", "inner_2", "forward_layer")), inner, max_size=3),
        st.lists(inner, max_size=3),
    ),
    max_leaves=8,
)


class Tree(Module):
    """A module with children by name."""

    def __init__(self, shape: dict[str, Any]) -> None:
        self.seen: list[Any] = []
        for name, inner in shape.items():
            child = grow(inner)
            self.seen.append(child.tags)
            setattr(self, name, child)


def grow(shape: Any) -> Any:
    """Return the module of a tree given as data."""
    if shape == "leaf":
        return Layer(nn.ReLU)
    return Tree(shape) if isinstance(shape, dict) else LayerList([grow(inner) for inner in shape])


def places(shape: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every module of a tree given as data, the upper ones first."""
    yield above
    named = shape.items() if isinstance(shape, dict) else enumerate(shape) if isinstance(shape, list) else ()
    for name, inner in named:
        yield from places(inner, (*above, str(name)))


class Hidden(Module):
    """A module that refuses to be walked through."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def named_modules(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse."""
        raise AssertionError("the whole tree was looked through")

    modules = children = named_children = named_modules


# One place --------------------------------------------------------------------------------------------------------


@given(TREES)
def test_tags_are_the_names_from_the_root_down(shape: Any) -> None:
    """In any tree of modules and lists the tags of a module are the one path by which torch finds it."""
    root = grow(shape)
    found = {name: module for name, module in root.named_modules() if isinstance(module, Module)}
    assert sorted(found) == sorted(".".join(path) for path in places(shape))
    for path in places(shape):
        module = found[".".join(path)]
        assert module.tags == [path]
        assert module.root_module is root
        assert tags.root(module) is root
        assert tags.roots(module) == [root]
        assert tags.child_at(root, tags.path(module)) is module
        assert tags.visible(root, tags.path(module)) == tags.shown(module) == path
        assert tags.paths(module) == [(root, tags.path(module))]


@given(TREES)
def test_the_modules_above_are_the_prefixes_of_the_path(shape: Any) -> None:
    """``ancestors`` yields the module itself and each module above it, up to the root, once."""
    root = grow(shape)
    for module in root.modules():
        above = list(tags.ancestors(module))
        (path,) = module.tags
        assert [one.tags[0] for one in above] == [path[:length] for length in range(len(path), -1, -1)]


@given(TREES)
def test_a_child_is_its_own_root_until_it_is_put_in_place(shape: Any) -> None:
    """Inside an ``__init__`` a child that stands nowhere yet has the tags of a root."""
    for module in grow(shape).modules():
        if isinstance(module, Tree):
            assert all(seen == [()] for seen in module.seen)


def test_the_tags_of_a_root_are_empty() -> None:
    """A module that stands alone has one place, the empty path."""
    layer = Layer(nn.ReLU)
    assert layer.tags == [()]
    assert layer.root_module is layer
    assert tags.path(layer) == ()


def test_a_path_that_leads_nowhere_finds_nothing() -> None:
    """``child_at`` of a name that is not there is None, also below something that has no children."""
    root = grow({"a": "leaf"})
    assert tags.child_at(root, ("b",)) is None
    assert tags.child_at(root, ("a", "b", "c")) is None
    assert tags.child_at(root, ()) is root


def test_names_of_plain_torch_modules_are_part_of_the_path() -> None:
    """A recorded module inside plain torch modules has their names in its tags."""
    inner = Layer(nn.ReLU)
    root: Any = Hidden(nn.Sequential(nn.Tanh(), nn.ModuleDict({"x": inner})))
    assert inner.tags == [("inner", "1", "x")]
    assert tags.child_at(root, ("inner", "1", "x")) is inner
    assert list(tags.ancestors(inner)) == [inner, root]


def test_modules_among_the_arguments_of_an_external_stand_under_their_parameter() -> None:
    """The argument's name is the tag; an element of ``*args`` has its number."""

    class Holder(nn.Module):
        def __init__(self, first: Any, *others: Any, key: Any = None) -> None:
            super().__init__()

    first, other, key = Layer(nn.ReLU), Layer(nn.Tanh), Layer(nn.GELU)
    external = Layer(Holder, first, other, key=key)
    assert [module.tags for module in (first, other, key)] == [[("first",)], [("0",)], [("key",)]]
    root: Any = Hidden(external)
    assert [module.tags for module in (first, other, key)] == [
        [("inner", "first")],
        [("inner", "0")],
        [("inner", "key")],
    ]
    assert key.root_module is root


def test_finding_tags_looks_at_the_modules_above_only() -> None:
    """The tags of a module are found without a walk through the tree."""
    leaf = Layer(nn.ReLU)
    root: Any = Hidden(Hidden(LayerList(Layer(nn.Tanh), leaf)))
    assert leaf.tags == [("inner", "inner", "1")]
    assert leaf.root_module is root
    with pytest.raises(AssertionError, match="looked through"):
        root.named_modules()


# Several places ---------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6, unique=True), st.integers(0, 2))
def test_a_shared_module_has_a_tag_for_each_place(names: list[str], depth: int) -> None:
    """A module assigned under several names, and what is below it, has as many tags."""

    class Shares(Module):
        def __init__(self) -> None:
            shared = grow({"x": {"y": "leaf"}})
            for name in names:
                holder: Any = shared
                for _ in range(depth):
                    holder = Tree({}).set("h", holder)
                setattr(self, name, holder)

    root: Any = Shares()
    shared: Any = getattr(root, names[0])
    for _ in range(depth):
        shared = shared.h
    assert sorted(shared.tags) == sorted((name, *["h"] * depth) for name in names)
    assert sorted(shared.x.y.tags) == sorted((name, *["h"] * depth, "x", "y") for name in names)
    assert tags.roots(shared.x.y) == [root]
    assert len(list(tags.ancestors(shared))) == 2 + depth * len(names)


def test_places_multiply_along_the_way() -> None:
    """A module at two places of a module that stands at two places has four tags."""

    class Pair(Module):
        def __init__(self, make: Any) -> None:
            self.left = make()
            self.right = self.left

    root: Any = Pair(lambda: Pair(lambda: Layer(nn.ReLU)))
    expected = [(outer, inner) for outer in ("left", "right") for inner in ("left", "right")]
    assert sorted(root.left.left.tags) == expected
    assert sorted(tags.shown_below(root.left.left, root)) == expected
    assert sorted(tags.shown_below(root.left.left, root.left)) == [("left",), ("right",)]


def test_a_module_in_two_models_has_two_roots() -> None:
    """While two models share a module, both are its roots; taken out of one, the other is left."""
    layer = Layer(nn.ReLU)
    one: Any = Tree({})
    two: Any = Tree({})
    one.a = layer
    two.b = layer
    assert tags.roots(layer) == [one, two]
    assert [(top, tags.visible(top, slots)) for top, slots in tags.paths(layer)] == [(one, ("a",)), (two, ("b",))]
    assert layer.tags == [("a",)]
    del one.a
    assert tags.roots(layer) == [two]
    assert layer.tags == [("b",)]
    del two.b
    assert tags.roots(layer) == [layer]


# Places that change -----------------------------------------------------------------------------------------------


@given(
    length=st.integers(0, 4),
    moves=st.lists(st.tuples(st.sampled_from(["insert", "pop", "append"]), st.integers(0, 5)), max_size=6),
)
def test_tags_in_a_list_are_the_indices_of_now(length: int, moves: list[tuple[str, int]]) -> None:
    """After elements of a list came and went, each element's tag is its index, and its slot still leads to it."""
    root: Any = Tree({}).set("items", LayerList([Layer(nn.ReLU) for _ in range(length)]))
    slots = {id(element): tags.path(element) for element in root.items}
    for move, number in moves:
        if move == "pop" and not len(root.items):
            continue
        if move == "pop":
            gone = root.items.pop(number % len(root.items))
            assert gone.tags == [()]
        elif move == "insert":
            root.items.insert(number, Layer(nn.ReLU))
        else:
            root.items.append(Layer(nn.Tanh))
        slots = {id(element): slots.get(id(element), tags.path(element)) for element in root.items}
    for index, element in enumerate(root.items):
        assert element.tags == [("items", str(index))]
        assert tags.path(element) == slots[id(element)]
        assert tags.child_at(root, tags.path(element)) is element
    assert len({tags.path(element) for element in root.items}) == len(root.items)


def test_the_branches_of_a_parallel_have_their_index() -> None:
    """A keyword of a `Parallel` names an output; the branch stands under its index."""
    parallel: Any = Parallel(Layer(nn.ReLU), left=Layer(nn.Tanh))
    assert [branch.tags for branch in parallel] == [[("0",)], [("1",)]]


def test_a_replaced_child_leaves_and_its_successor_has_the_tag() -> None:
    """The module put in the place of another has its tag, in a slot of its own; the old one is a root again."""
    root = grow({"a": "leaf", "b": "leaf"})
    old, new = root.a, Layer(nn.Tanh)
    before = tags.path(old)
    root.a = new
    assert new.tags == [("a",)]
    assert tags.path(new) != before
    assert tags.child_at(root, tags.path(new)) is new
    assert old.tags == [()]


@given(TREES, st.data())
def test_a_module_never_stands_below_itself(shape: Any, data: st.DataObject) -> None:
    """Putting a module somewhere below itself is refused, whatever lies between, and changes no tag."""
    root: Any = Tree({}).set("top", grow(shape))
    modules = [module for module in root.modules() if isinstance(module, Tree)]
    low = data.draw(st.sampled_from(modules), label="where")
    high = data.draw(st.sampled_from(list(tags.ancestors(low))), label="what")
    before = [module.tags for module in root.modules()]
    with pytest.raises(ConfigurationError, match="cannot stand below itself"):
        low.set("loop", high)
    assert [module.tags for module in root.modules()] == before
    assert not hasattr(low, "loop")


@given(TREES)
def test_a_copy_of_a_part_is_a_root(shape: Any) -> None:
    """``new()`` of a module in a tree has the empty tag, and those below it their paths from there."""
    root: Any = Tree({}).set("top", grow(shape))
    copy = root.top.new()
    assert copy.tags == [()]
    assert sorted(module.tags[0] for module in copy.modules()) == sorted(places(shape))
    assert root.top.tags == [("top",)]


def test_an_external_alone_is_a_root() -> None:
    """An `External` of no torch class has tags like any module."""
    external = External(dict, a=1)
    assert external.tags == [()]
    assert Hidden(external).inner.tags == [("inner",)]
