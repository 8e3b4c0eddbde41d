"""Selectors: what they match, and calls on what they match."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import ConfigurationError, SelectionError
from replayml.layers.containers import LayerList
from replayml.layers.layer import Layer
from replayml.module.module import Module
from replayml.module.paths import dotted, path_of


class Block(Module):
    """A layer and an activation."""

    def __init__(self) -> None:
        self.layer = Layer(nn.Linear, 4, 4)
        self.activation = Layer(nn.ReLU)


class Net(Module):
    """Three blocks and a head."""

    def __init__(self) -> None:
        self.blocks = LayerList[Any](Block(), Block(), Block())
        self.layer = Layer(nn.Linear, 4, 2)


@pytest.mark.parametrize(
    ("selector", "paths"),
    [
        (("blocks", 0, "layer"), ["blocks.0.layer"]),
        ("blocks.1.activation", ["blocks.1.activation"]),
        ("blocks[1].activation", ["blocks.1.activation"]),
        ("blocks[1]", ["blocks.1"]),
        ("**[1].layer|activation#0", ["blocks.1.layer", "blocks.1.activation"]),
        ("blocks[one]", []),
        (("blocks", -1, "layer"), ["blocks.2.layer"]),
        ((..., "activation"), [f"blocks.{i}.activation" for i in range(3)]),
        ("**.activation", [f"blocks.{i}.activation" for i in range(3)]),
        (("blocks", slice(1, None), "layer"), ["blocks.1.layer", "blocks.2.layer"]),
        (("blocks", [0, 2], "layer"), ["blocks.0.layer", "blocks.2.layer"]),
        (("blocks", 0, "layer|activation"), ["blocks.0.layer", "blocks.0.activation"]),
        ("**.activation#1:3", ["blocks.1.activation", "blocks.2.activation"]),
        ("nothing", []),
    ],
)
def test_what_a_selector_matches(selector: Any, paths: list[str]) -> None:
    """Names, indices, slices, lists, alternatives and ``...`` match these paths, in the order of the tree."""
    assert [".".join(path) for path in Net()[selector].paths] == paths


@given(st.lists(st.one_of(st.integers(0, 12).map(str), st.from_regex(r"[a-z_]{1,4}", fullmatch=True)), max_size=5))
def test_a_path_is_read_as_it_is_written(steps: list[str]) -> None:
    """A path is the same with dots as with brackets around its indices, and step by step."""
    brackets = "".join(f"[{step}]" if step.isdigit() else f".{step}" for step in steps).removeprefix(".")
    assert path_of(".".join(steps)) == path_of(brackets) == path_of(steps) == tuple(steps)
    assert dotted(brackets) == ".".join(steps)


@pytest.mark.parametrize("text", ["a[b]", "a[", "a[-1]", "a[0]b", "a[1:2]", "a[\u0661]"])
def test_brackets_without_an_index_are_part_of_a_name(text: str) -> None:
    """Such a text is one step, which leads to nothing, and is shown as it was given."""
    assert path_of(text) == (text,)


def test_a_call_reaches_each_match_and_is_recorded() -> None:
    """``configure`` on a selection changes each match, and a copy has the changes."""
    net: Any = Net()
    net[..., "activation"].configure(nn.GELU)
    for other in (net, net.new()):
        assert [block.activation.classtype for block in other.blocks] == [nn.GELU] * 3


def test_a_call_on_a_selection_is_all_or_nothing() -> None:
    """When one match refuses a call, none is changed."""
    net = Net()
    with pytest.raises(ConfigurationError, match="takes no 'bias'"):
        net["blocks", 0, "layer|activation"].configure(bias=False)
    assert net.blocks[0].layer.bias is True
    assert len(net.tape) == 0


def test_narrowing() -> None:
    """``filter``, ``isinstance``, ``hasattr`` and ``first`` keep some of the matches."""
    net = Net()
    assert len(net[...].isinstance(nn.Linear)) == 4
    assert len(net[...].filter(lambda path, _: path.endswith("activation"))) == 3
    assert net[..., "layer"].first.paths == [("layer",)] or len(net[..., "layer"].first) == 1
    assert len(net[...].hasattr("activation")) >= 3


def test_an_empty_selection_shows_the_nearest_paths() -> None:
    """A call on nothing raises and names what is nearest; what is no selector is refused at once."""
    with pytest.raises(SelectionError, match="matches nothing in Net"):
        Net()[..., "activatoin"].configure(nn.GELU)
    with pytest.raises(SelectionError, match="is no selector"):
        Net()[3.5]
