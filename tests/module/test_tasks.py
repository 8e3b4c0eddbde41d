"""The lifecycle of modules: which tasks run, in which order, what a failure leaves, and who may call at once."""

from __future__ import annotations

import contextvars
import copy
import inspect
import io
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
import rich.progress
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import replayml
from replayml.module.module import Module
from replayml.module.runtime import places_of

EVENTS: list[tuple[str, Any]] = []  # what happened, in order: emptied before each use

METHODS = ("update", "start", "restart", "stop", "wait", "status", "evaluate")
PROPERTIES = ("submodules", "eval_result")


@pytest.fixture(autouse=True)
def _no_events() -> None:
    EVENTS.clear()


class Node(replayml.Module):
    """A module that notes what is done with it; it fails on demand."""

    def __init__(self, name: int, below: Any = (), in_list: bool = False, fails: str = "") -> None:
        self.name = name
        self.failing = fails
        if in_list:
            self.items = nn.ModuleList(below)
        else:
            for index, child in enumerate(below):
                setattr(self, f"child{index}", child)

    def _task(self, kind: str) -> Callable[[], None]:
        def run() -> None:
            EVENTS.append((kind, self.name))
            if self.failing == kind:
                raise KeyError(self.name)

        return run

    def _get_train_tasks(self) -> Any:
        return self._task("train")

    def _get_deploy_tasks(self) -> Any:
        return self._task("deploy")

    def _get_eval_tasks(self) -> Any:
        return self._task("evaluate")

    def _stop_deployed(self) -> None:
        EVENTS.append(("stop", self.name))
        if self.failing == "stop":
            raise OSError(f"{self.name} does not stop")

    def _wait_deployed(self) -> None:
        EVENTS.append(("wait", self.name))


