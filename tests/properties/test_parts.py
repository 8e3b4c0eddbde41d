"""Parts that share something, move, or are constructed again within a larger model; each case was a fault once."""

from __future__ import annotations

from typing import Any

from torch import nn

from replayml.core.hooks import stateful
from replayml.layers.containers import LayerList
from replayml.layers.layer import Layer
from replayml.module.module import Module


class Base(Module):
    """A layer of a width."""

    def __init__(self, width: int = 2) -> None:
        self.layer: Any = Layer(nn.Linear, width, 1)


class Tying(Module):
    """One that lets a part of it hold another layer of that part."""

    def __init__(self) -> None:
        self.part: Any = Base()
        self.part.tied = self.part.layer


class Holding(Module):
    """One around a part; without a part it makes one."""

    def __init__(self, part: Any = None) -> None:
        self.part: Any = Tying() if part is None else part


def test_a_tie_inside_of_a_part_is_made_again_inside_of_that_part() -> None:
    """What a call referred to is looked for where the call was made, also when that stands in a larger model now."""
    by_user: Any = Holding(Base())
    by_user.part.tied = by_user.part.layer
    for model in (Holding(), Holding(by_user)):
        base = model.part.part
        base.configure(width=5)
        for other in (base, model.new().part.part, model.part.new().part, base.new()):
            assert other.tied is other.layer
            assert other.layer.in_features == 5


def test_a_holder_that_was_left_does_not_hide_another_one() -> None:
    """A part that shares something is constructed together with all that hold it, whoever else held it once."""

    class Sharing(Module):
        def __init__(self, shares: bool = True) -> None:
            if shares:
                self.items = LayerList(Layer(nn.Linear, 2, 1))

    class Dropping(Module):
        def __init__(self, items: Any) -> None:
            self.left: Any = Holding(items)
            self.left = Layer(nn.Tanh)
            self.items = items

    class Net(Module):
        def __init__(self) -> None:
            self.sharing: Any = Sharing()
            self.other = Dropping(self.sharing._modules.get("items"))

    model = Net()
    assert model.other.items is model.sharing.items
    model.sharing.configure(shares=False)
    for net in (model, model.new()):
        assert net.other.items is None


def test_a_call_tells_of_itself_alone_when_its_module_is_made_anew_meanwhile() -> None:
    """What a ``@stateful`` method does after it had its own module constructed again is no entry of its own."""

    class Inner(Module):
        def __init__(self, width: int = 1) -> None:
            self.layer: Any = Layer(nn.Linear, width, 1)

        @stateful
        def widen(self) -> None:
            layer = self.layer
            self.configure(width=2)
            layer.configure(bias=False)

    class Outer(Module):
        def __init__(self) -> None:
            self.inner = Inner()

    class Net(Module):
        def __init__(self) -> None:
            self.outer: Any = Outer()
            self.inner = self.outer.inner
            self.layer = self.inner.layer
            self.outer = Layer(nn.ReLU)

    model: Any = Net()
    model.inner.layer = Layer(nn.Linear, 3, 3)
    model.inner.widen()
    for net in (model, model.new(), model.new().new()):
        assert [entry.method for entry in net.tape] == ["set", "widen"]
        assert net.inner.layer.bias is False


def test_what_was_given_keeps_what_it_holds_of_the_part_that_is_made_again() -> None:
    """A module that was given to another one, and holds a layer of that, still stands there after a reconstruction."""

    class Around(Module):
        def __init__(self, given: Any = None, width: int = 1) -> None:
            self.base = Layer(nn.Linear, width, 1)
            self.given = given

    class Net(Module):
        def __init__(self) -> None:
            self.around = Around(Base())

    model: Any = Net()
    model.around.given.extra = model.around.base
    model.around.configure(width=4)
    for net in (model, model.new()):
        assert net.around.given.extra is net.around.base
        assert sorted(net.around.base.tags) == [("around", "base"), ("around", "given", "extra")]


def test_the_outer_init_has_the_last_word_after_a_part_is_constructed_again() -> None:
    """What an outer ``__init__`` set on a layer is set again after what the part's own ``__init__`` sets on it."""

    class Part(Module):
        def __init__(self, width: int = 1) -> None:
            self.layer: Any = Layer(nn.Linear, 1, 1)
            self.layer.configure(out_features=width)
            self.layer.note = "inner"

    class Net(Module):
        def __init__(self) -> None:
            self.part = Part()
            self.part.layer.note = "outer"

    model = Net()
    assert model.part.layer.note == "outer"
    model.part.configure(width=3)
    for part in (model.part, model.new().part, model.part.new()):
        assert (part.layer.note, part.layer.out_features) == ("outer", 3)


