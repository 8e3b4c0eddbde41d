"""Sealed weights: a safetensors file that shows every change of itself.

    length, header { metadata { seal, sums, sha256, ... }, one entry for each tensor }, bytes of the tensors

Any reader of safetensors opens it. The seal is the SHA-256 of the length and the header, itself taken as zeros; the
sums (`replayml.recipe.files.sums`) and the SHA-256 in the header are those of the bytes of the tensors.

Invariants:
    * A file with one flipped bit, or of another size, is refused: the header when it is opened, the bytes when
      `Container.check` has read them.
    * The bytes of the tensors stand without gaps in the order of the header, each aligned to its type.
    * Opening reads the header only; tensors are parts of the mapped file, and nothing is copied.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import torch

from replayml.core.errors import RecipeError
from replayml.recipe.faults import UNTOUCHED, shown
from replayml.recipe.files.regular import map_file
from replayml.recipe.files.sums import Sums, digest_of
from replayml.recipe.format import Limits, canonical
from replayml.recipe.text.strict import parse

__all__ = ["Container", "Entry", "open_container", "write_container"]

_METADATA = "__metadata__"
_SEAL, _SUMS, _SHA256, _VIEWS = "replayml.seal", "replayml.sums", "replayml.sha256", "replayml.views"
_START = f'{{"{_METADATA}":{{"{_SEAL}":"'.encode()
_UNSEALED = "0" * 64
_ALIGNMENT = 64
_MOST_HEADER = 64 * 1024 * 1024
_MOST_TENSORS = 200_000
_MOST_DIMENSIONS = 64

_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "BF16": torch.bfloat16,
        "BOOL": torch.bool,
        "C64": torch.complex64,
        "F16": torch.float16,
        "F32": torch.float32,
        "F64": torch.float64,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
        "F8_E5M2": torch.float8_e5m2,
        "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
        "F8_E8M0": torch.float8_e8m0fnu,
        "I16": torch.int16,
        "I32": torch.int32,
        "I64": torch.int64,
        "I8": torch.int8,
        "U16": torch.uint16,
        "U32": torch.uint32,
        "U64": torch.uint64,
        "U8": torch.uint8,
    }
)
_NAMES: Mapping[torch.dtype, str] = MappingProxyType({dtype: name for name, dtype in _DTYPES.items()})

# Types that safetensors has no name for, by ours: the type, that of the numbers it is made of, and how many they are.
_VIEWED: Mapping[str, tuple[torch.dtype, str, int]] = MappingProxyType(
    {"complex128": (torch.complex128, "F64", 2), "complex32": (torch.complex32, "F16", 2)}
)
_VIEW_NAMES: Mapping[torch.dtype, str] = MappingProxyType({dtype: name for name, (dtype, _, _) in _VIEWED.items()})


class Entry(NamedTuple):
    """Where a tensor stands.

    Attributes:
        dtype: Its type.
        shape: Its shape.
        start: Its first byte, counted from the end of the header.
        stop: The byte after its last one.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


# Writing --------------------------------------------------------------------------------------------------------