Graph = list[tuple[list[int], bool]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Draw nodes, each with earlier ones below it; the last one is the root."""
    size = draw(st.integers(1, 7))
    return [
        (draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)) if number else [], draw(st.booleans()))
        for number in range(size)
    ]


def made(graph: Graph, failing: int = -1, fails: str = "") -> Any:
    """Return the root of the tree of a graph."""
    nodes: list[Any] = []
    for number, (below, in_list) in enumerate(graph):
        nodes.append(Node(number, [nodes[i] for i in below], in_list, fails if number == failing else ""))
    return nodes[-1]


def reached(graph: Graph) -> set[int]:
    """Return the nodes at and below the root."""
    found: set[int] = set()
    stack = [len(graph) - 1]
    while stack:
        number = stack.pop()
        if number not in found:
            found.add(number)
            stack += graph[number][0]
    return found


FORMS: dict[str, Callable[[Any], Any]] = {
    "unbuilt": lambda model: model,
    "copy": lambda model: model.new(),
    "built": lambda model: model.build(),
    "pickled": lambda model: pickle.loads(pickle.dumps(model.build())),
}


# Order ----------------------------------------------------------------------------------------------------------


@given(graphs(), st.sampled_from(sorted(FORMS)))
def test_update_runs_each_task_once_and_in_order(graph: Graph, form: str) -> None:
    """All training comes first, then all deployment, then all evaluation; children before parents, each once."""
    EVENTS.clear()
    model = FORMS[form](made(graph))
    assert model.update() is model
    kinds = [kind for kind, _ in EVENTS]
    assert kinds == sorted(kinds, key=["train", "deploy", "evaluate"].index)
    for kind in ("train", "deploy", "evaluate"):
        order = [name for at, name in EVENTS if at == kind]
        assert sorted(order) == sorted(reached(graph))
        for number in order:
            for child in graph[number][0]:
                assert order.index(child) < order.index(number)


@given(graphs())
def test_stop_goes_the_other_way_round(graph: Graph) -> None:
    """``stop`` comes to parents before their children, to each once; ``wait`` to children first."""
    EVENTS.clear()
    model = made(graph).start()
    deployed = [name for _, name in EVENTS]
    EVENTS.clear()
    model.stop().wait()
    assert [*(("stop", name) for name in reversed(deployed)), *(("wait", name) for name in deployed)] == EVENTS


@given(graphs())
def test_not_recursive_is_the_module_alone(graph: Graph) -> None:
    """With ``recursive=False`` nothing below the module is touched."""
    EVENTS.clear()
    model, root = made(graph), len(graph) - 1
    model.update(recursive=False).restart(recursive=False).stop(recursive=False)
    kinds = ["train", "deploy", "evaluate", "stop", "deploy", "stop"]
    assert [(kind, root) for kind in kinds] == EVENTS


@given(graphs())
def test_places_are_unique_and_complete(graph: Graph) -> None:
    """The places of a tree name each module once, by a path at which it stands."""
    model = made(graph)
    places = places_of(model)
    assert {place.module.name for place in places} == reached(graph)
    assert len({id(place.module) for place in places}) == len(places)
    assert all(model.get_submodule(".".join(place.path)) is place.module for place in places)


def test_submodules_are_the_modules_right_below() -> None:
    """``submodules`` has children in order, also those in plain containers, and each once."""
    one, two, three = Node(1, [Node(4)]), Node(2), Node(3)
    model = replayml.Module()
    model.first = two
    model.box = nn.ModuleDict({"a": nn.Sequential(one, nn.ReLU()), "b": two})
    model.last = three
    assert [module.name for module in model.submodules] == [2, 1, 3]
    assert [module.name for module in model.build().submodules] == [2, 1, 3]


def test_modules_in_what_passes_through_count_as_below() -> None:
    """A module that passes through, as a flow does, has its modules counted with those above it."""

    class Through(Node):
        _passes_through = True

    model = Node(0, [Through(1, [Node(2), Through(3, [Node(4)])]), Node(5)])
    assert [module.name for module in model.submodules] == [2, 4, 5]


# Failures -------------------------------------------------------------------------------------------------------


@given(graphs(), st.data())
def test_a_failed_deployment_is_undone(graph: Graph, data: st.DataObject) -> None:
    """When a deployment fails, what the call had started is stopped, last first, and nothing else happens."""
    EVENTS.clear()
    failing = data.draw(st.sampled_from(sorted(reached(graph))))
    model = made(graph, failing, "deploy")
    with pytest.raises(KeyError) as caught:
        model.start()
    deployed = [name for kind, name in EVENTS if kind == "deploy"]
    assert deployed[-1] == failing
    assert EVENTS[len(deployed) :] == [("stop", name) for name in reversed(deployed)]
    path = next(place for place in places_of(model) if place.module.name == failing)
    assert caught.value.__notes__ == [f"while deploying {path}"]
    assert set(model.status().values()) == {"stopped"}
    path.module.failing = ""
    EVENTS.clear()
    model.start()
    assert {name for _, name in EVENTS} == reached(graph)
    assert set(model.status().values()) == {"deployed"}


def test_what_ran_before_runs_on() -> None:
    """A failed call stops what it had started, and not what was deployed before."""
    old, bad = Node(1), Node(2, fails="deploy")
    model = Node(0, [old, bad])
    old.start()
    EVENTS.clear()
    with pytest.raises(KeyError):
        model.start()
    assert EVENTS == [("deploy", 1), ("deploy", 2), ("stop", 2)]
    assert model.status() == {"model.child0": "deployed", "model.child1": "stopped", "model": "stopped"}
    bad.failing = "train"
    with pytest.raises(KeyError):
        model.update()
    assert EVENTS[3:] == [("train", 1), ("train", 2)]
    assert model.status()["model.child0"] == "deployed"


def test_restart_stops_all_before_it_deploys() -> None:
    """``restart`` stops parents before children, then deploys children before parents."""
    model = Node(0, [Node(1), Node(2)]).start()
    EVENTS.clear()
    assert model.restart() is model
    assert EVENTS == [("stop", 0), ("stop", 2), ("stop", 1), ("deploy", 1), ("deploy", 2), ("deploy", 0)]
    model.child1.failing = "deploy"  # type: ignore[union-attr]
    with pytest.raises(KeyError):
        model.restart()
    assert set(model.status().values()) == {"stopped"}


def test_a_failed_training_deploys_nothing() -> None:
    """When a training fails, nothing is deployed, and the exception tells where and of what type it was."""
    model = Node(0, [Node(1, [Node(2, fails="train")]), Node(3)])
    with pytest.raises(KeyError) as caught:
        model.update()
    assert EVENTS == [("train", 2)]
    assert caught.value.__notes__ == ["while training model.child0.child0 (Node)"]


def test_a_failed_evaluation_undoes_the_deployment() -> None:
    """When the evaluation in an update fails, what the update had deployed is stopped."""
    model = Node(0, [Node(1)], fails="evaluate")
    with pytest.raises(KeyError) as caught:
        model.update()
    assert [event for event in EVENTS if event[0] == "stop"] == [("stop", 0), ("stop", 1)]
    assert caught.value.__notes__ == ["while evaluating model (Node)"]


def test_an_interrupt_is_a_failure_too() -> None:
    """A KeyboardInterrupt in a task leaves nothing running that the call had started."""

    class Interrupted(Node):
        def _get_deploy_tasks(self) -> Any:
            return self._interrupt

        def _interrupt(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Interrupted(0, [Node(1)]).start()
    assert EVENTS == [("deploy", 1), ("stop", 0), ("stop", 1)]


def test_a_failure_while_undoing_is_told_with_the_first() -> None:
    """What cannot be stopped after a failure is told in a note, and the rest is stopped all the same."""
    model = Node(0, [Node(1), Node(2, fails="stop"), Node(3, fails="deploy")])
    with pytest.raises(KeyError) as caught:
        model.start()
    assert [name for kind, name in EVENTS if kind == "stop"] == [3, 2, 1]
    assert any("child1" in note and "2 does not stop" in note for note in caught.value.__notes__)


def test_stop_stops_what_it_can() -> None:
    """When some modules cannot be stopped the others are, and the first failure tells of the rest."""
    model = Node(0, [Node(1, fails="stop"), Node(2), Node(3, fails="stop")]).start()
    with pytest.raises(OSError, match="3 does not stop") as caught:
        model.stop()
    assert [name for kind, name in EVENTS if kind == "stop"] == [0, 3, 2, 1]
    assert [name for name, status in model.status().items() if status == "deployed"] == [
        "model.child0",
        "model.child2",
    ]
    assert any("model.child0 (Node) could not be stopped either" in note for note in caught.value.__notes__)


def test_tasks_are_callables() -> None:
    """What is no callable is refused before any task runs, naming the method and the place."""

    class Wrong(Node):
        def _get_train_tasks(self) -> Any:
            return [print]

    with pytest.raises(replayml.ArgumentError, match=r"Wrong._get_train_tasks\(\) returns a callable"):
        Node(0, [Node(1), Wrong(2)]).update()
    assert EVENTS == []


def test_start_passes_over_what_says_that_it_is_deployed() -> None:
    """``start`` leaves a deployed module alone; ``update`` deploys it again."""

    class Server(Node):
        runs = False

        @property
        def _is_deployed(self) -> bool:
            return self.runs

    server = Server(0).build()
    server.runs = True
    assert server.start().status() == {"model": "deployed"}
    assert EVENTS == []
    server.update()
    assert [kind for kind, _ in EVENTS] == ["train", "deploy", "evaluate"]
    server.runs = False
    assert server.status() == {"model": "stopped"}


# What is left of it ---------------------------------------------------------------------------------------------


def test_running_is_no_part_of_the_model() -> None:
    """What runs is in no copy, pickle, tape or recipe, and a copy can be started by itself."""
    model = Node(0, [Node(1)])
    before = model.recipe().to_json()
    model.start()
    assert model.recipe().to_json() == before
    assert not model.tape
    built = model.build()
    assert set(built.status().values()) == {"deployed"}
    for other in (model.new(), copy.deepcopy(built), pickle.loads(pickle.dumps(built))):
        assert set(other.status().values()) == {"stopped"}
        assert set(other.start().status().values()) == {"deployed"}
    assert not built.state_dict()


def test_what_a_task_assigns_is_recorded_unless_it_is_running() -> None:
    """A task's assignment to an unbuilt module is recorded like any other, but for the names in ``_untracked``."""

    class Learner(replayml.Module):
        _untracked = frozenset({"process"})

        def __init__(self) -> None:
            self.size = 1

        def _get_train_tasks(self) -> Any:
            return self._train

        def _train(self) -> None:
            self.size = 3
            self.process = "running"

    learner = Learner().update()
    assert learner.process == "running"
    assert learner.new().size == 3
    assert not hasattr(learner.new(), "process")


# Calls that wait ------------------------------------------------------------------------------------------------


class Waiting(Node):
    """A module with calls that wait for its lifecycle."""

    @replayml.before_fit
    def prepare(self) -> None:
        EVENTS.append(("before_fit", self.name))

    @replayml.after_fit
    def tidy(self) -> None:
        EVENTS.append(("after_fit", self.name))

    @replayml.before_deploy
    def connect(self, port: int) -> None:
        EVENTS.append(("before_deploy", port))
        self.port = port

    @replayml.after_deploy
    def announce(self) -> None:
        EVENTS.append(("after_deploy", self.name))


@pytest.mark.parametrize("form", sorted(FORMS))
def test_waiting_calls_run_around_the_tasks(form: str) -> None:
    """What waits for training and deployment runs around the tasks of the module, once, and leaves no entry."""
    model: Any = Waiting(0, [Waiting(1)])
    for waiting in (model, model.child0):
        waiting.prepare()
        waiting.tidy()
        waiting.connect(80)
        waiting.announce()
    model = FORMS[form](model)
    entries = len(model.tape)
    model.update()
    expected = [
        *[("before_fit", 1), ("train", 1), ("after_fit", 1), ("before_fit", 0), ("train", 0), ("after_fit", 0)],
        *[("before_deploy", 80), ("deploy", 1), ("after_deploy", 1)],
        *[("before_deploy", 80), ("deploy", 0), ("after_deploy", 0), ("evaluate", 1), ("evaluate", 0)],
    ]
    assert expected == EVENTS
    assert len(model.tape) == entries
    assert model.child0.port == 80
    EVENTS.clear()
    model.update()
    assert {kind for kind, _ in EVENTS} == {"train", "deploy", "evaluate"}


def test_waiting_calls_wait_again_after_a_failure() -> None:
    """What waited for a deployment that failed, or was undone, waits for the next one."""
    model: Any = Waiting(0, [Waiting(1), Node(2, fails="deploy")])
    model.child0.connect(1)
    model.child0.announce()
    with pytest.raises(KeyError):
        model.start()
    model.child1.failing = ""
    EVENTS.clear()
    model.start()
    assert EVENTS[:3] == [("before_deploy", 1), ("deploy", 1), ("after_deploy", 1)]


def test_waiting_calls_wait_again_after_a_failed_training() -> None:
    """What waited for a training that failed waits for the next one; what was trained is over."""
    model: Any = Waiting(0, [Waiting(1), Waiting(2, fails="train")])
    for child in (model.child0, model.child1):
        child.prepare()
        child.tidy()
    with pytest.raises(KeyError):
        model.update()
    model.child1.failing = ""
    EVENTS.clear()
    model.update()
    assert EVENTS[:4] == [("train", 1), ("before_fit", 2), ("train", 2), ("after_fit", 2)]


# Several calls at once ------------------------------------------------------------------------------------------


class Slow(Node):
    """A module whose training lasts until it is let go."""

    def _get_train_tasks(self) -> Any:
        return self._wait_for_it

    def _wait_for_it(self) -> None:
        EVENTS.append(("train", self.name))
        STARTED.set()
        assert GO_ON.wait(30)


STARTED, GO_ON = threading.Event(), threading.Event()


@pytest.fixture
def running() -> Iterator[Any]:
    """A tree that is being updated in another thread."""
    STARTED.clear()
    GO_ON.clear()
    model = Node(0, [Slow(1), Node(2)])
    thread = threading.Thread(target=model.update)
    thread.start()
    assert STARTED.wait(30)
    yield model
    GO_ON.set()
    thread.join(30)
    assert not thread.is_alive()
    names = [name for kind, name in EVENTS if kind == "deploy" and name != 5]
    assert names == [1, 2, 0]  # undisturbed
    model.update()  # and open to the next call


@pytest.mark.parametrize("call", ["update", "start", "restart", "stop", "evaluate"])
def test_calls_do_not_interleave(running: Any, call: str) -> None:
    """While a module is updated in one thread, another call on it, above or below it raises and changes nothing."""
    for module in (running, running.child1, Node(9, [running.child1])):
        with pytest.raises(replayml.core.errors.LifecycleError, match=r"takes part in update\(\) of Node, which is"):
            getattr(module, call)()
    assert EVENTS == [("train", 1)]


def test_other_modules_are_free(running: Any) -> None:
    """While one tree is updated in one thread, another tree is updated in another."""
    Node(5).update(recursive=False)
    assert ("evaluate", 5) in EVENTS


@given(graphs())
def test_calls_from_many_threads_run_one_after_another(graph: Graph) -> None:
    """Of updates that start in many threads at once, each runs as a whole, or raises and does nothing."""
    EVENTS.clear()
    model, barrier, refused = made(graph), threading.Barrier(6), []

    def update() -> None:
        barrier.wait(30)
        try:
            model.update()
        except replayml.core.errors.LifecycleError as error:
            refused.append(error)

    threads = [threading.Thread(target=update) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    happened = list(EVENTS)
    EVENTS.clear()
    model.update()
    assert happened == EVENTS * (6 - len(refused))


def test_a_call_in_a_task_is_a_part_of_the_call() -> None:
    """A task may call the lifecycle of what stands below it, in threads that have its context too."""

    class Outer(Node):
        child0: Any

        def _get_train_tasks(self) -> Any:
            return self._start_below

        def _start_below(self) -> None:
            self.child0.start()
            context = contextvars.copy_context()
            thread = threading.Thread(target=context.run, args=(self.child0.stop,))
            thread.start()
            thread.join(30)

    Outer(0, [Node(1)]).update()
    assert EVENTS[:3] == [("train", 1), ("deploy", 1), ("stop", 1)]


def test_what_outlives_a_call_is_no_part_of_it() -> None:
    """What runs on in the context of a call that has returned has no rights of that call."""

    class Leaking(Slow):
        contexts: ClassVar[list[contextvars.Context]] = []

        def _wait_for_it(self) -> None:
            self.contexts.append(contextvars.copy_context())
            super()._wait_for_it()

    GO_ON.set()
    model = Leaking(0).update()
    STARTED.clear()
    GO_ON.clear()
    thread = threading.Thread(target=model.update)
    thread.start()
    try:
        assert STARTED.wait(30)
        with pytest.raises(replayml.core.errors.LifecycleError, match="takes part in"):
            model.contexts[0].run(model.start)
    finally:
        GO_ON.set()
        thread.join(30)


# Names ----------------------------------------------------------------------------------------------------------


def importable(cls: type) -> None:
    """Let a class that was made in a test be found by name, as pickle finds it."""
    cls.__qualname__ = cls.__name__
    globals()[cls.__name__] = cls


@pytest.mark.parametrize("name", [*METHODS, *PROPERTIES])
def test_a_child_may_have_the_name_of_a_method(name: str) -> None:
    """A child with the name of one of the methods is found, configured, copied, built and run as any other."""

    class Net(replayml.Module):
        def __init__(self, width: int = 3) -> None:
            setattr(self, name, replayml.Layer(nn.Linear, 2, width))

        def forward(self, x: torch.Tensor) -> Any:
            return getattr(self, name)(x)

    importable(Net)
    net = Net().configure(width=4)
    getattr(net, name).configure(bias=False)
    built = net.new().build()
    assert type(getattr(built, name)) is nn.Linear
    assert built(torch.zeros(1, 2)).shape == (1, 4)
    assert set(built.state_dict()) == {f"{name}.weight"}
    torch._dynamo.reset()
    compiled: Any = torch.compile(built, backend="eager", fullgraph=True)
    assert compiled(torch.zeros(1, 2)).shape == (1, 4)
    assert type(pickle.loads(pickle.dumps(built))._modules[name]) is nn.Linear
    assert Module.update(net) is net
    delattr(net, name)
    assert not isinstance(getattr(net, name), nn.Module)


@pytest.mark.parametrize("name", [*METHODS, *PROPERTIES, "evalset"])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_an_attribute_may_have_the_name_of_a_method(name: str, form: str) -> None:
    """An attribute with the name of one of the methods keeps its value, before and after the build."""

    class Net(replayml.Module):
        def __init__(self, value: Any = "first") -> None:
            setattr(self, name, value)

    importable(Net)
    net = Net()
    net.configure(value="second")
    assert getattr(net, name) == "second"
    setattr(net, name, "third")
    net = FORMS[form](net)
    assert getattr(net, name) == "third"
    setattr(net, name, "fourth")
    assert getattr(net, name) == "fourth"
    delattr(net, name)
    assert getattr(net, name, None) != "fourth"


def test_arguments_of_a_wrapped_class_go_first() -> None:
    """On a layer the name of an argument of the wrapped class means that argument."""
    part = replayml.External(slice, 1, 5)
    counted: Any = replayml.External(Span, start=1, stop=5)
    assert (counted.start, counted.stop, counted.status) == (1, 5, "new")
    counted.stop = 7
    counted.configure(start=2)
    assert counted.build() == Span(2, 7, "new")
    assert part.build() == slice(1, 5)


class Span:
    def __init__(self, start: int, stop: int, status: str = "new") -> None:
        self.all = (start, stop, status)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Span) and other.all == self.all

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [nn.Parameter, nn.Buffer])
def test_a_tensor_may_have_the_name_of_a_method(kind: Any) -> None:
    """A parameter or buffer with the name of one of the methods is found under it."""

    class Net(replayml.Module):
        def __init__(self) -> None:
            setattr(self, "status", kind(torch.ones(2)))  # noqa: B010 - a type checker knows the method

    net: Any = Net()
    assert torch.equal(net.status, torch.ones(2))
    built = net.build()
    assert torch.equal(built.status, torch.ones(2))
    assert set(built.state_dict()) == {"status"}
    built.wait = kind(torch.zeros(1))
    built.add_module("stop", nn.ReLU())
    assert torch.equal(built.wait, torch.zeros(1))
    assert isinstance(built.stop, nn.ReLU)