class Sized(Module):
    """One whose ``__init__`` looks at what it is given."""

    def __init__(self, inner: Any) -> None:
        self.inner: Any = inner
        self.norm = Layer(nn.BatchNorm1d, inner.out_features)


class Blocks(Module):
    """Two parts and a list."""

    def __init__(self) -> None:
        self.one: Any = Base()
        self.two: Any = Base()
        self.items: Any = LayerList(Layer(nn.ReLU))


def test_a_part_whose_layer_was_configured_and_then_wrapped_can_be_copied_alone() -> None:
    """What was set on a layer before it was moved within a part is told before the move."""
    model = Blocks()
    model.one.layer.configure(out_features=7)
    model.one.layer = Sized(model.one.layer)
    model.one.layer.inner.configure(bias=False)
    for one in (model.one, model.one.new(), model.new().one.new()):
        assert (one.layer.inner.out_features, one.layer.inner.bias, one.layer.norm.num_features) == (7, False, 7)


def test_a_part_to_which_another_one_was_moved_can_be_copied_alone() -> None:
    """What was set on a module where it stood before is told of the place at which it stands now."""
    model = Blocks()
    model.two.configure("layer", out_features=8)
    model.two.layer.note = 1
    model.items.append(model.two)
    model.two = Layer(nn.Tanh)
    model.items[1].layer.note = 2
    model.items.insert(0, Layer(nn.GELU))
    model.items[2].layer.configure(bias=False)
    for items in (model.items, model.items.new(), model.new().items.new()):
        assert [type(item).__name__ for item in items] == ["Layer", "Layer", "Base"]
        assert (items[2].layer.out_features, items[2].layer.note, items[2].layer.bias) == (8, 2, False)


def test_a_part_with_a_new_module_around_one_that_is_gone_can_be_copied_alone() -> None:
    """What stood elsewhere, and was replaced there since, is in the copy as it is."""
    model = Blocks()
    model.two.layer.configure(out_features=8)
    model.one.layer = Holding(model.two.layer)
    model.two.layer = Layer(nn.Tanh)
    for one in (model.one, model.one.new(), model.new().one.new()):
        assert one.layer.part.out_features == 8


class Growing(Module):
    """A module that adds to the list that it is given."""

    def __init__(self, part: Any = None) -> None:
        self.part: Any = part
        if part is not None:
            part.append(Layer(nn.ReLU))


def test_what_a_part_did_to_its_argument_is_undone_when_the_outer_module_is_constructed_again() -> None:
    """An ``__init__`` at any depth that adds to a given list adds once, however often it is run again."""

    class Net(Module):
        def __init__(self, part: Any = None, width: int = 1) -> None:
            self.growing = Growing(part)
            self.layer = Layer(nn.Linear, width, 1)

    by_user = Net()
    by_user.growing.configure(part=LayerList(Layer(nn.Tanh)))
    for model in (by_user, Net(LayerList(Layer(nn.Tanh)))):
        for width in (2, 3):
            model.configure(width=width)
            assert len(model.growing.part) == len(model.new().growing.part) == 2


def test_a_plain_module_that_a_part_brought_along_is_known_in_the_whole() -> None:
    """A plain module of torch in a list of a part is that very module for calls on the model, and in its copies."""

    class Part(Module):
        def __init__(self) -> None:
            self.items: Any = LayerList(Layer(nn.Linear, 2, 2), nn.ReLU(), nn.Tanh())

    class Net(Module):
        def __init__(self) -> None:
            self.part = Part()

    model: Any = Net()
    model.act = model.part.items[1]
    model.part.items.remove(model.part.items[2])
    for net in (model, model.new()):
        assert net.act is net.part.items[1]
        assert len(net.part.items) == 2


def test_what_is_taken_out_of_a_part_stands_first_where_it_is_now() -> None:
    """A layer that takes the place of the part that made it is the model's, whatever is constructed again later."""

    class Part(Module):
        def __init__(self) -> None:
            self.base: Any = Layer(nn.Linear, 2, 2)
            self.inner: Any = Base()
            self.inner.tied = self.base
            self.inner.configure(width=5)

    class Net(Module):
        def __init__(self, width: int = 1) -> None:
            self.part: Any = Part()

    model = Net()
    model.part = model.part.base
    model.configure(width=2)
    for net in (model, model.new()):
        assert net.part.root_module is net
        assert net.part.tags == [("part",)]
