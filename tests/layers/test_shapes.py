"""Reading the sizes of a layer off its example input."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import ArgumentError, BuildError
from replayml.core.signatures import call_arguments, signature_of
from replayml.layers.shapes import ShapeTable, check, infer, inferable, register, torch_shapes

SIZE = st.integers(2, 5)


@st.composite
def tensors(draw: st.DrawFn, *dimensions: int) -> tuple[torch.Tensor]:
    """One random input with one of these numbers of dimensions."""
    count = draw(st.sampled_from(dimensions))
    return (torch.rand(draw(st.tuples(*[SIZE] * count))),)


@st.composite
def bilinear_inputs(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    """Two inputs with the same leading dimensions."""
    leading = draw(st.lists(SIZE, max_size=2))
    return torch.rand(*leading, draw(SIZE)), torch.rand(*leading, draw(SIZE))


@st.composite
def attention_inputs(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    """A query, a key and a value, each with a size of its own or that of the query."""
    batch = draw(st.lists(SIZE, max_size=1))
    length, source, size = draw(SIZE), draw(SIZE), draw(SIZE)
    key, value = (draw(st.one_of(st.just(size), SIZE)) for _ in range(2))
    return torch.rand(length, *batch, size), torch.rand(source, *batch, key), torch.rand(source, *batch, value)


@st.composite
def transformer_inputs(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    """A source and a target, of the same feature size."""
    batch, size = draw(st.lists(SIZE, max_size=1)), draw(SIZE)
    return torch.rand(draw(SIZE), *batch, size), torch.rand(draw(SIZE), *batch, size)


@st.composite
def packed_inputs(draw: st.DrawFn) -> tuple[nn.utils.rnn.PackedSequence]:
    """Sequences of unequal length, packed."""
    size = draw(SIZE)
    return (nn.utils.rnn.pack_sequence([torch.rand(n, size) for n in (3, 2, 1)]),)


@st.composite
def classified_inputs(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    """Features and a class of 0 to 3 for each sample, or for the one sample."""
    batch = draw(st.lists(SIZE, max_size=1))
    return torch.rand(*batch, draw(SIZE)), torch.randint(0, 4, batch)


@dataclass
class Case:
    """A layer class, its arguments that are no sizes of the input, and inputs that it can take."""

    cls: type
    inputs: st.SearchStrategy[tuple[Any, ...]]
    named: dict[str, Any] = field(default_factory=dict)
    explicit: tuple[str, ...] = ()  # inferred only where they are given as None

    def __str__(self) -> str:
        return self.cls.__name__


def all_cases() -> Iterator[Case]:
    """A case for each class that the table covers."""
    yield Case(nn.Linear, tensors(1, 2, 3, 4), {"out_features": 3})
    yield Case(nn.Bilinear, bilinear_inputs(), {"out_features": 3})
    for n in (1, 2, 3):
        for name in (f"Conv{n}d", f"ConvTranspose{n}d"):
            yield Case(getattr(nn, name), tensors(n + 1, n + 2), {"out_channels": 3, "kernel_size": 1})
        yield Case(getattr(nn, f"BatchNorm{n}d"), tensors(*((2, 3) if n == 1 else (n + 2,))))
        yield Case(getattr(nn, f"InstanceNorm{n}d"), tensors(n + 1, n + 2), {"affine": True})
    yield Case(nn.SyncBatchNorm, tensors(2, 3, 4, 5))
    yield Case(nn.GroupNorm, tensors(2, 3, 4, 5), {"num_groups": 1})
    yield Case(nn.LayerNorm, tensors(1, 2, 3, 4))
    yield Case(nn.RMSNorm, tensors(1, 2, 3, 4))
    yield Case(nn.PReLU, tensors(0, 1, 2, 3, 4), explicit=("num_parameters",))
    for cls in (nn.RNN, nn.LSTM, nn.GRU):
        yield Case(cls, tensors(2, 3), {"hidden_size": 3})
        yield Case(cls, tensors(2, 3), {"hidden_size": 3, "batch_first": True})
        yield Case(cls, packed_inputs(), {"hidden_size": 3})
    for cell in (nn.RNNCell, nn.LSTMCell, nn.GRUCell):
        yield Case(cell, tensors(1, 2), {"hidden_size": 3})
    yield Case(nn.MultiheadAttention, attention_inputs(), {"num_heads": 1})
    small = {"nhead": 1, "dim_feedforward": 3}
    yield Case(nn.TransformerEncoderLayer, tensors(2, 3), small)
    yield Case(nn.TransformerEncoderLayer, tensors(2, 3), {**small, "batch_first": True})
    yield Case(nn.TransformerDecoderLayer, transformer_inputs(), small)
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    yield Case(nn.Transformer, transformer_inputs(), {**small, **layers}, explicit=("d_model",))
    yield Case(nn.AdaptiveLogSoftmaxWithLoss, classified_inputs(), {"n_classes": 4, "cutoffs": [2], "div_value": 1.0})
    if hasattr(nn, "LinearCrossEntropyLoss"):
        yield Case(nn.LinearCrossEntropyLoss, classified_inputs(), {"num_classes": 4})


CASES = list(all_cases())


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")  # torch on odd numbers of heads
@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_inferred_arguments_make_a_layer_that_runs(case: Case, data: st.DataObject) -> None:
    """A class made with the inferred arguments runs on the input, by position and by keyword, and passes the check."""
    inputs = data.draw(case.inputs)
    named = case.named | dict.fromkeys(case.explicit)
    found = infer(case.cls, named, inputs, {})
    args, kwargs = call_arguments(case.cls, named | found)
    layer = case.cls(*args, **kwargs).eval()
    layer(*inputs)
    assert check(case.cls, named | found, inputs, {}) == []
    assert infer(case.cls, named | found, inputs, {}) == {}
    by_name = dict(zip(signature_of(case.cls.forward).positional[1:], inputs, strict=False))  # type: ignore[attr-defined]
    assert infer(case.cls, named, (), by_name) == found


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_check_finds_each_wrong_size(case: Case, data: st.DataObject) -> None:
    """An argument that the input contradicts is listed with the given and the implied value."""
    inputs = data.draw(case.inputs)
    found = infer(case.cls, case.named | dict.fromkeys(case.explicit), inputs, {})
    for name, implied in found.items():
        wrong = case.named | found | {name: implied + 7}
        assert check(case.cls, wrong, inputs, {}) == [(name, implied + 7, implied)]


SIZE_WORDS = re.compile(r"(feature|channel|size|dim|d_model|shape|parameters|embeddings|width|length)")

NO_INPUT_SIZE = {
    "out_features": "a size of the output",
    "out_channels": "a size of the output",
    "output_size": "a size of the output",
    "hidden_size": "the model's own choice",
    "proj_size": "the model's own choice",
    "dim_feedforward": "the model's own choice",
    "num_embeddings": "the number of possible indices, which one input need not contain",
    "embedding_dim": "a size of the output",
    "kernel_size": "the model's own choice",
    "dim": "the number of a dimension, not its size",
    "start_dim": "the number of a dimension, not its size",
    "end_dim": "the number of a dimension, not its size",
    "unflattened_size": "a size of the output",
    "size": "a size of the output (Upsample) or of a neighbourhood (LocalResponseNorm)",
    "size_average": "not a size",
    "keepdim": "not a size",
    "parameters": "the contents of a container",
}


def torch_layers() -> list[type[nn.Module]]:
    """Every public layer class of torch.nn, the lazy ones left out: they read their input themselves."""
    public = [value for value in vars(nn).values() if isinstance(value, type) and issubclass(value, nn.Module)]
    lazy = nn.modules.lazy.LazyModuleMixin
    return sorted({cls for cls in public if not issubclass(cls, lazy)}, key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", torch_layers(), ids=lambda cls: cls.__name__)
def test_every_size_argument_of_torch_is_covered(cls: type[nn.Module]) -> None:
    """Each argument of a torch layer that may be a size of its input is inferable, or excluded for a reason."""
    sized = {name for name in signature_of(cls).names if SIZE_WORDS.search(name)}
    assert sized - set(NO_INPUT_SIZE) == set(inferable(cls))


def test_every_covered_class_has_a_case() -> None:
    """The classes that the table covers are those that the tests build, and their common bases."""
    covered = {cls for cls in torch_layers() if inferable(cls)}
    assert covered - {case.cls for case in CASES} == {nn.RNNBase, nn.RNNCellBase}


@pytest.mark.parametrize("cls", [nn.LazyLinear, nn.LazyConv2d, nn.LazyBatchNorm1d])
def test_lazy_layers_have_nothing_to_infer(cls: type) -> None:
    """A lazy layer inherits no rule for the argument that it no longer has."""
    assert inferable(cls) == ()
    assert infer(cls, {}, (torch.rand(2, 3),), {}) == {}


def test_a_given_value_or_a_default_of_the_class_is_kept() -> None:
    """Nothing is inferred for an argument that has a value, be it given or the default of the class."""
    x = torch.rand(2, 6)
    assert infer(nn.Linear, {"in_features": 9}, (x,), {}) == {}
    assert infer(nn.PReLU, {}, (x,), {}) == {}
    assert infer(nn.PReLU, {"num_parameters": None}, (x,), {}) == {"num_parameters": 6}
    assert infer(nn.Transformer, {}, (x, x), {}) == {}
    assert check(nn.PReLU, {"num_parameters": 1}, (x,), {}) == []


def test_key_and_value_sizes_are_inferred_only_where_they_differ() -> None:
    """MultiheadAttention's kdim and vdim stay None where they equal the query's size, as torch reads None."""
    query, other = torch.rand(4, 2, 6), torch.rand(4, 2, 3)
    assert infer(nn.MultiheadAttention, {}, (query, query, query), {}) == {"embed_dim": 6}
    assert infer(nn.MultiheadAttention, {"kdim": None}, (query, other, query), {}) == {"embed_dim": 6, "kdim": 3}
    assert infer(nn.MultiheadAttention, {}, (query,), {"key": other, "value": other}) == {
        "embed_dim": 6,
        "kdim": 3,
        "vdim": 3,
    }
    assert check(nn.MultiheadAttention, {"kdim": 6}, (query, query, query), {}) == []
    assert check(nn.MultiheadAttention, {"kdim": 5}, (query, query, query), {}) == [("kdim", 5, 6)]


def test_a_subclass_with_fewer_inputs_is_read_as_far_as_they_go() -> None:
    """A self-attention layer of one input, under a name of its own, is read like its base."""

    class SelfAttention(nn.MultiheadAttention):
        def forward(self, x: torch.Tensor) -> Any:  # type: ignore[override]
            return super().forward(x, x, x)

    assert infer(SelfAttention, {"num_heads": 1}, (), {"x": torch.rand(4, 2, 6)}) == {"embed_dim": 6}


def test_normalized_shape_may_be_several_sizes() -> None:
    """LayerNorm's shape is compared with as many trailing sizes as it names."""
    x = torch.rand(2, 3, 4, 5)
    for fits in (5, [5], (4, 5), torch.Size([3, 4, 5])):
        assert check(nn.LayerNorm, {"normalized_shape": fits}, (x,), {}) == []
    assert check(nn.LayerNorm, {"normalized_shape": (3, 5)}, (x,), {}) == [("normalized_shape", (3, 5), (4, 5))]
    assert check(nn.LayerNorm, {"normalized_shape": ()}, (x,), {}) == [("normalized_shape", (), 5)]
    assert check(nn.RMSNorm, {"normalized_shape": 4}, (x,), {}) == [("normalized_shape", 4, 5)]


