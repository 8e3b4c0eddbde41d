"""What `fit` takes as data, turned into loaders.

Arrays are converted once, when the loader is made, and batches are cut out of the whole array rather than put
together sample by sample.

Invariants:
    * A batch has the structure of the data: a tuple of arrays gives tuples, a dict gives dicts, one array a tensor.
    * NumPy's float64 becomes torch's default dtype, for it is NumPy's default rather than a choice; every other dtype,
      and every tensor, stays as it is.
    * Loaders and data modules are returned as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, cast, overload

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, default_collate

from replayml.core.errors import ArgumentError, ConfigurationError

__all__ = ["ArrayDataset", "as_loader", "split_train_val"]

_ACCEPTED = (
    "a tensor, a NumPy array or a list of numbers (inputs only), a tuple such as (x, y) or a dict of those, "
    "a Dataset, a DataLoader or a LightningDataModule"
)


class ArrayDataset(Dataset[Any]):
    """Samples that stand in arrays with a common first dimension.

    Args:
        data: A tensor, NumPy array or list of numbers of shape ``(samples, ...)``, or a tuple or dict of those, at any
            depth. NumPy's float64 becomes torch's default dtype; all other dtypes stay.

    Raises:
        ArgumentError: When something in the data is no array of numbers.
        ConfigurationError: When the lengths differ, or there are no samples.

    Example:
        >>> samples = ArrayDataset({"x": [[0.0, 1.0], [2.0, 3.0]], "y": [0, 1]})
        >>> len(samples), samples[1]
        (2, {'x': tensor([2., 3.]), 'y': tensor(1)})
    """

    def __init__(self, data: Any) -> None:
        self.data = _converted(data, "data")
        lengths = {place: tensor.shape[0] if tensor.ndim else None for place, tensor in _tensors(self.data, "data")}
        if not lengths:
            raise ConfigurationError("data holds no arrays")
        for place, length in lengths.items():
            if length is None:
                raise ConfigurationError(f"{place} is a single number; its first dimension should count the samples")
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{place} has {length}" for place, length in lengths.items())
            raise ConfigurationError(f"the arrays hold different numbers of samples: {listed}")
        self._length = cast(int, next(iter(lengths.values())))
        if self._length == 0:
            raise ConfigurationError("data holds no samples: the first dimension is 0")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return _mapped(self.data, lambda tensor: tensor[index])

    def __getitems__(self, indices: Sequence[int]) -> _Batch:
        """Return the samples at the indices, cut out of the arrays at once; a `DataLoader` calls this."""
        return _Batch(self.data, torch.as_tensor(indices, dtype=torch.long))


class _Batch(Sequence[Any]):
    """Samples that were cut out of arrays at once; to whom does not know, a sequence of samples."""

    def __init__(self, data: Any, indices: Tensor) -> None:
        self.tensors = _mapped(data, lambda tensor: tensor[indices.to(tensor.device)])
        self._length = len(indices)

    def __getitem__(self, index: Any) -> Any:
        return _mapped(self.tensors, lambda tensor: tensor[index])

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(self._length))


def _collate(samples: Any) -> Any:
    return samples.tensors if isinstance(samples, _Batch) else default_collate(samples)


@overload
def as_loader(
    data: LightningDataModule,
    batch_size: int = 32,
    shuffle: bool = False,
    *,
    seed: int | None = None,
    **options: Any,
) -> LightningDataModule: ...
@overload
def as_loader(
    data: object,
    batch_size: int = 32,
    shuffle: bool = False,
    *,
    seed: int | None = None,
    **options: Any,
) -> DataLoader[Any]: ...
def as_loader(
    data: object,
    batch_size: int = 32,
    shuffle: bool = False,
    *,
    seed: int | None = None,
    **options: Any,
) -> DataLoader[Any] | LightningDataModule:
    """Return a loader for whatever `fit`, `validate`, `test` and `predict` take as data.

    Args:
        data: Arrays of shape ``(samples, ...)`` as `ArrayDataset` takes them: ``(x, y)``, ``{"x": x, "y": y}`` or
            ``x`` alone; or a `Dataset`. A `DataLoader`, several of them in a list, tuple or dict, a `CombinedLoader`
            and a `LightningDataModule` know their batches, and are returned as they are.
        batch_size: The samples of a batch.
        shuffle: Whether each epoch draws the samples in a new order. An `IterableDataset` keeps its own order.
        seed: Draw the orders from a generator with this seed, the same in every run, rather than from torch's global
            one.
        **options: Further arguments of `DataLoader`, such as ``num_workers`` or ``drop_last``.

    Returns:
        The loader, or the data module.

    Raises:
        ArgumentError: When the data is nothing of the above.
        ConfigurationError: When arrays differ in length, or hold no samples.

    Example:
        >>> loader = as_loader(([[0.0], [1.0], [2.0]], [0, 1, 0]), batch_size=2)
        >>> [(tuple(x.shape), y.tolist()) for x, y in loader]
        [((2, 1), [0, 1]), ((1, 1), [0])]
    """
    if isinstance(data, (DataLoader, LightningDataModule)):
        return data
    if isinstance(data, CombinedLoader) or _holds_loaders(data):
        return cast("DataLoader[Any]", data)  # Lightning takes them wherever it takes a loader
    dataset: Dataset[Any] = data if isinstance(data, Dataset) else ArrayDataset(data)
    if isinstance(dataset, IterableDataset):
        return DataLoader(dataset, batch_size, **options)
    if seed is not None:
        options.setdefault("generator", torch.Generator().manual_seed(seed))
    options.setdefault("collate_fn", _collate)
    return DataLoader(dataset, batch_size, shuffle, **options)


def split_train_val(data: Any, val_fraction: float = 0.2, *, seed: int = 0) -> tuple[Any, Any]:
    """Split data at random into a part to train with and a part to validate with.

    Args:
        data: Arrays as `ArrayDataset` takes them, or a `Dataset` with a length.
        val_fraction: The part to validate with, in (0, 1); each part gets at least one sample.
        seed: Decides who goes where; the same seed splits data of the same length in the same way.

    Returns:
        Two of what was given: tensors in the same structure, or two subsets of the dataset.

    Raises:
        ArgumentError: When the data has no length, or is a loader.
        ConfigurationError: When the fraction is outside (0, 1), or there are fewer than two samples.

    Example:
        >>> (x, y), (x_val, y_val) = split_train_val((torch.arange(10), torch.arange(10)))
        >>> len(x), len(x_val), bool((x == y).all())
        (8, 2, True)
    """
    if not 0 < val_fraction < 1:
        raise ConfigurationError(f"val_fraction should lie between 0 and 1, got {val_fraction}")
    if isinstance(data, (DataLoader, LightningDataModule, CombinedLoader)):
        raise ArgumentError(f"a {type(data).__name__} cannot be split; split the data before making loaders of it")
    dataset: Dataset[Any] = data if isinstance(data, Dataset) else ArrayDataset(data)
    length = _length_of(dataset)
    if length < 2:
        raise ConfigurationError(f"a split takes at least two samples, the data holds {length}")
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    for_val = min(max(round(length * val_fraction), 1), length - 1)
    val, train = order[:for_val].sort().values, order[for_val:].sort().values
    if isinstance(dataset, ArrayDataset) and dataset is not data:
        return _Batch(dataset.data, train).tensors, _Batch(dataset.data, val).tensors
    return Subset(dataset, train.tolist()), Subset(dataset, val.tolist())


def _length_of(dataset: Dataset[Any]) -> int:
    if not isinstance(dataset, Sized):
        raise ArgumentError(f"{type(dataset).__name__} has no length, so it cannot be split; split what it reads from")
    return len(dataset)


def _holds_loaders(data: object) -> bool:
    values = list(data.values()) if isinstance(data, Mapping) else data
    return isinstance(values, (list, tuple)) and bool(values) and all(isinstance(value, DataLoader) for value in values)


def _mapped(data: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return the structure with every tensor changed."""
    if isinstance(data, Tensor):
        return change(data)
    if isinstance(data, dict):
        return {key: _mapped(value, change) for key, value in data.items()}
    return _tuple_like(data, [_mapped(value, change) for value in data])


