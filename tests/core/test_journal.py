"""The journal: all or nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replayml.core.journal import note, transaction


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