@pytest.mark.parametrize("given_size", [6.0, "6", torch.tensor([6, 6]), np.array([6])])
def test_check_lists_sizes_that_are_no_whole_numbers(given_size: Any) -> None:
    """A size of the wrong type is listed, whatever it compares equal to."""
    ((name, shown, implied),) = check(nn.Linear, {"in_features": given_size}, (torch.rand(2, 6),), {})
    assert (name, implied) == ("in_features", 6)
    assert shown is given_size
    assert check(nn.Linear, {"in_features": np.int64(6)}, (torch.rand(2, 6),), {}) == []


BAD_INPUTS: list[tuple[type, tuple[Any, ...], dict[str, Any], str]] = [
    (nn.Linear, (), {}, r"Linear reads 'in_features' off its input 'input', which was not given\. Give 'in_features'"),
    (nn.Linear, (), {"x": torch.rand(2, 3)}, r"off its input 'input', which was not given"),
    (nn.Linear, (np.ones(3),), {}, r"which must be a tensor and is a ndarray\. Give 'in_features', or another example"),
    (nn.Linear, (torch.tensor(1.0),), {}, r"must have at least 1 dimensions and has the shape \(\)"),
    (
        nn.Conv2d,
        (torch.rand(3, 4),),
        {},
        r"Conv2d reads 'in_channels' .* must have 3 to 4 dimensions and has the .* \(3, 4\)",
    ),
    (nn.Conv1d, (torch.rand(2, 3, 4, 5),), {}, r"must have 2 to 3 dimensions and has the shape \(2, 3, 4, 5\)"),
    (nn.BatchNorm2d, (torch.rand(3, 4, 5),), {}, r"must have 4 dimensions and has the shape \(3, 4, 5\)"),
    (nn.GroupNorm, (torch.rand(3),), {}, r"must have at least 2 dimensions"),
    (nn.RMSNorm, ([1.0],), {}, r"off its input 'x', which must be a tensor and is a list"),
    (nn.Bilinear, (torch.rand(2, 3),), {}, r"reads 'in2_features' off its input 'input2', which was not given"),
    (nn.LSTM, (torch.rand(3),), {}, r"LSTM reads 'input_size' .* must have 2 to 3 dimensions and has the shape \(3,\)"),
]