def _tensors(data: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the structure with its place."""
    if isinstance(data, Tensor):
        yield place, data
    else:
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from _tensors(value, f"{place}[{key!r}]")


def _converted(data: Any, place: str) -> Any:
    """Return the structure with every array as a tensor."""
    if isinstance(data, Tensor):
        return data
    if isinstance(data, Mapping):
        return {key: _converted(value, f"{place}[{key!r}]") for key, value in data.items()}
    if isinstance(data, tuple):
        return _tuple_like(data, [_converted(value, f"{place}[{index}]") for index, value in enumerate(data)])
    if isinstance(data, list):
        return _from_list(data, place)
    if hasattr(data, "__array__"):
        return _from_numpy(np.asarray(data), place)
    raise ArgumentError(f"{place} is a {type(data).__name__}. It should be {_ACCEPTED}")


def _from_list(values: list[Any], place: str) -> Tensor:
    if any(isinstance(value, (Tensor, np.ndarray)) for value in values):
        raise ArgumentError(
            f"{place} is a list of arrays, which may mean several inputs or several samples. "
            "Pass several inputs as a tuple, (x, y), and several samples as one array, torch.stack([...])"
        )
    try:
        return torch.tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"{place} is a list that makes no array of numbers: {error}") from error


def _from_numpy(array: np.ndarray[Any, Any], place: str) -> Tensor:
    if array.dtype.kind not in "biufc":
        raise ArgumentError(f"{place} is an array of dtype {array.dtype}, which holds no numbers; encode it first")
    if not array.flags.writeable or not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")  # torch takes none of these
    tensor = torch.as_tensor(array)
    return tensor.to(torch.get_default_dtype()) if array.dtype == np.float64 else tensor


def _tuple_like(data: tuple[Any, ...], values: list[Any]) -> tuple[Any, ...]:
    """Return the values as a tuple of the same kind, named or not."""
    return type(data)(*values) if hasattr(data, "_fields") else tuple(values)