def test_a_method_of_a_user_takes_the_place_of_ours() -> None:
    """A class may define one of the names itself, and its modules are updated all the same."""

    class Metric(Node):
        def update(self, value: int) -> int:  # type: ignore[override]
            return value + 1

        @property
        def status(self) -> str:  # type: ignore[override]
            return "own"

    metric = Metric(1)
    assert metric.update(2) == 3
    assert metric.status == "own"
    Node(0, [metric]).update()
    assert ("train", 1) in EVENTS


def test_a_module_called_evalset_is_refused() -> None:
    """A child that would be hidden by a recorded method is refused, with what to do."""
    model: Any = Node(0)
    with pytest.raises(replayml.ConfigurationError, match=r"evalset\(\) is a method .* Choose another name"):
        model.evalset = replayml.Layer(nn.ReLU)
    assert not model.tape


@pytest.mark.parametrize("name", METHODS)
def test_the_methods_read_like_methods(name: str) -> None:
    """The class, ``inspect`` and ``help`` show the methods with their signature and text."""
    function = getattr(Module, name)
    assert inspect.isfunction(function)
    assert function.__doc__
    assert "self" in inspect.signature(function).parameters
    assert name in dir(Node(0))
    assert inspect.ismethod(getattr(Node(0), name))


class Stack(replayml.Module):
    def __init__(self) -> None:
        self.layer = replayml.Layer(nn.Linear, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x)
        return result


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # the subject of the test
def test_scripting_takes_a_model_with_a_test_set() -> None:
    """``torch.jit.script`` takes a built model that has a test set."""
    model = Stack()
    model.evalset(torch.zeros(2, 2))
    model = model.build()
    x = torch.rand(4, 2)
    assert torch.equal(torch.jit.script(model)(x), model(x))


