"""What a module takes and returns: dtype and shape of every tensor, checked before the module runs.

Invariants:
    * The specs of the inputs come from the example that the service was given, those of the outputs from its run.
    * An input that does not fit is refused with what was expected and what was found; nothing is broadcast, cut or
      converted, but that numbers of JSON become the declared dtype where they fit into it.
    * People read and write a shape as ``[*,4]``, ``*`` for any number of rows; programs find -1 there in ``x-shape``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from replayml.core.errors import ConfigurationError
from replayml.serving.errors import Refusal
from replayml.serving.messages.parameters import Parameters, is_plain_default
from replayml.serving.messages.wire import DTYPES, dtype_name

__all__ = ["TensorSpec", "describe_output", "input_schema", "output_schema", "shape_text", "specs_of", "taken"]

_ROWS = None


class TensorSpec(NamedTuple):
    """The dtype and shape of a tensor.

    Attributes:
        dtype: The name of the dtype, such as ``"float32"``.
        shape: The size of each dimension; None where any size will do.
    """

    dtype: str
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{shape_text(self.shape)}"

    def is_fit_by(self, shape: Sequence[int]) -> bool:
        """Tell whether a tensor of some shape fits.

        Example:
            >>> TensorSpec("float32", (None, 3)).is_fit_by((5, 3))
            True
        """
        if len(shape) != len(self.shape):
            return False
        return all(wanted in (_ROWS, size) for wanted, size in zip(self.shape, shape, strict=True))


def shape_text(shape: Sequence[int | None]) -> str:
    """Return a shape as people read it, and write it for ``--input``.

    Example:
        >>> shape_text((None, 4)), str(TensorSpec("float32", (None, 4)))
        ('[*,4]', 'float32[*,4]')
    """
    return f"[{','.join('*' if size is None else str(size) for size in shape)}]"


def specs_of(example: Sequence[Any], *, any_rows: bool) -> tuple[TensorSpec, ...]:
    """Return the specs of example inputs.

    Args:
        example: The inputs.
        any_rows: Whether the first dimension counts rows, of which there may be any number.

    Raises:
        ConfigurationError: When one is no tensor, or has no first dimension.

    Example:
        >>> specs_of((torch.zeros(1, 3),), any_rows=True)
        (TensorSpec(dtype='float32', shape=(None, 3)),)
    """
    specs = []
    for index, value in enumerate(example):
        if not isinstance(value, torch.Tensor):
            raise ConfigurationError(f"example input {index} is a {type(value).__name__}; an example holds tensors")
        if any_rows and not value.dim():
            raise ConfigurationError(f"example input {index} is a single number; its first dimension should count rows")
        shape = (_ROWS, *value.shape[1:]) if any_rows else tuple(value.shape)
        specs.append(TensorSpec(dtype_name(value.dtype), shape))
    if any_rows and len({value.shape[0] for value in example}) > 1:
        raise ConfigurationError("the example inputs differ in their number of rows")
    return tuple(specs)


# Checking -------------------------------------------------------------------------------------------------------


def taken(specs: Sequence[TensorSpec], args: Sequence[Any], *, any_rows: bool) -> tuple[torch.Tensor, ...]:
    """Return inputs as the tensors that a module takes.

    Args:
        specs: What it takes.
        args: What came: tensors, or nested lists of numbers.
        any_rows: Whether the first dimension counts rows.

    Raises:
        Refusal: When something does not fit.

    Example:
        >>> taken([TensorSpec("float32", (None, 2))], [[[1, 2]]], any_rows=True)
        (tensor([[1., 2.]]),)
    """
    if len(args) != len(specs):
        raise Refusal("wrong-arguments", {"expected": f"{len(specs)} inputs", "found": len(args)})
    found = tuple(_taken(spec, value, index) for index, (spec, value) in enumerate(zip(specs, args, strict=True)))
    if any_rows:
        counts = [value.shape[0] for value in found]
        if len(set(counts)) > 1 or 0 in counts:
            raise Refusal("wrong-shape", {"expected": "the same number of rows, at least 1", "found": counts})
    return found


def _taken(spec: TensorSpec, value: Any, index: int) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, torch.Tensor):
        found = dtype_name(value.dtype)
        if found != spec.dtype:
            raise Refusal("wrong-dtype", {"input": index, "expected": spec.dtype, "found": found})
        _require_shape(spec, value.shape, index)
        return value
    return _from_numbers(spec, value, index)


def _require_shape(spec: TensorSpec, shape: Sequence[int], index: int) -> None:
    if not spec.is_fit_by(shape):
        detail = {"input": index, "expected": shape_text(spec.shape), "found": shape_text(shape)}
        raise Refusal("wrong-shape", detail | _way_out(spec, shape))


def _way_out(spec: TensorSpec, shape: Sequence[int]) -> dict[str, str]:
    """Return what to do about the first dimension, where that alone does not fit."""
    if TensorSpec(spec.dtype, spec.shape[1:]).is_fit_by(shape) and spec.shape:
        return {"hint": "The first dimension is missing: one row is a list of one, [row] or x[None]"}
    if len(shape) != len(spec.shape) or not TensorSpec(spec.dtype, spec.shape[1:]).is_fit_by(shape[1:]):
        return {}
    any_rows = TensorSpec(spec.dtype, (_ROWS, *spec.shape[1:]))
    return {
        "hint": "The first dimension is that of the example which the service was given. Start the service with "
        f"batch=True, or from the shell with --input '{any_rows}', and it takes any number of rows"
    }


def _from_numbers(spec: TensorSpec, value: Any, index: int) -> torch.Tensor:
    """Return the tensor that nested lists of numbers are."""
    try:
        array = np.array(value)
    except (ValueError, TypeError, OverflowError):
        detail = {"input": index, "expected": shape_text(spec.shape), "found": "a ragged list"}
        raise Refusal("wrong-shape", detail) from None
    if array.dtype.kind not in _KINDS[DTYPES[spec.dtype].is_floating_point, spec.dtype == "bool"] and array.size:
        found = "booleans" if array.dtype.kind == "b" else "floats" if array.dtype.kind == "f" else "no numbers"
        raise Refusal("wrong-dtype", {"input": index, "expected": spec.dtype, "found": found})
    _require_shape(spec, array.shape, index)
    wide = "float32" if spec.dtype == "bfloat16" else spec.dtype
    with np.errstate(over="ignore"):
        numbers = array.astype(wide)
    if numbers.dtype.kind == "f":
        fits = bool(np.isfinite(numbers).all())
    else:
        fits = numbers.dtype == array.dtype or bool((numbers == array).all())
    if not fits:
        raise Refusal("wrong-dtype", {"input": index, "expected": spec.dtype, "found": "numbers beyond its range"})
    return torch.from_numpy(numbers).to(DTYPES[spec.dtype])


_KINDS: Mapping[tuple[bool, bool], str] = {(True, False): "iuf", (False, False): "iu", (False, True): "b"}


# Telling --------------------------------------------------------------------------------------------------------


def describe_output(value: Any, rows: int | None) -> Any:
    """Return the form of a result as data: what stands in it, with the spec of each tensor.

    Args:
        value: The result.
        rows: How many rows the input had where the first dimension counts them, or None.
    """
    if isinstance(value, torch.Tensor):
        shape: tuple[int | None, ...] = tuple(value.shape)
        if rows is not None and shape and shape[0] == rows:
            shape = (_ROWS, *shape[1:])
        return TensorSpec(dtype_name(value.dtype), shape)
    if isinstance(value, (list, tuple)):
        return [describe_output(item, rows) for item in value]
    if isinstance(value, Mapping):
        return {str(key): describe_output(item, rows) for key, item in value.items()}
    return type(value)


def _tensor_schema(spec: TensorSpec) -> dict[str, Any]:
    dtype = DTYPES[spec.dtype]
    name = "boolean" if spec.dtype == "bool" else "number" if dtype.is_floating_point else "integer"
    schema: dict[str, Any] = {"type": name}
    if name == "integer":
        limits = torch.iinfo(dtype)
        schema |= {"minimum": limits.min, "maximum": limits.max}
    elif name == "number":
        limits_of = torch.finfo(dtype)
        schema |= {"minimum": limits_of.min, "maximum": limits_of.max}
    for size in reversed(spec.shape):
        schema = {"type": "array", "items": schema}
        schema |= {} if size is None else {"minItems": size, "maxItems": size}
    if spec.shape and spec.shape[0] is None:
        schema["minItems"] = 1
    shape = [-1 if size is None else size for size in spec.shape]
    return {**schema, "x-dtype": spec.dtype, "x-shape": shape}


def input_schema(specs: Sequence[TensorSpec] | None, takes: Parameters) -> dict[str, Any]:
    """Return the JSON schema of the body of a request.

    Args:
        specs: What the module takes; None where nothing was declared.
        takes: What its arguments are called, as far as that is known.
    """
    args: dict[str, Any] = {"type": "array", "description": "The positional arguments."}
    schema: dict[str, Any] = {"type": "object", "properties": {"args": args}, "additionalProperties": False}
    if specs is None:
        schema["properties"]["kwargs"] = {"type": "object", "description": "The arguments by name."}
        return schema | {"x-parameters": list(takes.names)}
    items = [_tensor_schema(spec) for spec in specs]
    names = takes.names
    titled = [item | ({"title": names[index]} if index < len(names) else {}) for index, item in enumerate(items)]
    args |= {"prefixItems": titled, "minItems": len(specs), "maxItems": len(specs) + len(takes.by_position)}
    if takes.by_name or takes.has_further:
        schema["properties"]["kwargs"] = {
            "type": "object",
            "description": "Further arguments, by name.",
            "properties": {name: _default(takes.by_name[name]) for name in takes.by_name},
            "additionalProperties": takes.has_further,
        }
    if takes.by_position:
        behind = range(len(specs) + 1, len(specs) + len(takes.by_position) + 1)
        schema["allOf"] = [{"not": _both(count, name)} for count, name in zip(behind, takes.by_position, strict=True)]
    schema["required"] = ["args"]
    return schema


def _both(count: int, name: str) -> dict[str, Any]:
    """Return the schema of a body that gives an argument by position, as one of so many, and by name."""
    by_position, by_name = {"minItems": count}, {"required": [name]}
    return {"properties": {"args": by_position, "kwargs": by_name}, "required": ["args", "kwargs"]}


def _default(value: Any) -> dict[str, Any]:
    return {"default": value} if is_plain_default(value) else {}


def output_schema(form: Any) -> dict[str, Any]:
    """Return the JSON schema of a result whose form `describe_output` told; None for an unknown form."""
    if isinstance(form, TensorSpec):
        return _without_limits(_tensor_schema(form))
    if isinstance(form, list):
        items = [output_schema(item) for item in form]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if isinstance(form, dict):
        properties = {name: output_schema(item) for name, item in form.items()}
        return {"type": "object", "properties": properties, "required": list(properties)}
    name = _JSON_TYPES.get(form)
    return {} if name is None else {"type": name}


def _without_limits(schema: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in schema.items() if name not in ("minimum", "maximum")}
    if isinstance(kept.get("items"), dict):
        kept["items"] = _without_limits(kept["items"])
    return kept


_JSON_TYPES: Mapping[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
