"""`replayml.testing`: golden recipes, and models that are made again as they are."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import replayml
from replayml.core.errors import BuildError
from replayml.layers.layer import Layer
from replayml.module.module import Module
from replayml.testing import assert_golden, assert_rebuilds


class Net(Module):
    """A model with open sizes, a shared activation, dropout and an argument of every simple kind."""

    def __init__(self, width: Any = 8, name: Any = "net", sizes: Any = (1, 2)) -> None:
        self.width, self.name, self.sizes = width, name, sizes
        self.hidden = Layer(nn.Linear, None, width)
        self.activation = Layer(nn.ReLU)
        self.again = self.activation
        self.dropout = Layer(nn.Dropout, 0.5)
        self.out = Layer(nn.Linear, width, 2)

    def forward(self, x: torch.Tensor) -> Any:
        """Return ``(batch, 2)``."""
        return self.out(self.again(self.dropout(self.activation(self.hidden(x)))))


class Drifting(Module):
    """A model that is another one each time that it is made."""

    made = 0

    def __init__(self) -> None:
        Drifting.made += 1
        self.layer = Layer(nn.Linear, 2, Drifting.made)


class Careless(Module):
    """A model that draws weights which no seed governs."""

    made = 0

    def __init__(self) -> None:
        self.layer = Layer(nn.Linear, 2, 2)
        self.layer.register_after_build_hook(careless)

    def forward(self, x: torch.Tensor) -> Any:
        """Return ``(batch, 2)``."""
        return self.layer(x)


def careless(layer: Any) -> None:
    """Give a layer weights that depend on how often this was called."""
    Careless.made += 1
    nn.init.constant_(layer.weight, Careless.made)


class Moody(Module):
    """A model whose outputs are never the same."""

    runs = 0

    def __init__(self) -> None:
        self.layer = Layer(nn.Linear, 2, 2)

    def forward(self, x: torch.Tensor) -> Any:
        """Return ``(batch, 2)``, and something else each time."""
        Moody.runs += 1
        return {"out": [self.layer(x), torch.full((1,), Moody.runs)]}


# Golden recipes ---------------------------------------------------------------------------------------------------


def test_a_golden_file_is_written_once_and_compared_from_then_on(tmp_path: Path) -> None:
    """The first call writes the file, folders included; an equal model passes and the file stays as it is."""
    path = tmp_path / "golden" / "net.json"
    assert_golden(Net(), path)
    before = path.read_bytes()
    assert_golden(Net(), path)
    assert_golden(Net().build(torch.zeros(1, 4)), str(path))
    assert_golden(Net().recipe(), path)
    assert path.read_bytes() == before


def test_a_golden_file_is_made_for_people(tmp_path: Path) -> None:
    """It has a line for each value and tells no lines of code, so that it changes when the model does."""
    assert_golden(Net().configure(width=3), tmp_path / "net.json")
    text = (tmp_path / "net.json").read_text(encoding="ascii")
    assert len(text.splitlines()) > 10
    assert text.endswith("}\n")
    assert "where" not in text
    assert os.path.basename(__file__) not in text
    assert replayml.Recipe.from_json(text).model().width == 3


def test_another_model_fails_with_what_differs(tmp_path: Path) -> None:
    """The message names the file, the paths, both values, and how to agree to the change."""
    path = tmp_path / "net.json"
    assert_golden(Net(), path)
    before = path.read_bytes()
    with pytest.raises(AssertionError, match=r"Net is not the model of .*net\.json:") as caught:
        assert_golden(Net().configure(width=3), path)
    for part in ("hidden.out_features: 8 -> 3", "model.configure(width=3)", "update=True), once"):
        assert part in str(caught.value)
    assert path.read_bytes() == before
    assert_golden(Net().configure(width=3), path, update=True)
    assert_golden(Net().configure(width=3), path)


def test_a_golden_model_that_can_no_longer_be_made_is_compared_as_text(tmp_path: Path) -> None:
    """Where a class is gone, the lines of the two recipes are told, and why."""
    path = tmp_path / "net.json"
    assert_golden(Net(), path)
    path.write_text(path.read_text().replace(".Net", ".Gone"), encoding="ascii")
    with pytest.raises(AssertionError, match=r"(?s)-.*\.Gone.*\+.*\.Net.*the golden model cannot be made: RecipeError"):
        assert_golden(Net(), path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\x80\x04K\x01."])
def test_a_file_that_is_no_recipe_fails(content: bytes, tmp_path: Path) -> None:
    """A golden file that was spoiled is an assertion error that tells how to write it anew."""
    path = tmp_path / "net.json"
    path.write_bytes(content)
    with pytest.raises(AssertionError, match=r"net\.json is no recipe: .*(?s:.)*update=True"):
        assert_golden(Net(), path)
    assert_golden(Net(), path, update=True)
    json.loads(path.read_bytes())


def test_a_model_without_a_recipe_fails(tmp_path: Path) -> None:
    """A value without a data form is named, and nothing is written."""
    with pytest.raises(AssertionError, match=r"Net has no recipe: \[no-name\] at model\.kwargs\.name"):
        assert_golden(Net(name=lambda: 1), tmp_path / "net.json")
    assert not list(tmp_path.iterdir())


# Rebuilding -------------------------------------------------------------------------------------------------------


def test_a_faithful_model_passes_and_is_not_changed() -> None:
    """Copies, the recipe, a pickle and both builds agree; the model, its tape and the random state are as before."""
    model = Net().configure(width=4)
    model.activation.configure(nn.GELU)
    entries, state = list(model.tape), torch.random.get_rng_state()
    assert_rebuilds(model, torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    assert list(model.tape) == entries
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not model._has_built


def test_a_built_model_is_taken_as_it_was_before() -> None:
    """A built model passes; one that was changed after its build has other weights than its recipe makes."""
    x = torch.zeros(1, 5)
    model = Net().build(x)
    assert_rebuilds(model, x)
    model.out = nn.Linear(8, 3)
    with pytest.raises(AssertionError, match=r"Net made by a new build is another model:\n  out.weight: .*\[3, 8\].*"):
        assert_rebuilds(model, x)


@given(st.lists(st.integers(1, 4), max_size=3), st.sampled_from([nn.ReLU, nn.GELU, nn.PReLU]), st.integers(0, 2**40))
def test_every_network_of_blocks_passes(hidden: list[int], activation: Any, seed: int) -> None:
    """Whatever the sizes, the activation and the seed, a network of replayml's own blocks is made again as it is."""
    model = replayml.MultiLayerPerceptron(None, hidden, 2)
    model[..., "activation"].configure(activation)
    assert_rebuilds(model, torch.ones(2, 3), seed=seed)