def write_container(file: BinaryIO, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a sealed file.

    Args:
        file: An open, empty file in which one can move about.
        tensors: The tensors by name.
        metadata: Texts by name, for the header.

    Raises:
        RecipeError: When a tensor has no data form.
    """
    header = _Header(tensors, metadata)
    file.write(header.text(_UNSEALED, _UNSEALED))
    sums = Sums(file.write)
    for name in header.order:
        for piece in _bytes(tensors[name]):
            sums.add(piece)
    digest, sha256 = sums.finish()
    file.seek(0)
    file.write(header.text(digest, sha256))


class _Header:
    """The header of a file that is written: it has the same length before and after the digests are known."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
        self._metadata = dict(metadata)
        self._entries: dict[str, object] = {}
        stored = {name: _stored(name, tensor) for name, tensor in tensors.items()}
        views = {name: _VIEW_NAMES[tensor.dtype] for name, tensor in tensors.items() if tensor.dtype in _VIEW_NAMES}
        if views:
            self._metadata[_VIEWS] = canonical(views)
        self.order = sorted(stored, key=lambda name: -_DTYPES[stored[name][0]].itemsize)  # aligned without gaps
        start = 0
        for name in self.order:
            dtype, shape = stored[name]
            stop = start + tensors[name].nbytes
            self._entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
            start = stop

    def text(self, sums: str, sha256: str) -> bytes:
        metadata = {_SEAL: _UNSEALED, "format": "pt", **self._metadata, _SHA256: sha256, _SUMS: sums}
        text = json.dumps({_METADATA: metadata, **self._entries}, separators=(",", ":")).encode("ascii")
        text += b" " * (-(8 + len(text)) % _ALIGNMENT)
        whole = len(text).to_bytes(8, "little") + text
        return whole.replace(_UNSEALED.encode(), _seal_of(whole).encode(), 1)


def _seal_of(head: bytes) -> str:
    """Return the seal of a length and a header, whose own place counts as zeros."""
    place = 8 + len(_START)
    return hashlib.sha256(head[:place] + _UNSEALED.encode() + head[place + len(_UNSEALED) :]).hexdigest()


def _stored(name: str, tensor: torch.Tensor) -> tuple[str, list[int]]:
    """Return the type and the shape under which a tensor is written."""
    if name == _METADATA:
        raise RecipeError("no-data-form", name, "a weight cannot have this name in a model file. Name it otherwise")
    if tensor.layout is not torch.strided:
        raise RecipeError("no-data-form", name, f"the layout of this tensor is {tensor.layout}. Make it dense")
    shape = list(tensor.shape)
    if tensor.dtype in _VIEW_NAMES:
        _, number, count = _VIEWED[_VIEW_NAMES[tensor.dtype]]
        return number, [*shape, count]
    if tensor.dtype not in _NAMES:
        raise RecipeError("no-data-form", name, f"tensors of type {tensor.dtype} cannot be written. Convert this one")
    return _NAMES[tensor.dtype], shape


def _bytes(tensor: torch.Tensor) -> Iterator[memoryview]:
    if tensor.numel():
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
        yield plain.reshape(-1).view(torch.uint8).numpy().data


# Reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Container:
    """A sealed file whose header was read.

    Attributes:
        path: The file.
        size: Its size in bytes.
        seal: The seal of its header.
        sums: The digest of the sums of the bytes of its tensors.
        sha256: Their SHA-256.
        metadata: The texts that it was written with.
        entries: Where each tensor stands.
    """

    path: Path
    size: int
    seal: str
    sums: str
    sha256: str
    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]
    _mapped: mmap.mmap = field(repr=False)
    _offset: int = field(repr=False)

    def _data(self) -> memoryview:
        return memoryview(self._mapped)[self._offset :]

    def check(self) -> None:
        """Read the bytes of all tensors once.

        Raises:
            RecipeError: When they are not those that were written.
        """
        if digest_of(self._data()) != self.sums:
            _refuse_changed(self.path, "weights")

    def check_sha256(self) -> None:
        """Do as `check`, with a digest that nobody can forge.

        Raises:
            RecipeError: When they are not those that were written.
        """
        if hashlib.sha256(self._data()).hexdigest() != self.sha256:
            _refuse_changed(self.path, "weights")

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor, which stays in the file until it is used; changing it does not change the file."""
        entry = self.entries[name]
        if entry.start == entry.stop:
            return torch.empty(entry.shape, dtype=entry.dtype)
        count = math.prod(entry.shape)
        flat = torch.frombuffer(self._mapped, dtype=entry.dtype, count=count, offset=self._offset + entry.start)
        return flat.view(entry.shape)


def _refuse_changed(path: Path, what: str) -> None:
    raise RecipeError(
        "changed-file", str(path), f"the {what} are not those that were written. Take another copy of the file"
    )


def open_container(path: Path, limits: Limits) -> Container:
    """Open a sealed file and read its header. Nothing is imported, called or unpickled.

    Args:
        path: The file.
        limits: How much the texts in the header may hold.

    Raises:
        RecipeError: When it is no such file, or was changed.
        OSError: When it cannot be opened.
    """
    mapped = map_file(path)
    start = mapped[: 8 + len(_START)]
    if start[8:] != _START:
        raise RecipeError("foreign-format", str(path), f"{_kind_of(start)}. {UNTOUCHED}")
    length = int.from_bytes(start[:8], "little")
    if length > _MOST_HEADER:
        raise RecipeError("too-large", str(path), f"a header of {length} bytes; at most {_MOST_HEADER} are read")
    if 8 + length > len(mapped):
        raise RecipeError("wrong-size", str(path), "the file ends within its header. Take a whole copy of it")
    head = mapped[: 8 + length]
    seal = head[len(start) : len(start) + len(_UNSEALED)].decode("ascii", errors="replace")
    if seal != _seal_of(head):
        _refuse_changed(path, "first bytes")
    bound = Limits(size=_MOST_HEADER, depth=4, values=16 * _MOST_TENSORS, string=2 * limits.size)
    document = parse(head[8:], bound)
    try:
        return _Reader(document, len(mapped) - len(head), len(head)).container(path, mapped, seal)
    except _Bad as bad:
        raise RecipeError("bad-weights", str(path), f"{bad}. {UNTOUCHED}") from None


class _Bad(Exception):  # noqa: N818 - it never leaves this module
    """A header that says what no header can."""


def _kind_of(start: bytes) -> str:
    if start.startswith(b"PK"):
        return "this is a zip archive, such as torch.save writes, and no model file; a checkpoint is named .ckpt"
    if start.startswith((b"\x80", b"\x1f\x8b", b"\x89HDF")):
        return "this is a pickle, gzip or HDF5 file and no model file"
    if start[8:9] == b"{":
        return (
            "this is a safetensors file without a recipe. Build the model, and give it the weights: "
            "model.load_state_dict(safetensors.torch.load_file(path))"
        )
    return "this is no model file of replayml"


class _Reader:
    """Reads a header whose seal is whole; what it says may still be anything."""

    def __init__(self, document: object, size: int, offset: int) -> None:
        if not isinstance(document, dict):
            raise _Bad("the header is no object")
        metadata = document.pop(_METADATA, None)
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise _Bad("the metadata are no texts")
        self._metadata: dict[str, str] = metadata
        self._entries = document
        self._size = size
        self._offset = offset

    def container(self, path: Path, mapped: mmap.mmap, seal: str) -> Container:
        metadata = self._metadata
        views = self._views(metadata.pop(_VIEWS, "{}"))
        if metadata.pop(_SEAL, None) != seal or metadata.pop("format", None) != "pt":
            raise _Bad("the metadata are not those of a model")
        if not {_SUMS, _SHA256} <= metadata.keys():
            raise _Bad("the metadata lack the digests of the weights")
        sums, sha256 = metadata.pop(_SUMS), metadata.pop(_SHA256)
        entries = self._all(views)
        end = max((entry.stop for entry in entries.values()), default=0)
        if end != self._size:
            raise RecipeError(
                "wrong-size",
                str(path),
                f"the weights take {end} bytes and the file has {self._size} for them. Take a whole copy of it",
            )
        return Container(
            path,
            len(mapped),
            seal,
            sums,
            sha256,
            MappingProxyType(metadata),
            MappingProxyType(entries),
            mapped,
            self._offset,
        )

    def _views(self, text: str) -> Mapping[str, str]:
        views = parse(text, Limits())
        if not isinstance(views, dict) or not all(type(name) is str and name in _VIEWED for name in views.values()):
            raise _Bad("the types of the weights are not those of a model")
        if views.keys() - self._entries.keys():
            raise _Bad("types are given for weights that are not there")
        return views

    def _all(self, views: Mapping[str, str]) -> dict[str, Entry]:
        if len(self._entries) > _MOST_TENSORS:
            raise _Bad(f"{len(self._entries)} tensors; at most {_MOST_TENSORS} are read")
        entries = {name: self._entry(name, entry, views.get(name)) for name, entry in self._entries.items()}
        end = 0
        for name, entry in sorted(entries.items(), key=lambda pair: pair[1][2:]):
            if entry.start != end:
                raise _Bad(f"there is a gap before {shown(name)}, or it overlaps another one")
            end = entry.stop
        return entries

    def _entry(self, name: str, entry: Any, view: str | None) -> Entry:
        match entry:
            case {
                "dtype": str() as dtype_name,
                "shape": list() as shape,
                "data_offsets": [int() as start, int() as stop],
            }:
                is_whole = len(entry) == 3 and dtype_name in _DTYPES and len(shape) <= _MOST_DIMENSIONS
            case _:
                is_whole = False
        if not is_whole or not all(type(size) is int and 0 <= size < 2**48 for size in shape):
            raise _Bad(f"what is said of {shown(name)} is no tensor")
        dtype = _DTYPES[dtype_name]
        size = math.prod(shape) * dtype.itemsize
        if not 0 <= start <= stop <= self._size or stop - start != size or (self._offset + start) % dtype.itemsize:
            raise _Bad(f"{shown(name)} does not fill the bytes that it is given")
        if view is not None:
            dtype, number, count = _VIEWED[view]
            if dtype_name != number or shape[-1:] != [count]:
                raise _Bad(f"{shown(name)} is no tensor of type {view}")
            shape = shape[:-1]
        return Entry(dtype, tuple(shape), start, stop)
