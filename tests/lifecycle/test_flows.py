"""Flows do what plain Python does, remember how they were made, and run side by side."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import gc
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import replayml
from replayml import (
    AlreadyBuiltError,
    ConfigurationError,
    NotBuiltError,
    RecipeError,
    _0,
    _1,
    barrier,
    bind,
    diverter,
    graph,
    loop,
    package,
    parallel,
    pipeline,
    switch,
    warp,
)
from tests.lifecycle.steps import (
    SPECS,
    TRUST,
    Maker,
    Plain,
    Shift,
    Spec,
    inc,
    is_even,
    mix,
    negate,
    outcome,
    seen,
    total,
    triple,
)

NUMBERS = st.integers(-20, 20)


def calls(function: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return the outcome of a call and the names of the functions that it called."""
    token = seen.set([])
    try:
        found = outcome(function)
        names = seen.get()
        assert names is not None
        return found, names
    finally:
        seen.reset(token)


# Against plain Python -------------------------------------------------------------------------------------------


@given(SPECS, NUMBERS)
def test_a_flow_run_in_order_calls_what_plain_python_calls(spec: Spec, x: int) -> None:
    """Values, errors with the path of their step, and the order of all calls are those of plain Python."""
    flow = Maker(in_order=True).make(spec)
    assert calls(lambda: flow(x)) == calls(lambda: Plain().run(spec, x))


@given(SPECS, NUMBERS)
def test_a_flow_run_side_by_side_returns_the_same(spec: Spec, x: int) -> None:
    """In threads a flow returns the same values and raises the same errors as in order."""
    assert outcome(lambda: Maker().make(spec)(x)) == outcome(lambda: Plain().run(spec, x))


@given(SPECS, st.lists(NUMBERS, min_size=8, max_size=8))
def test_eight_threads_call_one_flow(spec: Spec, xs: list[int]) -> None:
    """Calls of one flow at the same time do not see each other's values."""
    flow = Maker(in_order=True).make(spec)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: outcome(lambda: flow(x)), xs))
    assert found == [outcome(lambda x=x: Plain().run(spec, x)) for x in xs]  # type: ignore[misc]


@given(SPECS, NUMBERS)
def test_every_copy_does_the_same(spec: Spec, x: int) -> None:
    """``new()``, pickling, deep copies, recipes and the built flow all do what the flow does."""
    flow = Maker(in_order=True).make(spec)
    expected = outcome(lambda: flow(x))
    recipe = flow.recipe()
    read = replayml.Recipe.from_json(recipe.to_json()).model(trust=TRUST)
    copies = [flow.new(), pickle.loads(pickle.dumps(flow)), copy.deepcopy(flow), read, read.new(), flow.create()]
    copies += [copy.deepcopy(copies[-1]), pickle.loads(pickle.dumps(copies[-1])), copies[-1].new()]
    assert [outcome(lambda other=other: other(x)) for other in copies] == [expected] * len(copies)  # type: ignore[misc]
    assert read.recipe().fingerprint == flow.new().recipe().fingerprint == recipe.fingerprint
    assert repr(read) == repr(flow)


@given(SPECS, NUMBERS)
def test_code_makes_the_flow_again(spec: Spec, x: int) -> None:
    """What ``to_code()`` prints makes a flow that does the same."""
    flow = Maker(in_order=True).make(spec)
    names: dict[str, Any] = {}
    exec(flow.to_code(), names)
    assert outcome(lambda: names["model"](x)) == outcome(lambda: flow(x))


class Holder(replayml.Module):
    """Makes a flow in its ``__init__``."""

    def __init__(self, spec: Spec, by: int = 0) -> None:
        self.flow = pipeline(Maker(in_order=True).make(spec), Shift(by))

    def forward(self, x: int) -> Any:
        return self.flow(x)


@given(SPECS, st.lists(st.sampled_from(["configure", "append", "bind", "bind output", "copy"]), max_size=5))
def test_flows_of_an_init_follow_their_module(spec: Spec, edits: list[str]) -> None:
    """What is set on a module, and added to the flow that it makes, holds for it and for its copies."""
    holder = Holder(spec)
    by = 0
    added: list[str] = []
    for number, edit in enumerate(edits):
        flow = holder.flow
        match edit:
            case "configure":
                by = number + 1
                holder.configure(by=by)
            case "append":
                flow.append(triple)
                added.append(edit)
            case "bind":
                flow.append(bind(mix, flow.input, _0))
                added.append(edit)
            case "bind output":
                flow.append(bind(mix, flow.output("0"), _0))
                added.append(edit)
            case "copy":
                holder = holder.new()

    def expected(x: int) -> int:
        first = Plain().run(spec, x, "flow.0")
        value = first + by
        for edit in added:
            value = triple(value) if edit == "append" else mix(x if edit == "bind" else first, value)
        return value

    read = replayml.Recipe.from_json(holder.recipe().to_json()).model(trust=[*TRUST, Spec])
    for other in (holder, holder.new(), pickle.loads(pickle.dumps(holder)), read, holder.create()):
        assert outcome(functools.partial(other, 7)) == outcome(functools.partial(expected, 7))
    found = [outcome(functools.partial(part, 7)) for part in (holder.flow, holder.flow.new())]
    assert found[0] == outcome(functools.partial(expected, 7))
    assert type(found[1]) is type(found[0])


