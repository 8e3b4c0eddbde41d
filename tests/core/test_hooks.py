"""The decorators: when a recorded method runs, how often, and on what."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import replayml
from replayml.core.errors import AlreadyBuiltError
from replayml.core.hooks import (
    after_build,
    after_deploy,
    after_fit,
    after_init,
    before_build,
    before_deploy,
    before_fit,
    edit,
    is_recorded,
    run_hooks,
    run_waiting,
    stateful,
)
from replayml.core.meta import scope
from replayml.layers.containers import LayerList
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.module import Module

WORDS = st.sampled_from("xyz")
DECORATORS = {
    "stateful": stateful,
    "edit": edit,
    "after_init": after_init,
    "before_build": before_build,
    "after_build": after_build,
    "before_fit": before_fit,
    "after_fit": after_fit,
    "before_deploy": before_deploy,
    "after_deploy": after_deploy,
}
WAITING = ("before_build", "after_build")
LATER = ("before_fit", "after_fit", "before_deploy", "after_deploy")


class Hooked(Module):
    """Notes which of its methods ran, in ``done``; its ``__init__`` makes the calls that it is given."""

    def __init__(self, calls: Any = (), width: int = 2) -> None:
        self.done: list[Any] = []
        self.layer = Layer(nn.Linear, width, width)
        for method, word in calls:
            getattr(self, method)(word)
        self.width = width

    @stateful
    def stateful(self, word: str) -> Any:
        """Note the call."""
        self.done.append(("stateful", word))
        return word

    @edit
    def edit(self, word: str) -> Any:
        """Note the call."""
        self.done.append(("edit", word))
        return self

    @after_init
    def after_init(self, word: str) -> Any:
        """Note the call, and whether the ``__init__`` is over."""
        self.done.append(("after_init", word))
        assert self.width == self.layer.in_features
        return self

    @before_build
    def before_build(self, word: str) -> Any:
        """Note the call on a module whose layer is not built."""
        assert isinstance(self.layer, Layer)
        self.done.append(("before_build", word))

    @after_build
    def after_build(self, word: str) -> Any:
        """Note the call on a module whose layer is built."""
        assert not isinstance(self.layer, Layer)
        self.done.append(("after_build", word))


CALLS = st.lists(st.tuples(st.sampled_from(("stateful", "edit", "after_init", *WAITING)), WORDS), max_size=6)


def of(calls: Any, *kinds: str) -> list[Any]:
    """Return the calls of these kinds, in order."""
    return [call for call in calls if call[0] in kinds]


def at_build(calls: Any) -> list[Any]:
    """Return what a build runs: the calls that wait for its start, then those that wait for its end."""
    return of(calls, "before_build") + of(calls, "after_build")


# When and how often -----------------------------------------------------------------------------------------------


@given(CALLS)
def test_the_users_calls_run_at_their_time_in_their_order_once(calls: Any) -> None:
    """Immediate calls run at once, those of the build when it comes, each kind in order of registration, once."""
    model: Any = Hooked()
    for method, word in calls:
        getattr(model, method)(word)
    now = of(calls, "stateful", "edit", "after_init")
    assert model.done == now
    built = model.build()
    assert built is model
    assert built.done == now + at_build(calls)
    assert built.build().done == now + at_build(calls)


@given(CALLS)
def test_calls_of_the_modules_own_init_run_at_their_time_too(calls: Any) -> None:
    """A module's own ``__init__`` makes the same calls; those of ``after_init`` run when the ``__init__`` is over."""
    model: Any = Hooked(calls)
    now = of(calls, "stateful", "edit") + of(calls, "after_init")
    assert model.done == now
    assert len(model.tape) == 0
    assert model.build().done == now + at_build(calls)


@given(own=CALLS, user=CALLS, times=st.integers(1, 3))
def test_after_a_reconstruction_the_hooks_are_there_once(own: Any, user: Any, times: int) -> None:
    """Constructing again makes the calls of the ``__init__`` anew, then the user's, all but the stateful ones."""
    model: Any = Hooked(own)
    for method, word in user:
        getattr(model, method)(word)
    for number in range(times):
        model.configure(width=3 + number)
    now = of(own, "stateful", "edit") + of(own, "after_init") + of(user, "edit", "after_init")
    assert model.done == now
    assert model.build().done == now + at_build([*own, *user])


