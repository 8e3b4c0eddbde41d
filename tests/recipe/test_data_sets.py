"""Data sets on the tape: files and recipes have those that are names and a few plain values, and copies have all."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import replayml
from replayml import Layer, LayerList
from replayml.core.copying import describe
from replayml.core.tape import CallRecord, PlainRecord, TapeEntry
from replayml.recipe.data_sets import DATA_SETS, MOST_VALUES, is_plain, without_data_sets


class Scaled(replayml.Module):
    """Multiplies; as a part of itself it can have others."""

    def __init__(self, by: float = 2.0, *inside: Any) -> None:
        self.by = by
        self.inside = LayerList(*inside)

    @replayml.edit
    def grow(self, other: Any = None) -> None:
        self.by *= 2
        if other is not None:
            self.other = other

    def forward(self, x: Any) -> Any:
        return self.by * x


def some_rows() -> torch.Tensor:
    """Return rows, by a name."""
    return torch.ones(3, 1)


PLAIN: list[Any] = [["one", "two"], range(3), [1, 2.5, None], some_rows, [("a", {"b": 1})], [Path("x")]]
OTHERS: list[Any] = [
    torch.zeros(1),
    torch.zeros(4000, 10),
    np.zeros(3),
    [torch.zeros(1)],
    [{"x": np.zeros(1)}],
    list(range(MOST_VALUES)),
    lambda: [1],
    [object()],
    DataLoader(TensorDataset(torch.zeros(2, 2))),
]


@pytest.mark.parametrize("data", PLAIN)
def test_small_plain_data_is_kept(data: Any) -> None:
    """Names and a few plain values are in the recipe, and come back with it."""
    model = Scaled()
    model.evalset(data)
    tape = model.recipe().model(trust=[some_rows]).tape
    assert [entry.method for entry in tape] == ["evalset"]
    assert tape == model.tape


@pytest.mark.parametrize("data", OTHERS, ids=[type(data).__name__ + str(i) for i, data in enumerate(OTHERS)])
def test_other_data_is_left_out(data: Any, tmp_path: Path) -> None:
    """Arrays of any size, objects, lambdas and long lists are in no file; the model and its copies still have them."""
    model = Scaled(3.0, Layer(nn.Linear, 1, 1))
    model.evalset(data)
    model.grow()
    assert [entry.method for entry in model.recipe().model().tape] == ["grow"]
    for saved in (model, model.new().build()):
        saved.save(tmp_path / "model.replayml")
        loaded = replayml.load(tmp_path / "model.replayml")
        assert [entry.method for entry in loaded.tape] == ["grow"]
        assert loaded.by == 6.0
        assert loaded.eval_result is None
        assert [entry.method for entry in saved.tape] == ["evalset", "grow"]
    for other in (model.new(), model.new().new(), model.new().build().new()):
        assert [entry.method for entry in other.tape] == ["evalset", "grow"]
    assert model.recipe() == without(model).recipe()
    assert "evalset" not in model.to_code()
    assert "evalset" not in str(replayml.inspect(tmp_path / "model.replayml"))


def without(model: Any) -> Any:
    """Return the same model without the test set."""
    new = Scaled(3.0, Layer(nn.Linear, 1, 1))
    new.grow()
    return new


def test_functions_without_a_name_are_left_out() -> None:
    """Data whose ``load_f`` is a lambda is left out as a whole."""
    model = Scaled()
    model.evalset([1, 2], load_f=lambda x: x)
    assert not model.recipe().model().tape
    model.evalset([1, 2], load_f=abs)
    assert model.recipe().model(trust=[abs]).eval_result == [2, 4]


def test_what_was_replaced_does_not_come_back() -> None:
    """A test set that another one took the place of is not in a file without that other one."""
    model = Scaled()
    model.evalset([1])
    model.evalset(torch.zeros(1))
    assert not model.recipe().model().tape
    model.evalset([2])
    assert [entry.args for entry in model.recipe().model().tape] == [([2],)]


def test_data_sets_of_parts_are_left_out(tmp_path: Path) -> None:
    """The data of modules below, on the tape of the whole or on their own, is in no file either."""
    part, shared = Scaled(1.0), Scaled(5.0)
    part.evalset(torch.zeros(2))
    shared.evalset([torch.zeros(2)])
    model = Scaled(1.0, part, shared)
    model.inside[0].evalset(torch.ones(2))
    model.grow(other=shared)
    model.save(tmp_path / "model.replayml")
    loaded = replayml.load(tmp_path / "model.replayml")
    assert [module.eval_result for module in (loaded, *loaded.inside)] == [None] * 3
    assert loaded.other is loaded.inside[1]
    assert loaded.other.by == 5.0
    assert [str(entry) for entry in loaded.tape] == ["model.grow(other=model.inside[1])"]
    assert torch.equal(torch.stack(model.new().inside[0].eval_result), torch.ones(2))


def test_pickles_and_deep_copies_keep_data() -> None:
    """Copies within Python are of all that there is."""
    model = Scaled()
    model.evalset(torch.ones(2))
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other.eval_result == [2.0, 2.0]


def test_data_of_an_init_comes_with_it(tmp_path: Path) -> None:
    """A test set that an ``__init__`` gives is not on the tape, and is there again wherever the model is."""

    class Own(Scaled):
        def __init__(self) -> None:
            super().__init__()
            self.evalset(torch.ones(2))

    model = Own()
    model.save(tmp_path / "model.replayml")
    assert replayml.load(tmp_path / "model.replayml").eval_result == [2.0, 2.0]


# Records ----------------------------------------------------------------------------------------------------------

METHODS = st.sampled_from(["evalset", "trainset", "configure"])
ARGUMENTS = st.sampled_from([(1,), (torch.zeros(1),), ("a",)])


@st.composite
def records(draw: st.DrawFn) -> CallRecord:
    """Draw a record with others in it, some in several places."""
    made: list[CallRecord] = []
    for _ in range(draw(st.integers(1, 5))):
        some = st.lists(st.sampled_from(made), max_size=2) if made else st.just([])
        shared = draw(some)
        tape = [
            TapeEntry(
                draw(st.sampled_from([(), ("a",)])), draw(METHODS), (*draw(ARGUMENTS), draw(some)), {"key": shared}
            )
            for _ in range(draw(st.integers(0, 3)))
        ]
        plain = PlainRecord(nn.Identity(), tuple((object(), call) for call in draw(some)))
        made.append(CallRecord(Scaled, (len(made), shared, (shared,), plain), {"items": {"x": draw(some)}}, tape))
    return made[-1]


def calls(value: Any, found: dict[int, CallRecord]) -> dict[int, CallRecord]:
    """Return all records below something."""
    if isinstance(value, CallRecord):
        if id(value) not in found:
            found[id(value)] = value
            for entry in value.tape:
                calls([entry.args, entry.kwargs], found)
            calls([value.args, value.kwargs], found)
    elif isinstance(value, PlainRecord):
        calls([call for _, call in value.inside], found)
    elif isinstance(value, dict):
        calls(list(value.values()), found)
    elif isinstance(value, (list, tuple)):
        for item in value:
            calls(item, found)
    return found


@given(records())
def test_nothing_else_is_left_out(record: CallRecord) -> None:
    """Without data sets, what was shared still is, all other calls are there, and the record itself is as before."""
    before = calls(record, {})
    texts = {key: repr(call.tape) for key, call in before.items()}
    new = without_data_sets(record)
    after = calls(new, {})
    assert not any(entry.method in DATA_SETS for call in after.values() for entry in call.tape)
    assert {key: repr(call.tape) for key, call in before.items()} == texts
    if not any(entry.method in DATA_SETS for call in before.values() for entry in call.tape):
        assert new is record
    by_number = {call.args[0]: call for call in before.values()}
    assert len({call.args[0] for call in after.values()}) == len(after) <= len(before)  # each once: shared as before
    for call in after.values():
        old = by_number[call.args[0]]
        assert [entry.method for entry in call.tape] == [e.method for e in old.tape if e.method not in DATA_SETS]
        assert call.args[1] is call.args[2][0]


def test_what_is_kept_is_as_it_was() -> None:
    """A record whose data sets are all kept is the same record."""
    model = Scaled()
    model.evalset(["a"])
    record = describe(model)
    assert without_data_sets(record, is_plain) is record
    assert json.loads(model.recipe().to_json())["model"]["tape"][0]["$entry"] == "evalset"
