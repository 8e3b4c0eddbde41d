"""The tape: entries, their equality and their text, the sequence of them, and replaying a part of it."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import ReplayError
from replayml.core.hooks import edit, stateful
from replayml.core.replay import realize
from replayml.core.tape import CallRecord, Tape, TapeEntry, TreeRef, Where, caller
from replayml.layers.containers import LayerList
from replayml.layers.layer import Layer
from replayml.module.module import Module

VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=3))
NAMES = st.sampled_from(("width", "depth", "bias"))
TAGS = st.lists(st.sampled_from(("block", "layer", "0", "12")), max_size=3).map(tuple)
WHERES = st.one_of(st.none(), st.builds(Where, st.sampled_from(("train.py", "model.py")), st.integers(1, 99)))
ENTRIES = st.builds(
    TapeEntry,
    TAGS,
    st.sampled_from(("configure", "append", "set")),
    st.lists(VALUES, max_size=2).map(tuple),
    st.dictionaries(NAMES, VALUES, max_size=2),
    WHERES,
)


class Counter(Module):
    """Counts, in three ways of recording."""

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self.total = start
        self.layers: Any = LayerList()
        self.layer = Layer(nn.Linear, 2, 2)

    @stateful
    def add(self, number: int, *, times: int = 1) -> int:
        """Add a number so many times, and return the total."""
        self.total += number * times
        return self.total

    @stateful
    def add_twice(self, number: int) -> None:
        """Add a number by two recorded calls."""
        self.add(number)
        self.add(number)

    @edit
    def grow(self, count: int) -> None:
        """Append layers."""
        for _ in range(count):
            self.layers.append(Layer(nn.ReLU))

    @stateful
    def refuse(self, number: int) -> None:
        """Do something and raise."""
        self.add(number)
        self.layers.append(Layer(nn.ReLU))
        raise ValueError(f"no {number}")


def state(model: Any) -> tuple[Any, ...]:
    """Return what the calls of a counter change."""
    return model.start, model.total, len(model.layers), model.layer.bias


CALLS = st.one_of(
    st.tuples(st.just("add"), st.integers(-9, 9)),
    st.tuples(st.just("add_twice"), st.integers(-9, 9)),
    st.tuples(st.just("grow"), st.integers(0, 2)),
    st.tuples(st.just("bias"), st.booleans()),
    st.tuples(st.just("append"), st.just(0)),
    st.tuples(st.just("refuse"), st.integers(0, 9)),
)


def make_call(model: Any, call: tuple[str, Any]) -> None:
    """Make one call on a counter."""
    name, operand = call
    if name == "bias":
        model.layer.configure(bias=operand)
    elif name == "append":
        model.layers.append(Layer(nn.Tanh))
    elif name == "refuse":
        with pytest.raises(ValueError, match=f"no {operand}"):
            model.refuse(operand)
    else:
        getattr(model, name)(operand)


# Entries ----------------------------------------------------------------------------------------------------------


@given(ENTRIES, WHERES, st.integers())
def test_the_line_and_the_order_of_a_call_take_no_part_in_equality(
    entry: TapeEntry, where: Where | None, serial: int
) -> None:
    """Two entries are equal when place, method and arguments are, wherever and whenever the calls were made."""
    other = TapeEntry(entry.tags, entry.method, entry.args, dict(entry.kwargs), where, object(), serial)
    assert other == entry
    assert str(other) == str(entry)


@given(ENTRIES, ENTRIES)
def test_entries_differ_in_place_method_or_arguments(one: TapeEntry, two: TapeEntry) -> None:
    """Entries are equal only if they tell the same call on the same place."""
    same = (one.tags, one.method, one.args, dict(one.kwargs)) == (two.tags, two.method, two.args, dict(two.kwargs))
    assert (one == two) is same
    assert one != "something else"


def test_entries_cannot_be_hashed_or_changed() -> None:
    """An entry holds arguments that may change, so that it has no hash; it cannot be changed itself."""
    entry = TapeEntry((), "configure", ([1],))
    with pytest.raises(TypeError, match="unhashable"):
        hash(entry)
    with pytest.raises(AttributeError, match="cannot assign to field 'method'"):
        entry.method = "set"  # type: ignore[misc]


class Typed:
    """Stands for the model when the text of an entry is run: it notes the call."""

    def __init__(self, tags: tuple[str, ...] = ()) -> None:
        self.tags = tags

    def __getattr__(self, name: str) -> Typed:
        return Typed((*self.tags, name))

    def __getitem__(self, index: int) -> Typed:
        return Typed((*self.tags, str(index)))

    def __call__(self, *args: Any, **kwargs: Any) -> TapeEntry:
        """Return the call as an entry."""
        return TapeEntry(self.tags[:-1], self.tags[-1], args, kwargs)


@given(ENTRIES)
def test_the_text_of_an_entry_is_the_call_as_the_user_would_type_it(entry: TapeEntry) -> None:
    """The text is Python that makes the same call on the same place."""
    assert eval(str(entry), {"model": Typed()}) == entry  # noqa: S307 - our own text


def test_the_text_names_classes_modules_and_functions_and_cuts_what_is_long() -> None:
    """A class and a function stand as their names, a module as its call or its place, a long value cut."""
    layer = Layer(nn.Linear, 2, bias=False)
    entry = TapeEntry((), "set", (nn.GELU, layer._record.call, TreeRef(("a", "b")), TreeRef(("a",), "weight"), len))
    assert str(entry) == "model.set(GELU, Layer(Linear, 2, bias=False), model.a.b, model.a.weight, len)"
    long = str(TapeEntry((), "set", ("x" * 500,)))
    assert len(long) < 80
    assert long.endswith("...)")


def test_the_line_is_that_of_the_users_code() -> None:
    """An entry knows the line of the call in the user's file, through replayml's own functions."""
    model = Counter()
    model.layer.configure(bias=False)
    model.total = 3
    here = test_the_line_is_that_of_the_users_code.__code__.co_firstlineno
    assert [entry.where for entry in model.tape] == [Where(__file__, here + 3), Where(__file__, here + 4)]
    assert str(model.tape[0].where) == f"{__file__}:{here + 3}"
    assert caller() == Where(__file__, sys._getframe().f_lineno)


# The sequence -----------------------------------------------------------------------------------------------------


@given(st.lists(ENTRIES, max_size=5), st.integers(-6, 6), st.integers(-6, 6))
def test_a_tape_reads_as_a_sequence(entries: list[TapeEntry], start: int, stop: int) -> None:
    """Length, indices, slices, iteration, membership and equality are those of a list."""
    tape = Tape(entries)
    assert isinstance(tape, Sequence)
    assert len(tape) == len(entries)
    assert list(tape) == entries
    assert list(reversed(tape)) == entries[::-1]
    assert isinstance(tape[start:stop], Tape)
    assert list(tape[start:stop]) == entries[start:stop]
    assert tape == entries == tape
    assert tape == tuple(entries)
    assert (tape == entries[:-1]) is (not entries)
    assert all(entry in tape and tape[tape.index(entry)] == entry for entry in entries)
    if -len(entries) <= start < len(entries):
        assert tape[start] is entries[start]
    else:
        with pytest.raises(IndexError, match="out of range"):
            tape[start]


@given(st.lists(ENTRIES, max_size=3))
def test_the_text_of_a_tape_numbers_its_entries(entries: list[TapeEntry]) -> None:
    """``repr`` shows one numbered line for each entry."""
    lines = repr(Tape(entries)).splitlines()
    assert lines == (["Tape(", *(f"  {i}: {e}" for i, e in enumerate(entries)), ")"] if entries else ["Tape()"])


def test_a_tape_is_no_way_to_change_the_model() -> None:
    """The tape that a model gives is a picture of that moment; it grows with no later call and cannot be changed."""
    model = Counter()
    before = model.tape
    model.add(1)
    assert len(before) == 0
    assert len(model.tape) == 1
    assert not hasattr(before, "append")
    with pytest.raises(TypeError, match="unhashable"):
        hash(before)
    assert before != "Tape()"


# Records ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 3), st.integers(0, 3), st.lists(CALLS, max_size=3), st.lists(CALLS, max_size=3))
def test_records_are_equal_when_the_call_and_the_tape_are(
    one_start: int, two_start: int, one_calls: list[Any], two_calls: list[Any]
) -> None:
    """Two models made and changed by equal calls have equal records, wherever the calls stand."""
    one, two = Counter(one_start), Counter(two_start)
    for model, calls in ((one, one_calls), (two, two_calls)):
        for call in calls:
            make_call(model, call)
    first, second = one._record.call, two._record.call
    assert (first == second) is (one_start == two_start and one.tape == two.tape)
    assert first == first
    assert first != "a record"
    assert len({first, second}) == 2


def test_a_copy_of_a_holder_shares_the_record() -> None:
    """A record is never changed once it left its module, so that a deep copy of a list of records holds the same."""
    record = CallRecord(Counter, (1,))
    assert copy.deepcopy([record])[0] is record
    assert str(record) == "Counter(1)"


# Recording --------------------------------------------------------------------------------------------------------


@given(st.lists(CALLS, max_size=8))
def test_the_tape_holds_the_users_calls_once_and_in_order(calls: list[Any]) -> None:
    """Each call that succeeded is one entry; what it calls in turn, and what raised, is none."""
    model = Counter()
    for call in calls:
        make_call(model, call)
    kept = [call for call in calls if call[0] != "refuse"]
    assert [(entry.tags, entry.method) for entry in model.tape] == [
        (("layer",), "configure") if name == "bias" else (("layers",), "append") if name == "append" else ((), name)
        for name, _ in kept
    ]
    added = sum(value * {"add": 1, "add_twice": 2}.get(name, 0) for name, value in kept)
    grown = sum(value if name == "grow" else name == "append" for name, value in kept)
    assert (model.total, len(model.layers)) == (added, grown)


@given(st.lists(CALLS, max_size=6), st.integers(-7, 7))
def test_new_upto_replays_the_first_entries(calls: list[Any], upto: int) -> None:
    """``new(upto=k)`` is the model as it was after k entries; a negative number leaves out that many at the end."""
    model = Counter(5)
    states = [state(model)]
    for call in calls:
        make_call(model, call)
        if call[0] != "refuse":
            states.append(state(model))
    earlier = model.new(upto=upto)
    assert earlier.tape == model.tape[:upto]
    assert state(earlier) == states[len(model.tape[:upto])]
    assert state(model.new()) == state(model)
    assert model.new().tape == model.tape


@given(st.lists(st.integers(), min_size=1, max_size=6))
def test_repeated_configure_calls_leave_the_model_of_the_last_one(values: list[int]) -> None:
    """However often one setting is changed, the copy has the last value, whether entries are folded or not."""
    model = Counter()
    for value in values:
        model.configure(start=value)
    copied = model.new()
    assert copied.start == copied.total == values[-1]
    assert model.tape[-1].kwargs == {"start": values[-1]}
    assert len(model.tape) <= len(values)


@given(st.lists(CALLS, max_size=4))
def test_a_pickled_tape_is_equal(calls: list[Any]) -> None:
    """Pickling a model keeps its tape, lines included."""
    model = Counter()
    for call in calls:
        make_call(model, call)
    again = pickle.loads(pickle.dumps(model))
    assert again.tape == model.tape
    assert [entry.where for entry in again.tape] == [entry.where for entry in model.tape]
    assert state(again) == state(model)


def test_a_built_model_keeps_its_tape_and_adds_nothing() -> None:
    """Calls on a built model are ordinary ones: they do their work and leave no entry."""
    model: Any = Counter()
    model.add(1)
    built = model.create()
    before = built.tape
    assert built.add(2) == 3
    built.note = "x"
    assert built.tape == before == model.tape
    assert built.new().total == 1


def test_calls_on_a_part_are_on_the_tape_of_the_root() -> None:
    """A call anywhere in a tree is recorded by its root, with the tags of the part; the part's own tape is that one."""
    inner = Counter()
    inner.add(4)
    outer: Any = LayerList([Counter(), inner])
    outer[1].add(2)
    outer[1].layers.append(Layer(nn.ReLU))
    assert [str(entry) for entry in outer.tape] == [
        "model[1].add(2)",
        "model[1].layers.append(Layer(ReLU))",
    ]
    assert outer[1].tape == outer.tape
    assert (outer.new()[1].total, len(outer.new()[1].layers)) == (6, 1)


