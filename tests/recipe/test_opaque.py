"""Values without a data form: refused, or kept as pickles when both sides allow it."""

from __future__ import annotations

import functools
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dill
import pytest
import torch
from torch import nn

import replayml
from replayml.core.errors import RecipeError
from replayml.core.tape import CallRecord, TapeEntry
from replayml.recipe import Limits, Recipe
from replayml.recipe.format import INLINE_BYTES
from replayml.recipe.values.leaves import to_base64
from tests.recipe.samples import Net, Options

ROOT = Path(__file__).parents[2]


def opaque(value: Any) -> Recipe:
    """Return the recipe of a model with a pickled value."""
    return Recipe.of(CallRecord(Net, (value,)), allow_pickle=True)


def again(value: Any) -> Any:
    """Return a value that was pickled into a recipe, and opened."""
    return Recipe.from_json(opaque(value).to_json()).record(allow_pickle=True).args[0]


def document(node: Any) -> str:
    """Return a recipe with a node as its argument."""
    call = {"$call": "tests.recipe.samples.Net", "args": [node], "kwargs": {}}
    return json.dumps({"format": "replayml.recipe", "version": 2, "packages": {}, "model": call})


def blob(value: Any) -> dict[str, Any]:
    """Return the node of a pickle."""
    return {"$opaque": [to_base64(pickle.dumps(value))], "type": "some.Type"}


OPENED: list[str] = []


def note_opening() -> str:
    """Note that a pickle was opened."""
    OPENED.append("opened")
    return "opened"


class Counted:
    """Its pickle notes when it is opened."""

    def __reduce__(self) -> Any:
        return note_opening, ()


def closure(factor: int) -> Callable[[int], int]:
    """Return a function that holds a value."""
    return lambda x: x * factor


# Saving and opening -------------------------------------------------------------------------------------------------


def test_lambdas_closures_and_objects_come_back() -> None:
    """With ``allow_pickle=True`` on both sides, what has no data form works as before."""
    assert again(lambda x: x + 1)(2) == 3
    assert again(closure(3))(2) == 6
    assert again(functools.partial(int, base=2))("11") == 3
    assert again([1, {"deep": closure(4)}])[1]["deep"](2) == 8
    assert again(torch.Generator().manual_seed(7)).initial_seed() == 7


def test_only_what_has_no_data_form_is_pickled() -> None:
    """Everything else of the model stays data, to be read and compared."""
    node = json.loads(Recipe.of(CallRecord(Net, (nn.GELU, Options(closure(1)))), allow_pickle=True).to_json())  # type: ignore[arg-type]
    kind, options = node["model"]["args"]
    assert kind == {"$class": "torch.nn.GELU"}
    assert options["fields"]["rate"]["type"] == "builtins.function"
    assert "$opaque" not in opaque([nn.GELU, torch.ones(1), "text"]).to_json()


def test_one_object_in_two_places_stays_one() -> None:
    """A lambda that stands twice is one function afterwards."""
    double = closure(2)
    record = Recipe.of(CallRecord(Net, (double, [double])), allow_pickle=True).record(allow_pickle=True)
    assert record.args[0] is record.args[1][0]


def test_a_plain_module_is_kept_with_its_weights() -> None:
    """A module that cannot be made again is pickled as it is."""
    layer = nn.Linear(2, 2)
    layer.register_buffer("mask", torch.ones(2))
    assert torch.equal(again(layer).weight, layer.weight)


def test_a_model_with_a_lambda_is_saved_and_made_again() -> None:
    """`Module.recipe` and `Recipe.model` take ``allow_pickle``."""
    model = replayml.External(sorted, [3, 1, 2], key=lambda x: -x)
    with pytest.raises(
        RecipeError, match=r"no-name.*at model\.kwargs\.key.*Three ways out.*codecs=.*allow_pickle=True"
    ):
        model.recipe()
    recipe = Recipe.from_json(model.recipe(allow_pickle=True).to_json())
    assert recipe.model([sorted], allow_pickle=True).build() == [3, 2, 1]


# Refusals -----------------------------------------------------------------------------------------------------------


def test_a_pickle_is_not_opened_without_leave() -> None:
    """The refusal names every pickle, says what opening one means, and nothing was opened."""
    recipe = Recipe.of(CallRecord(Net, (Counted(), [Counted()]), {"width": Counted()}), allow_pickle=True)
    OPENED.clear()
    with pytest.raises(RecipeError) as caught:
        Recipe.from_json(recipe.to_json()).model()
    error = caught.value
    assert (error.code, error.where) == ("opaque-value", "model.args[0]")
    assert "3 values are pickles" in error.message
    assert "model.args[0], model.args[1][0], model.kwargs.width" in error.message
    assert "runs whatever code its author put into it" in error.message
    assert "allow_pickle=True" in error.message
    assert not OPENED
    recipe.record(allow_pickle=True)
    assert len(OPENED) == 3


def test_no_pickle_is_opened_when_something_else_is_wrong() -> None:
    """Even with leave, an untrusted name is found before any pickle is opened."""
    OPENED.clear()
    text = document([blob(Counted()), {"$class": "os.system"}])
    with pytest.raises(RecipeError, match="untrusted-name"):
        Recipe.from_json(text).record(allow_pickle=True)
    assert not OPENED