# Steps and their names ------------------------------------------------------------------------------------------


def test_the_three_forms_make_equal_flows() -> None:
    """Steps by position, by name and in a ``with`` block differ in their names only."""
    with pipeline() as written:
        written.a = inc
        with parallel() as written.b:
            written.b.x = negate
            written.b.y = triple
        written.c = total
    named = pipeline(a=inc, b=parallel(x=negate, y=triple), c=total)
    listed = pipeline(inc, parallel(negate, triple), total)
    assert written(3) == named(3) == listed(3) == 8
    assert list(written.steps) == list(named.steps) == ["a", "b", "c"]
    assert list(listed.steps) == ["0", "1", "2"]


def test_steps_are_added_replaced_and_taken_out_on_the_tape() -> None:
    """What is done to a flow after it was made is recorded, and done again by ``new()``."""
    flow = pipeline(inc).append(Shift(10)).insert(0, negate, name="first")
    flow.append(triple)
    flow.first = triple
    flow["1"].configure(by=20)
    del flow.steps["0"]
    assert list(flow.steps) == ["first", "0", "1", "2"]
    assert [entry.method for entry in flow.tape] == ["append", "insert", "append", "set", "configure"]
    assert flow(2) == flow.new()(2) == ((3 * 2) + 1 + 20) * 3
    assert flow.new(upto=2)(2) == -2 + 1 + 10
    delattr(flow, "0")
    assert list(flow.steps) == list(flow.new().steps) == ["first", "1", "2"]


def test_a_function_and_a_module_take_each_others_place() -> None:
    """A step may become a module or a function; its place in the order stays."""
    flow = pipeline(a=inc, b=Shift(5), c=negate)
    flow.a, flow.b = Shift(7), triple
    assert flow(1) == flow.new()(1) == -24
    assert [type(step).__name__ for step in flow.steps.values()] == ["Shift", "function", "function"]


def test_the_order_of_submodules_is_that_of_the_steps() -> None:
    """What is inserted stands first among the children as well."""
    one, two = Shift(1), Shift(2)
    assert pipeline(one).insert(0, two).submodules == [two, one]
    assert pipeline(parallel(one, bind(two, _0)), one).submodules == [one, two]


def test_a_call_that_fails_changes_no_flow() -> None:
    """A step that is refused leaves steps and tape as they were."""
    flow = pipeline(a=inc)
    with pytest.raises(ConfigurationError, match="step, and 3 cannot be called"):
        flow.b = 3
    with pytest.raises(ConfigurationError, match="has a step 'a' already"):
        flow.append(negate, name="a")
    assert list(flow.steps) == ["a"]
    assert len(flow.tape) == 0


@pytest.mark.parametrize("name", ["", "_hidden", "a.b"])
def test_odd_names_are_refused(name: str) -> None:
    """A name of a step is not empty, has no dot and does not start with an underscore."""
    with pytest.raises(ConfigurationError, match="no name for a step"):
        pipeline(**{name: inc})


def test_names_of_methods_are_refused() -> None:
    """A step cannot hide what every flow has."""
    with pytest.raises(ConfigurationError, match="'input' is an attribute of every pipeline"):
        pipeline(input=inc)


def test_a_class_stands_for_its_instance() -> None:
    """A replayml class as a step is made without arguments; a class of torch is to be wrapped."""
    flow = pipeline(Shift)
    assert flow(1) == flow.new()(1) == 2
    flow["0"].configure(by=3)
    assert flow.new()(1) == 4
    with pytest.raises(ConfigurationError, match=r"takes a module, not the class ReLU.*Layer\(ReLU"):
        pipeline(nn.ReLU)


def test_steps_are_configured_like_any_module() -> None:
    """Selectors, ``configure`` and ``explain`` reach the modules in a flow."""
    flow = pipeline(a=Shift(1), b=parallel(Shift(2), Shift(3)).sum)
    flow[..., "b", "0|1"].configure(by=10)
    flow.configure("a", by=5)
    assert flow(0) == flow.new()(0) == 30
    assert "by of Shift at 'a' is 5" in str(flow.explain("a", "by"))


def test_configuring_a_flow_keeps_what_was_added() -> None:
    """A flow that is constructed again has its steps, and what they are bound to."""
    with loop(count=1) as flow:
        flow.a = inc
        flow.b = bind(mix, flow.input, _0)
    assert flow.configure(count=2)(1) == flow.new()(1) == ((1 + 1) + 1 + 1) + 1