# Failing replays --------------------------------------------------------------------------------------------------


class Brittle(Module):
    """Whose recorded method works or not, as the world around it tells."""

    broken = False

    def __init__(self) -> None:
        self.block = Layer(nn.ReLU)

    @stateful
    def step(self, number: int) -> None:
        """Raise when the world is broken."""
        if type(self).broken:
            raise KeyError("gone")


def test_a_failing_replay_tells_the_entry_its_call_its_line_and_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the number of the entry, the call as typed, the user's line, and the cause."""
    model = Brittle()
    model.block.configure(inplace=True)
    model.step(7)
    line = sys._getframe().f_lineno - 1
    monkeypatch.setattr(Brittle, "broken", True)
    with pytest.raises(
        ReplayError,
        match=r"tape entry 1, model\.step\(7\) \(recorded at .*test_tape\.py:\d+\), cannot be replayed: KeyError",
    ) as caught:
        model.new()
    error = caught.value
    assert (error.number, error.call, error.where) == (1, "model.step(7)", f"{__file__}:{line}")
    assert isinstance(error.__cause__, KeyError)
    assert isinstance(error, RuntimeError)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert len(model.new(upto=1).tape) == 1


def test_a_replay_on_a_place_that_is_gone_names_the_closest_ones() -> None:
    """When no module stands at the path of an entry any more, the error lists existing paths that look like it."""
    record = CallRecord(
        Brittle, (), {}, [TapeEntry(("blokc",), "configure", (), {"inplace": True}, Where("old.py", 3))]
    )
    with pytest.raises(
        ReplayError,
        match=r"tape entry 0, model\.blokc\.configure\(inplace=True\) \(recorded at old\.py:3\), cannot be replayed: "
        r"there is no module at 'blokc'\. The closest existing paths: block\.",
    ):
        realize(record)


