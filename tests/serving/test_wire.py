from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replayml.core.errors import ArgumentError
from replayml.serving.errors import Refusal
from replayml.serving.messages.wire import DTYPES, decode, encode, plain

SHAPES = st.lists(st.integers(0, 3), max_size=4)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of every dtype, with any bits."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(SHAPES)
    count = math.prod(shape) * dtype.itemsize
    raw = bytearray(draw(st.binary(min_size=count, max_size=count)))
    if dtype is torch.bool:
        raw = bytearray(byte & 1 for byte in raw)
    flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.zeros(0, dtype=dtype)
    return flat.reshape(shape)


ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"), max_size=5)
    | tensors()
)
KEYS = (
    st.text(st.characters(codec="utf-8"), max_size=3) | st.integers(-5, 5) | st.sampled_from(["$tensor", "$tuple", "$"])
)
VALUES = st.recursive(
    ATOMS,
    lambda below: st.lists(below, max_size=3) | st.tuples(below, below) | st.dictionaries(KEYS, below, max_size=3),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    """Tell whether values are alike to the last bit."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and bytes(a.reshape(-1).view(torch.uint8).tolist() if a.numel() else [])
            == bytes(b.reshape(-1).view(torch.uint8).tolist() if b.numel() else [])
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@given(VALUES)
def test_what_is_read_is_what_was_written(value: Any) -> None:
    """Bytes give back the same values: types, order of keys, and every bit of every tensor."""
    assert same(decode(encode(value)), value)


@given(VALUES, st.data())
def test_changed_bytes_are_refused_or_read(value: Any, data: st.DataObject) -> None:
    """Whatever bytes come, they are refused with a code or are a value; nothing else is raised."""
    raw = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for candidate in (raw, raw[:cut], raw + b"\x00"):
        try:
            decode(candidate)
        except Refusal as refusal:
            assert refusal.code in ("malformed-tensors", "too-deep")  # noqa: PT017 - which is what is tested


@given(st.binary(max_size=64))
def test_any_bytes_are_refused_or_read(raw: bytes) -> None:
    """Bytes from nowhere are refused."""
    with pytest.raises(Refusal):
        decode(b"RPMT" + raw)


def test_floats_that_json_lacks_are_sent() -> None:
    """NaN and the infinities come back."""
    a, b, c = decode(encode([math.nan, math.inf, -math.inf]))
    assert (math.isnan(a), b, c) == (True, math.inf, -math.inf)


def test_arrays_are_sent_as_arrays() -> None:
    """A NumPy array comes back as one, also when it is not contiguous or of another byte order."""
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    found = decode(encode({"x": array}))["x"]
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.int32
    assert (found == array).all()


def test_views_parameters_and_conjugates_are_sent_by_value() -> None:
    """Of a tensor its values are sent, whatever it is a view of."""
    value = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)).T
    complex_value = torch.tensor([1 + 2j]).conj()
    found = decode(encode([value, complex_value]))
    assert torch.equal(found[0], value.detach())
    assert torch.equal(found[1], complex_value.resolve_conj())
    assert not found[0].requires_grad


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [object()]}, r"value\['a'\]\[0\] is a builtins.object, which is not sent"),
        (torch.zeros(2, device="meta"), "without plain values"),
        (torch.zeros(2, 2).to_sparse(), "without plain values"),
        (b"bytes", "is a builtins.bytes"),
        (10**2000, "too large"),
        (["a\ud800"], "a text in it or its depth has no form: .*surrogates"),
        ({"a\ud800": 1}, "surrogates"),
    ],
)
def test_what_has_no_form_is_refused_when_it_is_sent(value: Any, message: str) -> None:
    """What cannot be sent is named, with its place."""
    with pytest.raises(ArgumentError, match=message):
        encode(value)


def test_deep_values_are_refused() -> None:
    """A value is nested no deeper than allowed."""
    value: Any = 1
    for _ in range(70):
        value = [value]
    with pytest.raises(Refusal, match="too-deep"):
        decode(encode(value), depth=64)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (float("nan"), "not-finite"),
        (torch.tensor([float("inf")]), "not-finite"),
        (object(), "no-form"),
        ({1: 2}, "no-form"),
        (torch.tensor([1j]), "no-form"),
    ],
)
def test_what_json_lacks_is_refused(value: Any, code: str) -> None:
    """A result that JSON has no form for is not turned into something else."""
    with pytest.raises(Refusal, match=code):
        plain(value)


def test_a_lazy_minus_is_sent_by_value() -> None:
    """The imaginary part of a conjugate, which torch keeps as a mark on other numbers, has its own numbers in JSON."""
    value = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert value.is_neg()
    assert plain(value).tolist() == [-2.0, 4.0]


# Keys that meet -------------------------------------------------------------------------------------------------


def written(keys: Sequence[Any]) -> bytes:
    """Return a dict with some keys as bytes; each key is given as JSON."""
    header = orjson.dumps({"value": {"$dict": [[key, 0] for key in keys]}, "tensors": []})
    return b"RPMT" + len(header).to_bytes(4, "little") + header


def keys_on_one_path() -> list[int]:
    """Return small ints, all of different hashes, of which half are led through the places of all the others."""
    size = 4096
    order: dict[int, int] = {}
    place = 0
    while len(order) < size // 3:
        order[place] = len(order)
        place = (place * 5 + 1) % size
    found = list(order)
    for key in range(size, 32 * size):
        place, rest = key % size, key
        while rest and place in order:
            rest >>= 5
            place = (place * 5 + rest + 1) % size
        if order.get(place, size) < size // 12:
            found.append(key)
    return found[: size * 2 // 3]


SAME = [{"$int": str(k * (2**61 - 1))} for k in range(1, 1000)]


@pytest.mark.parametrize(
    "keys",
    [
        SAME,
        [{"$tuple": [key, 1]} for key in SAME],
        ["text", *SAME],
        keys_on_one_path(),
    ],
    ids=["ints", "tuples", "mixed", "different-hashes"],
)
def test_keys_that_a_dict_searches_one_by_one_are_refused(keys: list[Any]) -> None:
    """Keys that were chosen to make a dict slow are refused, whether they have one hash or lead through one path."""
    with pytest.raises(Refusal, match="the keys of a dict have different hashes"):
        decode(written(keys))


@pytest.mark.parametrize(
    "make",
    [
        lambda k: k,
        lambda k: -k,
        lambda k: k * 1024,
        lambda k: k << 40,
        lambda k: 2**70 + k,
        lambda k: k / 8192,
        lambda k: k * 0.1,
        lambda k: (k // 64, k % 64),
        lambda k: (k, "text", None),
        lambda k: [k, str(k), -k, k + 0.5][k % 4],
    ],
)
def test_large_dicts_with_other_keys_than_text_are_read(make: Callable[[int], Any]) -> None:
    """Keys as programs have them are read, however many there are."""
    value = {make(k): k for k in range(8192)}
    assert decode(encode(value)) == value


def test_few_keys_may_meet() -> None:
    """A small dict is read whatever its keys are: -1 and -2 have one hash as well."""
    value = {**{k * (2**61 - 1): k for k in range(1, 40)}, -1: "a", -2: "b"}
    assert decode(encode(value)) == value