def test_one_module_in_several_steps_stays_one() -> None:
    """A layer that stands in several steps, bound ones included, has one set of weights, in copies too."""
    layer = replayml.Layer(nn.Linear, 3, 3)
    flow = pipeline(layer, layer, parallel(layer, bind(layer, _0)).sum)
    read = replayml.Recipe.from_json(flow.recipe().to_json()).model()
    for other in (flow.new(), pickle.loads(pickle.dumps(flow)), read, flow):
        built = other.build()
        assert len(list(built.parameters())) == 2
        assert len(built.state_dict()) == 8


def test_flows_inside_of_models_are_made_again_with_them() -> None:
    """A flow that an ``__init__`` makes follows the settings of its module, bound steps included."""

    class Net(replayml.Module):
        def __init__(self, width: int = 4) -> None:
            with pipeline() as self.flow:
                self.flow.first = replayml.Layer(nn.Linear, None, width)
                self.flow.both = parallel(replayml.Layer(nn.Linear, None, width), replayml.Layer(nn.Tanh)).sum
                self.flow.last = bind(torch.add, self.flow.output("first"), _0)

        def forward(self, x: torch.Tensor) -> Any:
            return self.flow(x)

    net = Net().configure(width=6)
    net.configure("flow", "first", bias=False)
    x = torch.randn(3, 2)
    built = net.new().build(x, seed=0)
    flow = built.flow.steps
    first = flow["first"](x)
    assert torch.equal(built(x), first + (flow["both"].steps["0"](first) + first.tanh()))
    assert sorted(built.state_dict()) == ["flow.both.0.bias", "flow.both.0.weight", "flow.first.weight"]
    assert torch.equal(net.new().build(x, seed=0)(x), built(x))


def test_a_saved_flow_gives_the_same_outputs(tmp_path: Any) -> None:
    """A built flow of layers is saved and loaded with its weights."""
    layer = replayml.Layer
    flow = pipeline(layer(nn.Linear, 2, 3), parallel(layer(nn.ReLU), layer(nn.Linear, 3, 3)).sum).build()
    flow.save(tmp_path / "flow.replayml")
    x = torch.randn(4, 2)
    assert torch.equal(replayml.load(tmp_path / "flow.replayml")(x), flow(x))


def test_an_unbuilt_layer_names_its_path() -> None:
    """A step that has no weights yet says where it stands."""
    flow = pipeline(a=inc, b=parallel(replayml.Layer(nn.Linear, 1, 1)))
    with pytest.raises(NotBuiltError, match=r"Linear at 'b.0' has no weights yet"):
        flow(1)


def test_a_built_flow_takes_no_new_steps() -> None:
    """After the build the steps are fixed; one may be replaced, as in torch."""
    flow = pipeline(a=inc).build()
    with pytest.raises(AlreadyBuiltError, match="'b' would be a new step"):
        flow.b = negate
    with pytest.raises(AlreadyBuiltError, match="cannot be taken out"):
        del flow.a
    flow.a = negate
    flow.extra_number = 3
    assert flow(2) == -2


def test_lambdas_have_no_recipe() -> None:
    """A step without a name that can be found again is refused when the flow becomes data, with its place."""
    with pytest.raises(RecipeError, match=r"no-name.*model\.args\[1\].*lambda"):
        pipeline(inc, lambda x: x).recipe()


def test_functions_of_a_recipe_need_trust() -> None:
    """A recipe names functions; who reads it hands them in."""
    text = pipeline(inc).recipe().to_json()
    with pytest.raises(RecipeError, match=r"untrusted-name.*steps\.inc"):
        replayml.Recipe.from_json(text).model()


# Values between steps -------------------------------------------------------------------------------------------


def test_only_a_package_is_several_arguments() -> None:
    """A tuple or a list is one argument of the next step; a package is several, also when it is given alone."""
    assert pipeline(lambda: package((7, 2)), divmod)() == (3, 1)
    assert pipeline(lambda: (7, 2), len)() == 2
    assert pipeline(divmod)(package((7, 2))) == parallel(divmod).aslist(package((7, 2)))[0] == (3, 1)
    assert pickle.loads(pickle.dumps(package((1, 2)))) == (1, 2)
    assert type(pickle.loads(pickle.dumps(package((1, 2))))) is package


def test_keywords_go_to_the_first_step() -> None:
    """The first step of a pipeline gets the arguments of the flow; every branch of a parallel does."""
    assert pipeline(dict, len)(a=1, b=2) == 2
    assert parallel(dict, dict).aslist(a=1) == [{"a": 1}, {"a": 1}]
    with pytest.raises(TypeError, match="runs no step that could take 'a'"):
        pipeline()(a=1)