@pytest.mark.parametrize("method", ["forward", "load_state_dict", "_assign", "nothing", "training"])
def test_a_replay_calls_recorded_methods_only(method: str) -> None:
    """An entry whose method carries no mark of a recorded one is refused, and nothing is called."""
    record = CallRecord(Brittle, (), {}, [TapeEntry((), method)])
    with pytest.raises(ReplayError, match=f"Brittle has no recorded method '{method}'"):
        realize(record)


def test_an_entry_reads_as_the_call_was_typed() -> None:
    """Modules, classes and functions inside lists, tuples and dicts are shown as the user writes them."""
    items: Any = LayerList()
    items.extend([Layer(nn.ReLU), Layer(nn.Tanh)])
    items.note = {"a": (nn.ReLU, len)}
    assert [str(entry) for entry in items.tape] == [
        "model.extend([Layer(ReLU), Layer(Tanh)])",
        "model.set('note', {'a': (ReLU, len)})",
    ]
    assert repr(items.tape[0]).startswith("<TapeEntry model.extend([Layer(ReLU), Layer(Tanh)]) at ")


def test_time_travel_takes_a_number() -> None:
    """``new(upto=...)`` of something else says what it takes."""
    with pytest.raises(TypeError, match="takes a number of tape entries, not 'a'; the tape has 0"):
        Layer(nn.ReLU).new(upto="a")  # type: ignore[arg-type]
