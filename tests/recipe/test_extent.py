"""How much a document comes to, written out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replayml.recipe.faults import Flaw
from replayml.recipe.text.extent import REPEATED, Extent

BOUNDS = st.integers(-100, 100)


@given(BOUNDS, BOUNDS, BOUNDS.filter(bool))
def test_a_range_counts_as_its_elements(start: int, stop: int, step: int) -> None:
    """Whatever its direction, a range is as large as a list of it, and the limit that just fits lets it through."""
    value = range(start, stop, step)
    extent = Extent(len(value))
    extent.add_range(value)
    assert extent.size == len(value)
    with pytest.raises(Flaw, match=f"ranges of {len(value) + 1} elements; at most {len(value)} values"):
        extent.add_range(range(1))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_a_reference_counts_as_what_it_refers_to(times: list[int]) -> None:
    """Objects that refer to the one before, each so many times, are as large as all of it written out."""
    extent, expected = Extent(10**6), 1
    for number, count in enumerate(times):
        before = extent.size
        extent.size += 1
        for _ in range(count if number else 0):
            extent.add_reference(number - 1)
        extent.share(number, before)
        expected = 1 + count * expected if number else 1
        assert extent.size - before == expected


def test_references_repeat_so_much_in_all() -> None:
    """The sum over all references is limited, each of them may be small."""
    extent = Extent(10)
    extent.size = 10
    extent.share(0, before=0)
    for _ in range(REPEATED):
        extent.add_reference(0)
    with pytest.raises(Flaw, match=f"comes to more than {10 * REPEATED} values, written out. Raise Limits"):
        extent.add_reference(0)