def test_an_empty_pipeline_hands_on() -> None:
    """Without steps the input is the output."""
    assert pipeline()(3) == 3
    assert pipeline()(1, 2) == (1, 2)


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("aslist", [-2, 6]),
        ("astuple", (-2, 6)),
        ("asdict", {"a": -2, "b": 6}),
        ("sum", 4),
    ],
)
def test_outputs_are_gathered(way: str, expected: Any) -> None:
    """What a parallel returns is chosen once, recorded, and kept by copies."""
    flow = getattr(parallel(a=negate, b=triple), way)
    assert getattr(flow, way) is flow
    assert flow(2) == flow.new()(2) == expected
    assert type(flow(2)) is type(expected)
    assert len(flow.tape) == 1
    assert parallel(negate, triple).join("/")(2) == "-2/6"
    assert parallel(str, str).sum(2) == "22"


def test_gathering_has_its_faults_told() -> None:
    """Unknown ways, a dict without names and a sum of nothing are refused."""
    with pytest.raises(ConfigurationError, match=r"gather\('lst'\) is unknown. Did you mean 'list'\?"):
        parallel(inc).gather("lst")
    with pytest.raises(ConfigurationError, match="no names for a dict"):
        _ = warp(inc).asdict
    with pytest.raises(TypeError, match="nothing to add up"):
        parallel(inc).sum(1, _skip_items="0")


def test_steps_are_left_out_of_one_call() -> None:
    """A skipped step of a pipeline hands on what it would get; a skipped branch is absent."""
    flow = pipeline(a=inc, b=triple, c=negate)
    assert flow(1, _skip_items=["b"]) == -2
    assert flow(1, _kept_items="b") == 3
    assert flow(1) == -6
    assert parallel(a=inc, b=triple).asdict(1, _skip_items="a") == {"b": 3}
    assert diverter(a=inc, b=triple).asdict(1, 2, _kept_items=["b"]) == {"b": 6}
    with pytest.raises(ConfigurationError, match=r"has no step 'd'.*Its steps: a, b, c"):
        flow(1, _skip_items=["d"])
    with pytest.raises(ConfigurationError, match="not both"):
        flow(1, _skip_items="a", _kept_items="b")


def test_a_diverter_gives_every_step_its_own() -> None:
    """Arguments are divided by position, from one list, by keyword and from one dict."""
    flow = diverter(a=negate, b=divmod).asdict
    expected = {"a": -1, "b": (3, 1)}
    pair = package((7, 2))
    assert flow(1, pair) == flow([1, pair]) == flow(a=1, b=pair) == flow({"b": pair, "a": 1}) == expected
    with pytest.raises(TypeError, match=r"argument for each of its 2 steps.*\(a, b\); it got 1 positional"):
        flow(1)
    with pytest.raises(TypeError, match=r"it got \['a'\]"):
        flow(a=1)


def test_a_warp_runs_one_step_on_many_inputs() -> None:
    """Each argument, or each item of the only list, is an input; there may be thousands, or none."""
    assert warp(negate)(1, 2) == warp(negate)([1, 2]) == (-1, -2)
    assert warp(divmod)(package((7, 2)), package((9, 4))) == ((3, 1), (2, 1))
    assert warp(inc).aslist(list(range(1000))) == list(range(1, 1001))
    assert warp(inc)([]) == ()
    with pytest.raises(ConfigurationError, match="runs one step, '0'"):
        warp(inc, negate)
    with pytest.raises(ConfigurationError, match="no step to run"):
        warp()(1)
    with pytest.raises(TypeError) as error:
        warp(abs)(1, "x")
    assert error.value.__notes__ == ["in step '0' (abs), with input 1"]


def test_switch_chooses() -> None:
    """Values are compared, functions asked in order; the default comes last wherever it stands."""
    flow = switch("default", lambda x: "other", 1, lambda x: "one", lambda x: x > 10, lambda x: "many")
    assert [flow(x) for x in (1, 5, 11)] == ["other" if x == 5 else "one" if x == 1 else "many" for x in (1, 5, 11)]
    assert switch({1: inc, 2: negate})(2) == -2
    assert switch("a", inc, "b", negate, judge_on_full_input=False)("b", 3) == -3
    assert switch("3", inc, conversion=str)(3) == 4
    assert switch((1, 2), total)(1, 2) == 3
    with pytest.raises(ValueError, match=r"no case for 3. Its conditions: 1, is_even.*switch.case\('default'"):
        switch(1, inc, is_even, inc)(3)
    with pytest.raises(ConfigurationError, match="3 arguments are no pairs"):
        switch(1, inc, 2)
    with pytest.raises(ConfigurationError, match="has no condition"):
        switch().a = inc


def test_a_switch_tells_which_condition_failed() -> None:
    """An error in a condition, and an array that is compared with a value, name the condition."""
    failing: Any = switch(lambda x: 1 / x, inc, 5, inc)
    with pytest.raises(ZeroDivisionError) as caught:
        failing(0)
    assert caught.value.__notes__ == ["in step 'condition 0'"]
    with pytest.raises(RuntimeError, match="ambiguous") as caught_too:
        switch(5, inc, "default", inc)(torch.zeros(2))
    first, second = caught_too.value.__notes__
    assert "for arrays give a function" in first
    assert second == "in step 'condition 0'"