@pytest.mark.parametrize(("cls", "args", "kwargs", "message"), BAD_INPUTS)
def test_an_input_that_tells_nothing_is_an_error(
    cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    """An absent input, one that is no tensor and one of another rank are refused, with place and next step."""
    with pytest.raises(BuildError, match=message):
        infer(cls, {}, args, kwargs)


def test_subclasses_are_inferred_as_far_as_they_take_the_argument() -> None:
    """A subclass is read like its base, also under (*args, **kwargs), but not for an argument that it dropped."""

    class Scaled(nn.Linear):
        def __init__(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.scale = scale

    class Square(nn.Linear):
        def __init__(self, width: int) -> None:
            super().__init__(width, width)

    class Opaque(nn.Linear):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.setdefault("bias", False)
            super().__init__(*args, **kwargs)

    x = torch.rand(2, 6)
    assert infer(Scaled, {"out_features": 3, "scale": 2.0}, (x,), {}) == {"in_features": 6}
    assert inferable(Square) == inferable(Opaque) == ()
    assert infer(Square, {"width": None}, (x,), {}) == {}
    assert infer(Opaque, {}, (x,), {}) == {}
    assert infer(Opaque, {"in_features": None}, (x,), {}) == {"in_features": 6}


def test_a_renamed_or_open_forward_is_read_by_position_and_name() -> None:
    """The input is found under the name that the subclass gives it, or under torch's name where it takes anything."""

    class Renamed(nn.Linear):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return super().forward(features)

    class Open(nn.Linear):
        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return super().forward(*args, **kwargs)

    x = torch.rand(2, 6)
    assert infer(Renamed, {}, (), {"features": x}) == {"in_features": 6}
    assert infer(Open, {}, (x,), {}) == infer(Open, {}, (), {"input": x}) == {"in_features": 6}


class Gate(nn.Module):
    """A user's layer with a size of its input among its arguments."""

    def __init__(self, channels: int, power: int = 2) -> None:
        super().__init__()
        self.channels = channels


class DeepGate(Gate):
    """A subclass of it."""


def test_registered_functions_compute_arguments() -> None:
    """A user's rule holds for a class and its subclasses until a nearer one replaces it, in its own table only."""
    table, x = ShapeTable(), torch.rand(2, 3, 4)
    table.register(Gate, "channels", lambda x: x.shape[1])
    assert table.inferable(DeepGate) == ("channels",)
    assert table.infer(DeepGate, {"channels": None}, (), {"x": x}) == {"channels": 3}
    assert table.check(DeepGate, {"channels": 5}, (x,), {}) == [("channels", 5, 3)]
    table.register(DeepGate, "channels", lambda x: x.shape[2])
    assert table.infer(DeepGate, {}, (x,), {}) == {"channels": 4}
    assert table.infer(Gate, {}, (x,), {}) == {"channels": 3}
    table.register(Gate, "channels", lambda x: None)
    assert table.infer(Gate, {}, (x,), {}) == {}
    assert table.check(Gate, {"channels": 5}, (x,), {}) == []
    assert torch_shapes.inferable(Gate) == ()


def test_registration_goes_before_the_rules_for_torch() -> None:
    """A user may replace the rule for a torch class."""
    table = ShapeTable()
    table.register(nn.Linear, "in_features", lambda x: x.shape[0])
    assert table.infer(nn.Linear, {}, (torch.rand(2, 6),), {}) == {"in_features": 2}
    assert infer(nn.Linear, {}, (torch.rand(2, 6),), {}) == {"in_features": 6}


def test_the_decorator_registers_under_the_name_of_the_function() -> None:
    """`register` adds to the common table and hands the function back."""

    class Local(nn.Module):
        def __init__(self, width: int) -> None: ...

    def width(x: torch.Tensor) -> int:
        return x.shape[-1]

    assert register(Local)(width) is width
    assert infer(Local, {}, (torch.rand(2, 6),), {}) == {"width": 6}


def test_registering_an_argument_that_does_not_exist_is_refused() -> None:
    """An argument that the class does not take is refused with the nearest name."""

    def chanels(x: torch.Tensor) -> int:
        return x.shape[1]

    with pytest.raises(
        ArgumentError, match=r"Gate has no argument 'chanels' .* Did you mean 'channels'\? It takes: chann"
    ):
        register(Gate)(chanels)
    with pytest.raises(ArgumentError, match=r"Gate has no argument '<lambda>' to compute\. It takes: channels, power"):
        register(Gate)(lambda x: x)


def test_an_error_of_the_users_function_keeps_its_type_and_gains_its_place() -> None:
    """What a user's function raises comes through, with a note that names the argument and the class."""
    table = ShapeTable()
    table.register(Gate, "channels", lambda x: x.shape[9])
    with pytest.raises(IndexError, match="out of range") as caught:
        table.infer(Gate, {}, (torch.rand(2),), {})
    assert caught.value.__notes__ == ["while computing 'channels' of Gate from its inputs"]
