"""Tables of things by exact names: what every registry of the project is made of."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import replayml
from replayml import ConfigurationError
from replayml.core.registry import Table, Words

WORDS = Words("there is no {}", "There is", "the {}", "Name it otherwise", "Make {}")


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "look"]), st.sampled_from("abc"), st.integers(0, 2))))
def test_a_table_is_a_dict_that_refuses_changes(steps: list[tuple[str, str, int]]) -> None:
    """Whatever is added, taken out and looked up, a table has what a plain dict would have, in its order."""
    table: Table[int] = Table(WORDS)
    expected: dict[str, int] = {}
    for step, name, number in steps:
        if step == "remove":
            table.remove(name)
            expected.pop(name, None)
        elif step == "add" and expected.get(name, number) == number:
            table.add(name, number, "here")
            expected.setdefault(name, number)
        elif step == "add":
            with pytest.raises(ConfigurationError, match=f"the {name} is registered twice: at here and at there. Name"):
                table.add(name, number, "there")
        elif name not in expected:
            with pytest.raises(ConfigurationError, match=f"there is no '{name}'.*There is: .*Make '{name}'"):
                table.entry(name)
        assert table.things() == expected
        assert list(table) == list(expected)
        assert len(table) == len(expected)
        assert all(name in table and table.entry(name).place == "here" for name in expected)


def test_styles_are_refused_twice() -> None:
    """A class has one style of a name, told with the places of both; a subclass may have its own."""

    class Net(replayml.Module):
        def __init__(self, width: int = 1) -> None:
            self.width = width

    class Wider(Net):
        pass

    def wide(net: Net) -> None:
        net.configure(width=2)

    def other(net: Net) -> None:
        net.configure(width=3)

    Net.register_style(wide)
    Net.register_style(wide)
    first = f"{__file__}:{wide.__code__.co_firstlineno}"
    other.__name__ = "wide"
    second = f"{__file__}:{other.__code__.co_firstlineno}"
    with pytest.raises(ConfigurationError) as caught:
        Net.register_style(other)
    assert f"the style wide of Net is registered twice: at {first} and at {second}" in str(caught.value)
    Wider.register_style(other)
    assert (Net().style("wide").width, Wider().style("wide").width) == (2, 3)
    with pytest.raises(ConfigurationError, match=r"Wider has no style 'wde'. Did you mean 'wide'\? Registered: wide"):
        Wider().style("wde")


def test_what_is_typed_again_takes_its_old_place() -> None:
    """At a prompt, or in a notebook, a function that is defined again is registered again; in a file it is refused."""
    code = textwrap.dedent(
        """
        import sys, replayml
        Net = type("Net", (replayml.Module,), {})
        def define(number):
            exec(f"def style(net): print({number})", globals())
            Net.register_style(style)
        define(1)
        try:
            define(2)
            Net().style("style")
        except replayml.ConfigurationError as error:
            print(type(error).__name__)
        """
    )
    root = str(Path(replayml.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": root}, check=True
    )
    assert done.stdout.split() == ["2"]


def test_what_stands_in_a_file_is_refused(tmp_path: Path) -> None:
    """In a file, two functions of one name are a mistake, though the second one takes the place of the first one."""
    path = tmp_path / "styles.py"
    path.write_text(
        textwrap.dedent(
            """
            import replayml
            class Net(replayml.Module):
                pass
            @Net.register_style
            def style(net): ...
            @Net.register_style
            def style(net): ...
            """
        )
    )
    root = str(Path(replayml.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(path)], capture_output=True, text=True, env={"PYTHONPATH": root}, check=False
    )
    assert f"style of Net is registered twice: at {path}:5 and at {path}:7" in done.stderr