@given(before=CALLS, after=CALLS, user=CALLS)
def test_a_hook_of_the_init_goes_when_the_init_makes_it_no_more(before: Any, after: Any, user: Any) -> None:
    """After the module is constructed with other calls, those of the last run wait for nothing any more."""
    model: Any = Hooked(before)
    for method, word in user:
        getattr(model, method)(word)
    model.configure(calls=after)
    built = model.build()
    assert of(built.done, *WAITING) == at_build([*after, *user])
    assert of(built.done, "after_init") == of([*after, *user], "after_init")


@given(own=CALLS, user=CALLS)
def test_each_copy_has_the_hooks(own: Any, user: Any) -> None:
    """``new``, ``create``, deep copies and pickling keep the calls that wait, whatever was built before."""
    model: Any = Hooked(own)
    for method, word in user:
        getattr(model, method)(word)
    expected = at_build([*own, *user])
    assert of(model.create().done, *WAITING) == expected
    assert of(model.create().done, *WAITING) == expected
    for again in (model.new(), model.new().new(), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert of(again.build().done, *WAITING) == expected
    assert of(model.build().done, *WAITING) == expected
    assert of(model.new().build().done, *WAITING) == expected


@given(own=CALLS, outer=CALLS, user=CALLS, again=st.booleans())
def test_calls_of_an_outer_init_last_as_long_as_that_init(own: Any, outer: Any, user: Any, again: bool) -> None:
    """A child has its own calls, its maker's and the user's; its maker's are made once, run again or not."""

    class Outer(Module):
        def __init__(self, note: int = 0) -> None:
            self.child = Hooked(own)
            for method, word in outer:
                getattr(self.child, method)(word)

    model: Any = Outer()
    for method, word in user:
        getattr(model.child, method)(word)
    if again:
        model.configure(note=1)
    else:
        model.child.configure(width=5)
    kept = of([*outer, *user], "edit", "after_init")
    assert of(model.child.done, "edit", "after_init") == of(own, "edit") + of(own, "after_init") + kept
    assert of(model.build().child.done, *WAITING) == at_build([*own, *outer, *user])


def test_an_after_init_call_of_a_parent_class_runs_at_the_end_of_the_whole_init() -> None:
    """What a parent's ``__init__`` asks for after the ``__init__`` sees what the child's ``__init__`` made."""

    class Parent(Module):
        def __init__(self) -> None:
            self.remember("parent")

        @after_init
        def remember(self, word: str) -> None:
            self.seen = [*getattr(self, "seen", ()), (word, self.size)]

    class Child(Parent):
        def __init__(self, size: int = 3) -> None:
            super().__init__()
            self.remember("child")
            self.size = size

    model: Any = Child()
    assert model.seen == [("parent", 3), ("child", 3)]
    model.configure(size=4)
    assert model.seen == [("parent", 4), ("child", 4)]


def test_hooks_of_a_shared_module_run_once() -> None:
    """A module that stands in two places is built once, and its calls run once."""
    shared = Hooked()
    shared.after_build("x")
    model: Any = LayerList([shared, shared, LayerList([shared])]).build()
    assert model[0] is model[1] is model[2][0]
    assert model[0].done == [("after_build", "x")]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(WAITING), WORDS), max_size=6))
def test_each_module_of_a_tree_has_hooks_of_its_own(calls: Any) -> None:
    """Every module's calls run on that module, whatever the order of registration over the tree."""
    model: Any = LayerList([Hooked(), Hooked(), Hooked()])
    for index, method, word in calls:
        getattr(model[index], method)(word)
    built = model.create()
    for index in range(3):
        assert built[index].done == at_build([(method, word) for at, method, word in calls if at == index])


# On what ----------------------------------------------------------------------------------------------------------


class Scaled(Layer):
    """A layer with calls that change what was built."""

    @before_build
    def widen(self, size: int) -> None:
        """Change a setting in time for the build."""
        self.configure(out_features=size)

    @after_build
    def fill(self, value: float) -> Any:
        """Fill the weight of the object that it gets."""
        nn.init.constant_(self.weight, value)
        return self


