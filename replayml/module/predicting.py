"""Running a built module over many rows, batch by batch.

Invariants:
    * Every input is split at the same rows, and every output is joined again in the order of the rows.
    * The module is in the mode, part by part, that it was in before, also when it raises.
    * No gradients are kept, and only one batch of inputs is on the device at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from numbers import Number
from typing import Any

import torch
from torch import nn

from replayml.core.errors import ArgumentError, ConfigurationError, NotBuiltError

__all__ = ["evaluating", "predict", "predict_batches"]


def predict(
    module: nn.Module,
    *inputs: Any,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    output_device: torch.device | str | None = None,
) -> Any:
    """Return the output of a built module for inputs of any number of rows.

    Args:
        module: A module with weights; it runs in evaluation mode and without gradients.
        *inputs: What its ``forward`` takes, each of the shape ``(rows, ...)``: tensors, NumPy arrays, lists of rows,
            or dicts and tuples of these. Arrays and lists of floats get the dtype of the module's weights; tensors
            keep theirs.
        batch_size: How many rows to run at once.
        device: Where to run, which is where the module must be; its own device by default.
        output_device: Where to gather the outputs; ``device`` by default.

    Returns:
        What ``forward`` returns, of the shape ``(rows, ...)``: a tensor, or tuples, lists and dicts of tensors.

    Raises:
        NotBuiltError: When the module has no weights yet.
        ConfigurationError: When the inputs differ in their number of rows, or an output has no row for each.
        ArgumentError: When an input or an output is of no type named above.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> predict(model, torch.zeros(100, 4), batch_size=8).shape
        torch.Size([100, 2])
        >>> model.training
        True
    """
    if batch_size < 1:
        raise ConfigurationError(f"predict takes batch_size >= 1, got {batch_size}")
    values = [_prepared(value, f"input {number}") for number, value in enumerate(inputs)]
    rows = _count(values)
    parts = [(start, min(start + batch_size, rows)) for start in range(0, rows, batch_size)] or [(0, 0)]
    joined = _run(module, ((values, *part) for part in parts), device, output_device)
    return joined if rows else _without_rows(joined)


def predict_batches(
    module: nn.Module,
    batches: Iterable[tuple[Any, ...]],
    device: torch.device | str | None = None,
    output_device: torch.device | str | None = None,
) -> Any:
    """Return the output of a built module for inputs that come in batches.

    Args:
        module: A module with weights; it runs in evaluation mode and without gradients.
        batches: The inputs of each batch, in a tuple; each as `predict` takes it.
        device: As for `predict`.
        output_device: As for `predict`.

    Returns:
        What ``forward`` returns, for the rows of all batches in their order.

    Raises:
        ConfigurationError: When there is no batch.

    Example:
        >>> batches = [(torch.zeros(3, 4),), (torch.zeros(2, 4),)]
        >>> predict_batches(nn.Linear(4, 2), batches).shape
        torch.Size([5, 2])
    """

    def whole() -> Iterator[tuple[list[Any], int, int]]:
        for inputs in batches:
            values = [_prepared(value, f"input {number}") for number, value in enumerate(inputs)]
            yield values, 0, _count(values)

    return _run(module, whole(), device, output_device)


def _run(
    module: nn.Module,
    parts: Iterable[tuple[list[Any], int, int]],
    device: torch.device | str | None,
    output_device: torch.device | str | None,
) -> Any:
    """Return the joined output for some rows of some inputs each: ``(inputs, start, stop)``."""
    record = module.__dict__.get("_record")
    if record is not None and not record.built:
        raise NotBuiltError(f"{type(module).__name__} has no weights yet. Build it first: model.build(example_input)")
    device = _device_of(module) if device is None else torch.device(device)
    output_device = device if output_device is None else torch.device(output_device)
    dtype = _dtype_of(module)
    outputs, sizes = [], []
    with evaluating(module), torch.no_grad():
        for values, start, stop in parts:
            batch = [_batch(value, start, stop, device, dtype) for value in values]
            outputs.append(_moved(module(*batch), output_device))
            sizes.append(stop - start or 1)  # one row of zeros stands for none: many modules take no empty batch
    if not outputs:
        raise ConfigurationError("predict got no batch: the data is empty")
    return _joined(outputs, sizes, "the output")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Be in evaluation mode while the block runs."""
    modes = [(below, below.training) for below in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for below, mode in modes:
            below.training = mode


def _device_of(module: nn.Module) -> torch.device:
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _dtype_of(module: nn.Module) -> torch.dtype:
    floats = (tensor.dtype for tensor in module.parameters() if tensor.is_floating_point())
    return next(floats, torch.get_default_dtype())


# Inputs ---------------------------------------------------------------------------------------------------------


def _prepared(value: Any, place: str) -> Any:
    """Return an input as a tensor or an array, or as dicts and tuples of them."""
    if isinstance(value, Mapping):
        return {key: _prepared(item, f"{place}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple):
        return _like(value, [_prepared(item, f"{place}[{index}]") for index, item in enumerate(value)])
    if isinstance(value, list):
        value = _stacked(value, place)
    elif not isinstance(value, torch.Tensor):
        if not hasattr(value, "__array__"):
            raise ArgumentError(
                f"{place} is a {type(value).__name__}; predict takes tensors, NumPy arrays, lists of rows, and dicts "
                "and tuples of these. Bind anything else to the module first"
            )
        value = value.__array__()
    if value.ndim == 0:
        raise ConfigurationError(f"{place} is a single number; its first dimension should count the rows")
    return value


def _stacked(rows: list[Any], place: str) -> Any:
    if not rows:
        raise ConfigurationError(f"{place} is an empty list, which has no shape. Give a tensor of shape (0, ...)")
    try:
        if isinstance(rows[0], Number):
            return torch.tensor(rows).numpy()
        tensors = [torch.as_tensor(row) for row in rows]
        stacked = torch.stack(tensors)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError(f"{place} is a list of rows that do not fit together: {error}") from error
    return stacked if isinstance(rows[0], torch.Tensor) else stacked.numpy()


def _count(values: Sequence[Any]) -> int:
    """Return how many rows the inputs have."""
    counts = list(chain.from_iterable(_counts(value, f"input {index}") for index, value in enumerate(values)))
    if not counts:
        raise ConfigurationError("predict needs at least one input: model.predict(x)")
    if len({rows for _, rows in counts}) > 1:
        listed = ", ".join(f"{place} has {rows}" for place, rows in counts)
        raise ConfigurationError(f"the inputs differ in their number of rows: {listed}")
    return counts[0][1]


def _counts(value: Any, place: str) -> Iterator[tuple[str, int]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _counts(item, f"{place}[{key!r}]")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _counts(item, f"{place}[{index}]")
    else:
        yield place, value.shape[0]


def _batch(value: Any, start: int, stop: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Return some rows of an input on the device; one row of zeros for none."""
    if isinstance(value, dict):
        return {key: _batch(item, start, stop, device, dtype) for key, item in value.items()}
    if isinstance(value, tuple):
        return _like(value, [_batch(item, start, stop, device, dtype) for item in value])
    if isinstance(value, torch.Tensor):
        tensor = value[start:stop]
    else:
        # A copy of the rows alone: torch takes no read-only or reversed memory.
        tensor = torch.from_numpy(value[start:stop].copy())
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
    return (tensor if start < stop else tensor.new_zeros((1, *tensor.shape[1:]))).to(device)


# Outputs --------------------------------------------------------------------------------------------------------


def _moved(output: Any, device: torch.device) -> Any:
    if isinstance(output, torch.Tensor):
        return output.to(device)
    if isinstance(output, Mapping):
        return {key: _moved(item, device) for key, item in output.items()}
    if isinstance(output, (tuple, list)):
        return _like(output, [_moved(item, device) for item in output])
    return output


def _joined(parts: list[Any], sizes: Sequence[int], place: str) -> Any:
    """Return the outputs of all batches as one.

    Args:
        parts: The output of each batch.
        sizes: The rows of each batch.
        place: What the output is called in a message.
    """
    first = parts[0]
    if any(_shape(part) != _shape(first) for part in parts):
        raise ConfigurationError(f"{place} is not built alike for every batch, so that it cannot be joined")
    if isinstance(first, torch.Tensor):
        for part, rows in zip(parts, sizes, strict=True):
            _check_rows(part, rows, place)
        return parts[0] if len(parts) == 1 else _concatenated(parts, place)
    if isinstance(first, dict):
        return {key: _joined([part[key] for part in parts], sizes, f"{place}[{key!r}]") for key in first}
    if isinstance(first, (tuple, list)):
        columns = enumerate(zip(*parts, strict=True))
        return _like(first, [_joined(list(items), sizes, f"{place}[{index}]") for index, items in columns])
    if first is None:
        return None
    raise ArgumentError(
        f"{place} is a {type(first).__name__}; predict joins tensors, and tuples, lists and dicts of tensors"
    )


def _shape(output: Any) -> Any:
    """Return what must be the same in the outputs of all batches."""
    if isinstance(output, dict):
        return dict, set(output)
    return type(output), len(output) if isinstance(output, (tuple, list)) else 0


def _check_rows(output: torch.Tensor, rows: int, place: str) -> None:
    if output.dim() == 0:
        raise ConfigurationError(
            f"{place} is a single number for a whole batch, which has no rows to join. Let forward return one value "
            "for each row, or call the module itself"
        )
    if output.size(0) != rows:
        raise ConfigurationError(
            f"{place} has the shape {tuple(output.shape)} for a batch of {rows} rows; its first dimension should "
            "count the rows"
        )


def _concatenated(parts: list[Any], place: str) -> torch.Tensor:
    try:
        return torch.cat(parts)
    except RuntimeError as error:
        error.add_note(f"while joining {place} of {len(parts)} batches")
        raise


def _without_rows(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output[:0]
    if isinstance(output, dict):
        return {key: _without_rows(item) for key, item in output.items()}
    if isinstance(output, (tuple, list)):
        return _like(output, [_without_rows(item) for item in output])
    return output


def _like(old: tuple[Any, ...] | list[Any], items: list[Any]) -> Any:
    """Return a tuple or a list of the same class; named tuples keep their names."""
    make = getattr(type(old), "_make", type(old))
    return make(items)
