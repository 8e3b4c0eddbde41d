"""Which setting wins: the user's, then the one closest to the root, then the latest; against an oracle of ten lines."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from replayml.layers.containers import LayerList
from replayml.layers.layer import Layer
from replayml.module.module import Module

# A plan holds, for each level of a chain, what its ``__init__`` sets below: (level, value, only if its own is odd).
Plan = tuple[tuple[tuple[int, int, bool], ...], ...]


class Level(Module):
    """One level of a chain: makes the next one and sets values below, some of them only if its own value is odd."""

    runs: ClassVar[Counter[int]] = Counter()

    def __init__(self, plan: Plan, value: int = 0, at: int = 0, inner: Any = None) -> None:
        self.runs[at] += 1
        self.value = value
        self.at = at
        if at + 1 < len(plan):
            self.inner = Level(plan, at=at + 1) if inner is None else inner
        for level, number, only_if_odd in plan[at]:
            target: Any = self
            for _ in range(level - at):
                target = target.inner
            if level > at and (value % 2 or not only_if_odd):
                target.configure(value=number + value)


def expected(plan: Plan, user: dict[int, int], arguments: dict[int, int]) -> list[int]:
    """Return the value of each level, from the root down."""
    values: list[int] = []
    outer: dict[int, int] = {}
    for at, sets in enumerate(plan):
        value = user.get(at, outer.get(at, arguments.get(at, 0)))
        values.append(value)
        own: dict[int, int] = {}
        for level, number, only_if_odd in sets:
            if level > at and (value % 2 or not only_if_odd):
                own[level] = number + value
        outer = {**own, **outer}
    return values


def found(model: Any) -> list[int]:
    """Return the value of each level, from the root down."""
    values = []
    while model is not None:
        values.append(model.value)
        model = model._modules.get("inner")
    return values


def level_at(model: Any, level: int) -> Any:
    """Return the module of a level."""
    for _ in range(level):
        model = model.inner
    return model


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Return plans of two to five levels."""
    depth = draw(st.integers(2, 5))
    step = st.tuples(st.integers(0, depth - 1), st.integers(0, 9), st.booleans())
    return tuple(draw(st.lists(step, max_size=3).map(tuple)) for _ in range(depth))


changes = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=6)


@settings(max_examples=1000)
@given(plans(), changes)
def test_the_setting_that_wins_is_the_oracles(plan: Plan, edits: list[tuple[int, int]]) -> None:
    """After each of the user's settings every level has the value that user, outer and later settings give it."""
    model = Level(plan)
    user: dict[int, int] = {}
    assert found(model) == expected(plan, user, {})
    for level, value in edits:
        level %= len(plan)
        level_at(model, level).configure(value=value)
        user[level] = value
        assert found(model) == expected(plan, user, {})
        assert found(model.new()) == found(model)


@given(plans(), changes, changes, st.data())
def test_what_the_user_set_on_a_part_still_wins_in_the_whole(
    plan: Plan, before: list[tuple[int, int]], after: list[tuple[int, int]], data: st.DataObject
) -> None:
    """A part that the user configured before giving it to an outer module keeps these values in it."""
    split = data.draw(st.integers(1, len(plan) - 1))
    part = Level(plan, at=split)
    user: dict[int, int] = {}
    for level, value in before:
        level = split + level % (len(plan) - split)
        level_at(part, level - split).configure(value=value)
        user[level] = value
    model = part
    for at in reversed(range(split)):
        model = Level(plan, at=at, inner=model)
        if data.draw(st.booleans()):
            user[at] = data.draw(st.integers(0, 9))
            model.configure(value=user[at])
    assert found(model) == expected(plan, user, {})
    for level, value in after:
        level %= len(plan)
        level_at(model, level).configure(value=value)
        user[level] = value
        assert found(model) == expected(plan, user, {})
    assert found(model.new()) == found(model)


@given(plans(), changes, st.data())
def test_a_part_taken_alone_keeps_what_was_in_force(
    plan: Plan, edits: list[tuple[int, int]], data: st.DataObject
) -> None:
    """``sub.new()`` has the values that user and outer modules gave to the part."""
    model = Level(plan)
    for level, value in edits:
        level_at(model, level % len(plan)).configure(value=value)
    values = found(model)
    split = data.draw(st.integers(0, len(plan) - 1))
    part = level_at(model, split).new()
    assert found(part) == values[split:]
    part.configure(value=100)
    assert found(model) == values


@settings(max_examples=25)
@given(plans(), st.integers(0, 9))
def test_reconfiguring_the_root_runs_each_init_at_most_depth_times(plan: Plan, value: int) -> None:
    """With settings on every level, one ``configure`` of the root runs no ``__init__`` more than depth + 1 times."""
    model = Level(plan)
    for level in range(len(plan)):
        level_at(model, level).configure(value=level)
    Level.runs.clear()
    model.configure(value=value + 20)
    assert max(Level.runs.values()) <= len(plan) + 1
    Level.runs.clear()
    model.new()
    assert max(Level.runs.values()) <= (len(plan) + 1) ** 2


class Conditional(Module):
    """Configures a layer only while a flag is set."""

    def __init__(self, wide: bool = True, bias: bool | None = None) -> None:
        self.layer = Layer(nn.Linear, 4, 4)
        self.items = LayerList(Layer(nn.Linear, 4, 4))
        if wide:
            self.layer.configure(out_features=64)
            self.items.append(Layer(nn.ReLU))
        if bias is not None:
            self.items[0].configure(bias=bias)


def test_what_an_init_configured_goes_when_it_runs_again() -> None:
    """What a module's own ``__init__`` set is dropped and made anew when the module is constructed again."""
    model = Conditional()
    model.items[0].configure(out_features=9)
    model.configure(wide=False, bias=False)
    assert model.layer.out_features == 4
    assert len(model.items) == 1
    assert (model.items[0].out_features, model.items[0].bias) == (9, False)
    model.configure(wide=True, bias=None)
    assert model.layer.out_features == 64
    assert len(model.items) == 2
    assert (model.items[0].out_features, model.items[0].bias) == (9, True)


def test_the_order_of_assignments_does_not_matter() -> None:
    """A setting made before or after its target is put in place counts the same."""

    class First(Module):
        def __init__(self) -> None:
            inner = Conditional()
            inner.layer.configure(out_features=1)
            self.inner = inner

    class Last(Module):
        def __init__(self) -> None:
            self.inner = Conditional()
            self.inner.layer.configure(out_features=1)

    assert First().inner.layer.out_features == Last().inner.layer.out_features == 1
    for model in (First(), Last()):
        model.inner.configure(bias=False)
        assert model.inner.layer.out_features == 1
        assert model.inner.items[0].bias is False
