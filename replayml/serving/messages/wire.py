r"""Values as bytes, with their tensors as they are in memory: the typed body, in both directions.

    b"RPMT" | length of the header, 4 bytes | header, JSON | zeros up to 16 | tensor | zeros up to 16 | tensor ...
    header: {"value": ..., "tensors": [["float32", [3, 4]], ...]}

All numbers are little endian. In ``value`` a tensor is ``{"$tensor": 0}``, its position in ``tensors``; an array of
NumPy is ``{"$array": 0}``, a tuple ``{"$tuple": [...]}``, a dict with keys other than plain strings ``{"$dict": [[key,
value], ...]}``, a float that JSON lacks ``{"$float": "nan"}``, a large int ``{"$int": "..."}``.

Invariants:
    * Nothing is unpickled, imported or called; a tag that is not in this list is refused.
    * Bytes that are read back give the same values, to the last bit of every tensor.
    * The length is compared with the shapes before anything is made of it, and no byte is left over.
    * Reading takes time in proportion to the length: keys that a dict would search through one by one are refused.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
import torch

from replayml.core.errors import ArgumentError
from replayml.serving.errors import Refusal

__all__ = ["DTYPES", "MEDIA_TYPE", "decode", "dtype_name", "encode", "plain"]

MEDIA_TYPE = "application/vnd.replayml.tensors"

_MAGIC = b"RPMT"
_LENGTH = struct.Struct("<I")
_ALIGNMENT = 16
_MOST_TENSORS = 10_000
_MOST_DIMENSIONS = 32
_LONGEST_INT = 1000
_MOST_MEETINGS = 16
_PERTURB_SHIFT = 5
_WORD = 2**64 - 1
_FLOATS: Mapping[str, float] = MappingProxyType({"nan": math.nan, "inf": math.inf, "-inf": -math.inf})

_NAMES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
)
DTYPES: Mapping[str, torch.dtype] = MappingProxyType({name: getattr(torch, name) for name in _NAMES})
"""The dtypes that are sent, by name."""

_DTYPE_NAMES: Mapping[torch.dtype, str] = MappingProxyType({dtype: name for name, dtype in DTYPES.items()})


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype.

    Raises:
        ArgumentError: When tensors of this dtype are not sent.
    """
    if dtype not in _DTYPE_NAMES:
        raise ArgumentError(f"a tensor of {dtype} is not sent; convert it to one of {', '.join(_NAMES)}")
    return _DTYPE_NAMES[dtype]


# Writing --------------------------------------------------------------------------------------------------------


def encode(value: Any) -> bytes:
    """Return a value as bytes.

    Args:
        value: None, bools, numbers, strings, tensors, NumPy arrays, and lists, tuples and dicts of these. Of a tensor
            its values are sent, wherever they are; a named tuple becomes a tuple.

    Raises:
        ArgumentError: When there is something else in it; it names the place.

    Example:
        >>> decode(encode({"x": (1, torch.ones(2))}))
        {'x': (1, tensor([1., 1.]))}
    """
    tensors: list[torch.Tensor] = []
    written = {"value": _written(value, tensors, "value")}
    try:
        header = orjson.dumps({**written, "tensors": [[dtype_name(t.dtype), list(t.shape)] for t in tensors]})
    except orjson.JSONEncodeError as error:
        raise ArgumentError(f"this value cannot be sent, a text in it or its depth has no form: {error}") from error
    parts = [_MAGIC, _LENGTH.pack(len(header)), header]
    size = sum(map(len, parts))
    for tensor in tensors:
        data = _bytes_of(tensor)
        parts += [bytes(-size % _ALIGNMENT), data]
        size += -size % _ALIGNMENT + len(data)
    return b"".join(parts)


def _bytes_of(tensor: torch.Tensor) -> bytes:
    data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return _swapped(data, tensor.dtype)


def _swapped(data: bytes, dtype: torch.dtype) -> bytes:
    """Return numbers of this machine in little-endian order, or the other way round."""
    width = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
    if sys.byteorder == "little" or width == 1:
        return data
    return np.frombuffer(data, dtype=f"u{width}").byteswap().tobytes()


