"""The registry: modules and functions by exact names, in groups, from this program and from other packages."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import replayml
from replayml import ConfigurationError, module_register
from replayml.lifecycle.registry import Registry
from replayml.module.showing import tree
from tests.lifecycle.steps import Shift, inc, negate


@pytest.fixture
def group() -> Iterator[str]:
    """Make a group, and forget it after the test."""
    module_register.new_group("mymodules")
    yield "mymodules"
    module_register.remove_group("mymodules")


def ours() -> Any:
    """Return the group as a user reaches it."""
    return replayml.mymodules


def test_a_function_becomes_a_module(group: str) -> None:
    """A registered function stays as it is; by the group it is made into modules."""

    @module_register(group)
    def m(input: int) -> str:
        return f"module m get input: {input}"

    assert m(1) == "module m get input: 1"
    module = ours().m()
    assert isinstance(module, replayml.Module)
    assert module(1) == ours().m()(1) == "module m get input: 1"
    assert tree(module) == "<Module type=m>"
    module.evalset([1, 2, 3])
    assert module.eval().eval_result == [f"module m get input: {number}" for number in (1, 2, 3)]
    with pytest.raises(ConfigurationError, match=r"mymodules.m\(\) takes no arguments"):
        ours().m(3)


def test_a_registered_function_is_data(group: str) -> None:
    """A module of a registered function is named by its group and name: its recipe needs no trust."""
    module_register(group)(inc)
    flow = replayml.pipeline(ours().inc(), Shift(1))
    read = replayml.Recipe.from_json(flow.recipe().to_json()).model()
    assert flow(1) == flow.new()(1) == read(1) == pickle.loads(pickle.dumps(flow))(1) == flow.create()(1) == 3
    text = flow.recipe().to_json()
    module_register.remove_group(group)
    with pytest.raises(ConfigurationError, match="there is no group 'mymodules'"):
        replayml.Recipe.from_json(text).model()
    module_register.new_group(group)


def test_classes_make_modules(group: str) -> None:
    """A replayml class is handed out itself, a class of torch as a layer, one with a ``__call__`` as a module."""

    class Adder:
        def __init__(self, by: int) -> None:
            self.by = by

        def __call__(self, x: int) -> int:
            return x + self.by

    module_register(group)(Shift)
    module_register(group, name="linear")(nn.Linear)
    module_register(group)(Adder)
    assert ours().Shift is Shift
    assert ours().linear(None, 2).build(torch.zeros(1, 3)).weight.shape == (2, 3)
    assert ours().Adder(5)(1) == ours().Adder(by=5).new()(1) == 6
    with pytest.raises(ConfigurationError, match="objects of Quiet cannot be called"):
        module_register(group)(type("Quiet", (), {}))
    with pytest.raises(ConfigurationError, match="'three' is 3; functions"):
        module_register(group, name="three")(3)
    with pytest.raises(ConfigurationError, match="no name of its own"):
        module_register(group)(Adder(1))


def test_names_are_exact(group: str) -> None:
    """A name that is not there is an AttributeError, or a ConfigurationError, with the nearest one."""
    module_register(group)(inc)
    module_register(group)(negate)
    assert "inc" in ours()
    assert "Inc" not in ours()
    assert list(ours()) == ["inc", "negate"]
    assert {"inc", "negate"} <= set(dir(ours()))
    with pytest.raises(AttributeError, match=r"mymodules has no 'negat'\. Did you mean 'negate'\? It has: inc, negate"):
        _ = ours().negat
    with pytest.raises(ConfigurationError, match="has no 'negat'"):
        ours().get("negat")
    with pytest.raises(AttributeError, match=r"no attribute 'mymodulez'.*Did you mean 'mymodules'"):
        _ = replayml.mymodulez
    with pytest.raises(ConfigurationError, match=r"no group 'mymodulez'\. Did you mean 'mymodules'"):
        module_register("mymodulez")
    assert not hasattr(replayml, "_mymodules")


def test_two_things_have_two_names(group: str) -> None:
    """A second thing of one name is refused with the places of both; the same thing again is not."""

    def inc(x: int) -> int:
        return x

    module_register(group)(negate)
    module_register(group)(negate)
    module_register(group)(inc)
    first = f"{__file__}:{inc.__code__.co_firstlineno}"

    def other(x: int) -> int:
        return x

    second = f"{__file__}:{other.__code__.co_firstlineno}"
    with pytest.raises(ConfigurationError, match="registered twice") as error:
        module_register(group, name="inc")(other)
    assert f"at {first} and at {second}" in str(error.value)
    assert ours().inc()(3) == 3
    with pytest.raises(
        ConfigurationError, match=rf"mymodules is registered twice.*{Path(__file__).name}:\d+ and at .*remove_group"
    ):
        module_register.new_group(group)


@pytest.mark.parametrize("name", ["Module", "load", "core", "testing", "pipeline"])
def test_a_group_hides_nothing_of_replayml(name: str) -> None:
    """No group has the name of something public, or of a module of the package."""
    with pytest.raises(ConfigurationError, match="would hide another thing"):
        module_register.new_group(name)


@pytest.mark.parametrize("name", ["", "two words", "class", "_mine", "a.b", "new_group"])
def test_a_group_can_be_reached_by_its_name(name: str) -> None:
    """A name that no attribute can have is refused."""
    with pytest.raises(ConfigurationError, match=r"no name for a group|would hide"):
        module_register.new_group(name)


@pytest.mark.parametrize("name", ["", "two words", "class", "_mine", "a.b", "get"])
def test_what_is_registered_can_be_reached_by_its_name(group: str, name: str) -> None:
    """The same holds for what is registered."""
    with pytest.raises(ConfigurationError, match="cannot be registered"):
        module_register(group, name=name)(inc)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers()))
def test_a_group_gives_what_it_has_as_attributes(things: dict[str, int]) -> None:
    """What is registered is reached by its name in each way, and listed by names in their order."""
    registry: Registry[int] = Registry()
    registry.new_group("numbers")
    numbers = registry.numbers
    for name, number in things.items():
        numbers.add(name, number, "here")
    assert list(numbers) == numbers.names() == sorted(things)
    assert {name: getattr(numbers, name) for name in "abcdef" if hasattr(numbers, name)} == things
    assert {name: numbers.get(name) for name in numbers} == things


def test_threads_register_side_by_side(group: str) -> None:
    """Names that several threads register at once are all there; of two with one name one is refused."""

    def register(number: int) -> bool:
        def own(x: int) -> int:
            return x + number

        try:
            module_register(group, name=f"own{number // 2}")(own)
        except ConfigurationError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(register, range(64)))
    assert sum(found) == len(ours()) == 32


# Entry points ---------------------------------------------------------------------------------------------------


def installed(folder: Path, name: str, points: str, source: str = "") -> None:
    """Put a package with entry points into a folder, as an installer does."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[replayml.modules]\n{textwrap.dedent(points)}")
    if source:
        (folder / f"{name}.py").write_text(textwrap.dedent(source))