# Evaluation -----------------------------------------------------------------------------------------------------


class Shout(replayml.Module):
    """Works on text; counts its calls."""

    def __init__(self, mark: str = "!") -> None:
        self.mark = mark

    def forward(self, text: str) -> str:
        EVENTS.append(("call", text))
        return text.upper() + self.mark


def test_results_follow_the_test_set() -> None:
    """The result is computed when it is read, kept, and computed again for another set, an update and ``eval()``."""
    shout = Shout()
    assert shout.eval_result is None
    assert shout.evalset(["a", "b"]) is None
    assert EVENTS == []
    assert shout.eval_result == ["A!", "B!"]
    assert shout.eval_result == ["A!", "B!"]
    assert len(EVENTS) == 2
    shout.evalset(["c"])
    assert shout.eval_result == ["C!"]
    assert len(EVENTS) == 3
    assert shout.update().eval_result == ["C!"]
    assert len(EVENTS) == 4
    assert shout.eval() is shout
    assert not shout.training
    assert len(EVENTS) == 4
    assert shout.eval_result == ["C!"]
    assert len(EVENTS) == 5
    shout.configure(mark="?")
    assert shout.eval_result == ["C?"]


def test_a_failed_update_leaves_no_result() -> None:
    """After an update that failed, the result is computed again."""
    shout = Shout()
    shout.evalset(["a"])
    above = Node(0, [shout], fails="train")
    assert shout.eval_result == ["A!"]
    with pytest.raises(KeyError):
        above.update()
    assert EVENTS == [("call", "a"), ("train", 0)]
    assert shout.eval_result == ["A!"]
    assert EVENTS[2:] == [("call", "a")]