def test_a_hook_of_a_layer_gets_the_object_that_replaced_it() -> None:
    """``before_build`` runs on the layer, ``after_build`` on the torch layer made of it, in a tree or alone."""
    layer: Any = Scaled(nn.Linear, 2, 2)
    layer.fill(1.0).fill(0.5)
    layer.widen(3)
    alone = layer.create()
    assert type(alone) is nn.Linear
    inside = LayerList([layer]).build()[0]
    for built in (alone, inside):
        assert built.weight.shape == (3, 2)
        assert torch.equal(built.weight, torch.full((3, 2), 0.5))


def test_a_hook_of_an_external_gets_the_object_of_any_class() -> None:
    """The object that replaced an `External` need be no module."""

    class Table(External):
        @after_build
        def put(self, key: str, value: int) -> None:
            self[key] = value

    table: Any = Table(dict, a=1)
    table.put("b", 2)
    assert table.create() == {"a": 1, "b": 2}
    table.put("a", 3)
    assert table.build() == {"a": 3, "b": 2}


# Results, marks and the user's view -------------------------------------------------------------------------------


def test_immediate_calls_return_what_the_method_returns_and_waiting_ones_the_module() -> None:
    """A call that runs at once gives its result; one that waits gives the module, so that calls chain."""
    model: Any = Hooked()
    assert model.stateful("x") == "x"
    assert model.edit("x") is model
    assert model.before_build("x") is model
    assert model.after_build("x") is model
    assert model.build() is model


@pytest.mark.parametrize("name", DECORATORS)
def test_a_decorated_method_looks_like_the_users_own(name: str) -> None:
    """Name, text, signature and source are those of the function, which carries the mark of a recorded one."""

    def method(self: Any, number: int, *, word: str = "x") -> str:
        """Do something."""
        return word

    decorated = DECORATORS[name](method)
    assert (decorated.__name__, decorated.__doc__) == ("method", "Do something.")
    assert inspect.signature(decorated) == inspect.signature(method)
    assert inspect.getsource(decorated) == inspect.getsource(method)
    assert is_recorded(decorated)
    assert not is_recorded(method)
    assert getattr(replayml, name) is DECORATORS[name]


@pytest.mark.parametrize("thing", [len, "text", None, Hooked, nn.Linear(1, 1), Module.forward])
def test_only_decorated_functions_are_recorded(thing: Any) -> None:
    """Nothing else carries the mark."""
    assert not is_recorded(thing)


def test_an_override_that_calls_its_parent_is_one_call() -> None:
    """A recorded method that calls that of its parent class is one entry, and both are done once."""

    class Child(Hooked):
        @stateful
        def stateful(self, word: str) -> Any:
            super().stateful(word)
            self.done.append("child")

        @edit
        def edit(self, word: str) -> Any:
            super().edit(word)
            self.done.append("child")

    model: Any = Child()
    model.edit("a")
    model.stateful("b")
    expected = [("edit", "a"), "child", ("stateful", "b"), "child"]
    assert model.done == model.new().done == expected
    assert [entry.method for entry in model.tape] == ["edit", "stateful"]
    model.configure(width=3)
    assert model.done == expected[:2]


def test_stateful_calls_are_replayed_but_not_made_again() -> None:
    """A ``@stateful`` call is on the tape, so a copy has its effect; constructing again does not repeat it."""
    model: Any = Hooked()
    model.stateful("x")
    model.edit("y")
    assert model.new().done == [("stateful", "x"), ("edit", "y")]
    model.configure(width=3)
    assert model.done == [("edit", "y")]
    assert model.new().done == [("edit", "y")]


# On built models --------------------------------------------------------------------------------------------------


def test_on_a_built_model_a_decorated_method_is_an_ordinary_one() -> None:
    """It runs at once, whatever it would have waited for, and leaves no entry; only ``before_build`` is refused."""
    model: Any = Hooked().build()
    model.stateful("a")
    model.edit("b")
    model.after_build("c")
    assert model.done == [("stateful", "a"), ("edit", "b"), ("after_build", "c")]
    assert len(model.tape) == 0
    with pytest.raises(
        AlreadyBuiltError, match=r"before_build\(\) waits for the build of Hooked, which is over\. .*new\(\)"
    ):
        model.before_build("d")