def test_an_application_passes() -> None:
    """Applications are models too."""
    assert_rebuilds(replayml.Regressor(replayml.MultiLayerPerceptron(2, [3], 1), optimizer=replayml.Adam(lr=0.1)))


def test_a_model_that_drifts_fails_with_the_path() -> None:
    """A constructor that does something else each time is found by ``new()``."""
    with pytest.raises(AssertionError, match=r"Drifting made by new\(\) is another model:\n  layer.out_features: "):
        assert_rebuilds(Drifting())


def test_weights_that_no_seed_governs_fail_with_their_name() -> None:
    """Two builds with one seed that differ are told with the name of the weight."""
    with pytest.raises(
        AssertionError, match=r"Careless made by new\(\), built a second time .*\n  weights.layer.weight: "
    ):
        assert_rebuilds(Careless(), torch.zeros(1, 2))


def test_outputs_that_differ_fail_with_their_place() -> None:
    """Outputs are compared in every part."""
    with pytest.raises(AssertionError, match=r"output.out\[1\]: a tensor \(1,\) of torch.int64, \[\d\] expected"):
        assert_rebuilds(Moody(), torch.zeros(1, 2))


def test_a_model_without_a_recipe_or_a_pickle_fails() -> None:
    """What has no data form fails with its place; what has no pickle fails unless that is not asked for."""
    with pytest.raises(AssertionError, match=r"Net has no recipe: .*name"):
        assert_rebuilds(Net(name=lambda: 1), torch.zeros(1, 2))

    class Local(Net):
        pass

    with pytest.raises(AssertionError, match=r"Local cannot be made again by pickle: .*Local"):
        assert_rebuilds(Local(), torch.zeros(1, 2))
    assert_rebuilds(Local(), torch.zeros(1, 2), pickled=False)


def test_a_fault_of_the_model_keeps_its_type() -> None:
    """A model that cannot be built at all, or an example that does not fit, is no difference between copies."""
    with pytest.raises(BuildError) as caught:
        assert_rebuilds(Net())
    assert any("while building Net, made by new()" in note for note in caught.value.__notes__)
    with pytest.raises(RuntimeError, match="shape"):
        assert_rebuilds(replayml.MultiLayerPerceptron(4, [], 2), torch.zeros(1, 3))
