"""What the seed documents show of modules, each with the same outcome."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import replayml
from replayml.lifecycle.showing import tree


class MyModule(replayml.Module):
    """Trains and deploys by saying so, and answers with what it got."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _get_train_tasks(self) -> Any:
        return replayml.pipeline(lambda: print(f"Module {self.name} trained!"))

    def _get_deploy_tasks(self) -> Any:
        return replayml.pipeline(lambda: print(f"Module {self.name} deployed!"))

    def forward(self, given: Any) -> str:
        return f"[Module {self.name} get input: {given}]"


class MyModule2(replayml.Module):
    """Has two modules as attributes, and a deployment of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.m1_1 = MyModule(f"{name} m1-1")
        self.m1_2 = MyModule(f"{name} m1-2")

    def _get_deploy_tasks(self) -> Any:
        return replayml.pipeline(lambda: print(f"Module {self.name} deployed!"))

    def __repr__(self) -> str:
        return replayml.make_repr("Module", self.__class__, subs=[tree(self.m1_1), tree(self.m1_2)])


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines printed since the last time."""
    return capsys.readouterr().out.splitlines()


def test_a_module_by_inheriting(capsys: pytest.CaptureFixture[str]) -> None:
    """A module is called, updated, started and evaluated as the seed shows."""
    m = MyModule("example")
    assert m("hello world") == "[Module example get input: hello world]"
    assert m.update() is m
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