def test_a_hook_that_raises_tells_its_own_error_and_undoes_the_call() -> None:
    """An ``after_init`` call that raises leaves tape, settings and attributes as they were."""

    class Strict(Module):
        def __init__(self, width: int = 1) -> None:
            self.width = width

        @after_init
        def limit(self, most: int) -> None:
            self.most = most
            if self.width > most:
                raise ValueError(f"{self.width} is more than {most}")

    model: Any = Strict(3)
    with pytest.raises(ValueError, match="3 is more than 2"):
        model.limit(2)
    assert not hasattr(model, "most")
    assert len(model.tape) == 0
    model.configure(width=9)
    model.limit(10)
    with pytest.raises(ValueError, match="11 is more than 10"):
        model.configure(width=11)
    assert (model.width, model.most, len(model.tape)) == (9, 10, 2)
    assert scope() is None


# The life after the build -----------------------------------------------------------------------------------------


class Lives(Module):
    """Notes its later phases."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.layer = Layer(nn.Linear, 1, 1)

    @before_fit
    def before_fit(self, word: str) -> None:
        """Note the call."""
        self.done.append(("before_fit", word))

    @after_fit
    def after_fit(self, word: str) -> None:
        """Note the call."""
        self.done.append(("after_fit", word))

    @before_deploy
    def before_deploy(self, word: str) -> None:
        """Note the call."""
        self.done.append(("before_deploy", word))

    @after_deploy
    def after_deploy(self, word: str) -> None:
        """Note the call."""
        self.done.append(("after_deploy", word))


@given(
    st.lists(st.tuples(st.sampled_from(LATER), WORDS), max_size=6),
    st.permutations(LATER),
    st.sampled_from(["same", "deepcopy", "pickle"]),
)
def test_later_phases_wait_beyond_the_build(calls: Any, phases: list[str], how: str) -> None:
    """Calls for training and deployment wait on the built model, and on copies of it, and run once at their phase."""
    model: Any = LayerList([Lives()])
    for method, word in calls:
        getattr(model[0], method)(word)
    built = model.build()
    if how == "deepcopy":
        built = copy.deepcopy(built)
    elif how == "pickle":
        built = pickle.loads(pickle.dumps(built))
    assert built[0].done == []
    for phase in (*phases, *phases):
        run_waiting(built, phase)
    assert built[0].done == [call for phase in phases for call in of(calls, phase)]


def test_what_waits_on_a_layer_runs_on_the_object_that_it_became() -> None:
    """A call for training that was made on a layer reaches the torch layer in the built model."""

    class Frozen(Layer):
        @before_fit
        def freeze(self) -> None:
            self.requires_grad_(False)

    layer: Any = Frozen(nn.Linear, 1, 1)
    layer.freeze()
    built: Any = LayerList([layer]).build()
    assert built[0].weight.requires_grad
    run_waiting(built, "before_fit")
    assert not built[0].weight.requires_grad


def test_running_the_hooks_of_a_phase_that_nobody_waits_for_does_nothing() -> None:
    """Neither a module without calls nor one whose phase has passed does anything."""
    model: Any = Hooked([("edit", "x")])
    run_hooks(model, "after_build")
    run_hooks(model, "no such phase")
    run_waiting(model, "before_fit")
    assert model.done == [("edit", "x")]


@pytest.mark.parametrize("phase", ["before_build", "after_build", "after_init"])
@pytest.mark.parametrize("by_user", [True, False])
@pytest.mark.parametrize("how", ["super", "sibling"])
def test_a_call_that_waits_may_make_another_one_of_its_phase(phase: str, by_user: bool, how: str) -> None:
    """A waiting method may call that of its base, or another one, of the same phase: it runs there."""
    decorate = getattr(replayml, phase)

    class Base(Module):
        def __init__(self) -> None:
            self.done: list[str] = []
            if not by_user:
                self.prepare()

        @decorate
        def prepare(self) -> None:
            self.done.append("base")

        @decorate
        def other(self) -> None:
            self.done.append("base")

    class Derived(Base):
        @decorate
        def prepare(self) -> None:
            if how == "super":
                super().prepare()
            else:
                self.other()
            self.done.append("derived")

    model = Derived()
    if by_user:
        model.prepare()
    assert model.build().done == ["base", "derived"]


def test_a_decorator_refuses_what_is_no_function() -> None:
    """``@stateful`` on a number or a class says what it takes."""
    with pytest.raises(TypeError, match=r"@stateful decorates a method \(def ...\), not 3"):
        replayml.stateful(3)  # type: ignore[type-var]
