"""`to_code`: the Python that makes a model, its tape included."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, Flag
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from replayml.core.copying import describe
from replayml.core.errors import ConfigurationError
from replayml.core.hooks import stateful
from replayml.layers.containers import LayerList, Parallel, Sequential
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.code import to_code
from replayml.module.expressions import Expressions, Imports, NoSourceError
from replayml.module.module import Module


class Colour(Enum):
    """An enum."""

    RED = 1


class Mode(Flag):
    """A flag."""

    A = 1
    B = 2


class Point(NamedTuple):
    """A named tuple."""

    x: Any
    y: Any


class Clamped(Point):
    """A named tuple whose constructor changes what it gets."""

    def __new__(cls, x: Any, y: Any) -> Any:
        return super().__new__(cls, x, min(y, 1))


@dataclass
class Options:
    """A dataclass with a field that it makes itself."""

    rate: float
    names: list[str] = field(default_factory=list)
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = len(self.names)


class Outer:
    """A class with a class inside."""

    class Inner:
        """A class inside a class."""

    @classmethod
    def make(cls) -> Outer:
        return cls()

    def method(self) -> None:
        """Do nothing."""


def double(x: Any) -> Any:
    """Return twice the input."""
    return 2 * x


class Block(Module):
    """A block that may hold a layer from outside."""

    def __init__(self, width: int = 4, extra: Any = None, **more: Any) -> None:
        self.layers = LayerList([Layer(nn.Linear, width, width) for _ in range(2)])
        self.more = more
        if extra is not None:
            self.extra = extra

    @stateful
    def count(self, amount: Any) -> None:
        self.counted = amount

    def forward(self, x: Any) -> Any:
        return x


class Net(Module):
    """A model with all kinds of children."""

    def __init__(self, width: int = 8, activation: Any = None, data: Any = None) -> None:
        self.hidden = Layer(nn.Linear, None, width)
        self.activation = activation
        self.block = Block(width, activation)
        self.wrapped = Layer(nn.Sequential, Layer(nn.Linear, 2, 3), Layer(nn.ReLU))
        self.plain = nn.Sequential(Layer(nn.Tanh), nn.Linear(2, 2))
        self.data = data

    def forward(self, x: Any) -> Any:
        return self.hidden(x)


def run(code: str) -> Any:
    """Return the model that a source makes."""
    names: dict[str, Any] = {}
    exec(compile(code, "printed.py", "exec"), names)
    return names["model"]


def statements(model: Any, **options: Any) -> list[str]:
    """Return the lines after the imports."""
    code: str = model.to_code(**options)
    return code.split("\n\n", 1)[1].splitlines()


def assert_faithful(model: Any) -> Any:
    """Run the code of a model, compare what it makes, and return that."""
    copy = run(to_code(model))
    assert describe(copy) == describe(model)
    assert copy.tape == model.tape
    assert repr(copy) == repr(model)
    assert to_code(copy) == to_code(model)
    return copy


# What is printed --------------------------------------------------------------------------------------------------


def test_the_code_reads_like_what_a_person_would_type() -> None:
    """Imports, the constructor call, then the tape as calls and assignments."""
    model = Net(width=16, activation=Layer(nn.ReLU))
    model.configure(width=32)
    model.block.layers[0].configure(bias=False)
    model.block.layers.append(Layer(nn.Identity))
    model["activation"].configure(nn.GELU)
    model.note = "small"
    model.block.layers[1] = Layer(nn.Tanh)
    model.tied = model.hidden
    del model.note
    assert to_code(model).splitlines() == [
        "import replayml",
        "from tests.module.test_to_code import Net",
        "from torch import nn",
        "",
        "model = Net(width=16, activation=replayml.Layer(nn.ReLU))",
        "model.configure(width=32)",
        "model.block.layers[0].configure(bias=False)",
        "model.block.layers.append(replayml.Layer(nn.Identity))",
        "model.activation.configure(nn.GELU)",
        "model.note = 'small'",
        "model.block.layers[1] = replayml.Layer(nn.Tanh)",
        "model.tied = model.hidden",
        "del model.note",
    ]
    assert_faithful(model)


def test_the_users_lines_are_added_on_request() -> None:
    """With ``lines`` each statement ends with the line that it was recorded from."""
    model = Block()
    model.note = 1
    first, second = statements(model, lines=True)
    where = model.tape[0].where
    assert where is not None
    assert second == f"model.note = 1  # {where}"
    assert first.startswith("model = Block()  # ")
    assert run(to_code(model, lines=True)).tape == model.tape


def test_a_long_call_stands_on_several_lines() -> None:
    """A statement that would be wide has a line for each argument."""
    model = Sequential(*(Layer(nn.Linear, 100, 100, bias=False) for _ in range(3)))
    one = "    replayml.Layer(nn.Linear, 100, 100, bias=False),"
    assert statements(model) == ["model = replayml.Sequential(", one, one, one, ")"]
    assert_faithful(model)


def test_a_module_with_a_tape_of_its_own_is_a_variable() -> None:
    """What was done to an argument before it was handed in is done before."""
    model = Net(activation=Layer(nn.ReLU).configure(nn.GELU))
    assert statements(model) == [
        "relu = replayml.Layer(nn.ReLU)",
        "relu.configure(nn.GELU)",
        "model = Net(activation=relu)",
    ]
    assert_faithful(model)


def test_what_is_shared_is_one_variable() -> None:
    """A module or a list that stands in several places stays one object."""
    layer, data = Layer(nn.ReLU), [1, {"a": 2}]
    model = Net(activation=layer, data=data)
    model.block.extra2 = Block(extra=Layer(nn.Tanh))
    model.block.count(data)
    model.block.count([layer, data])
    copy = assert_faithful(model)
    assert copy.data is copy.block.counted[1]
    assert copy.activation is copy.block.extra
    pair = LayerList([layer := Layer(nn.ReLU), layer])
    assert statements(pair)[0] == "relu = replayml.Layer(nn.ReLU)"
    copy = assert_faithful(pair)
    assert copy[0] is copy[1]


def test_children_are_reached_whatever_holds_them() -> None:
    """Lists, plain containers, layers with modules among their arguments, and odd names."""
    model: Any = Net()
    model.wrapped[0].configure(bias=False)
    model.plain[0].configure(nn.ReLU)
    model.add_module("odd name", Layer(nn.Linear, 1, 1))
    model._modules["odd name"].configure(bias=False)
    model.add_module("tape", Layer(nn.Linear, 1, 1))
    model._modules["tape"].configure(bias=False)
    model.block.set("class", 3)
    assert statements(model)[1:] == [
        "model.wrapped.get_submodule('0').configure(bias=False)",
        "model.plain[0].configure(nn.ReLU)",
        "model.set('odd name', replayml.Layer(nn.Linear, 1, 1))",
        "model.get_submodule('odd name').configure(bias=False)",
        "model.tape = replayml.Layer(nn.Linear, 1, 1)",
        "model._modules['tape'].configure(bias=False)",
        "model.block.set('class', 3)",
    ]
    assert describe(run(to_code(model))) == describe(model)


@pytest.mark.filterwarnings("error")
def test_an_attribute_with_the_name_of_an_argument_is_set_by_a_call() -> None:
    """The code does not assign what looks like a setting, of which whoever runs it would be warned."""
    net = Net()
    with pytest.warns(UserWarning, match="data = 7 sets the attribute only"):
        net.data = 7
    assert statements(net)[-1].endswith(".set('data', 7)")
    assert_faithful(net)


def test_a_path_is_that_of_its_time() -> None:
    """A call is printed with the index that its element had then, and an element that is gone still counts."""
    model = Block()
    model.layers[1].configure(bias=False)
    model.layers.insert(0, Layer(nn.Tanh))
    model.layers[2].configure(out_features=3)
    model.layers.pop(2)
    assert statements(model)[1:] == [
        "model.layers[1].configure(bias=False)",
        "model.layers.insert(0, replayml.Layer(nn.Tanh))",
        "model.layers[2].configure(out_features=3)",
        "model.layers.pop(2)",
    ]
    assert_faithful(model)


def test_modules_of_the_tree_are_references() -> None:
    """What stands in the tree is printed as a path, also inside a new module and as a tied weight."""
    model = Net()
    model.around = Block(extra=model.hidden)
    model.block.layers.append(model.around.extra)
    model.tied = model.plain
    model.block.weight = model.plain[1].weight
    assert statements(model)[1:] == [
        "model.around = Block(extra=model.hidden)",
        "model.block.layers.append(model.hidden)",
        "model.tied = model.plain",
        "model.block.weight = model.plain[1].weight",
    ]
    copy = assert_faithful(model)
    assert copy.around.extra is copy.hidden is copy.block.layers[2]
    assert copy.block.weight is copy.tied[1].weight


def test_torchs_own_layers_are_printed_as_calls() -> None:
    """A layer of torch among the arguments is made again, with fresh weights."""
    model = Net(activation=nn.Sequential(nn.Linear(2, 3, bias=False), nn.PReLU(), Layer(nn.Tanh).configure(nn.ReLU)))
    assert statements(model) == [
        "tanh = replayml.Layer(nn.Tanh)",
        "tanh.configure(nn.ReLU)",
        "model = Net(",
        "    activation=nn.Sequential(nn.Linear(in_features=2, out_features=3, bias=False), nn.PReLU(), tanh),",
        ")",
    ]
    assert repr(run(to_code(model))) == repr(model)


def test_keywords_that_are_no_names_are_unpacked() -> None:
    """What ``**kwargs`` took under an odd name goes there again."""
    model = Block(**{"odd-key": 1, "class": 2})
    assert statements(model) == ["model = Block(**{'odd-key': 1}, **{'class': 2})"]
    assert_faithful(model)


def test_parts_and_built_models_are_printed() -> None:
    """A part comes with what was set from above; a built model as it was before."""
    model = Net(width=3)
    model.block.configure(width=5)
    model.block.layers[1].configure(bias=False)
    part = run(to_code(model.block))
    assert repr(part) == repr(model.block)
    built = model.create(torch.zeros(1, 7))
    assert to_code(built) == to_code(model)
    assert to_code(built.block) == to_code(model.block)


def test_externals_are_printed_by_what_they_wrap() -> None:
    """Any class may be wrapped; a variable is called after it."""
    assert_faithful(External(Fraction, 1, denominator=2).configure(denominator=3))
    cell = Layer(nn.LSTMCell, 1, 2).configure(bias=False)
    norm = Layer(nn.LayerNorm, [3]).configure(eps=0.1)
    assert [line.split(" = ")[0] for line in statements(Parallel(cell, norm)) if " = " in line] == [
        "lstmcell",
        "layer_norm",
        "model",
    ]


# Values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (-3, "-3"),
        (0.1, "0.1"),
        (-0.0, "-0.0"),
        (math.inf, "float('inf')"),
        (complex(-0.0, math.inf), "complex(-0.0, float('inf'))"),
        ("a'\n", '"a\'\\n"'),
        (b"\0", "b'\\x00'"),
        (..., "..."),
        ((1,), "(1,)"),
        ((), "()"),
        ([(), [2]], "[(), [2]]"),
        ({"a": {1: 2}}, "{'a': {1: 2}}"),
        (set(), "set()"),
        ({2, 1}, "{1, 2}"),
        (frozenset({1}), "frozenset({1})"),
        (OrderedDict(a=1), "OrderedDict([('a', 1)])"),
        (range(1, 7, 2), "range(1, 7, 2)"),
        (slice(1, None, 2), "slice(1, None, 2)"),
        (torch.bfloat16, "torch.bfloat16"),
        (torch.channels_last, "torch.channels_last"),
        (torch.sparse_coo, "torch.sparse_coo"),
        (torch.device("cuda", 1), "torch.device('cuda:1')"),
        (torch.Size([2, 3]), "torch.Size([2, 3])"),
        (nn.ReLU, "nn.ReLU"),
        (nn.Module, "nn.Module"),
        (torch.optim.Adam, "optim.Adam"),
        (torch.optim.lr_scheduler.StepLR, "StepLR"),
        (torch.Tensor, "torch.Tensor"),
        (F.relu, "F.relu"),
        (F.gelu, "F.gelu"),
        (torch.relu, "torch.relu"),
        (torch.sinc, "torch.sinc"),
        (nn.init.zeros_, "init.zeros_"),
        (int, "int"),
        (max, "max"),
        (math.sqrt, "sqrt"),
        (F, "F"),
        (np, "np"),
        (math, "math"),
        (Colour.RED, "Colour.RED"),
        (Mode.A, "Mode.A"),
        (Mode.A | Mode.B, "Mode(3)"),
        (Point(1, [2]), "Point(1, [2])"),
        (Clamped(1, 0), "Clamped(1, 0)"),
        (Clamped._make((1, 5)), "Clamped._make([1, 5])"),
        (Options(0.5, ["a"]), "Options(rate=0.5, names=['a'])"),
        (Path("a/b"), "PosixPath('a/b')"),
        (PurePosixPath("a"), "PurePosixPath('a')"),
        (np.float32(0.1), "np.float32(0.10000000149011612)"),
        (np.int64(3), "np.int64(3)"),
        (np.True_, "np.bool(True)"),
        (np.dtype("float32"), "np.dtype('<f4')"),
        (np.float16, "np.float16"),
        (Fraction(1, 3), "Fraction(1, 3)"),
        (timedelta(days=2), "timedelta(days=2)"),
        (double, "double"),
        (Outer.Inner, "Outer.Inner"),
        (Outer.make, "Outer.make"),
        (functools.partial(double, x=[1]), "partial(double, x=[1])"),
        (Layer, "replayml.Layer"),
    ],
)
def test_values_are_written_so_that_they_come_back(value: Any, text: str) -> None:
    """Evaluating the expression, after its imports, gives the same type and an equal value."""
    expressions = Expressions()
    assert expressions.of(value) == text
    names: dict[str, Any] = {}
    exec("\n".join(expressions.imports.lines()), names)
    found = eval(text, names)  # noqa: S307 - that it can be evaluated is what is tested
    assert type(found) is type(value)
    assert repr(found) == repr(value)


def local() -> Any:
    """Return what can be reached from nowhere."""

    class Hidden:
        pass

    return Hidden


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda x: x, "the function <lambda> cannot be imported. Define it at the top level"),
        (local(), "the class local.<locals>.Hidden cannot be imported"),
        (torch.zeros(2, 3), r"a tensor of shape \(2, 3\) has no source form. Make it in an __init__"),
        (nn.Parameter(torch.zeros(2)), r"a tensor of shape \(2,\) has no source form"),
        (np.zeros(2), r"an array of shape \(2,\) has no source form"),
        (np.datetime64("2020-01-01"), "a numpy.datetime64 has no source form"),
        (np.dtype([("a", "i4")]), "has no source form"),
        (object(), "a builtins.object has no source form"),
        (Outer().method, "the method Outer.method is bound to an object"),
        ([1].append, "does not lead to this function"),
        ({"a": [lambda: 0]}, "the function .*<lambda> cannot be imported"),
        (functools.partial(double, torch.zeros(1)), "a tensor of shape"),
    ],
)
def test_what_has_no_source_form_is_refused(value: Any, reason: str) -> None:
    """A value that no expression makes raises; nothing is written in its place."""
    with pytest.raises(NoSourceError, match=reason):
        Expressions().of(value)


def test_a_dataclass_that_would_come_back_different_is_refused() -> None:
    """Fields that its constructor sets otherwise, or other attributes, are not dropped."""
    options = Options(0.5)
    options.total = 7
    with pytest.raises(NoSourceError, match="made from the fields of this one has another 'total'"):
        Expressions().of(options)
    options = Options(0.5)
    options.extra = 1  # type: ignore[attr-defined]
    with pytest.raises(NoSourceError, match="this Options has attributes that are no fields: extra"):
        Expressions().of(options)


def test_a_name_that_leads_elsewhere_is_refused() -> None:
    """A class that another one has replaced cannot be imported any more."""
    replaced = type("Point", (), {"__module__": __name__})
    with pytest.raises(NoSourceError, match=r"the name .*test_to_code.Point does not lead to this class"):
        Expressions().of(replaced)


def test_no_name_hides_another() -> None:
    """Things of one name get different ones; variables, imports and builtins do not clash."""
    imports = Imports()
    assert imports.bind("model") == "model"
    assert imports.bind("model") == "model_2"
    assert imports.bind("nn") == "nn"
    assert imports.name(nn.Linear) == "nn_2.Linear"
    assert imports.bind("list") == "list_2"
    assert imports.name(Point) == "Point"
    assert imports.bind("Point", ("elsewhere", "Point")) == "Point_2"
    assert imports.lines() == [
        "from elsewhere import Point as Point_2",
        f"from {__name__} import Point",
        "from torch import nn as nn_2",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Net(activation=lambda x: x),
            r"cannot write Net\(activation=.*\) \(made at .*test_to_code.py:\d+\): the",
        ),
        (
            lambda: Net().set("a", torch.zeros(1)),
            r"cannot write model.set\('a', tensor\(\[0.\]\)\) \(made at .*:\d+\): a tensor",
        ),
        (lambda: Net(activation=Block().build()), "this Block is built, and weights have no source form"),
        (lambda: Net(activation=Plain()), r"this Plain was not made by replayml. Hand in replayml.Layer\(Plain, ...\)"),
        (lambda: Net(activation=frozen()), "it is in evaluation mode; a new one is in training mode"),
        (lambda: type("Lost", (Net,), {"__module__": "gone"})(), "the name gone.Lost does not lead to this class"),
    ],
)
def test_a_model_that_cannot_be_written_tells_where(make: Any, message: str) -> None:
    """The error names the call, its line, and the value; the tape can still be read."""
    model = make()
    with pytest.raises(ConfigurationError, match=message) as caught:
        to_code(model)
    assert str(caught.value).endswith("print(model.tape) shows every call")


class Plain(nn.Module):
    """A module that nothing is recorded of."""


def frozen() -> nn.Module:
    """Return a layer that is not as its constructor leaves it."""
    return nn.Linear(2, 3).eval()


# In general -------------------------------------------------------------------------------------------------------

atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(max_size=5),
    st.sampled_from([torch.float16, nn.ReLU, F.relu, Colour.RED, Mode.A | Mode.B, Outer.Inner, torch.device("cpu")]),
)
values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(Point, inner, inner),
        st.builds(Options, st.floats(0, 1), st.lists(st.text(max_size=2), max_size=2)),
    ),
    max_leaves=8,
)


@given(value=values)
def test_any_value_comes_back(value: Any) -> None:
    """Whatever is made of the usual types is written, on the tape and as an argument."""
    model = Net(data=value)
    model.block.count(value)
    copy = assert_faithful(model)
    assert copy.data == value


edits = st.lists(
    st.one_of(
        st.tuples(st.just("width"), st.integers(1, 9)),
        st.tuples(st.just("bias"), st.integers(0, 5)),
        st.tuples(st.just("insert"), st.integers(0, 3)),
        st.tuples(st.just("pop"), st.integers(0, 3)),
        st.tuples(st.just("swap"), st.integers(0, 3)),
        st.tuples(st.just("share"), st.integers(0, 5)),
        st.tuples(st.just("wrap"), st.integers(0, 5)),
        st.tuples(st.just("hand"), st.integers(0, 5)),
        st.tuples(st.just("value"), values),
        st.tuples(st.just("select"), st.booleans()),
    ),
    max_size=10,
)


def edit(model: Any, what: str, value: Any) -> None:
    """Make one change to a model."""
    layers = model.block.layers
    leaves = [module for module in model.modules() if isinstance(module, Layer) and "bias" in module.configurables]
    if what == "width":
        model.configure(width=value)
    elif what == "bias":
        leaves[value % len(leaves)].configure(bias=False)
    elif what == "insert":
        layers.insert(value, Layer(nn.Linear, value + 1, 2).configure(bias=False))
    elif what == "pop":
        if len(layers) > 1:
            layers.pop(value % len(layers))
    elif what == "swap":
        layers[value % len(layers)] = Layer(nn.Linear, 7, 7)
    elif what == "share":
        layers.append(leaves[value % len(leaves)])
    elif what == "wrap":
        model.around = Block(value + 1, leaves[value % len(leaves)])
    elif what == "hand":
        layer = Layer(nn.Linear, 3, 3)
        model.one = Block(2, layer, again=layer)
    elif what == "value":
        model.value = value
    else:
        model[..., "hidden"].configure(bias=value)


@given(width=st.integers(1, 9), shared=st.booleans(), steps=edits)
def test_any_model_comes_back(width: int, shared: bool, steps: Any) -> None:
    """For any model and any edits the code makes a model with the same repr, call and tape."""
    layer = Layer(nn.Linear, 2, 2)
    model = Net(width, activation=layer, data=[layer, layer] if shared else None)
    for what, value in steps:
        edit(model, what, value)
    copy = assert_faithful(model)
    names = {id(module): name for name, module in copy.named_modules()}
    for name, module in model.named_modules(remove_duplicate=False):
        first = next(other for other, found in model.named_modules() if found is module)
        assert names[id(copy.get_submodule(name))] == first
