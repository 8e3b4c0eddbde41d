"""What the seed documents show of modules, each with the same outcome."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import replayml
from tests.lifecycle.seed import MyModule, MyModule2


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines printed since the last time."""
    return capsys.readouterr().out.splitlines()


def test_a_module_by_inheriting(capsys: pytest.CaptureFixture[str]) -> None:
    """A module is called, updated, started and evaluated as the seed shows."""
    m = MyModule("example")
    assert m("hello world") == "[Module example get input: hello world]"
    assert repr(m.update()) == "<Module type=MyModule name=example>"
    assert printed(capsys) == ["Module example trained!", "Module example deployed!"]
    assert m.start() is m
    assert printed(capsys) == ["Module example deployed!"]
    assert m.evalset(["hello", "world"]) is None
    result = m.update().eval_result
    assert printed(capsys) == ["Module example trained!", "Module example deployed!"]
    assert result == ["[Module example get input: hello]", "[Module example get input: world]"]


def test_attributes_are_submodules() -> None:
    """Modules set as attributes are the submodules, in their order."""
    m2 = MyModule2("m2")
    assert repr(m2.submodules) == "[<Module type=MyModule name=m2 m1-1>, <Module type=MyModule name=m2 m1-2>]"
    assert m2.submodules == [m2.m1_1, m2.m1_2]
    assert [m.name for m in m2.submodules] == ["m2 m1-1", "m2 m1-2"]


def test_a_module_by_registering(mymodules: Any) -> None:
    """A registered function is a module: it is called, and evaluated with ``eval()`` and ``eval_result``."""

    @replayml.module_register("mymodules")  # type: ignore[untyped-decorator,unused-ignore]
    def m(given: Any) -> str:
        return f"module m get input: {given}"

    registered: Any = replayml
    assert registered.mymodules.m()(1) == "module m get input: 1"
    made = registered.mymodules.m()
    made.evalset([1, 2, 3])
    assert made.eval().eval_result == [f"module m get input: {number}" for number in (1, 2, 3)]


@pytest.fixture
def mymodules() -> Iterator[None]:
    """A group of its own for one test."""
    replayml.module_register.new_group("mymodules")
    yield
    replayml.module_register.remove_group("mymodules")


def test_steps_are_submodules() -> None:
    """The modules given to an ``ActionModule``, in flows inside too, are its submodules, and its repr shows them."""
    m1, m2 = MyModule("m1"), MyModule("m2")
    assert replayml.ActionModule(m1, m2).submodules == [m1, m2]
    assert repr(replayml.ActionModule(m1, m2).submodules) == (
        "[<Module type=MyModule name=m1>, <Module type=MyModule name=m2>]"
    )
    m1, m2, m3 = MyModule("m1"), MyModule("m2"), MyModule("m3")
    action = replayml.ActionModule(replayml.pipeline(m1, replayml.parallel(m2, m3)))
    assert action.submodules == [m1, m2, m3]
    assert repr(action).splitlines() == [
        "<Module type=Action sub-category=Flow type=Pipeline items=[]>",
        "└- <Flow type=Pipeline items=[]>",
        "    |- <Module type=MyModule name=m1>",
        "    └- <Flow type=Parallel items=[]>",
        "        |- <Module type=MyModule name=m2>",
        "        └- <Module type=MyModule name=m3>",
    ]


FLOW = [
    "<Flow type=Pipeline items=[]>",
    "|- <Module type=MyModule name=m1>",
    "└- <Flow type=Parallel items=[]>",
    "    |- <Module type=MyModule name=m2>",
    "    └- <Module type=MyModule name=m3>",
]