def test_the_test_set_is_recorded() -> None:
    """Copies, recipes and copies of built models have the test set of the original, and its functions."""
    shout = Shout()
    shout.evalset(["a"], load_f=str.title, collect_f=len)
    assert [entry.method for entry in shout.tape] == ["evalset"]
    others = [shout.new(), shout.new().build().new(), copy.deepcopy(shout.build()), pickle.loads(pickle.dumps(shout))]
    assert [other.eval_result for other in others] == [1] * 4
    plain = Shout()
    plain.evalset(["a"])
    assert replayml.Recipe.from_json(plain.recipe().to_json()).model(trust=[Shout]).eval_result == ["A!"]


def test_the_test_set_is_as_it_was_given() -> None:
    """What is done later to a list that was given changes neither the test set nor its record."""
    items = ["a"]
    shout = Shout()
    shout.evalset(items)
    items.append("b")
    assert shout.eval_result == shout.new().eval_result == ["A!"]


@pytest.mark.parametrize("form", ["unbuilt", "built"])
@pytest.mark.parametrize(
    "data",
    [("a", "b"), range(97, 99), iter("ab"), {"a": 1, "b": 2}.keys(), (x for x in "ab"), lambda: ["a", "b"]],
    ids=["tuple", "range", "iterator", "view", "generator", "function"],
)
def test_any_iterable_is_a_test_set(data: Any, form: str) -> None:
    """Every kind of items is evaluated item by item, as often as it is asked for."""
    shout = FORMS[form](Shout())
    if form == "built" and inspect.isgenerator(data):
        data = (x for x in "ab")  # another one: parameters are shared between cases
    shout.evalset(data, load_f=lambda item: chr(item) if isinstance(item, int) else item)
    assert shout.evaluate() == shout.evaluate()
    assert set(shout.eval_result) <= {"A!", "B!"}


