"""Small tensors and NumPy arrays inside a recipe: dtype, shape and the bytes, little endian, as base64.

Invariants:
    * Values are kept to the last bit. Strides are not: what is read is contiguous.
    * What a tensor carries beside its values (a gradient, a graph, hooks, attributes) is never dropped: such a
      tensor is refused.
    * The number of bytes is compared with dtype and shape before anything is allocated.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from replayml.recipe.faults import Flaw, shown
from replayml.recipe.values.leaves import DTYPES, Leaf, check_inline, from_base64, read_fields, to_base64

__all__ = ["DATA_LEAVES", "storage_of"]

_MAX_DIMENSIONS = 32

# Without quantised tensors, which are more than their values, and halves of complex numbers, which are experimental.
_TENSOR_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {name: dtype for name, dtype in DTYPES.items() if not name.startswith("q") and name != "complex32"}
)
_TENSOR_NAMES: Mapping[torch.dtype, str] = MappingProxyType({dtype: name for name, dtype in _TENSOR_DTYPES.items()})

_NUMBERS = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
_ARRAY_DTYPES: Mapping[str, Any] = MappingProxyType({name: np.dtype(name) for name in _NUMBERS.split()})


def storage_of(tensor: torch.Tensor) -> int | None:
    """Return what identifies the memory of a tensor, or None when it has none of its own."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return None
    if tensor.device.type == "meta":
        return -id(tensor)  # there is no address to compare
    return tensor.untyped_storage().data_ptr()


def little_endian(data: bytes, width: int, order: str = sys.byteorder) -> bytes:
    r"""Return the bytes of numbers of ``width`` bytes in little-endian order; it is its own inverse.

    Example:
        >>> little_endian(b"\x01\x02\x03\x04", 2, order="big")
        b'\x02\x01\x04\x03'
    """
    if order == "little" or width == 1:
        return data
    return np.frombuffer(data, dtype=f"u{width}").byteswap().tobytes()


def _read_shape(payload: object) -> tuple[int, ...]:
    if isinstance(payload, list) and len(payload) <= _MAX_DIMENSIONS:
        is_shape = all(type(size) is int and size >= 0 for size in payload)
        if is_shape and math.prod(max(size, 1) for size in payload) < 2**48:
            return tuple(payload)
    raise Flaw("bad-value", f"a shape is expected here, not {shown(payload)}.")


def _read_data(data: object, shape: tuple[int, ...], width: int) -> bytes:
    found = from_base64(data)
    if len(found) != math.prod(shape) * width:
        raise Flaw("bad-value", f"{len(found)} bytes of data do not fill the shape {shown(list(shape))}.")
    return found


def _check_bools(data: bytes) -> None:
    if data.strip(b"\x00\x01"):
        raise Flaw("bad-value", "a bool is the byte 0 or 1.")


# Tensors ------------------------------------------------------------------------------------------------------------


def _number_width(dtype: torch.dtype) -> int:
    """Return the bytes of one number; a complex value is two."""
    return dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize


def _write_tensor(value: torch.Tensor) -> object:
    _check_tensor(value)
    check_inline(value.nbytes, f"a tensor of shape {tuple(value.shape)}")
    plain = value.detach().resolve_conj().resolve_neg().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return {
        "data": to_base64(little_endian(data, _number_width(value.dtype))),
        "dtype": _TENSOR_NAMES[value.dtype],
        "parameter": isinstance(value, nn.Parameter),
        "requires_grad": value.requires_grad,
        "shape": list(value.shape),
    }


def _check_tensor(value: torch.Tensor) -> None:
    reasons = {
        f"it is on {value.device}; move it to the CPU": value.device.type != "cpu",
        f"its layout is {value.layout}; make it strided": value.layout is not torch.strided,
        f"its dtype is {value.dtype}": value.dtype not in _TENSOR_NAMES,
        "it is part of a graph of gradients; detach it": not value.is_leaf,
        "it holds a gradient; set .grad to None": value.is_leaf and value.grad is not None,
        "it has hooks": bool(value._backward_hooks),
        f"it has attributes of its own ({', '.join(sorted(vars(value)))})": bool(vars(value)),
    }
    for reason, is_so in reasons.items():
        if is_so:
            raise Flaw("no-data-form", f"this tensor has no data form: {reason}.")


