"""Who is being constructed: threads and tasks do not see each other, and an exception leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import ConfigurationError
from replayml.core.hooks import after_init, edit, stateful
from replayml.core.journal import note, transaction
from replayml.core.meta import scope
from replayml.layers.containers import LayerList
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.module import Module
from tests.properties import strategies
from tests.properties.models import Scripted, Stopped

# Side by side -------------------------------------------------------------------------------------------------------


def work(recipe: Any, edits: list[Any]) -> Any:
    """Make and edit a model; return what can be seen of it."""
    model = strategies.attempt(recipe)
    if model is None:
        return None
    refused = [strategies.try_to_perform(model, edit) for edit in edits]
    picture = strategies.picture(model)
    assert strategies.picture(model.new()) == picture
    return refused, picture, strategies.recorded(model)


jobs = st.lists(st.tuples(strategies.recipes(), st.lists(strategies.edits(), max_size=3)), min_size=8, max_size=8)


@settings(max_examples=5)
@given(jobs)
def test_eight_threads_build_models_each_as_if_alone(jobs: list[Any]) -> None:
    """Models that eight threads make and edit at once equal those that one thread makes one after another."""
    alone = [work(*job) for job in jobs]
    barrier = threading.Barrier(8)

    def start(job: Any) -> Any:
        barrier.wait()
        return [work(*job) for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(start, jobs))
    assert together == [[result] * 3 for result in alone]


class Slow(Module):
    """One whose ``__init__`` and methods let other threads run in between."""

    def __init__(self, width: int, turns: threading.Barrier | None = None) -> None:
        if turns is not None:
            turns.wait()
        self.layer = Layer(nn.Linear, width, width)
        if turns is not None:
            turns.wait()
        self.layer.configure(out_features=width + 1)
        self.items = LayerList(self.layer)
        if turns is not None:
            turns.wait()
        self.items.append(Layer(nn.ReLU))


def test_constructions_that_interleave_line_by_line_do_not_see_each_other() -> None:
    """Eight ``__init__`` that take turns at each line make what each makes alone, and record nothing of the others."""
    turns = threading.Barrier(8)

    def start(width: int) -> Any:
        model = Slow(width, turns=turns)
        layer = model.layer
        return layer.in_features, layer.out_features, len(model.items), len(model.tape), dict(model._user_config)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(start, range(1, 9)))
    for width, (inputs, outputs, count, entries, config) in zip(range(1, 9), found, strict=True):
        assert (inputs, outputs, count, entries) == (width, width + 1, 2, 0)
        assert {key: [item.source for item in items] for key, items in config.items()} == {
            ("layer", "out_features"): [()]
        }


class Yielding(Module):
    """One whose recorded method awaits in the middle."""

    def __init__(self, width: int = 1) -> None:
        self.width = width
        self.items = LayerList(Layer(nn.Linear, width, width))


def test_two_hundred_tasks_build_models_each_as_if_alone() -> None:
    """Tasks that construct, edit and fail in turns record their own model only."""

    async def task(number: int) -> None:
        model = Yielding(number)
        await asyncio.sleep(0)
        model.items.append(Layer(nn.Linear, number, 1))
        await asyncio.sleep(0)
        with pytest.raises(ConfigurationError, match="widht"):
            model.configure(widht=2)
        model.configure(width=number + 1)
        await asyncio.sleep(0)
        assert scope() is None
        assert [entry.method for entry in model.tape] == ["append", "configure"]
        assert [layer.in_features for layer in model.items] == [number + 1, number]
        assert strategies.picture(model.new()) == strategies.picture(model)

    async def everything() -> None:
        await asyncio.gather(*(task(number) for number in range(200)))

    asyncio.run(everything())


def test_a_task_started_inside_an_init_is_not_undone_with_it() -> None:
    """What a thread does while another one's transaction is open is not undone when that one fails."""
    inside, done = threading.Event(), threading.Event()
    other = Yielding(3)

    class Waiting(Module):
        def __init__(self) -> None:
            self.layer = Layer(nn.ReLU)
            inside.set()
            done.wait()
            raise LookupError("stop")

    def edit_other() -> None:
        inside.wait()
        other.configure(width=5)
        done.set()

    thread = threading.Thread(target=edit_other)
    thread.start()
    with pytest.raises(LookupError, match="stop"):
        Waiting()
    thread.join()
    assert other.width == 5
    assert len(other.tape) == 1


