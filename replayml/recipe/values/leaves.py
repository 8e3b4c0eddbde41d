"""Values without parts: how each is spelled in a recipe, and read.

Invariants:
    * What is read equals what was written to the last bit, the sign of zero and the bits of a NaN included.
    * Reading a leaf runs torch's, NumPy's and Python's own constructors only, on data that was checked before.
    * A leaf has one spelling; every other one is refused.
    * A name in a leaf (a dtype, a device) is the key of a table that stands here.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from types import EllipsisType, MappingProxyType
from typing import Any

import torch

from replayml.core.tape import TreeRef
from replayml.recipe.faults import Flaw, shown
from replayml.recipe.format import INLINE_BYTES
from replayml.recipe.text.strict import check_integer

__all__ = [
    "DTYPES",
    "LEAVES",
    "Leaf",
    "check_inline",
    "check_keys",
    "check_keyword",
    "check_tag",
    "from_base64",
    "is_plain_float",
    "read_fields",
    "to_base64",
]


@dataclass(frozen=True, slots=True)
class Leaf:
    """How one kind of value is written and read.

    Attributes:
        tag: The key that marks it.
        types: The exact types that it is for.
        write: Makes the JSON value; raises `Flaw` when there is none.
        read: Makes the value; raises `Flaw` when the JSON value is not of the one right form.
        has_identity: One such object in two places is told from two equal ones.
        is_hashable: It may be the key of a dict or an element of a set.
    """

    tag: str
    types: tuple[type, ...]
    write: Callable[[Any], object]
    read: Callable[[object], object]
    has_identity: bool = False
    is_hashable: bool = True


# Reading: the shapes of JSON values ---------------------------------------------------------------------------------


def _bad(expected: str, payload: object) -> Flaw:
    return Flaw("bad-value", f"{expected} is expected here, not {shown(payload)}.")


def _text(payload: object, expected: str) -> str:
    if isinstance(payload, str):
        return payload
    raise _bad(expected, payload)


def _integers(payload: object, expected: str) -> list[int]:
    if isinstance(payload, list) and all(type(item) is int for item in payload):
        return payload
    raise _bad(expected, payload)


def read_fields(payload: object, *names: str) -> list[Any]:
    """Return the values of an object that has exactly these keys.

    Raises:
        Flaw: When it is no object or has other keys.
    """
    if isinstance(payload, dict) and payload.keys() == set(names):
        return [payload[name] for name in names]
    raise _bad(f"an object with the keys {', '.join(names)}", payload)


def check_keys(node: dict[str, object], required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
    """Refuse an object that lacks a key, or has one too many.

    Raises:
        Flaw: When it does.
    """
    unknown = sorted(node.keys() - set(required) - set(optional))
    if unknown:
        known = ", ".join(sorted({*required, *optional}))
        raise Flaw("unknown-key", f"the key {shown(unknown[0])} is unknown here. The keys are: {known}.")
    missing = [key for key in required if key not in node]
    if missing:
        raise Flaw("missing-key", f"the key {missing[0]!r} is missing.")


def check_inline(size: int, kind: str) -> None:
    """Refuse data that is too large to stand inside a recipe.

    Raises:
        Flaw: When it is.
    """
    if size > INLINE_BYTES:
        raise Flaw(
            "large-data",
            f"{kind} of {size} bytes; a recipe holds up to {INLINE_BYTES}. Make it in the module's __init__, or hand "
            "in a function that returns it, its path or its seed.",
        )


def to_base64(data: bytes) -> str:
    """Return bytes as text."""
    return base64.b64encode(data).decode("ascii")


def _write_bytes(value: bytes) -> object:
    check_inline(len(value), "bytes")
    return to_base64(value)


def from_base64(payload: object) -> bytes:
    """Return the bytes of a text.

    Raises:
        Flaw: When the text is not the one base64 spelling of any bytes.
    """
    text = _text(payload, "base64 text")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _bad("base64 text", payload) from None
    if to_base64(data) != text:
        raise Flaw("not-canonical", f"{shown(payload)} is not the one base64 spelling of its bytes.")
    return data


# Numbers ------------------------------------------------------------------------------------------------------------

_FLOATS: Mapping[str, float] = MappingProxyType({"inf": math.inf, "-inf": -math.inf, "nan": math.nan, "-0.0": -0.0})
_NAN_BITS = struct.pack(">d", math.nan)


def is_plain_float(value: float) -> bool:
    """Tell whether a float is written as a bare JSON number."""
    return math.isfinite(value) and not (value == 0.0 and math.copysign(1.0, value) < 0)


def _write_float(value: float) -> object:
    """Return the name of an infinity, a NaN or the negative zero; a NaN with other bits shows them."""
    bits = struct.pack(">d", value)
    return bits.hex() if math.isnan(value) and bits != _NAN_BITS else str(value)


def _read_float(payload: object) -> float:
    text = _text(payload, "the name of a float")
    if text in _FLOATS:
        return _FLOATS[text]
    if re.fullmatch(r"[0-9a-f]{16}", text):
        bits = bytes.fromhex(text)
        value: float = struct.unpack(">d", bits)[0]
        if math.isnan(value) and bits != _NAN_BITS:
            return value
    raise _bad(f"one of {', '.join(_FLOATS)}, or the bits of another NaN,", payload)


def _write_complex(value: complex) -> object:
    return [part if is_plain_float(part) else {"$float": _write_float(part)} for part in (value.real, value.imag)]


def _read_complex(payload: object) -> complex:
    if not isinstance(payload, list) or len(payload) != 2:
        raise _bad("two floats", payload)
    return complex(*(_read_part(part) for part in payload))


def _read_part(part: object) -> float:
    if isinstance(part, float) and is_plain_float(part):
        return part
    return _read_float(read_fields(part, "$float")[0])


def _write_slice(value: slice) -> object:
    parts = [value.start, value.stop, value.step]
    for part in parts:
        if part is not None and type(part) is not int:
            raise Flaw("no-data-form", f"a slice of {type(part).__name__} has no data form; use integers.")
        if part is not None:
            check_integer(part)
    return parts


def _read_slice(payload: object) -> slice:
    if isinstance(payload, list) and len(payload) == 3 and all(part is None or type(part) is int for part in payload):
        return slice(*payload)
    raise _bad("a slice of three integers or nulls", payload)


def _write_range(value: range) -> object:
    parts = [value.start, value.stop, value.step]
    for part in parts:
        check_integer(part)
    return parts


def _read_range(payload: object) -> range:
    parts = _integers(payload, "a range of three integers")
    if len(parts) != 3 or parts[2] == 0:
        raise _bad("a range of three integers, the last not zero,", payload)
    return range(*parts)


def _read_ellipsis(payload: object) -> EllipsisType:
    if payload is not None:
        raise _bad("null", payload)
    return ...


# Paths --------------------------------------------------------------------------------------------------------------

_PATHS: Mapping[str, type[PurePath]] = MappingProxyType(
    {"Path": Path, "PurePosixPath": PurePosixPath, "PureWindowsPath": PureWindowsPath}
)


def _write_path(value: PurePath) -> object:
    kind = type(value).__name__ if type(value).__name__ in _PATHS else "Path"
    return [kind, value.as_posix()]


def _read_path(payload: object) -> PurePath:
    if isinstance(payload, list) and len(payload) == 2:
        kind = _PATHS.get(_text(payload[0], "a kind of path"))
        text = _text(payload[1], "a path")
        if kind is not None:
            path = kind(text)
            if path.as_posix() != text:
                raise Flaw("not-canonical", f"the path {shown(text)} has another spelling: {shown(path.as_posix())}.")
            return path
    raise _bad(f"a path, [one of {', '.join(_PATHS)}, text],", payload)


# torch --------------------------------------------------------------------------------------------------------------


def _pinned(names: str) -> Mapping[str, Any]:
    """Return what torch has of a list of names."""
    return MappingProxyType({name: vars(torch)[name] for name in names.split() if name in vars(torch)})


DTYPES: Mapping[str, torch.dtype] = _pinned(
    "bool uint8 int8 int16 int32 int64 uint16 uint32 uint64 float16 bfloat16 float32 float64 complex32 complex64 "
    "complex128 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu qint8 quint8 qint32"
)
LAYOUTS: Mapping[str, torch.layout] = _pinned("strided sparse_coo sparse_csr sparse_csc sparse_bsr sparse_bsc jagged")
MEMORY_FORMATS: Mapping[str, torch.memory_format] = _pinned(
    "contiguous_format channels_last channels_last_3d preserve_format"
)
DEVICES = ("cpu", "cuda", "mps", "meta", "xpu", "hpu", "xla", "mtia")
_DEVICE = re.compile(rf"({'|'.join(DEVICES)})(:(0|[1-9][0-9]?))?")


def _from_table(table: Mapping[str, Any], kind: str) -> tuple[Callable[[Any], object], Callable[[object], object]]:
    names = {value: name for name, value in table.items()}

    def write(value: object) -> object:
        if value not in names:
            raise Flaw("no-data-form", f"{value} is not among the {kind}s of a recipe: {', '.join(table)}.")
        return names[value]

    def read(payload: object) -> object:
        name = _text(payload, f"a {kind}")
        if name not in table:
            raise _bad(f"a {kind} ({', '.join(table)})", payload)
        return table[name]

    return write, read


def _write_device(value: torch.device) -> object:
    if not _DEVICE.fullmatch(str(value)):
        raise Flaw("no-data-form", f"the device {value} is not among those of a recipe: {', '.join(DEVICES)}.")
    return str(value)


def _read_device(payload: object) -> torch.device:
    text = _text(payload, "a device")
    if not _DEVICE.fullmatch(text):
        raise _bad(f"a device ({', '.join(DEVICES)}, with or without :index)", payload)
    return torch.device(text)


def _read_size(payload: object) -> torch.Size:
    return torch.Size(_integers(payload, "a list of integers"))


def check_tag(tag: object) -> str:
    """Return one step of a path in a module tree.

    Raises:
        Flaw: When it is no text, or could name something that is not a child.
    """
    if isinstance(tag, str) and tag and not tag.startswith("__"):
        return tag
    raise Flaw("bad-target", f"{shown(tag)} cannot name a part of a model: it must be text, without leading '__'.")


def check_keyword(name: object) -> str:
    """Return the name of a keyword argument.

    Raises:
        Flaw: When it is no text, or one that replayml or Python keeps for itself.
    """
    if isinstance(name, str) and name and not name.startswith(("__", "$")):
        return name
    raise Flaw("bad-argument", f"{shown(name)} cannot be a keyword argument: it must be text, without leading '__'.")


def _write_tree(value: TreeRef) -> object:
    payload = [[check_tag(tag) for tag in value.tags], None if value.name is None else check_tag(value.name)]
    return [*payload, True if value.outer == 1 else value.outer] if value.outer else payload


def _read_tree(payload: object) -> TreeRef:
    if isinstance(payload, list) and len(payload) in (2, 3) and isinstance(payload[0], list):
        tags, name, *outer = payload
        if not outer or outer[0] is True or (type(outer[0]) is int and outer[0] > 1):
            path = tuple(check_tag(tag) for tag in tags)
            return TreeRef(path, None if name is None else check_tag(name), int(outer[0]) if outer else 0)
    raise _bad("[a list of tags, a name or null], or these and true or a number from 2", payload)


# The table ----------------------------------------------------------------------------------------------------------

_write_dtype, _read_dtype = _from_table(DTYPES, "dtype")
_write_layout, _read_layout = _from_table(LAYOUTS, "layout")
_write_memory_format, _read_memory_format = _from_table(MEMORY_FORMATS, "memory format")

LEAVES: tuple[Leaf, ...] = (
    Leaf("$float", (float,), _write_float, _read_float),
    Leaf("$complex", (complex,), _write_complex, _read_complex),
    Leaf("$bytes", (bytes,), _write_bytes, from_base64),
    Leaf("$ellipsis", (EllipsisType,), lambda _: None, _read_ellipsis),
    Leaf("$slice", (slice,), _write_slice, _read_slice, is_hashable=False),
    Leaf("$range", (range,), _write_range, _read_range),
    Leaf("$path", (type(Path()), PurePosixPath, PureWindowsPath), _write_path, _read_path),
    Leaf("$dtype", (torch.dtype,), _write_dtype, _read_dtype),
    Leaf("$device", (torch.device,), _write_device, _read_device),
    Leaf("$size", (torch.Size,), list, _read_size),
    Leaf("$layout", (torch.layout,), _write_layout, _read_layout),
    Leaf("$memory_format", (torch.memory_format,), _write_memory_format, _read_memory_format),
    Leaf("$tree", (TreeRef,), _write_tree, _read_tree),
)