def test_a_flow_is_no_step_of_itself() -> None:
    """A flow that is put into itself is refused, with the name of the step."""
    flow = pipeline(inc)
    with pytest.raises(ConfigurationError, match="pipeline cannot stand below itself: it was assigned to '1' of"):
        flow.append(flow)
    assert flow(1) == 2


def test_a_switch_of_modules_is_built() -> None:
    """Conditions and steps that are modules are children: they get weights, and are configured."""
    flow = switch(Shift(-1), Shift(10), "default", Shift(20))
    assert flow(1) == flow.new()(1) == 21
    assert flow(2) == 12
    flow["_when_0"].configure(by=-2)
    assert flow(2) == flow.create()(2) == 22
    assert len(flow.submodules) == 3


def test_loops_end() -> None:
    """A loop ends by its condition or by its count; one without either is refused."""
    assert loop(triple, stop_condition=lambda x: x > 50)(1) == 81
    assert loop(triple, stop_condition=lambda x: x > 50, count=2)(1) == 9
    assert loop(inc, count=0)(1) == 1
    counted = loop(lambda x: (x > 3, x + 1), stop_condition=bool, judge_on_full_input=False)
    assert counted(0) == 5
    with pytest.raises(ConfigurationError, match="a loop without an end"):
        loop(inc)
    with pytest.raises(ConfigurationError, match="count= takes a number of passes"):
        loop(inc, count=-1)
    with pytest.raises(TypeError, match="a tuple whose first item is judged, not 2"):
        loop(inc, count=1, judge_on_full_input=False)(1)


# Binding --------------------------------------------------------------------------------------------------------


def test_parts_of_what_a_step_is_bound_to() -> None:
    """Items and attributes of inputs and outputs can be bound, by position and by keyword."""
    with pipeline() as flow:
        flow.shape = lambda x: x["image"].shape
        flow.told = bind(dict, rows=_0[0], given=flow.input["label"], dims=flow.input["image"].ndim)
    assert flow({"image": torch.zeros(4, 2), "label": "cat"}) == {"rows": 4, "given": "cat", "dims": 2}
    assert flow.new()({"image": torch.zeros(1, 2), "label": ""})["rows"] == 1


def test_bind_hands_on_what_is_not_bound() -> None:
    """Without positional arguments a step's own are handed on; keywords of the call come on top."""
    assert bind(divmod)(7, 2) == (3, 1)
    assert bind(divmod, _1, _0)(2, 7) == (3, 1)
    assert bind(int, base=2)("101") == 5
    assert bind(int, base=2)("101", base=3) == 10
    assert (divmod | bind(7, _0))(2) == (3, 1)


def test_bind_to_flows_around() -> None:
    """A step deep inside finds the input of every flow around it, from other threads too."""
    with pipeline() as flow:
        flow.a = inc
        with parallel() as flow.b:
            flow.b.x = pipeline(triple, bind(mix, flow.input, _0))
            flow.b.y = bind(mix, flow.b.input, flow.output("a"))
        flow.c = replayml.ActionModule(bind(total, flow.input, _0, _1))
    assert flow(1) == flow.new()(1) == 1 + (6 + 1) + (2 + 2)
    assert flow(5) == flow.create()(5) == 5 + (18 + 5) + (6 + 6)


def test_a_flow_inside_its_own_copy() -> None:
    """Each copy of a flow is bound to itself, also where one stands in the other."""
    with pipeline() as flow:
        flow.a = triple
        flow.b = bind(mix, flow.input, _0)
    flow.c = flow.new()
    assert flow(1) == flow.new()(1) == 16


def test_modules_in_bound_steps_are_children() -> None:
    """A bound module, and one that is an argument, are built and configured with the flow."""
    layer = replayml.Layer
    with pipeline() as flow:
        flow.a = bind(layer(nn.Linear, 2, 3), _0)
        flow.b = bind(nn.functional.linear, _0, bind(lambda head: head.weight, 1))
    del flow.b
    flow.b = bind(lambda head, x: head(x), layer(nn.Linear, 3, 1), _0)
    built = flow.build()
    assert built(torch.zeros(5, 2)).shape == (5, 1)
    assert sorted(built.state_dict()) == [
        "a.function.bias",
        "a.function.weight",
        "b.argument_0.bias",
        "b.argument_0.weight",
    ]