def _written(value: Any, tensors: list[torch.Tensor], place: str) -> Any:
    """Return a value as JSON, and put its tensors into a list."""
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else {"$int": _decimal(value, place)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": "nan" if value != value else f"{value}"}
    if isinstance(value, torch.Tensor):
        tensors.append(_plain_tensor(value, place))
        return {"$tensor": len(tensors) - 1}
    if isinstance(value, (np.ndarray, np.generic)):
        tensors.append(_tensor_of(value, place))
        return {"$array": len(tensors) - 1}
    if kind is list:
        return [_written(item, tensors, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [_written(item, tensors, f"{place}[{index}]") for index, item in enumerate(value)]}
    if isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _written(item, tensors, f"{place}[{key!r}]") for key, item in value.items()}
        pairs = [
            [_written(key, tensors, f"{place}, a key"), _written(item, tensors, f"{place}[{key!r}]")]
            for key, item in value.items()
        ]
        return {"$dict": pairs}
    raise ArgumentError(
        f"{place} is a {kind.__module__}.{kind.__qualname__}, which is not sent. Send None, bools, numbers, strings, "
        "tensors, NumPy arrays, or lists, tuples and dicts of these"
    )


def _decimal(value: int, place: str) -> str:
    if value.bit_length() > 3 * _LONGEST_INT:
        raise ArgumentError(f"{place} is an int of {value.bit_length()} bits, which is too large to be sent")
    return str(value)


def _plain_tensor(value: torch.Tensor, place: str) -> torch.Tensor:
    if value.layout is not torch.strided or value.is_quantized or value.device.type == "meta":
        raise ArgumentError(f"{place} is a tensor without plain values ({value.layout}, {value.device}); make it dense")
    return value.detach().resolve_conj().resolve_neg().cpu().contiguous()


def _tensor_of(value: Any, place: str) -> torch.Tensor:
    array = np.ascontiguousarray(value).reshape(np.shape(value))
    if array.dtype.name not in DTYPES:
        raise ArgumentError(f"{place} is an array of {array.dtype}, which is not sent")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=True))


# Reading --------------------------------------------------------------------------------------------------------


def decode(data: bytes | bytearray, depth: int = 64) -> Any:
    """Return the value that bytes are.

    Args:
        data: What `encode` returned. The tensors share the memory of a bytearray.
        depth: How deep the value may be nested.

    Raises:
        Refusal: When they are anything else.

    Example:
        >>> decode(b"RPMT!")
        Traceback (most recent call last):
            ...
        replayml.serving.errors.Refusal: ('malformed-tensors', {'reason': 'the header is cut short'})
    """
    if data[: len(_MAGIC)] != _MAGIC:
        raise _flaw("it does not start with RPMT")
    start = len(_MAGIC) + _LENGTH.size
    if len(data) < start:
        raise _flaw("the header is cut short")
    stop = start + _LENGTH.unpack_from(data, len(_MAGIC))[0]
    if len(data) < stop:
        raise _flaw("the header is cut short")
    try:
        header = orjson.loads(memoryview(data)[start:stop])
    except orjson.JSONDecodeError:
        raise _flaw("the header is no JSON") from None
    if not isinstance(header, dict) or header.keys() != {"value", "tensors"}:
        raise _flaw("the header does not hold 'value' and 'tensors'")
    tensors = _read_tensors(data if isinstance(data, bytearray) else bytearray(data), stop, header["tensors"])
    used: list[int] = []
    value = _read(header["value"], tensors, used, depth)
    if sorted(used) != list(range(len(tensors))):
        raise _flaw("each tensor stands at one place in the value")
    return value


def _flaw(reason: str) -> Refusal:
    return Refusal("malformed-tensors", {"reason": reason})


def _read_tensors(data: bytearray, offset: int, forms: Any) -> list[torch.Tensor]:
    if not isinstance(forms, list) or len(forms) > _MOST_TENSORS:
        raise _flaw(f"'tensors' is a list of at most {_MOST_TENSORS} pairs")
    tensors = []
    for form in forms:
        match form:
            case [str() as name, list() as shape] if name in DTYPES and len(shape) <= _MOST_DIMENSIONS:
                dtype = DTYPES[name]
            case _:
                raise _flaw(f"a tensor is [dtype, shape], with a dtype of {', '.join(_NAMES)}")
        if any(type(size) is not int or not 0 <= size < 2**48 for size in shape):
            raise _flaw("a shape is a list of sizes")
        padding = -offset % _ALIGNMENT
        if any(data[offset : offset + padding]):
            raise _flaw("zeros are expected between tensors")
        offset += padding
        size = math.prod(shape) * dtype.itemsize
        if len(data) < offset + size:
            raise _flaw("the tensors are cut short")
        tensors.append(_read_tensor(data, offset, size, dtype, shape))
        offset += size
    if len(data) != offset:
        raise _flaw("there are bytes behind the last tensor")
    return tensors


def _read_tensor(data: bytearray, offset: int, size: int, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    if size == 0:
        return torch.zeros(shape, dtype=dtype)
    if dtype is torch.bool and data[offset : offset + size].strip(b"\x00\x01"):
        raise _flaw("a bool is the byte 0 or 1")
    if sys.byteorder == "little":
        return torch.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=offset).reshape(shape)
    own = bytearray(_swapped(bytes(data[offset : offset + size]), dtype))
    return torch.frombuffer(own, dtype=dtype).reshape(shape)


