from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replayml.core.errors import ConfigurationError
from replayml.serving.errors import Refusal
from replayml.serving.messages.parameters import Parameters
from replayml.serving.messages.schema import TensorSpec, describe_output, input_schema, output_schema, specs_of, taken

ROWS = TensorSpec("float32", (None, 2))


@pytest.mark.parametrize(
    ("spec", "value", "code"),
    [
        (ROWS, [[1, 2, 3]], "wrong-shape"),
        (ROWS, [1, 2], "wrong-shape"),
        (ROWS, [[1, 2], [3]], "wrong-shape"),
        (ROWS, [], "wrong-shape"),
        (ROWS, [["1", "2"]], "wrong-dtype"),
        (ROWS, [[True, False]], "wrong-dtype"),
        (ROWS, [[None, 1]], "wrong-dtype"),
        (ROWS, [[{}, 1]], "wrong-dtype"),
        (ROWS, "ab", "wrong-dtype"),
        (ROWS, None, "wrong-dtype"),
        (ROWS, [[1e39, 1]], "wrong-dtype"),
        (ROWS, torch.zeros(1, 2, dtype=torch.float64), "wrong-dtype"),
        (ROWS, torch.zeros(1, 3), "wrong-shape"),
        (TensorSpec("int64", (2,)), [1.0, 2.0], "wrong-dtype"),
        (TensorSpec("uint8", (2,)), [1, 256], "wrong-dtype"),
        (TensorSpec("uint8", (2,)), [1, -1], "wrong-dtype"),
        (TensorSpec("int64", (1,)), [2**63], "wrong-dtype"),
        (TensorSpec("int64", (1,)), [2**70], "wrong-dtype"),
        (TensorSpec("bool", (1,)), [1], "wrong-dtype"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(spec: TensorSpec, value: Any, code: str) -> None:
    """Neither the shape nor the dtype of an input is bent to fit."""
    with pytest.raises(Refusal, match=code):
        taken([spec], [value], any_rows=spec.shape[0] is None)


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        (ROWS, [[1, 2.5], [3, 4]]),
        (TensorSpec("float64", ()), 3),
        (TensorSpec("bfloat16", (2,)), [1, 2]),
        (TensorSpec("float16", (1,)), [1.5]),
        (TensorSpec("int64", (1,)), [2**62]),
        (TensorSpec("uint8", (2,)), [0, 255]),
        (TensorSpec("bool", (2,)), [True, False]),
        (TensorSpec("uint64", (1,)), [2**64 - 1]),
    ],
)
def test_numbers_become_the_declared_dtype(spec: TensorSpec, value: Any) -> None:
    """Numbers of JSON that fit are taken, each as it is."""
    (found,) = taken([spec], [value], any_rows=False)
    assert str(found.dtype) == f"torch.{spec.dtype}"
    assert found.tolist() == value


def test_inputs_have_the_same_rows() -> None:
    """Where rows count, all inputs have as many, and there is one."""
    with pytest.raises(Refusal, match="wrong-shape"):
        taken([ROWS, ROWS], [torch.zeros(1, 2), torch.zeros(2, 2)], any_rows=True)
    with pytest.raises(Refusal, match="wrong-shape"):
        taken([ROWS], [torch.zeros(0, 2)], any_rows=True)
    with pytest.raises(Refusal, match="wrong-arguments"):
        taken([ROWS, ROWS], [torch.zeros(1, 2)], any_rows=True)


def test_an_example_holds_tensors_with_rows() -> None:
    """An example that says nothing is refused when the service is made."""
    with pytest.raises(ConfigurationError, match="example input 0 is a list; an example holds tensors"):
        specs_of([[1]], any_rows=False)
    with pytest.raises(ConfigurationError, match="first dimension should count rows"):
        specs_of([torch.tensor(1.0)], any_rows=True)
    with pytest.raises(ConfigurationError, match="differ in their number of rows"):
        specs_of([torch.zeros(1), torch.zeros(2)], any_rows=True)


@given(st.lists(st.integers(1, 3), max_size=3), st.sampled_from(["float32", "int8", "bool"]))
def test_the_schema_tells_the_shape(shape: list[int], dtype: str) -> None:
    """The JSON schema of an input has its sizes and its dtype."""
    body = input_schema([TensorSpec(dtype, tuple(shape))], Parameters(None, 1))
    schema = body["properties"]["args"]["prefixItems"][0]
    assert (schema["x-shape"], schema["x-dtype"]) == (shape, dtype)
    for size in shape:
        assert (schema["minItems"], schema["maxItems"]) == (size, size)
        schema = schema["items"]
    assert schema["type"] == {"float32": "number", "int8": "integer", "bool": "boolean"}[dtype]


def test_the_schema_tells_the_result() -> None:
    """The JSON schema of a result has what stands in it."""
    form = describe_output({"y": torch.zeros(2, 3), "z": (1, "a", torch.zeros(5))}, rows=2)
    assert form == {"y": TensorSpec("float32", (None, 3)), "z": [int, str, TensorSpec("float32", (5,))]}
    schema = output_schema(form)
    assert schema["required"] == ["y", "z"]
    assert [item.get("type") for item in schema["properties"]["z"]["prefixItems"]] == ["integer", "string", "array"]
