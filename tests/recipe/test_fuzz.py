"""Any bytes whatever: a recipe, or a `RecipeError`; never anything else."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replayml.core.errors import RecipeError
from replayml.recipe import Recipe
from replayml.recipe.text.grammar import TAGS
from tests.recipe import fuzz
from tests.recipe.samples import MONEY, TRUST, Narrow, Net

TRUSTED: tuple[Any, ...] = tuple(thing for thing in TRUST if thing is not MONEY)  # whose decode may raise what it likes

GOLDEN = Path(__file__).with_name("version_1.json").read_text()
COMPACT = json.dumps(json.loads(GOLDEN))
NAMES = sorted(
    {
        *("torch.nn.Linear", "torch.nn.Sequential", "torch.relu", "torch.optim.SGD", "collections.OrderedDict"),
        *("builtins.int", "os.system", "replayml.layers.layer.Layer", "replayml.module.module.Module"),
        *(f"tests.recipe.samples.{thing.__qualname__}" for thing in (Net, Narrow, *TRUSTED)),
    }
)
KEYS = sorted({*TAGS, "$id", "$ref", "args", "kwargs", "tape", "where", "tags", "fields", "items", "member", "data"})


def outcome(text: str | bytes) -> Recipe | None:
    """Return the recipe that a text is, or None when it is refused; whatever else happens is an error of ours."""
    try:
        recipe = Recipe.from_json(text)
    except RecipeError:
        return None
    assert Recipe.from_json(recipe.to_json()).to_json() == recipe.to_json()
    try:
        once = Recipe.of(recipe.record(TRUSTED))
    except RecipeError:
        return recipe
    assert Recipe.of(once.record(TRUSTED)) == once
    return recipe


@settings(max_examples=500)
@given(st.binary(max_size=200) | st.text(max_size=200))
def test_random_bytes_are_refused(data: bytes | str) -> None:
    """Bytes and texts without a form are refused, each with a `RecipeError`."""
    assert outcome(data) is None


@settings(max_examples=1000)
@given(st.data())
def test_a_changed_text_is_read_or_refused(data: st.DataObject) -> None:
    """A document with some of its bytes changed, removed, doubled or cut off is read or refused."""
    text = bytearray(data.draw(st.sampled_from([COMPACT, GOLDEN])).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 20)))
        piece = data.draw(
            st.binary(max_size=4)
            | st.sampled_from([b'"', b"{", b"}", b"[", b"]", b",", b":", b"1", b"-", b"NaN", b"null", b"\\u0000"])
            | st.just(bytes(text[start:stop]) * 2)
        )
        text[start:stop] = piece
    outcome(bytes(text))


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([*NAMES, *KEYS, "", "adjust", "forward", "FAST", "inf", "AAAA", "float32", "cpu", "Path", "a/b"]),
)


def _objects(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    call = st.fixed_dictionaries(
        {
            "$call": st.sampled_from(NAMES),
            "args": st.lists(parts, max_size=2),
            "kwargs": st.dictionaries(st.sampled_from(["width", "a", "__x", "$dict"]), parts, max_size=2),
        },
        optional={"tape": st.lists(parts, max_size=2), "$id": st.integers(0, 2)},
    )
    entry = st.fixed_dictionaries(
        {
            "$entry": st.sampled_from(["adjust", "configure", "forward"]),
            "args": st.lists(parts, max_size=2),
            "kwargs": st.just({}),
            "tags": st.lists(st.sampled_from(["a", "__b", 1]), max_size=2),
        }
    )
    tagged = st.builds(lambda tag, payload: {tag: payload}, st.sampled_from(sorted(TAGS)), parts)
    numbered = st.builds(
        lambda tag, payload, number: {tag: payload, "$id": number},
        st.sampled_from(["$list", "$dict", "$set"]),
        parts,
        st.integers(0, 2),
    )
    anything = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), parts, max_size=3)
    return st.one_of(st.lists(parts, max_size=3), call, entry, tagged, numbered, anything)


JSON = st.recursive(_SCALARS, _objects, max_leaves=12)


@settings(max_examples=1000)
@given(JSON)
def test_a_document_of_random_nodes_is_read_or_refused(node: Any) -> None:
    """Nodes put together at random, with the tags and names of the grammar, are read or refused."""
    model = {"$call": "tests.recipe.samples.Net", "args": [node, {"$ref": 0}], "kwargs": {}}
    document = {"format": "replayml.recipe", "version": 1, "packages": {}, "model": model}
    outcome(json.dumps(document))
    outcome(json.dumps(document | {"model": model | {"args": [node]}}))
    outcome(json.dumps(document | {"model": node}))
    outcome(json.dumps(node))


@settings(max_examples=1000)
@given(st.data())
def test_a_document_with_one_node_changed_is_read_or_refused(data: st.DataObject) -> None:
    """A valid document, one node of which was replaced by another, is read or refused."""
    document = json.loads(GOLDEN)
    path: list[tuple[Any, Any]] = []
    node = document
    while isinstance(node, (dict, list)) and node and (not path or data.draw(st.integers(0, 4)) > 0):
        key = data.draw(st.sampled_from(sorted(node)) if isinstance(node, dict) else st.integers(0, len(node) - 1))
        path.append((node, key))
        node = node[key]
    holder, key = path[-1]
    shared = json.loads(GOLDEN)["model"]["args"][0]
    holder[key] = data.draw(JSON | st.sampled_from([shared, {"$ref": 0}, [], {}]))
    outcome(json.dumps(document))


def test_the_honest_document_is_read() -> None:
    """The document that the changed ones were made from is read, and makes a record."""
    for text in (GOLDEN, COMPACT):
        recipe = outcome(text)
        assert recipe is not None
        assert recipe.record(TRUSTED).tape[0].method == "adjust"


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_of_the_long_run_is_read_or_refused(seed: int) -> None:
    """`tests.recipe.fuzz`, of which a run takes as long as one likes, works: some inputs are read, most refused."""
    dice = random.Random(seed)
    found = Counter(fuzz.outcome(change(dice)) for _ in range(40) for change in fuzz.CHANGES)
    assert found["read"] > 5
    assert len(found) > 8