@pytest.mark.parametrize("data", ["text", b"bytes", 3, None, {"a": 1}])
def test_what_has_no_items_is_refused(data: Any) -> None:
    """A text, a number, a dict and None are refused at once, and nothing is recorded."""
    shout = Shout()
    with pytest.raises(replayml.ArgumentError, match=r"takes items: .* A single item is a list of one"):
        shout.evalset(data)
    assert not shout.tape
    assert shout.eval_result is None


@pytest.mark.parametrize("name", ["load_f", "collect_f"])
def test_functions_are_checked(name: str) -> None:
    """What is given as a function is one."""
    given: Any = {name: 3}
    with pytest.raises(replayml.ArgumentError, match=rf"evalset\({name}=...\) takes a function, not 3"):
        Shout().evalset(["a"], **given)


def test_rows_run_in_batches() -> None:
    """The rows of a tensor or array run through a built module in batches, and give what all at once give."""
    model = replayml.MultiLayerPerceptron(4, [8], 2).build()
    sizes: list[int] = []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    x = torch.rand(10, 4)
    for data in (x, x.numpy()):
        model.evalset(data)
        assert torch.allclose(model.evaluate(batch_size=4), model(x))
    assert sizes == [4, 4, 2, 10, 4, 4, 2, 10]
    model.evalset(x[:0])
    assert model.evaluate().shape == (0, 2)
    model.evalset([x, x[:3]])
    assert [len(output) for output in model.evaluate()] == [10, 3]


