"""`predict`: many rows through a built module, batch by batch."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import ArgumentError, ConfigurationError, NotBuiltError
from replayml.layers.layer import Layer
from replayml.module.module import Module
from replayml.module.predicting import predict


class Product(nn.Module):
    """Rows of one input times those of another."""

    def forward(self, x: Any, y: Any) -> Any:
        return x * y


class Returning(nn.Module):
    """Returns what a function makes of its inputs."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


class Both(NamedTuple):
    """A named pair."""

    double: Any
    half: Any


class Net(Module):
    """A small model with a part that behaves differently in training."""

    def __init__(self, width: int = 4) -> None:
        self.linear = Layer(nn.Linear, 3, width)
        self.dropout = Layer(nn.Dropout, 0.9)
        self.norm = Layer(nn.BatchNorm1d, width)

    def forward(self, x: Any) -> Any:
        return self.norm(self.dropout(self.linear(x)))


def rows_of(*shape: int) -> torch.Tensor:
    """Return a tensor in which no two numbers are equal."""
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


# Rows and batches -------------------------------------------------------------------------------------------------


@given(rows=st.integers(0, 70), batch_size=st.integers(1, 40))
def test_the_batch_size_makes_no_difference(rows: int, batch_size: int) -> None:
    """The output is that of the module for all rows at once, whatever the batch size."""
    x, y = rows_of(rows, 3), rows_of(rows, 3) + 1
    assert torch.equal(predict(Product(), x, y, batch_size=batch_size), x * y)


def test_every_input_is_split_from_a_thousand_rows_on() -> None:
    """No input is left out, however many rows there are."""
    x, y = rows_of(2500, 2), rows_of(2500, 2)
    assert torch.equal(predict(Product(), x, y), x * y)


def test_a_module_never_sees_more_rows_than_the_batch_size() -> None:
    """Each call gets at most a batch of rows."""
    seen: list[int] = []

    def noted(x: Any) -> Any:
        seen.append(len(x))
        return x

    module = Returning(noted)
    predict(module, rows_of(10, 1), batch_size=4)
    assert seen == [4, 4, 2]


def test_no_rows_give_an_empty_output_of_the_right_shape() -> None:
    """Zero rows give zero rows, also for a module that takes no empty batch."""
    module = nn.Sequential(nn.Linear(3, 4), Returning(lambda x: x.reshape(x.shape[0], -1, 2)))
    with pytest.raises(RuntimeError):
        module(torch.zeros(0, 3))
    assert predict(module, torch.zeros(0, 3)).shape == (0, 2, 2)


def test_different_numbers_of_rows_are_refused() -> None:
    """Inputs that differ in their rows raise, and the message tells which has how many."""
    with pytest.raises(ConfigurationError, match=r"input 0 has 5, input 1\['mask'\] has 4"):
        predict(Product(), torch.zeros(5, 1), {"mask": torch.zeros(4, 1)})


@pytest.mark.parametrize(
    ("inputs", "batch_size", "message"),
    [
        ((), 32, "needs at least one input"),
        ((torch.tensor(1.0),), 32, "input 0 is a single number"),
        (([],), 32, "input 0 is an empty list, which has no shape"),
        ((torch.zeros(2, 1),), 0, "batch_size >= 1, got 0"),
    ],
)
def test_inputs_without_rows_are_refused(inputs: Any, batch_size: int, message: str) -> None:
    """What has no rows, or no batches, raises a ValueError that says so."""
    with pytest.raises(ValueError, match=message):
        predict(nn.Identity(), *inputs, batch_size=batch_size)


# Inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_arrays_of_floats_get_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    """NumPy's float64 does not get in the way of a model of another dtype."""
    module = nn.Linear(3, 2).to(dtype)
    x = np.ones((5, 3))
    assert torch.equal(predict(module, x), module(torch.ones(5, 3, dtype=dtype)).detach())


def test_arrays_of_integers_and_tensors_keep_their_dtype() -> None:
    """Only arrays of floats are converted."""
    kept = Returning(lambda *inputs: inputs)
    found = predict(kept, np.arange(3), np.array([True, False, True]), torch.zeros(3, dtype=torch.float64))
    assert [item.dtype for item in found] == [torch.int64, torch.bool, torch.float64]


def test_read_only_and_reversed_arrays_are_taken() -> None:
    """Memory that torch does not take by itself is copied, batch by batch."""
    array = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    array.flags.writeable = False
    assert predict(nn.Identity(), array[::-1], batch_size=2).tolist() == [[4, 5], [2, 3], [0, 1]]


@pytest.mark.parametrize(
    "rows",
    [
        [torch.ones(2), torch.ones(2)],
        [np.ones(2), np.ones(2)],
        [[1.0, 1.0], (1.0, 1.0)],
        np.ones((2, 2)),
        np.ones((2, 2)).tolist(),
    ],
)
def test_lists_of_rows_are_stacked(rows: Any) -> None:
    """A list counts as rows, whatever they are made of."""
    assert torch.equal(predict(nn.Identity(), rows), torch.ones(2, 2))
    assert predict(nn.Identity(), [1.0, 2.0, 3.0], batch_size=2).tolist() == [1, 2, 3]