def test_bound_steps_tell_what_is_missing() -> None:
    """A step that cannot get what it is bound to says why."""
    with pipeline() as flow:
        flow.a = inc
        flow.b = bind(mix, flow.output("a"), _0)
    step = flow.b
    with pytest.raises(ConfigurationError, match="bound to a flow that is not running"):
        step(1)
    with pytest.raises(ConfigurationError, match="output of 'a', which has not run"):
        flow(1, _skip_items="a")
    with pytest.raises(TypeError, match="gets 1 positional arguments, so there is no _1"):
        bind(mix, _0, _1)(1)
    with pytest.raises(ConfigurationError, match=r"has no step 'aa'\. Did you mean 'a'"):
        flow.output("aa")
    with pytest.raises(ConfigurationError, match="do not run one after another"):
        parallel(inc).output("0")
    with pytest.raises(ConfigurationError, match="inside of a list"):
        bind(mix, [flow.input])
    with pytest.raises(AttributeError, match="public attributes only"):
        _ = flow.input._hidden
    with pytest.raises(ConfigurationError, match=r"Give it to bind"):
        copy.deepcopy(flow.input)


def test_a_step_may_be_bound_before_its_flow_is_put_in() -> None:
    """Steps of flows that stand in no other one yet can be bound to that, however deep; copies are bound to copies."""
    with pipeline() as flow:
        inner = parallel(inc)
        inner.late = bind(mix, flow.input, _0)
        deep = pipeline()
        deep.a = pipeline(inner, bind(total, flow.input, _0, _1))
        deep.a.b = bind(mix, deep.input, _0)
        deep.c = parallel(bind(mix, flow.input, _0)).sum
        flow.deep = deep
        flow.other = parallel(total, bind(mix, flow.input, _0)).sum

    def expected(x: int) -> int:
        a = x + (x + 1) + (x + x) + x
        return (a + x) + (x + a + x)

    read = replayml.Recipe.from_json(flow.recipe().to_json()).model(trust=TRUST)
    names: dict[str, Any] = {}
    exec(flow.to_code(), names)
    around = pipeline(triple, flow)
    around.append(inc)
    for other in (
        flow,
        flow.new(),
        flow.new().new(),
        read,
        names["model"],
        flow.create(),
        pickle.loads(pickle.dumps(flow)),
    ):
        assert other(1) == expected(1)
        assert other(5) == expected(5)
    copies = [around, around.new(), around.new().new(), pickle.loads(pickle.dumps(around))]
    assert [copy(2) for copy in copies] == [expected(6) + 1] * 4
    assert [copy.new().steps["1"](5) for copy in copies] == [expected(5)] * 4
    assert [copy.steps["1"].new()(5) for copy in copies] == [expected(5)] * 4


def test_a_step_may_be_bound_in_a_flow_that_is_given_to_a_larger_one() -> None:
    """What is put into a flow below another one is copied with it, from either of the two."""
    with pipeline() as flow:
        flow.first = pipeline(triple)
        around = pipeline(inc)
        around.flow = flow
        inner = pipeline()
        inner.a = pipeline(bind(mix, flow.input, _0), bind(mix, around.input, _0))
        inner.a.b = bind(mix, flow.first.input, _0)
        del inner.a.b
        flow.inner = inner

    assert around(1) == around.new()(1) == around.new().new()(1) == pickle.loads(pickle.dumps(around))(1) == 6 + 2 + 1
    delattr(flow.inner.a, "1")
    inside: Any = around.new().flow
    assert flow.new()(2) == flow.new().new()(2) == flow.new().create()(2) == inside.new()(2) == 8


def test_a_step_is_bound_to_flows_that_run() -> None:
    """A step whose flow was never put into the one that it is bound to says so, and so does one copied out of it."""
    with pipeline() as flow:
        flow.inner = parallel(inc)
        flow.inner.late = bind(mix, flow.input, _0)
    assert flow.inner(1, _skip_items="late") == (2,)
    elsewhere = parallel(inc)
    elsewhere.late = bind(mix, flow.input, _0)
    for alone in (flow.inner.new(), elsewhere, elsewhere.new()):
        assert alone(1, _skip_items="late") == (2,)
        with pytest.raises(ConfigurationError, match="bound to a flow that is not running"):
            alone(1)


def test_outputs_are_named_by_the_step_itself() -> None:
    """``output`` takes the step where it stands once."""
    with pipeline() as flow:
        flow.a = inc
        flow.b = bind(mix, flow.output(flow.a), _0)
    assert flow(1) == 4
    with pytest.raises(ConfigurationError, match="has 2 steps that are inc"):
        pipeline(inc, inc).output(inc)


@pytest.mark.parametrize(
    "source", [("flow", 1, None, ()), ("given", -1, ()), ("given", 0, (("attribute", "__class__"),))]
)
def test_a_bound_step_takes_what_bind_makes(source: Any) -> None:
    """What a damaged recipe may hold is refused: other objects, private attributes."""
    bound: Any = type(bind(inc))
    with pytest.raises(ConfigurationError, match="takes what bind"):
        bound(inc, (source,))


# Threads --------------------------------------------------------------------------------------------------------


