"""The journal: all or nothing."""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import replayml
from replayml.core.journal import note, note_containers, transaction


def failing(action: Callable[[], object]) -> None:
    """Carry out an action in a transaction that fails."""
    with transaction():
        action()
        raise KeyError


def test_a_transaction_that_raises_undoes_its_notes_last_first() -> None:
    """Notes are carried out in reverse order, once."""
    done: list[int] = []

    def two() -> None:
        note(done.append, 1)
        note(done.append, 2)

    with pytest.raises(KeyError):
        failing(two)
    assert done == [2, 1]


def test_an_inner_transaction_undoes_its_own_part_only() -> None:
    """What was noted before an inner transaction stays when that one fails and is caught."""
    done: list[int] = []
    with transaction():
        note(done.append, 1)
        with pytest.raises(KeyError):
            failing(partial(note, done.append, 2))
    assert done == [2]


@given(st.lists(st.integers()), st.lists(st.integers()))
def test_a_failed_transaction_restores_any_list(before: list[int], added: list[int]) -> None:
    """A list to which a failed transaction appended is as it was."""
    box = list(before)

    def append_all() -> None:
        for number in added:
            note(box.pop)
            box.append(number)

    with pytest.raises(KeyError):
        failing(append_all)
    assert box == before


NESTED = st.recursive(
    st.integers(0, 3),
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.lists(inside, max_size=3).map(tuple),
        st.lists(inside, max_size=3).map(deque),
        st.dictionaries(st.sampled_from("ab"), inside),
        st.dictionaries(st.sampled_from("ab"), inside).map(OrderedDict),
        st.sets(st.integers(0, 3)),
    ),
    max_leaves=12,
)


def emptied(value: Any) -> None:
    """Change all containers in a value, those inside first."""
    for item in list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, Iterable) else []:
        emptied(item)
    if isinstance(value, (list, deque)):
        value.append("new")
        value.popleft() if isinstance(value, deque) else value.pop(0)
    elif isinstance(value, dict):
        value["new"] = value.pop(next(iter(value), "new"), None)
    elif isinstance(value, set):
        value.add("new")


@given(NESTED)
def test_containers_are_restored_at_any_depth(value: Any) -> None:
    """What a failed transaction did to containers inside of containers is undone, in the very same objects."""
    before = copy.deepcopy(value)

    def change() -> None:
        note_containers({"value": value})
        emptied(value)

    with pytest.raises(KeyError):
        failing(change)
    assert value == before
    assert repr(value) == repr(before)


def test_a_failing_method_leaves_what_is_in_its_attributes() -> None:
    """A recorded method that changes lists in place and raises has changed nothing."""

    class Stack(replayml.Module):
        def __init__(self) -> None:
            self.items = [1, 2]
            self.by_name = {"a": [1, {"b": {3}}]}

        @replayml.stateful
        def drop(self) -> None:
            self.items.pop()
            inner: Any = self.by_name["a"]
            inner[1]["b"].clear()
            inner.pop()
            raise ValueError("no more")

    stack = Stack()
    with pytest.raises(ValueError, match="no more"):
        stack.drop()
    assert (stack.items, stack.by_name) == ([1, 2], {"a": [1, {"b": {3}}]})
    assert not stack.tape