def test_rows_that_do_not_fit_together_are_refused() -> None:
    """Rows of different shapes raise a TypeError with the input's place."""
    with pytest.raises(ArgumentError, match="input 1 is a list of rows that do not fit together: stack expects"):
        predict(Product(), torch.zeros(2, 1), [torch.zeros(2), torch.zeros(3)])


def test_inputs_may_be_dicts_and_tuples() -> None:
    """Tensors inside of dicts and tuples are split like the others; named tuples keep their names."""
    module = Returning(lambda data, pair: data["x"] + pair.double - pair.half)
    x = rows_of(9, 2)
    assert torch.equal(predict(module, {"x": x}, Both(x, x), batch_size=4), x)


def test_an_input_of_another_type_is_refused() -> None:
    """A value that has no rows raises a TypeError with its place."""
    with pytest.raises(ArgumentError, match=r"input 1\['scale'\] is a float; predict takes tensors, NumPy arrays"):
        predict(Product(), torch.zeros(2, 1), {"scale": 2.0})


# Outputs ----------------------------------------------------------------------------------------------------------


@given(rows=st.integers(0, 20), batch_size=st.integers(1, 7))
def test_outputs_of_any_structure_are_joined(rows: int, batch_size: int) -> None:
    """Dicts, tuples, lists and named tuples come back with all rows in each part."""
    module = Returning(lambda x: {"a": (x, [x * 2]), "b": Both(x * 2, x / 2), "none": None})
    x = rows_of(rows, 2)
    found = predict(module, x, batch_size=batch_size)
    assert torch.equal(found["a"][0], x)
    assert torch.equal(found["a"][1][0], x * 2)
    assert type(found["b"]) is Both
    assert torch.equal(found["b"].half, x / 2)
    assert found["none"] is None


def test_torch_return_types_are_joined() -> None:
    """What ``torch.max`` returns is a tuple like any other."""
    x = rows_of(5, 3)
    found = predict(Returning(lambda x: torch.max(x, dim=1)), x, batch_size=2)
    assert torch.equal(found.indices, torch.max(x, dim=1).indices)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: x.sum(), ConfigurationError, "the output is a single number for a whole batch"),
        (lambda x: {"loss": x.mean()}, ConfigurationError, r"the output\['loss'\] is a single number"),
        (lambda x: x.T, ConfigurationError, r"has the shape \(3, 2\) for a batch of 2 rows"),
        (lambda x: (x, "text"), ArgumentError, r"the output\[1\] is a str; predict joins tensors"),
        (lambda x: {str(len(x)): x}, ConfigurationError, "is not built alike for every batch"),
        (lambda x: x if len(x) > 1 else None, ConfigurationError, "is not built alike for every batch"),
    ],
)
def test_outputs_without_rows_are_refused(function: Any, error: type[Exception], message: str) -> None:
    """What cannot be joined raises, with its place in the output."""
    with pytest.raises(error, match=message):
        predict(Returning(function), torch.zeros(5, 3), batch_size=2)


def test_rows_of_different_shapes_keep_torchs_error() -> None:
    """Batches with other row shapes raise torch's own error, with a note on where."""
    module = Returning(lambda x: x.new_zeros(len(x), len(x)))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match") as caught:
        predict(module, torch.zeros(3, 1), batch_size=2)
    assert caught.value.__notes__ == ["while joining the output of 2 batches"]


# The module -------------------------------------------------------------------------------------------------------


def test_the_mode_of_every_part_comes_back() -> None:
    """Evaluation mode holds during the run only, also for a part that was frozen before, and after an error."""
    net = Net().build()
    net.train()
    net.norm.eval()
    x = torch.ones(4, 3)
    assert torch.equal(predict(net, x), predict(net, x))
    assert [part.training for part in net.modules()] == [True, True, True, False]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        predict(net, torch.ones(4, 5))
    assert [part.training for part in net.modules()] == [True, True, True, False]


def test_no_gradient_is_kept_and_the_output_can_be_trained_on() -> None:
    """The output needs no gradient, and is an ordinary tensor for autograd."""
    net = nn.Linear(3, 2)
    found = predict(net, torch.ones(4, 3, requires_grad=True))
    assert not found.requires_grad
    assert torch.is_grad_enabled()
    (net.weight.sum() * found.sum()).backward()


def test_the_output_goes_where_it_is_wanted() -> None:
    """Inputs go to the module's device; outputs to the one that was asked for."""
    module = nn.Linear(3, 2, device="meta")
    assert predict(module, np.ones((4, 3))).device.type == "meta"
    assert predict(nn.Identity(), torch.ones(4), output_device="meta").device.type == "meta"
    assert predict(nn.Identity(), torch.ones(4), device="meta").device.type == "meta"


def test_a_built_model_predicts() -> None:
    """`Module.predict` runs a built model, one with an input map included."""
    net = Net().build().eval()
    x = rows_of(7, 3)
    assert torch.equal(net.predict(x, batch_size=2), net(x))
    layer = Layer(nn.Linear, 3, 2).set_input_map("x").set_output_map("y").build()
    assert predict(layer, OrderedDict(x=x), batch_size=3)["y"].shape == (7, 2)


def test_an_unbuilt_model_is_refused() -> None:
    """A model without weights raises, and the message tells the next step."""
    with pytest.raises(NotBuiltError, match=r"Net has no weights yet. Build it first: model.build\(example_input\)"):
        predict(Net(), torch.zeros(1, 3))
