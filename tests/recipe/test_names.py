"""What a name stands for: the pinned tables, the registry and trust."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from replayml.core.errors import ArgumentError, RecipeError
from replayml.core.hooks import is_recorded
from replayml.core.meta import registered_classes
from replayml.core.tape import CallRecord
from replayml.recipe import Codec, Recipe
from replayml.recipe.faults import Flaw
from replayml.recipe.text.names import Names
from replayml.recipe.text.torch_names import BUILTINS, CLASSES, FUNCTIONS, LAYERS, PINNED, torchmetrics_classes
from tests.recipe.samples import Mode, Money, Narrow, Net, helper

ROOT = Path(__file__).parents[2]


def names(*trust: object) -> Names:
    """Return the names of a program that has one replayml module."""
    return Names({"acme.Net": Net}, is_recorded, trust)


# The pinned tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", PINNED)
def test_every_pinned_name_exists(module: str) -> None:
    """A name that torch or torchmetrics no longer has must be taken from the table by hand."""
    pinned = PINNED[module].split()
    missing = [name for name in pinned if name not in vars(importlib.import_module(module))]
    assert not missing
    assert len(pinned) == len(set(pinned))


def test_the_tables_are_pinned() -> None:
    """The names that a file may use change only on purpose: they are those that were stored, letter by letter."""
    stored = json.loads(Path(__file__).with_name("pinned_names.json").read_text())
    assert {module: sorted(pinned.split()) for module, pinned in PINNED.items()} == stored
    assert len(BUILTINS) == 12


def test_what_is_in_the_tables_is_what_belongs_there() -> None:
    """Layers are module classes, optimizers and schedulers classes, functions no classes."""
    assert all(isinstance(thing, type) and issubclass(thing, nn.Module) for thing in LAYERS.values())
    assert all(isinstance(thing, type) for thing in (*CLASSES.values(), *BUILTINS.values()))
    assert all(callable(thing) and not isinstance(thing, type) for thing in FUNCTIONS.values())
    metrics = importlib.import_module("torchmetrics")
    assert all(issubclass(thing, metrics.Metric) for thing in torchmetrics_classes().values())  # type: ignore[arg-type]


def test_what_runs_its_arguments_is_in_no_table() -> None:
    """Classes and functions that call an argument, open a path or stand for anything at all are left out."""
    tables = {**LAYERS, **CLASSES, **FUNCTIONS, **BUILTINS, **torchmetrics_classes()}
    last = {name.rsplit(".", 1)[1] for name in tables}
    left_out = {"Module", "DataParallel", "LambdaLR", "MultiplicativeLR", "CyclicLR", "TripletMarginWithDistanceLoss"}
    left_out |= {"Optimizer", "LRScheduler", "Metric", "MetricCollection", "load", "save", "compile", "vmap", "apply"}
    left_out |= {"eval", "exec", "open", "getattr", "__import__", "type", "object", "triplet_margin_with_distance_loss"}
    assert not last & left_out
    for name in ("fn", "func", "function", "lr_lambda", "distance_function", "scale_fn", "path", "filename"):
        for table in (LAYERS, CLASSES):
            takers = [key for key, cls in table.items() if name in inspect.signature(cls.__init__).parameters]  # type: ignore[misc]
            assert not takers


def test_no_object_has_two_names() -> None:
    """What is written has one name, so that equal models have equal recipes."""
    things = [*LAYERS.values(), *CLASSES.values(), *FUNCTIONS.values(), *BUILTINS.values()]
    things += torchmetrics_classes().values()
    assert len({id(thing) for thing in things}) == len(things)


def test_every_name_of_the_tables_leads_there_and_back() -> None:
    """A class or function of a table is written by its name and found by it."""
    importlib.import_module("torchmetrics")
    known = names()
    classes = {**LAYERS, **CLASSES, **BUILTINS, **torchmetrics_classes()}
    for table, kind in [(classes, "class"), (FUNCTIONS, "function")]:
        for name, thing in table.items():
            assert known.of(thing) == name
            assert known.find(name, kind) is thing  # type: ignore[arg-type]


def _run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_recipe_imports_neither_lightning_nor_torchmetrics() -> None:
    """To read a recipe that names a metric imports nothing; once the program has imported it, the name is known."""
    program = """
import json, sys
import replayml.recipe
from replayml.core.errors import RecipeError
from replayml.recipe import Recipe
call = {"$call": "torch.nn.Identity", "args": [{"$class": "torchmetrics.classification.MulticlassAccuracy"}],
        "kwargs": {}}
recipe = Recipe.from_json(json.dumps({"format": "replayml.recipe", "version": 1, "packages": {}, "model": call}))
try:
    recipe.record()
except RecipeError as error:
    print(error.code)