def test_branches_run_at_the_same_time() -> None:
    """Branches that wait for each other come to an end."""
    meeting = threading.Barrier(3)
    assert parallel(*[lambda _: meeting.wait(30)] * 3).sum(0) == 3
    assert parallel(*[lambda _: threading.get_ident()] * 2, _concurrent=False)(0) == (threading.get_ident(),) * 2
    assert parallel.sequential(lambda _: threading.get_ident())(0) == (threading.get_ident(),)


def test_no_thread_is_left_behind() -> None:
    """After a call, one that fails included, there are as many threads as before."""
    before = set(threading.enumerate())
    parallel(inc, negate)(1)
    with pytest.raises(TypeError):
        parallel(inc, len, negate)(1)
    assert set(threading.enumerate()) == before


def test_branches_see_the_context_of_the_caller() -> None:
    """Context variables and torch's modes are carried into threads; what a branch sets stays there."""
    name = contextvars.ContextVar("name", default="nobody")
    name.set("caller")

    def look(_: int) -> tuple[Any, ...]:
        found = name.get()
        name.set("branch")
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        return (found, *modes, torch.zeros(1).device.type)

    flow = parallel(look, look)
    assert flow(0) == (("caller", True, False, False, "cpu"),) * 2
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        assert flow(0) == (("caller", False, False, True, "meta"),) * 2
    with torch.inference_mode():
        assert flow(0) == (("caller", False, True, False, "cpu"),) * 2
    assert name.get() == "caller"


def test_a_failure_cancels_what_has_not_started_and_waits_for_the_rest() -> None:
    """After a failure no further branch starts, and those that run end before the error is raised."""
    started, ended = [], []
    gate = threading.Event()

    def step(x: int) -> None:
        started.append(x)
        if x == 1:
            gate.set()
            raise ValueError("no")
        gate.wait(30)
        time.sleep(0.05)
        ended.append(x)

    with pytest.raises(ValueError, match="no"):
        warp(step, _concurrent=2)(list(range(20)))
    assert sorted(started) == [0, 1]
    assert ended == [0]


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_waits_for_what_runs_and_starts_nothing_more() -> None:
    """Ctrl-C in a flow ends it like an error does: no thread goes on behind the caller's back."""
    ended: list[int] = []

    def step(x: int) -> None:
        if x == 0:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)  # as Ctrl-C: the main thread waits
        time.sleep(0.1)
        ended.append(x)

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        warp(step, _concurrent=2)(list(range(50)))
    assert set(threading.enumerate()) == before
    assert sorted(ended) == list(range(len(ended)))
    assert len(ended) < 50


def test_an_error_keeps_nothing_alive() -> None:
    """When the error of a branch is handled, what the call worked on is free at once, without the collector."""

    class Large:
        pass

    large = Large()
    reference = weakref.ref(large)
    gc.disable()
    try:
        with contextlib.suppress(TypeError):
            parallel(len, abs)(large)
        del large
        assert reference() is None
    finally:
        gc.enable()


def test_the_first_error_in_order_is_raised() -> None:
    """Of several errors the one of the first branch is raised, whichever came first; it tells of the others."""
    slow = threading.Event()

    def late(_: int) -> None:
        slow.wait(30)
        raise KeyError("late")

    def early(_: int) -> None:
        slow.set()
        raise ValueError("early")

    with pytest.raises(KeyError, match="late") as error:
        parallel(late, early)(0)
    assert error.value.__notes__ == ["in step '0' (late)", "another one failed as well: ValueError: early"]


def test_errors_keep_type_and_name_their_step_once() -> None:
    """An error is the very object that a step raised, with one note on the innermost step."""
    error = ValueError("mine")

    def fail(_: int) -> None:
        raise error

    flow = pipeline(inc, b=parallel(c=pipeline(inc, fail)))
    for _ in range(2):
        with pytest.raises(ValueError, match="mine") as caught:
            flow(1)
        assert caught.value is error
    assert error.__notes__ == ["in step 'b.c.1' (fail)"]


def test_a_build_runs_branches_in_order() -> None:
    """While a model is built nothing runs side by side, so that a seed gives the same weights every time."""
    idents = []

    def watch(x: torch.Tensor) -> torch.Tensor:
        idents.append(threading.get_ident())
        return x

    flow = parallel(pipeline(watch, replayml.Layer(nn.Linear, None, 2)), watch)
    x = torch.zeros(1, 3)
    flow.build(x, seed=1)
    assert set(idents) == {threading.get_ident()}


def test_gradients_flow_through_threads() -> None:
    """Losses of branches that ran in threads reach the weights of all."""
    layer = replayml.Layer
    flow = parallel(layer(nn.Linear, 2, 2), layer(nn.Linear, 2, 2)).sum.build()
    flow(torch.ones(1, 2)).sum().backward()
    assert all(parameter.grad is not None for parameter in flow.parameters())


