"""The class `Recipe`, and recipes of live models."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import replayml
from replayml.core.copying import describe
from replayml.core.errors import RecipeError
from replayml.core.tape import CallRecord, TapeEntry
from replayml.recipe import Limits, Recipe
from tests.recipe.samples import MONEY, Money, Net


class Block(replayml.Module):
    """A layer and an activation."""

    def __init__(self, width: int, activation: Any = nn.ReLU) -> None:
        super().__init__()
        self.layer = replayml.Layer(nn.Linear, None, width)
        self.activation = replayml.Layer(activation)

    def forward(self, x: torch.Tensor) -> Any:
        return self.activation(self.layer(x))


class Stack(replayml.Module):
    """Blocks in a row."""

    def __init__(self, *blocks: Any, head: Any = None) -> None:
        super().__init__()
        self.blocks = replayml.LayerList(*blocks)
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.head is None else self.head(x)


def stack() -> Any:
    """Return a model that shares a block, holds a plain layer and was edited."""
    shared = Block(4)
    model = Stack(shared, Block(4, nn.GELU), shared, head=nn.Linear(4, 2))
    model.blocks[0].layer.configure(bias=False)
    model.blocks[1].configure(activation=nn.Tanh)
    return model


def test_a_live_model_comes_back_from_its_recipe() -> None:
    """A model that was made, shared and edited is made again by its recipe: same tree, same tensors, same sharing."""
    model = stack()
    recipe = Recipe.of(describe(model))
    copied = Recipe.from_json(recipe.to_json()).model()
    assert Recipe.of(describe(copied)) == recipe
    built = [m.create(torch.ones(1, 4)) for m in (model, copied)]
    assert str(built[0]) == str(built[1])
    shapes = [{name: tuple(t.shape) for name, t in m.state_dict().items()} for m in built]
    assert shapes[0] == shapes[1]
    assert built[1].blocks[0] is built[1].blocks[2]
    assert built[1].blocks[0].layer.bias is None
    assert isinstance(built[1].blocks[1].activation, nn.Tanh)


def test_a_built_model_has_the_recipe_of_how_it_was_built() -> None:
    """Weights, training and evaluation mode are not in a recipe: the built model's equals the unbuilt one's."""
    model = stack()
    recipe = Recipe.of(describe(model))
    built = model.create(torch.ones(1, 4))
    built(torch.ones(1, 4)).sum().backward()
    built.eval()
    assert Recipe.of(describe(built), built=True) == recipe


def test_an_edit_changes_the_fingerprint() -> None:
    """Models that differ in one setting have different fingerprints."""
    one, other = stack(), stack()
    assert Recipe.of(describe(one)) == Recipe.of(describe(other))
    other.blocks[0].layer.configure(bias=True)
    assert Recipe.of(describe(one)).fingerprint != Recipe.of(describe(other)).fingerprint


def test_a_recipe_is_a_value() -> None:
    """Recipes are equal when their models are, can be keys, and survive pickling and copying."""
    record = CallRecord(Net, (1,), {}, [TapeEntry((), "adjust")])
    recipe, same, other = Recipe.of(record), Recipe.of(record), Recipe.of(CallRecord(Net, (2,)))
    assert recipe == same
    assert recipe != other
    assert recipe != recipe.to_json()
    assert len({recipe, same, other}) == 2
    for copied in (pickle.loads(pickle.dumps(recipe)), copy.deepcopy(recipe), copy.copy(recipe)):
        assert copied == recipe
        assert copied.to_json() == recipe.to_json()
        assert copied.record().args == (1,)


def test_a_recipe_shows_itself_in_one_line() -> None:
    """``repr`` names the class and counts, and does not print the whole document."""
    record = CallRecord(Net, (CallRecord(nn.ReLU), "a" * 1000), {}, [TapeEntry((), "adjust")])
    recipe = Recipe.of(record)
    assert repr(recipe) == f"<Recipe of tests.recipe.samples.Net: 2 calls, 1 entry, {recipe.fingerprint[:12]}>"


def test_the_document_names_its_format_and_versions() -> None:
    """The text says what it is and with what it was written; it is ASCII, sorted and without white space."""
    text = Recipe.of(CallRecord(Net, ("é \u2028",))).to_json()
    document = json.loads(text)
    assert {key: document[key] for key in ("format", "version")} == {"format": "replayml.recipe", "version": 2}
    assert set(document["packages"]) == {"python", "replayml", "torch"}
    assert text == json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert text.isascii()
    assert Recipe.from_json(text).packages["torch"] == torch.__version__


def test_the_names_that_a_recipe_needs_can_be_read_without_trust() -> None:
    """What a recipe would have to be trusted with is seen before anything is looked up."""
    document = json.loads(Recipe.of(CallRecord(Net, (nn.ReLU,))).to_json())
    document["model"]["args"].append({"$function": "os.system"})
    recipe = Recipe.from_json(json.dumps(document))
    assert recipe.names == ("os.system", "tests.recipe.samples.Net", "torch.nn.ReLU")
    with pytest.raises(RecipeError, match=r"os\.system"):
        recipe.model()


def test_a_shared_root_is_read() -> None:
    """A model whose own arguments come back to nothing but itself has no number; a part shared often has one."""
    part = CallRecord(Net)
    document = json.loads(Recipe.of(CallRecord(Net, (part, part, part))).to_json())
    assert document["model"]["args"] == [
        {"$call": "tests.recipe.samples.Net", "$id": 0, "args": [], "kwargs": {}},
        {"$ref": 0},
        {"$ref": 0},
    ]


def test_a_large_model_fits() -> None:
    """A model of a thousand layers with a tape of a thousand entries is far below the limits."""
    layers = [CallRecord(nn.Linear, (8, 8)) for _ in range(1000)]
    tape = [TapeEntry((str(index),), "adjust", (index,), {"width": index}) for index in range(1000)]
    recipe = Recipe.of(CallRecord(Net, (layers,), {}, tape))
    assert len(recipe.to_json()) < Limits().size / 10
    assert len(recipe.record().args[0]) == 1000


def test_the_recipe_of_a_module_takes_codecs_and_limits() -> None:
    """`Module.recipe` hands on what `Recipe.of` takes, and the limits stay with the recipe."""
    model = Net(Money(3))
    with pytest.raises(RecipeError, match="no-data-form"):
        model.recipe()
    recipe = model.recipe(codecs=[MONEY])
    assert recipe.model([MONEY]).seen[0] == (Money(3),)
    with pytest.raises(RecipeError, match=r"too-large.*Raise Limits\(size=\)"):
        model.recipe(codecs=[MONEY], limits=Limits(size=10))
    deep = Net([[[1]]])
    with pytest.raises(RecipeError, match="too-deep"):
        deep.recipe(limits=Limits(depth=3))
    assert deep.recipe(limits=Limits(depth=30)).model().seen[0] == ([[[1]]],)