def _read(value: Any, tensors: list[torch.Tensor], used: list[int], depth: int) -> Any:
    if isinstance(value, (list, dict)) and depth == 0:
        raise Refusal("too-deep")
    if isinstance(value, list):
        return [_read(item, tensors, used, depth - 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(tag, payload)] = value.items()
        if tag.startswith("$"):
            if tag not in _TAGS:
                raise _flaw("there is an unknown tag")
            return _TAGS[tag](payload, tensors, used, depth - 1)
    if any(key.startswith("$") for key in value):
        raise _flaw("a tag stands alone")
    return {key: _read(item, tensors, used, depth - 1) for key, item in value.items()}


def _read_index(payload: Any, tensors: list[torch.Tensor], used: list[int], depth: int) -> torch.Tensor:
    if type(payload) is not int or not 0 <= payload < len(tensors) or len(used) >= len(tensors):
        raise _flaw("each tensor stands at one place in the value")
    used.append(payload)
    return tensors[payload]


def _read_array(payload: Any, tensors: list[torch.Tensor], used: list[int], depth: int) -> Any:
    tensor = _read_index(payload, tensors, used, depth)
    if tensor.dtype is torch.bfloat16:
        raise _flaw("NumPy has no bfloat16")
    return tensor.numpy()


def _read_tuple(payload: Any, tensors: list[torch.Tensor], used: list[int], depth: int) -> tuple[Any, ...]:
    if not isinstance(payload, list):
        raise _flaw("a tuple is a list")
    return tuple(_read(item, tensors, used, depth) for item in payload)


def _read_dict(payload: Any, tensors: list[torch.Tensor], used: list[int], depth: int) -> dict[Any, Any]:
    if not isinstance(payload, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in payload):
        raise _flaw("a dict is a list of pairs")
    pairs = [(_read(key, tensors, used, depth), _read(item, tensors, used, depth)) for key, item in payload]
    try:
        if all(type(key) is str for key, _ in pairs) or not _is_crowded([hash(key) & _WORD for key, _ in pairs]):
            return dict(pairs)
    except TypeError:
        raise _flaw("a key of a dict is hashable") from None
    raise _flaw("the keys of a dict have different hashes")


def _is_crowded(hashes: Sequence[int]) -> bool:
    """Tell whether keys meet so often in the table of a dict that it takes much longer than its length lets expect.

    The hashes of strings are secret; those of numbers, and of tuples of them, are known to who sends them: such keys
    can be chosen to have one hash, or different ones that lead through the same places. So the places are counted
    that Python tries when it adds the keys one by one, in every size that the table has while it grows. Numbers of
    programs meet up to 12 times for each place.
    """
    size = 8
    while True:
        held = hashes[: size * 2 // 3]
        left = _MOST_MEETINGS * size
        is_taken = bytearray(size)
        for rest in held:
            place = rest & (size - 1)
            while is_taken[place]:
                left -= 1
                if left < 0:
                    return True
                rest >>= _PERTURB_SHIFT
                place = (place * 5 + rest + 1) & (size - 1)
            is_taken[place] = 1
        if len(held) == len(hashes):
            return False
        size *= 2


def _read_float(payload: Any, *_: Any) -> float:
    if not isinstance(payload, str) or payload not in _FLOATS:
        raise _flaw(f"such a float is one of {', '.join(_FLOATS)}")
    return _FLOATS[payload]


def _read_int(payload: Any, *_: Any) -> int:
    digits = payload.removeprefix("-") if isinstance(payload, str) else ""
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _LONGEST_INT):
        raise _flaw("such an int is its digits")
    return int(payload)


_TAGS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "$tensor": _read_index,
        "$array": _read_array,
        "$tuple": _read_tuple,
        "$dict": _read_dict,
        "$float": _read_float,
        "$int": _read_int,
    }
)


# Plain JSON -----------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """Return a result as values of JSON: tensors become nested lists, tuples lists.

    Raises:
        Refusal: When it holds NaN or Infinity, or something that has no such form.

    Example:
        >>> plain({"x": (1, torch.ones(2))})
        {'x': [1, array([1., 1.], dtype=float32)]}
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**64 else _no_form("an int beyond 64 bits")
    if kind is float:
        return value if math.isfinite(value) else _not_finite()
    if isinstance(value, torch.Tensor):
        tensor = value.detach().resolve_conj().resolve_neg().cpu()
        return _plain_array((tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy())
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain_array(np.asarray(value))
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: plain(item) for key, item in value.items()}
    return _no_form(f"a {kind.__name__}")


def _plain_array(array: Any) -> Any:
    if array.dtype.kind not in "biuf":
        return _no_form(f"an array of {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _not_finite()
    return np.ascontiguousarray(array) if array.ndim else array.item()


def _no_form(what: str) -> Any:
    raise Refusal("no-form", {"found": what})


def _not_finite() -> Any:
    raise Refusal("not-finite")