def test_rows_are_items_where_batches_are_none() -> None:
    """Where a module does not take batches, a tensor is its rows, one by one."""

    class Single(replayml.Module):
        _takes_batches = False

        def forward(self, x: torch.Tensor) -> int:
            return int(x.sum())

    for form in ("unbuilt", "built"):
        single = FORMS[form](Single())
        single.evalset(np.arange(6).reshape(3, 2))
        assert single.eval_result == [1, 5, 9]


def test_evaluation_leaves_the_module_as_it_was() -> None:
    """A module is evaluated in evaluation mode and without gradients, and keeps its modes; nothing is recorded."""

    class Probe(replayml.Module):
        def __init__(self) -> None:
            self.part = nn.Dropout()
            self.part.eval()
            self.calls = 0

        def forward(self, x: Any) -> tuple[bool, bool]:
            self.calls += 1
            return self.training, torch.is_grad_enabled()

    for form in ("unbuilt", "built"):
        probe = FORMS[form](Probe())
        probe.evalset([1, 2])
        entries = len(probe.tape)
        assert probe.eval_result == [(False, False)] * 2
        assert probe.training
        assert not probe.part.training
        assert len(probe.tape) == entries


def test_a_failing_item_is_told() -> None:
    """An item that fails is told by its number; the exception keeps its type, and nothing is kept as the result."""
    shout = Shout()
    shout.evalset(["a", 3])
    with pytest.raises(AttributeError, match="upper") as caught:
        shout.evaluate()
    assert caught.value.__notes__ == ["while evaluating item 1 of the test set of Shout"]
    with pytest.raises(RuntimeError, match=r"Shout could not be evaluated: .*upper"):
        shout.eval_result  # noqa: B018 - reading it is what is tested
    assert shout.training
    shout.evalset(["b"])
    assert shout.eval_result == ["B!"]