@pytest.mark.parametrize("rounds", [1, 5])
def test_a_barrier_lets_nobody_pass_alone(rounds: int) -> None:
    """No branch starts a round before every other one has ended the round before."""
    entries: list[int] = []
    branch = [lambda x, number=number: entries.append(number) or x for number in range(rounds)]  # type: ignore[func-returns-value]
    steps = [step for one in branch for step in (one, barrier)]
    parallel(*[pipeline(*steps) for _ in range(4)])(0)
    assert entries == sorted(entries)


def test_a_barrier_waits_for_nobody_who_has_ended() -> None:
    """A branch without a barrier, or one that failed, does not leave the others waiting."""
    assert parallel(pipeline(inc, barrier), inc)(1) == (2, 2)
    with pytest.raises(TypeError):
        parallel(pipeline(inc, barrier, inc), len)(1)
    assert pipeline(inc, barrier, inc)(1) == 3
    assert parallel.sequential(pipeline(inc, barrier), inc)(1) == (2, 2)
    with pytest.raises(RuntimeError, match="do not all run at the same time"):
        parallel(barrier, barrier, barrier, _concurrent=2)(1)


@pytest.mark.parametrize("number", [-1, "2", 1.5])
def test_how_many_run_at_once_is_checked(number: Any) -> None:
    """``_concurrent`` is True, False or a number."""
    with pytest.raises(ConfigurationError, match="_concurrent= takes"):
        parallel(inc, _concurrent=number)


# Graphs ---------------------------------------------------------------------------------------------------------


@st.composite
def dags(draw: st.DrawFn) -> list[list[int]]:
    """Return for each node the earlier ones that it gets something from; -1 is the start."""
    size = draw(st.integers(1, 7))
    return [draw(st.lists(st.integers(-1, number - 1), min_size=1, max_size=3, unique=True)) for number in range(size)]


@given(dags(), NUMBERS, st.booleans())
def test_a_graph_computes_what_its_edges_say(dag: list[list[int]], x: int, is_concurrent: bool) -> None:
    """Every node gets the outputs of its sources in the order of the edges; copies do the same."""
    flow = graph(*[mix_all for _ in dag], _concurrent=is_concurrent)
    values: list[int] = []
    for number, sources in enumerate(dag):
        for source in sources:
            flow.add_edge("__start__" if source < 0 else str(source), str(number))
        values.append(mix_all(*[x if source < 0 else values[source] for source in sources]))
    for number in range(len(dag)):
        flow.add_edge(str(number), "__end__")
    read = replayml.Recipe.from_json(flow.recipe().to_json()).model(trust=[mix_all])
    expected = values[0] if len(dag) == 1 else tuple(values)
    assert flow(x) == flow.new()(x) == flow.create()(x) == read(x) == expected


def mix_all(*values: int) -> int:
    """Return a number in which the order of the others can be seen."""
    found = 1
    for value in values:
        found = (31 * found + value) % 1009
    return found


def test_nodes_of_a_graph_run_as_soon_as_they_can() -> None:
    """A node does not wait for one that it gets nothing from."""
    reached = threading.Event()
    with graph() as flow:
        flow.slow = lambda _: reached.wait(30)
        flow.first = inc
        flow.second = lambda x: reached.set() or x  # type: ignore[func-returns-value]
    flow.add_edge("__start__", ["slow", "first"]).add_edge("first", "second")
    flow.add_edge(["slow", "second"], "__end__")
    assert flow(1) == (True, 2)


def test_edges_carry_formatted_values_constants_and_keywords() -> None:
    """A formatter changes what arrives; constants arrive every time; arguments can have names."""
    with graph() as flow:
        flow.a = inc
        flow.b = dict
    flow.add_edge("__start__", "a").add_edge("a", "b", formatter=Shift(10)).add_const_edge("k", "b")
    flow.set_node_arg_name({"b": ["x", "y"]}).add_edge("b", "__end__")
    assert flow(1) == flow.new()(1) == {"x": 12, "y": "k"}
    assert [module.by for module in flow.submodules] == [10]


def test_faults_of_a_graph_are_told() -> None:
    """Circles, edges to nowhere, nodes without edges and a missing end are refused with their names."""
    flow = graph(a=inc, b=inc)
    flow.add_edge("a", "b")
    with pytest.raises(ConfigurationError, match=r"go round in a circle: .*a -> b|b -> a"):
        flow.add_edge("b", "a")
    with pytest.raises(ConfigurationError, match="no step 'c' for an edge"):
        flow.add_edge("c", "b")
    with pytest.raises(ConfigurationError, match="no edge of graph leads to 'a'"):
        flow(1)
    flow.add_edge("__start__", "a")
    with pytest.raises(ConfigurationError, match="leads to '__end__'"):
        flow(1)
    flow.add_edge("b", "__end__")
    assert flow(1) == flow.new()(1) == 3
    with pytest.raises(TypeError) as error:
        flow("x")
    assert error.value.__notes__ == ["in step 'a' (inc)"]
    del flow.b
    assert [entry.method for entry in flow.tape] == ["add_edge", "add_edge", "add_edge", "unset"]