def test_without_leave_a_value_is_refused_at_saving_with_three_ways_out() -> None:
    """The refusal names the path, a name or a codec instead, and ``allow_pickle=True``."""
    record = CallRecord(Net, (1, {"deep": [closure(1)]}), tape=[TapeEntry((), "adjust")])
    with pytest.raises(
        RecipeError, match=r"at model\.args\[1\]\.deep\[0\].*function or a class that stands at the top "
    ):
        Recipe.of(record)
    with pytest.raises(RecipeError, match=r"codecs=\[Codec\(\.\.\.\)\]; or keep it as a pickle, allow_pickle=True"):
        Recipe.of(record)


def test_what_cannot_be_pickled_is_refused() -> None:
    """With leave, a value that dill cannot write or read back is refused with both reasons."""

    class Unwilling:
        def __reduce__(self) -> Any:
            raise TypeError("not me")

    class OneWay:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    for value, reason in [(Unwilling(), "not me"), (OneWay(), "invalid literal")]:
        with pytest.raises(RecipeError, match=rf"no-data-form.*has no data form\. Nor can it be pickled.*{reason}"):
            opaque([value])


def test_a_module_of_the_model_is_not_pickled() -> None:
    """Where a module cannot stand, ``allow_pickle`` does not help: it belongs to the record."""
    with pytest.raises(RecipeError, match="not inside of other values"):
        opaque(Options(CallRecord(Net)))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="cannot be a key or stand in a set"):
        opaque({closure(1)})


BROKEN: dict[str, tuple[str, Any]] = {
    "no list": ("bad-value", {"$opaque": "gAR9lC4=", "type": "a"}),
    "empty": ("bad-value", {"$opaque": [], "type": "a"}),
    "empty piece": ("not-canonical", {"$opaque": [""], "type": "a"}),
    "short piece": ("not-canonical", {"$opaque": ["gAR9", "lC4="], "type": "a"}),
    "no base64": ("bad-value", {"$opaque": ["?"], "type": "a"}),
    "no type": ("missing-key", {"$opaque": ["gAR9lC4="]}),
    "type is a number": ("bad-value", {"$opaque": ["gAR9lC4="], "type": 1}),
    "a key more": ("unknown-key", {"$opaque": ["gAR9lC4="], "type": "a", "trust": True}),
    "in a set": ("bad-value", {"$set": [{"$opaque": ["gAR9lC4="], "type": "a"}]}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_another_spelling_of_a_pickle_is_refused(case: str) -> None:
    """A pickle has one spelling; its honest twin is read."""
    code, node = BROKEN[case]
    with pytest.raises(RecipeError, match=rf"^\[{code}\]"):
        Recipe.from_json(document(node))
    assert Recipe.from_json(document(blob({}))).record(allow_pickle=True).args == ({},)


def test_a_broken_pickle_is_a_recipe_error() -> None:
    """Bytes that are no pickle, or that name what is gone, are refused with their place."""
    for data in (b"nothing", pickle.dumps(1)[:-1], b"\x80\x04cgone.away\nThing\n."):
        text = document({"$opaque": [to_base64(data)], "type": "a\nb"})
        with pytest.raises(RecipeError, match=r"^\[bad-pickle\] at model\.args\[0\]: this pickle of 'a\\nb' cannot"):
            Recipe.from_json(text).record(allow_pickle=True)


def test_a_large_pickle_stands_in_pieces() -> None:
    """A pickle longer than a string may be is split, and put together again."""
    data = bytes(range(256)) * 600
    recipe = opaque(functools.partial(len, data))
    pieces = json.loads(recipe.to_json())["model"]["args"][0]["$opaque"]
    assert len(pieces) == 4
    assert max(map(len, pieces)) == len(to_base64(bytes(INLINE_BYTES)))
    assert again(functools.partial(len, data)).args[0] == data
    with pytest.raises(RecipeError, match=r"too-large.*Raise Limits\(size=\)"):
        Recipe.of(CallRecord(Net, (closure(1),)), allow_pickle=True, limits=Limits(size=200))


def test_a_function_comes_back_in_another_process() -> None:
    """A lambda of a program that is gone works in one that never had it."""
    source = "import dill\nfrom replayml.recipe import Recipe\nimport sys, json, tests.recipe.samples\n"
    program = source + "print(Recipe.from_json(sys.argv[1]).record(allow_pickle=True).args[0](5))"
    text = opaque(closure(8)).to_json()
    done = subprocess.run(
        [sys.executable, "-c", program, text], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "40"
    assert dill.loads(dill.dumps(closure(8)))(5) == 40


def test_a_pickle_that_holds_a_class_leaves_the_known_classes_alone() -> None:
    """A lambda that names a class of the main program does not put the pickle's copy of it into the registry."""
    program = """
import gc, replayml
from replayml.core.meta import registered_classes
class Part(replayml.Module):
    def __init__(self, width=1):
        self.width = width
class Net(replayml.Module):
    def __init__(self, make):
        self.part = make()
net = Net(lambda: Part(2))
recipe = net.recipe(allow_pickle=True)
again = recipe.model(allow_pickle=True)
gc.collect()
assert registered_classes()["__main__.Part"] is Part
assert type(replayml.Recipe.from_json(Part(3).recipe().to_json()).model()) is Part
print(again.part.width)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.strip() == "2", done.stderr