print(sorted({"lightning", "torchmetrics"} & set(sys.modules)))
import torchmetrics
print(recipe.record().args[0].__name__)
"""
    assert _run(program).split("\n") == ["untrusted-name", "[]", "MulticlassAccuracy"]


# The registry and trust ---------------------------------------------------------------------------------------------


def test_a_registered_class_is_found_by_its_name() -> None:
    """A class that the metaclass made may be called, and may be a value."""
    assert names().find("acme.Net", "call") is Net
    assert names().find("acme.Net", "class") is Net
    assert registered_classes()["tests.recipe.samples.Net"] is Net


def test_a_registered_class_inside_a_function_is_written_and_read() -> None:
    """The registry knows replayml modules that no import could reach; one that was made again is told apart."""

    def make() -> Any:
        class Local(Net):
            pass

        return Local

    first = make()
    recipe = Recipe.of(CallRecord(first, (first,)))
    assert recipe.record().cls is first
    second = make()
    assert recipe.record().cls is second
    with pytest.raises(RecipeError, match=r"no-name.*Local has no name"):
        Recipe.of(CallRecord(first))


def test_what_is_trusted_is_found_and_nothing_else() -> None:
    """Trust is per call and per object; it does not spread to the module that the object stands in."""
    recipe = Recipe.of(CallRecord(Net, (Mode.FAST, helper)))
    assert recipe.record([Mode, helper]).args == (Mode.FAST, helper)
    with pytest.raises(RecipeError, match=r"untrusted-name.*helper.*trust=\[") as caught:
        recipe.record([Mode])
    assert "samples.Mode" not in str(caught.value)
    with pytest.raises(RecipeError, match=r"1 more:"):
        recipe.record()


def test_a_plain_class_needs_trust_to_be_called() -> None:
    """A class that the metaclass did not make is written by its name, and called only when it is trusted."""
    recipe = Recipe.of(CallRecord(Money, (1,)))
    with pytest.raises(RecipeError, match="untrusted-name"):
        recipe.record()
    assert recipe.record([Money]).cls is Money


@pytest.mark.parametrize(
    "thing", ["tests.recipe.samples.Net", "*", 1, None, sys, Money(1), [Money]], ids=lambda thing: type(thing).__name__
)
def test_trust_is_made_of_objects(thing: object) -> None:
    """A name, a wildcard, a module or an instance cannot be trusted."""
    with pytest.raises(ArgumentError, match="trust= takes classes, functions and Codecs, the objects themselves"):
        names(thing)


def test_a_codec_is_trusted_for_its_own_form_only() -> None:
    """To trust the codec of a type does not let a file name the type itself."""
    codec = Codec(Money, vars, lambda data: Money(**data))
    with pytest.raises(Flaw, match="untrusted-name"):
        names(codec).find("tests.recipe.samples.Money", "class")
    assert names(codec).find("tests.recipe.samples.Money", "codec") is codec


def test_an_unknown_name_is_answered_with_the_nearest_known_one() -> None:
    """A misspelled name gets a hint; a very long one is not compared with the tables."""
    with pytest.raises(Flaw, match=r"The nearest name that is: 'torch\.nn\.Linear'"):
        names().find("torch.nn.Linaer", "class")
    with pytest.raises(Flaw, match=r"is not known to this program, or not trusted\. If it is"):
        names().find("torch.nn.Linear" * 1000, "class")


def test_a_class_whose_name_now_leads_elsewhere_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class that was defined again under its name cannot be found by it any more."""
    old = Money
    monkeypatch.setattr(sys.modules[Money.__module__], "Money", Mode)
    with pytest.raises(RecipeError, match=r"no-name.*no longer leads to this class, but to <enum 'Mode'>"):
        Recipe.of(CallRecord(Net, (old,)))


# Methods ------------------------------------------------------------------------------------------------------------


def test_a_method_is_looked_up_where_it_is_known_on_what() -> None:
    """On the root the class itself must have the method; below it, one of the registered classes."""
    known = names()
    known.check_method(Net, "adjust")
    known.check_method(None, "adjust")
    with pytest.raises(Flaw, match="Narrow has no recorded method 'adjust'"):
        known.check_method(Narrow, "adjust")
    with pytest.raises(Flaw, match="no module that this program imported has a recorded method 'forward'"):
        known.check_method(None, "forward")
    with pytest.raises(Flaw, match="no recorded method 'adjust'"):
        known.check_method(nn.Linear, "adjust")


def test_a_marked_function_that_is_no_plain_method_is_refused() -> None:
    """An instance attribute, a property or a static method that holds a recorded function is no method."""

    class Sly(Net):
        hidden = staticmethod(Net.adjust)
        looked_up = property(Net.adjust)

    for name in ("hidden", "looked_up", "adjusted"):
        with pytest.raises(Flaw, match="bad-method"):
            names().check_method(Sly, name)
    names().check_method(Sly, "adjust")


def test_torch_functions_are_told_from_methods() -> None:
    """Functions of torch stand for themselves; methods of tensors and bound methods do not."""
    assert Names.is_function(torch.relu)
    assert Names.is_function(nn.functional.gelu)
    assert Names.is_function(helper)
    assert not Names.is_function(torch.Tensor.relu)
    assert not Names.is_function(torch.ones(1).relu)
    assert not Names.is_function(nn.ReLU())