def test_evaluation_tasks_give_the_result_where_there_is_no_test_set() -> None:
    """What the evaluation tasks return is the result, unless there is a test set."""

    class Judge(Shout):
        def _get_eval_tasks(self) -> Any:
            return lambda: EVENTS.append(("judged", None)) or "judged"  # type: ignore[func-returns-value]

    judge = Judge()
    assert judge.eval_result == "judged"
    judge.evalset(["a"])
    assert judge.eval_result == ["A!"]
    assert [kind for kind, _ in EVENTS] == ["judged", "judged", "call"]


def test_update_evaluates_every_test_set() -> None:
    """``update`` evaluates the test sets of all modules below, too."""
    inner = Shout()
    inner.evalset(["a"])
    Node(0, [Node(1, [inner])]).update()
    assert EVENTS[-3:] == [("call", "a"), ("evaluate", 1), ("evaluate", 0)]


def test_progress_is_shown_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar is on terminals and where it was asked for; any function can take its place."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shout = Shout()
    shout.evalset(["a", "b"])
    shout.evaluate()
    assert capsys.readouterr() == ("", "")
    shout.evaluate(progress=True)
    assert capsys.readouterr().err.endswith(" 2/2\n")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shout.evaluate(progress=False)
    assert terminal.getvalue() == ""
    shout.evaluate()
    assert terminal.getvalue().endswith(" 2/2\n")
    totals = []
    shout.evaluate(progress=lambda items, total: totals.append(total) or items)  # type: ignore[func-returns-value]
    assert totals == [2]
    assert shout.evaluate(progress=rich.progress.track) == ["A!", "B!"]