def test_what_is_served_is_a_submodule() -> None:
    """A module given to a ``ServerModule``, and those in a flow given to it, are its submodules; its repr shows all."""
    m1 = MyModule("m1")
    sm = replayml.ServerModule(m1)
    assert sm.submodules == [m1]
    assert repr(sm.submodules) == "[<Module type=MyModule name=m1>]"
    assert repr(sm).splitlines() == ["<Module type=Server>", "└- <Module type=MyModule name=m1>"]
    flow, modules = some_flow()
    sm = replayml.ServerModule(flow)
    assert sm.submodules == modules
    assert repr(sm).splitlines() == ["<Module type=Server>", "└- " + FLOW[0], *("    " + line for line in FLOW[1:])]
    flow, modules = some_flow()
    sm = replayml.ServerModule(replayml.ActionModule(flow))
    assert sm.submodules[0].submodules == modules
    assert repr(sm).splitlines() == [
        "<Module type=Server>",
        "└- <Module type=Action sub-category=Flow type=Pipeline items=[]>",
        "    └- " + FLOW[0],
        *("        " + line for line in FLOW[1:]),
    ]


def some_flow() -> tuple[replayml.pipeline, list[MyModule]]:
    """Return the flow of the seed, and the modules in it."""
    m1, m2, m3 = MyModule("m1"), MyModule("m2"), MyModule("m3")
    return replayml.pipeline(m1, replayml.parallel(m2, m3)), [m1, m2, m3]


def test_a_flow_is_deployed_with_its_modules(capsys: pytest.CaptureFixture[str]) -> None:
    """``start`` deploys the modules in a served flow before the server, which answers as the flow does from then on."""
    flow, _ = some_flow()
    sm = replayml.ServerModule(flow)
    try:
        assert sm.start() is sm
        assert printed(capsys) == ["Module m1 deployed!", "Module m2 deployed!", "Module m3 deployed!"]
        assert sm.status()["model"] == "deployed"
        assert sm("hello") == flow("hello")
        sm.evalset(["hello", "world"])
        assert sm.eval().eval_result == [flow("hello"), flow("world")]
    finally:
        sm.stop()
    assert set(sm.status().values()) == {"stopped"}


def test_a_module_is_deployed_without_its_submodules(capsys: pytest.CaptureFixture[str]) -> None:
    """``start(recursive=False)`` deploys the server alone; what it serves needs no deployment to answer."""
    sm = replayml.ServerModule(MyModule2("m2"))
    try:
        sm.start(recursive=False)
        assert printed(capsys) == []
        assert sm.status()["model"] == "deployed"
    finally:
        sm.stop()


def test_joint_deployment(capsys: pytest.CaptureFixture[str]) -> None:
    """All training comes before all deployment, depth first; a module is deployed after those in it."""
    action = replayml.ActionModule(MyModule2("m2-1"), MyModule2("m2-2"))
    assert repr(action).splitlines() == [
        "<Module type=Action sub-category=Flow type=Pipeline items=[]>",
        "|- <Module type=MyModule2>",
        "|   |- <Module type=MyModule name=m2-1 m1-1>",
        "|   └- <Module type=MyModule name=m2-1 m1-2>",
        "└- <Module type=MyModule2>",
        "    |- <Module type=MyModule name=m2-2 m1-1>",
        "    └- <Module type=MyModule name=m2-2 m1-2>",
    ]
    for each in (action, action.new()):
        assert each.update() is each
        assert printed(capsys) == [
            "Module m2-1 m1-1 trained!",
            "Module m2-1 m1-2 trained!",
            "Module m2-2 m1-1 trained!",
            "Module m2-2 m1-2 trained!",
            "Module m2-1 m1-1 deployed!",
            "Module m2-1 m1-2 deployed!",
            "Module m2-1 deployed!",
            "Module m2-2 m1-1 deployed!",
            "Module m2-2 m1-2 deployed!",
            "Module m2-2 deployed!",
        ]


def test_submodules_may_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """A module is updated, or started, without its submodules where that is asked for."""
    m = MyModule2("m2")
    m.update(recursive=False)
    assert printed(capsys) == ["Module m2 deployed!"]
    m.start(recursive=False)
    assert printed(capsys) == ["Module m2 deployed!"]