def _read_tensor(payload: object) -> torch.Tensor:
    data, dtype_name, is_parameter, requires_grad, sizes = read_fields(
        payload, "data", "dtype", "parameter", "requires_grad", "shape"
    )
    dtype = _TENSOR_DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise Flaw("bad-value", f"{shown(dtype_name)} is no dtype of a tensor: {', '.join(_TENSOR_DTYPES)}.")
    if not isinstance(is_parameter, bool) or not isinstance(requires_grad, bool):
        raise Flaw("bad-value", "'parameter' and 'requires_grad' are true or false.")
    if requires_grad and not (dtype.is_floating_point or dtype.is_complex):
        raise Flaw("bad-value", f"a tensor of {dtype_name} has no gradient.")
    shape = _read_shape(sizes)
    raw = _read_data(data, shape, dtype.itemsize)
    if dtype is torch.bool:
        _check_bools(raw)
    flat = torch.zeros(len(raw), dtype=torch.uint8, device="cpu")  # not meta, even inside torch.device("meta")
    if raw:
        flat.copy_(torch.frombuffer(bytearray(little_endian(raw, _number_width(dtype))), dtype=torch.uint8))
    tensor = flat.view(dtype).reshape(shape)
    return nn.Parameter(tensor, requires_grad) if is_parameter else tensor.requires_grad_(requires_grad)


# Arrays -------------------------------------------------------------------------------------------------------------


def _write_array(value: np.ndarray[Any, Any]) -> object:
    _check_array_dtype(value.dtype)
    check_inline(value.nbytes, f"an array of shape {value.shape}")
    width = value.dtype.itemsize // (2 if value.dtype.kind == "c" else 1)
    return {
        "data": to_base64(little_endian(np.ascontiguousarray(value).tobytes(), width)),
        "dtype": value.dtype.name,
        "shape": list(value.shape),
    }


def _check_array_dtype(dtype: np.dtype[Any]) -> None:
    if _ARRAY_DTYPES.get(dtype.name) != dtype:
        raise Flaw("no-data-form", f"an array of {dtype} has no data form; use one of {', '.join(_ARRAY_DTYPES)}.")


def _read_array(payload: object) -> np.ndarray[Any, Any]:
    data, dtype_name, sizes = read_fields(payload, "data", "dtype", "shape")
    dtype = _ARRAY_DTYPES.get(dtype_name) if isinstance(dtype_name, str) else None
    if dtype is None:
        raise Flaw("bad-value", f"{shown(dtype_name)} is no dtype of an array: {', '.join(_ARRAY_DTYPES)}.")
    shape = _read_shape(sizes)
    raw = _read_data(data, shape, dtype.itemsize)
    if dtype.kind == "b":
        _check_bools(raw)
    width = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    array: np.ndarray[Any, Any] = np.frombuffer(little_endian(raw, width), dtype=dtype).reshape(shape).copy()
    return array


def _write_scalar(value: np.generic) -> object:
    written = _write_array(np.asarray(value))
    assert isinstance(written, dict)
    return {"data": written["data"], "dtype": written["dtype"]}


def _read_scalar(payload: object) -> np.generic:
    data, dtype_name = read_fields(payload, "data", "dtype")
    return cast(np.generic, _read_array({"data": data, "dtype": dtype_name, "shape": []})[()])


DATA_LEAVES: tuple[Leaf, ...] = (
    Leaf("$tensor", (torch.Tensor, nn.Parameter), _write_tensor, _read_tensor, has_identity=True, is_hashable=False),
    Leaf("$array", (np.ndarray,), _write_array, _read_array, has_identity=True, is_hashable=False),
    Leaf("$scalar", tuple(dtype.type for dtype in _ARRAY_DTYPES.values()), _write_scalar, _read_scalar),
)