def run(folder: Path, code: str) -> str:
    """Return what a program prints in which the packages of a folder are installed."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    root = str(Path(replayml.__file__).parents[1])
    environment = {"PYTHONPATH": f"{folder}:{root}", "PATH": "/usr/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


SOURCE = """
    import replayml
    print("imported")

    def shout(text):
        return text.upper()

    class Count(replayml.Module):
        def forward(self, text):
            return len(text)
"""


def test_plugins_are_loaded_when_they_are_used(tmp_path: Path) -> None:
    """A package that is installed offers modules without being imported before one is asked for."""
    installed(tmp_path, "acme_models", "acme.shout = acme_models:shout\nacme.count = acme_models:Count\n", SOURCE)
    printed = run(
        tmp_path,
        """
        import sys, replayml
        print(replayml.module_register.groups(), list(replayml.acme), "acme_models" in sys.modules)
        print(replayml.acme.shout()("hey"), replayml.acme.count()("hey"))
        try:
            replayml.acme.shot
        except AttributeError as error:
            print(error)
        """,
    )
    assert printed.splitlines() == [
        "['acme'] ['count', 'shout'] False",
        "imported",
        "HEY 3",
        "acme has no 'shot'. Did you mean 'shout'? It has: count, shout",
    ]


def test_a_recipe_imports_no_plugin(tmp_path: Path) -> None:
    """A file that names a plug-in is refused until the program has used that plug-in itself."""
    installed(tmp_path, "acme_models", "acme.shout = acme_models:shout\n", SOURCE)
    printed = run(
        tmp_path,
        """
        import sys, replayml
        from replayml.lifecycle.registry import Registered
        text = replayml.acme.shout().recipe().to_json()
        replayml.module_register.remove_group("acme")
        del sys.modules["acme_models"]
        for _ in range(2):
            try:
                print(replayml.Recipe.from_json(text).model()("hey"), "acme_models" in sys.modules)
            except replayml.ConfigurationError as error:
                print(error, "acme_models" in sys.modules)
            replayml.acme.shout
        """,
    )
    assert printed.splitlines() == [
        "imported",
        "there is no group 'acme'. Groups: none yet. Make it: new_group('acme') False",
        "imported",
        "HEY True",
    ]


def test_faults_of_plugins_are_told(tmp_path: Path) -> None:
    """Two packages with one name are refused with both; one that cannot be imported keeps its error, and is named."""
    installed(tmp_path, "one", "acme.shout = one:shout\n", SOURCE)
    installed(tmp_path, "two", "acme.shout = two:shout\nacme.broken = two:missing\nmodule.x = two:shout\n", SOURCE)
    printed = run(
        tmp_path,
        """
        import replayml
        for path in ("acme.shout", "acme.broken"):
            try:
                group, name = path.split(".")
                getattr(getattr(replayml, group), name)
            except AttributeError as error:
                print(error, *getattr(error, "__notes__", ()))
        print(replayml.module.__name__)
        """,
    )
    twice, broken, module = [line for line in printed.splitlines() if line != "imported"]
    assert "acme.shout is registered twice: at the entry point of" in twice
    assert "one" in twice
    assert "two" in twice
    assert "has no attribute 'missing' while loading acme.broken, two:missing by the entry point of two" in broken
    assert module == "replayml.module"


def test_replayml_is_imported_without_the_registry() -> None:
    """Neither ``import replayml`` nor the look-up of one of its modules reads entry points."""
    code = """
        import sys
        import replayml
        from replayml import testing
        print([name for name in sys.modules if name.startswith("replayml.lifecycle")])
    """
    assert run(Path("/nowhere"), code) == "[]\n"
