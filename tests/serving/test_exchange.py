"""How deep a text of JSON is nested, whatever its strings look like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replayml.serving.errors import Refusal
from replayml.serving.worker.exchange import read_json

STRINGS = st.text(alphabet='[]{}"\\,: a\u00e9', max_size=6)
VALUES = st.recursive(
    st.none() | st.integers(-9, 9) | STRINGS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=3),
    max_leaves=30,
)


def _depth(value: Any) -> int:
    """Return how many lists and objects stand inside of each other at the most."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


@given(value=VALUES, most=st.integers(0, 6), is_ascii=st.booleans(), indent=st.sampled_from([None, 1]))
def test_what_is_nested_too_deeply_is_refused_and_nothing_else(
    value: Any, most: int, is_ascii: bool, indent: int | None
) -> None:
    """Brackets and quotes inside of strings count for nothing."""
    body = bytearray(json.dumps(value, ensure_ascii=is_ascii, indent=indent).encode())
    if _depth(value) <= most:
        assert read_json(body, most) == value
    else:
        with pytest.raises(Refusal, match="too-deep"):
            read_json(body, most)