# Exceptions ---------------------------------------------------------------------------------------------------------


class Explosive(Module):
    """One that raises, at a depth and at a moment."""

    def __init__(self, error: BaseException | None = None, depth: int = 0, inner: Any = None) -> None:
        self.layer = Layer(nn.Linear, 2, 2)
        if inner is not None:
            self.inner = inner
            inner.configure(flag=True)
            inner.mark("x")
        if depth:
            self.below = Explosive(error, depth - 1)
        elif error is not None:
            raise error

    @after_init
    def later(self, error: BaseException) -> None:
        """Raise after each construction."""
        raise error

    @stateful
    def tape_only(self, error: BaseException) -> None:
        """Raise after a change."""
        self.layer.configure(out_features=99)
        raise error

    @edit
    def repeated(self, error: BaseException) -> None:
        """Raise after a change."""
        self.items: Any = LayerList()
        raise error


ERRORS = [ValueError("no"), KeyboardInterrupt(), SystemExit(3), Stopped(), GeneratorExit()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_an_exception_in_an_init_leaves_nothing_behind(error: BaseException, depth: int) -> None:
    """After an ``__init__`` at any depth raised anything, nobody is under construction and the next model is right."""
    inner = Scripted((("make", "a", "pair", 0),))
    before = strategies.trace(inner)
    with pytest.raises(type(error)):
        Explosive(error, depth, inner)
    assert scope() is None
    assert strategies.trace(inner) == before
    assert inner.tags == [()]
    assert inner.root_module is inner
    model = Explosive(None, depth, inner)
    assert inner.tags == [("inner",)]
    model.configure(depth=1)
    assert [entry.method for entry in model.tape] == ["configure"]
    assert strategies.picture(model.new()) == strategies.picture(model)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["later", "tape_only", "repeated"])
def test_an_exception_in_a_recorded_method_leaves_no_trace(error: BaseException, method: str) -> None:
    """A recorded method that raises anything leaves tape, settings, children and attributes as they were."""
    model = Explosive(None, 2)
    target = model.below.below
    before = strategies.trace(model)
    with pytest.raises(type(error)):
        getattr(target, method)(error)
    assert strategies.trace(model) == before
    assert scope() is None
    target.configure(depth=1)
    assert strategies.picture(model.new()) == strategies.picture(model)


def test_an_exception_in_a_style_or_a_computed_size_leaves_nothing_behind() -> None:
    """A user's function that raises during ``style`` or ``build`` leaves nobody under construction."""

    def fail(*args: Any) -> Any:
        raise ZeroDivisionError("fail")

    Explosive.register_style(fail)
    with pytest.raises(ZeroDivisionError):
        Explosive().style("fail")
    layer = Layer(nn.Linear, None, 3).computed("in_features", fail)
    with pytest.raises(ZeroDivisionError):
        layer.build(nn.Linear(1, 1).weight)
    with pytest.raises(ZeroDivisionError):
        External(fail).build()
    assert scope() is None
    assert Explosive().layer.configure(bias=False).bias is False


def test_a_failing_transaction_inside_another_one_undoes_its_own_part() -> None:
    """What a caught failure inside a recorded method did is undone; what the method did besides stays."""

    class Careful(Module):
        def __init__(self) -> None:
            self.layer = Layer(nn.Linear, 2, 2)

        @stateful
        def attempt(self) -> None:
            self.first = 1
            with pytest.raises(ConfigurationError):
                self.layer.configure(bias=False, nonsense=1)
            self.layer.configure(out_features=3)

    model = Careful()
    model.attempt()
    assert (model.first, model.layer.out_features, model.layer.bias) == (1, 3, True)
    assert strategies.picture(model.new()) == strategies.picture(model)


def test_notes_outside_of_a_transaction_are_not_kept() -> None:
    """``note`` outside of a transaction does nothing, now or later."""
    box = [1]
    note(box.clear)
    with pytest.raises(KeyError), transaction():
        raise KeyError
    assert box == [1]
