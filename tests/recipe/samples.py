"""Models, types of a user's, and random records, for the tests of the recipe."""

from __future__ import annotations

import enum
import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
import pydantic
import torch
from hypothesis import strategies as st
from torch import nn

import replayml
from replayml.core.tape import CallRecord, TapeEntry, TreeRef, Where
from replayml.recipe import Codec


class Net(replayml.Module):
    """Takes anything; its recorded method does, too."""

    def __init__(self, *parts: Any, width: int = 1, depth: int = 1, **options: Any) -> None:
        super().__init__()
        self.seen = (parts, options)
        self.width = width
        self.depth = depth

    @replayml.stateful
    def adjust(self, *args: Any, **kwargs: Any) -> None:
        self.adjusted = (args, kwargs)

    def plain_method(self) -> None:
        """Carries no mark."""

    @property
    def answer(self) -> int:
        return 42


class Narrow(replayml.Module):
    """Takes exactly what its signature says."""

    def __init__(self, width: int, activation: Any = nn.ReLU) -> None:
        super().__init__()
        self.width = width
        self.activation = activation


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


class Access(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


@dataclass
class Options:
    rate: float
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Point:
    x: int
    y: int = 0


class Setup(pydantic.BaseModel):
    """A pydantic model with a name of another spelling, limits, and something that is not shown."""

    model_config = pydantic.ConfigDict(frozen=False)

    rate: float = pydantic.Field(0.1, gt=0, alias="learningRate", validate_default=True)
    sizes: list[int] = []
    inner: Setup | None = None
    _seen: int = pydantic.PrivateAttr(default=0)


class Versioned(Narrow):
    """Its width was once called size."""

    __recipe_version__ = 1

    @classmethod
    def migrate_recipe(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        """Return arguments of this version."""
        if "size" in data["kwargs"]:
            data["kwargs"]["width"] = data["kwargs"].pop("size")
        return data


class Pair(NamedTuple):
    left: Any
    right: Any


class Money:
    """A type that a recipe does not know."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    __hash__ = None  # type: ignore[assignment]


MONEY = Codec(Money, lambda money: {"cents": money.cents}, lambda data: Money(data["cents"]))


def helper(value: Any) -> Any:
    """A function at the top level of a module."""
    return value


TRUST = (Mode, Access, Options, Point, Pair, Setup, helper, Money, MONEY)


# Random records -----------------------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
_NAN = struct.unpack(">d", bytes.fromhex("7ff8000000000abc"))[0]
_FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, _NAN, 5e-324, 1e308]))


def _is_itself(value: Any) -> bool:
    """Tell whether a value equals itself; several NaNs in a set have one text."""
    return "nan" not in repr(value)


HASHABLE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        _FLOATS,
        st.builds(complex, _FLOATS, _FLOATS),
        _TEXT,
        st.binary(max_size=5),
        st.sampled_from(
            [
                ...,
                range(1, 9, 2),
                torch.float32,
                torch.bfloat16,
                torch.device("cuda:1"),
                torch.device("cpu"),
                torch.Size([2, 3]),
                torch.channels_last,
                torch.sparse_coo,
                Path("data/set"),
                PurePosixPath("/etc"),
                PureWindowsPath("C:/x"),
                Mode.FAST,
                Access.READ,
                Access.READ | Access.RUN,
                Access(0),
                nn.GELU,
                nn.functional.relu,
                torch.tanh,
                int,
                Net,
                Mode,
                helper,
                np.float32(1.5),
                np.int64(-3),
                np.bool_(True),
                torch.optim.Adam,
            ]
        ),
        st.builds(Point, st.integers(0, 9), st.integers(0, 9)),
    ),
    lambda parts: st.one_of(
        st.lists(parts, max_size=3).map(tuple),
        st.frozensets(parts.filter(_is_itself), max_size=3),
        st.builds(Pair, parts, parts),
    ),
    max_leaves=4,
)

_SIMPLE = st.one_of(HASHABLE, st.builds(slice, st.integers(0, 5), st.none(), st.none() | st.integers(1, 3)))


def _tensor(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.complex64]))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    if dtype is torch.float32 and draw(st.booleans()):
        return nn.Parameter(tensor, requires_grad=draw(st.booleans()))
    return tensor


class _Graph:
    """Draws values; an object that was drawn may be drawn again."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._pool: list[tuple[Any, bool]] = []  # each object, and whether a call is in it

    def value(self, depth: int, calls: bool = True, on_tape: bool = False) -> Any:
        draw = self._draw
        reusable = [value for value, has_calls in self._pool if calls or not has_calls]
        if reusable and draw(st.integers(0, 4)) == 0:
            return draw(st.sampled_from(reusable))
        kinds: list[Callable[[], Any]] = [lambda: draw(_SIMPLE), lambda: draw(_SIMPLE)]
        if on_tape and calls:
            kinds.append(lambda: TreeRef(("a", "0"), draw(st.sampled_from([None, "weight"]))))
        if depth > 0:
            kinds += [
                lambda: [self.value(depth - 1, calls, on_tape) for _ in self._some()],
                lambda: tuple(self.value(depth - 1, calls, on_tape) for _ in self._some()),
                lambda: {draw(HASHABLE): self.value(depth - 1, calls, on_tape) for _ in self._some()},
                lambda: {draw(_TEXT): self.value(depth - 1, calls, on_tape) for _ in self._some()},
                lambda: OrderedDict((draw(_TEXT), self.value(depth - 1, calls=False)) for _ in self._some()),
                lambda: set(draw(st.lists(HASHABLE.filter(_is_itself), max_size=3))),
                lambda: Options(draw(st.floats(allow_nan=False)), [draw(_TEXT)]),
                lambda: Setup.model_validate(
                    {"learningRate": draw(st.floats(1e-3, 1)), "inner": draw(st.none() | st.just({}))}
                ),
                lambda: Pair(self.value(depth - 1, calls=False), self.value(depth - 1, calls=False)),
                lambda: Money(draw(st.integers(0, 100))),
                lambda: _tensor(draw),
                lambda: np.arange(4, dtype=draw(st.sampled_from(["<f4", "<i8", "<u2"]))).reshape(2, 2),
            ]
            if calls:
                kinds += [lambda: self.call(depth - 1), lambda: self.call(depth - 1)]
        made = draw(st.sampled_from(kinds))()
        if has_identity(made):
            self._pool.append((made, contains_call(made)))
        return made

    def call(self, depth: int) -> CallRecord:
        draw = self._draw
        args = tuple(self.value(depth) for _ in self._some())
        kwargs = {draw(st.sampled_from(["width", "zeta", "alpha", "a b"])): self.value(depth) for _ in self._some()}
        tape = [
            TapeEntry(
                draw(st.sampled_from([(), ("a",), ("a", "0")])),
                "adjust",
                tuple(self.value(depth, on_tape=True) for _ in self._some()),
                {"key": self.value(depth, on_tape=True)} if draw(st.booleans()) else {},
                draw(st.sampled_from([None, Where("train.py", 3)])),
            )
            for _ in self._some()
        ]
        return CallRecord(Net, args, kwargs, tape, draw(st.sampled_from([None, Where("net.py", 41)])))

    def _some(self) -> range:
        return range(self._draw(st.integers(0, 2)))


@st.composite
def records(draw: st.DrawFn) -> CallRecord:
    """Return random models before they are objects, with sharing, nested calls and tapes."""
    return _Graph(draw).call(depth=3)


def contains_call(value: Any) -> bool:
    """Tell whether a module, or a part of a tree, is in a value."""
    if isinstance(value, (CallRecord, TreeRef)):
        return True
    if isinstance(value, Mapping):
        return any(map(contains_call, value.values()))
    return isinstance(value, (list, tuple)) and any(map(contains_call, value))


def has_identity(value: Any) -> bool:
    """Tell whether one object in two places is told from two equal ones."""
    return isinstance(value, (CallRecord, list, dict, set, Options, Setup, Money, torch.Tensor, np.ndarray))


# Comparison ---------------------------------------------------------------------------------------------------------


def assert_same(one: Any, other: Any, known: dict[int, Any] | None = None) -> None:
    """Assert that two values are equal to the last bit, and share the same objects in the same places."""
    known = {} if known is None else known
    assert type(one) is type(other), (one, other)
    if has_identity(one):
        if id(one) in known:
            assert known[id(one)] is other
            return
        assert not any(known_other is other for known_other in known.values())
        known[id(one)] = other
    match one:
        case CallRecord():
            assert one.cls is other.cls
            assert one.where == other.where
            _assert_all(one.args, other.args, known)
            _assert_all(_sorted(one.kwargs), _sorted(other.kwargs), known)
            _assert_all(one.tape, other.tape, known)
        case TapeEntry():
            assert (one.tags, one.method, one.where) == (other.tags, other.method, other.where)
            _assert_all(one.args, other.args, known)
            _assert_all(_sorted(one.kwargs), _sorted(other.kwargs), known)
        case float():
            assert struct.pack(">d", one) == struct.pack(">d", other)
        case complex():
            _assert_all((one.real, one.imag), (other.real, other.imag), known)
        case torch.Tensor():
            assert (one.dtype, one.shape, one.requires_grad) == (other.dtype, other.shape, other.requires_grad)
            bits = [tensor.detach().reshape(-1).view(torch.uint8) for tensor in (one, other)]
            assert torch.equal(*bits)
        case np.ndarray() | np.generic():
            assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        case dict():
            _assert_all(list(one), list(other), known)
            _assert_all(list(one.values()), list(other.values()), known)
        case set() | frozenset():
            _assert_all(sorted(one, key=repr), sorted(other, key=repr), known)
        case list() | tuple():
            _assert_all(one, other, known)
        case Setup():
            assert one == other
            assert one.model_fields_set == other.model_fields_set
        case Options():
            _assert_all((one.rate, one.tags), (other.rate, other.tags), known)
        case _:
            assert one == other


def _sorted(kwargs: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(kwargs.items(), key=lambda pair: pair[0]))


def _assert_all(ones: Any, others: Any, known: dict[int, Any]) -> None:
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert_same(one, other, known)
