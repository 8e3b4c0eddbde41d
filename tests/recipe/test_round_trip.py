"""What is written is read back: the same values, to the last bit, and the same objects in the same places."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given

from replayml.core.errors import RecipeError
from replayml.core.tape import CallRecord, TapeEntry, TreeRef, Where
from replayml.recipe import Recipe
from tests.recipe.samples import MONEY, TRUST, Net, assert_same, records

ROOT = Path(__file__).parents[2]


@given(records())
def test_a_record_read_back_equals_the_record(record: CallRecord) -> None:
    """Every value, call, tape entry and line comes back, and what was shared is shared."""
    recipe = Recipe.of(record, codecs=[MONEY])
    assert_same(Recipe.from_json(recipe.to_json()).record(TRUST), record)


@given(records())
def test_writing_what_was_read_gives_the_same_text(record: CallRecord) -> None:
    """The canonical form is a fixed point: write, read, write gives the text of the first writing."""
    recipe = Recipe.of(record, codecs=[MONEY])
    again = Recipe.of(recipe.record(TRUST), codecs=[MONEY])
    assert again.to_json() == recipe.to_json()
    assert again == recipe
    assert again.fingerprint == recipe.fingerprint


@given(records())
def test_spelling_that_json_gives_no_meaning_to_changes_nothing(record: CallRecord) -> None:
    """White space and the order of keys are no part of a recipe."""
    recipe = Recipe.of(record, codecs=[MONEY])
    pretty = json.dumps(_reversed(json.loads(recipe.to_json())), indent=3, ensure_ascii=False)
    assert Recipe.from_json(pretty).to_json() == recipe.to_json()


def _reversed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _reversed(item) for key, item in reversed(value.items())}
    return [_reversed(item) for item in value] if isinstance(value, list) else value


def test_one_object_in_several_places_stays_one_object() -> None:
    """A shared call, list or tensor is one object after reading; equal ones that were two stay two."""
    layer, items, weight = CallRecord(Net), [1], torch.ones(2)
    tape = [TapeEntry((), "adjust", (layer, items)), TapeEntry(("a",), "adjust", ([1], TreeRef(("b",), "weight")))]
    record = Recipe.of(CallRecord(Net, (layer, [layer, items], items, weight), {"w": weight}, tape)).record()
    assert record.args[0] is record.args[1][0] is record.tape[0].args[0]
    assert record.args[1][1] is record.args[2] is record.tape[0].args[1]
    assert record.args[3] is record.kwargs["w"]
    assert record.tape[1].args[0] is not record.args[2]
    assert record.tape[1].args[1] == TreeRef(("b",), "weight")


def test_references_further_out_are_written() -> None:
    """On the tape of a module that is given to others, a reference says how far out the tree is that it is about."""
    entries = [TapeEntry((), "adjust", (TreeRef(("a",), None, outer), outer)) for outer in range(3)]
    inner = CallRecord(Net, (), {}, entries)
    middle = CallRecord(Net, (), {}, [TapeEntry((), "adjust", (inner,))])
    record = CallRecord(Net, (), {}, [TapeEntry((), "adjust", (middle,))])
    read = Recipe.from_json(Recipe.of(record).to_json()).record()
    assert read == record
    assert [entry.args[0].outer for entry in read.tape[0].args[0].tape[0].args[0].tape] == [0, 1, 2]


def test_each_reading_makes_new_objects() -> None:
    """Two records of one recipe share no list and no tensor, so that a change of one leaves the other alone."""
    recipe = Recipe.of(CallRecord(Net, ([1], torch.zeros(1))))
    one, other = recipe.record(), recipe.record()
    one.args[0].append(2)
    one.args[1].add_(1)
    assert_same(other, recipe.record())


def test_the_order_of_a_dict_and_of_branches_is_kept() -> None:
    """The order of dict keys, and of keyword arguments that end up in ``**kwargs``, is part of the model."""
    record = CallRecord(Net, ({"b": 1, "a": 2},), {"zeta": 1, "alpha": 2})
    read = Recipe.of(record).record()
    assert list(read.args[0]) == ["b", "a"]
    assert list(read.kwargs) == ["zeta", "alpha"]
    assert Recipe.of(record) != Recipe.of(CallRecord(Net, ({"a": 2, "b": 1},), record.kwargs))


def test_the_order_of_named_parameters_plays_no_part() -> None:
    """``Net(width=1, depth=2)`` and ``Net(depth=2, width=1)`` are one model."""
    assert Recipe.of(CallRecord(Net, (), {"width": 1, "depth": 2})) == Recipe.of(
        CallRecord(Net, (), {"depth": 2, "width": 1})
    )


def test_provenance_and_versions_take_no_part_in_the_fingerprint() -> None:
    """The line of a call and the versions of packages differ between equal models."""
    one = Recipe.of(CallRecord(Net, ({"where": [1]},), {}, [TapeEntry((), "adjust", where=Where("a.py", 1))]))
    other = Recipe.of(CallRecord(Net, ({"where": [1]},), {}, [TapeEntry((), "adjust")], Where("b.py", 2)))
    document = json.loads(other.to_json()) | {"packages": {"torch": "9"}}
    changed = Recipe.from_json(json.dumps(document))
    assert one == other == changed
    assert one.to_json() != other.to_json() != changed.to_json()
    assert one != Recipe.of(CallRecord(Net, ({"where": [2]},), {}, [TapeEntry((), "adjust")]))


def test_provenance_tells_no_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file below the working directory or the path of Python is written relative to it, another by its name."""
    inside = Recipe.of(CallRecord(Net, where=Where(str(Path.cwd() / "nets" / "cnn.py"), 7)))
    monkeypatch.chdir("/")
    at_root = Recipe.of(CallRecord(Net, where=Where("/home/somebody/secret/cnn.py", 7)))
    assert at_root.record().where == Where("cnn.py", 7)
    outside = Recipe.of(CallRecord(Net, where=Where("/home/somebody/secret/cnn.py", 7)))
    assert inside.record().where == Where("nets/cnn.py", 7)
    assert outside.record().where == Where("cnn.py", 7)


PROGRAM = """
from tests.recipe.samples import MONEY, Mode, Money, Net, Options, helper
from replayml.core.tape import CallRecord, TapeEntry
from replayml.recipe import Recipe
import torch
shared = {"b": {1, 2, 3, 300, "x", "yy", Mode.SLOW, (1, 2), frozenset("abcdef")}, "a": [torch.arange(3), helper]}
tape = [TapeEntry((), "adjust", ({"u", "v", "w"},))]
record = CallRecord(Net, (shared, Money(3)), {"width": 2, "zeta": shared}, tape)
print(Recipe.of(record, codecs=[MONEY]).fingerprint)
"""


def test_the_fingerprint_is_equal_across_processes() -> None:
    """Two processes with different seeds of ``hash`` give one fingerprint."""
    prints = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(prints) == 1
    assert len(prints.pop().strip()) == 64


def test_a_model_that_could_not_be_read_is_not_written() -> None:
    """The limits of reading hold for writing: a recipe that exists can be opened."""
    deep: Any = 1
    for _ in range(40):
        deep = CallRecord(Net, (deep,))
    with pytest.raises(RecipeError, match="too-deep"):
        Recipe.of(deep)
    with pytest.raises(RecipeError, match="too-deep"):
        Recipe.of(_nested_lists(10_000))
    with pytest.raises(RecipeError, match="too-many"):
        Recipe.of(CallRecord(Net, (list(range(100_001)),)))
    assert Recipe.of(_nested_lists(20)).record().args


def _nested_lists(depth: int) -> CallRecord:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return CallRecord(Net, (value,))
