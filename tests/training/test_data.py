"""`as_loader` and `split_train_val`: what counts as data, and what batches look like."""

import pickle
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from replayml.core.errors import ArgumentError, ConfigurationError
from replayml.training.data import ArrayDataset, as_loader, split_train_val

Pair = namedtuple("Pair", ["x", "y"])


def arrays(length: int) -> st.SearchStrategy[Any]:
    """Return arrays whose rows are told apart by their number, as whatever may hold them."""
    rows = torch.arange(length)
    return st.sampled_from(
        [rows, rows.float()[:, None].expand(-1, 2), rows.numpy(), rows.tolist(), -rows.numpy()[::-1]]
    )


def structures(length: int) -> st.SearchStrategy[Any]:
    """Return arrays of one length in tuples and dicts, at any depth."""
    return st.recursive(
        arrays(length),
        lambda inner: (
            st.lists(inner, min_size=1, max_size=3).map(tuple)
            | st.dictionaries(st.sampled_from("abc"), inner, min_size=1)
        ),
        max_leaves=4,
    )


def leaves(data: Any) -> list[Tensor]:
    """Return the tensors of a structure, in order."""
    if isinstance(data, Tensor):
        return [data]
    return [leaf for value in (data.values() if isinstance(data, dict) else data) for leaf in leaves(value)]


def shape_of(data: Any) -> Any:
    """Return a structure without its arrays."""
    if isinstance(data, dict):
        return {key: shape_of(value) for key, value in data.items()}
    return tuple(shape_of(value) for value in data) if isinstance(data, tuple) else None


@given(data=st.integers(1, 9).flatmap(structures), batch_size=st.integers(1, 10))
def test_batches_are_the_data_in_pieces(data: Any, batch_size: int) -> None:
    """The batches have the structure of the data, and one after the other they are the data."""
    batches = list(as_loader(data, batch_size))
    assert all(shape_of(batch) == shape_of(data) for batch in batches)
    pieces = [torch.cat(column) for column in zip(*(leaves(batch) for batch in batches), strict=True)]
    for piece, whole in zip(pieces, leaves(ArrayDataset(data).data), strict=True):
        assert torch.equal(piece, whole)


@given(data=st.integers(1, 9).flatmap(structures), seed=st.integers(0, 99))
def test_shuffling_keeps_samples_together(data: Any, seed: int) -> None:
    """A shuffled epoch holds every sample once, and with a seed the order is the same in every loader."""
    first, second = (list(as_loader(data, 4, shuffle=True, seed=seed)) for _ in range(2))
    rows = [
        torch.cat([leaf.reshape(len(leaf), -1)[:, 0].abs() for leaf in column])
        for column in zip(*map(leaves, first), strict=True)
    ]
    whole = [leaf.reshape(len(leaf), -1)[:, 0].abs() for leaf in leaves(ArrayDataset(data).data)]
    order = rows[0].argsort()
    for got, expected, sorted_by in zip(rows, whole, [whole[0].argsort()] * len(whole), strict=True):
        assert torch.equal(got[order], expected[sorted_by])
    assert all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(leaves(x), leaves(y), strict=True)
    )


def test_epochs_are_shuffled_differently() -> None:
    """Each epoch of a seeded loader has an order of its own."""
    loader = as_loader(torch.arange(100), 100, shuffle=True, seed=1)
    (first,), (second,) = list(loader), list(loader)
    assert not torch.equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(100))


def test_a_seed_leaves_the_global_generator_alone() -> None:
    """Drawing orders from a seed neither uses nor changes torch's global random state."""
    state = torch.get_rng_state()
    split_train_val(torch.arange(9), seed=3)
    next(iter(ArrayDataset(torch.arange(9))))
    loader = as_loader(torch.arange(9), shuffle=True, seed=3)
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        orders.append([batch.tolist() for batch in as_loader(torch.arange(9), shuffle=True, seed=3)])
    torch.set_rng_state(state)
    assert orders[0] == orders[1]
    assert [batch.tolist() for batch in loader] == orders[0]


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.zeros(3), torch.float32),
        (np.zeros(3, np.float16), torch.float16),
        (np.zeros(3, np.float32), torch.float32),
        (np.zeros(3, np.int64), torch.int64),
        (np.zeros(3, np.uint8), torch.uint8),
        (np.zeros(3, bool), torch.bool),
        (np.zeros(3, ">f4"), torch.float32),
        (np.zeros(3, ">f8"), torch.float32),
        ([0.0, 1.0], torch.float32),
        ([0, 1], torch.int64),
        ([True, False], torch.bool),
        (torch.zeros(3, dtype=torch.float64), torch.float64),
        (torch.zeros(3, dtype=torch.bfloat16), torch.bfloat16),
    ],
)
def test_only_numpys_float64_changes_its_dtype(array: Any, dtype: torch.dtype) -> None:
    """NumPy's default dtype becomes torch's, every chosen dtype stays."""
    assert next(iter(as_loader(array))).dtype is dtype


def test_torchs_default_dtype_decides() -> None:
    """Where torch's default dtype is float64, NumPy's float64 stays."""
    torch.set_default_dtype(torch.float64)
    try:
        assert next(iter(as_loader(np.zeros(3)))).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_arrays_that_torch_does_not_take_are_copied() -> None:
    """A read-only array and one with negative strides are data like any other."""
    read_only = np.arange(3)
    read_only.flags.writeable = False
    (x, y), *_ = as_loader((read_only, np.arange(3)[::-1]))
    assert x.tolist() == [0, 1, 2]
    assert y.tolist() == [2, 1, 0]


def test_named_tuples_stay_named() -> None:
    """A named tuple of arrays gives batches of that type."""
    (batch,) = as_loader(Pair(torch.arange(3), torch.arange(3)))
    assert isinstance(batch, Pair)


def test_loaders_and_data_modules_are_returned_as_they_are() -> None:
    """What knows its batches is not wrapped: a loader, several of them, a data module."""
    loader, module = DataLoader(TensorDataset(torch.arange(3))), LightningDataModule()
    for data in (loader, module, [loader, loader], (loader,), {"a": loader}, CombinedLoader([loader])):
        assert as_loader(data, batch_size=7, shuffle=True) is data


def test_a_dataset_is_loaded_in_batches() -> None:
    """A dataset of the user is collated as torch does, whichever way it holds the arrays."""
    x = torch.arange(6.0)
    for dataset in (
        TensorDataset(x, -x),
        Subset(TensorDataset(x, -x), range(6)),
        Subset(ArrayDataset((x, -x)), range(6)),
    ):
        batches = list(as_loader(dataset, batch_size=4))
        assert [len(batch[0]) for batch in batches] == [4, 2]
        assert torch.equal(torch.cat([batch[1] for batch in batches]), -x)


def test_an_array_dataset_works_in_any_loader() -> None:
    """In a loader that the user makes, the samples of tuples and dicts are collated as torch does."""
    x = torch.arange(6.0)
    for data in ((x, -x), {"x": x, "y": -x}):
        batch = leaves(next(iter(DataLoader(ArrayDataset(data), batch_size=4))))
        assert torch.equal(batch[1], -x[:4])


def test_a_stream_keeps_its_order() -> None:
    """An iterable dataset is batched in the order in which it comes, shuffle=True or not."""

    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(5))

    assert [batch.tolist() for batch in as_loader(Stream(), 2, shuffle=True, seed=0)] == [[0, 1], [2, 3], [4]]


def test_options_reach_the_loader() -> None:
    """Further arguments are those of DataLoader, worker processes included."""
    loader = as_loader((torch.arange(5), torch.arange(5)), 2, drop_last=True, num_workers=1)
    assert [x.tolist() for x, _ in loader] == [[0, 1], [2, 3]]


def test_a_loader_can_be_pickled() -> None:
    """A loader of arrays can be sent to another process."""
    again = pickle.loads(pickle.dumps(as_loader(torch.arange(5), 2, shuffle=True, seed=0)))
    assert sorted(torch.cat(list(again)).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.zeros(4, 2), [1, 2, 3]), r"different numbers of samples: data\[0\] has 4, data\[1\] has 3"),
        ({"x": [1], "y": {"z": [1, 2]}}, r"data\['x'\] has 1, data\['y'\]\['z'\] has 2"),
        ((torch.zeros(4), torch.tensor(1.0)), r"data\[1\] is a single number; its first dimension should count"),
        (torch.zeros(0, 3), "data holds no samples"),
        ((), "data holds no arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(data: Any, message: str) -> None:
    """Lengths that differ, single numbers and empty data raise, and the message names the place."""
    with pytest.raises(ConfigurationError, match=message):
        as_loader(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("train.csv", "data is a str. It should be a tensor, a NumPy array or a list of numbers"),
        (None, "data is a NoneType"),
        ((torch.zeros(3), None), r"data\[1\] is a NoneType"),
        ({"x": iter([1])}, r"data\['x'\] is a list_iterator"),
        ([torch.zeros(3), torch.zeros(3)], r"data is a list of arrays.*as a tuple, \(x, y\)"),
        ([[1, 2], [3]], "data is a list that makes no array of numbers: expected sequence of length 2"),
        (["a"], "data is a list that makes no array of numbers"),
        (np.array(["a", "b"]), "data is an array of dtype <U1, which holds no numbers; encode it first"),
        (np.array([None]), "dtype object"),
    ],
)
def test_what_is_no_data_is_refused(data: Any, message: str) -> None:
    """What holds no numbers raises, and the message names the place and what is accepted."""
    with pytest.raises(ArgumentError, match=message):
        as_loader(data)


@given(
    data=st.integers(2, 12).flatmap(structures),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_a_split_divides_the_samples(data: Any, fraction: float, seed: int) -> None:
    """Each sample goes to one of the parts, neither is empty, and arrays stay aligned."""
    train, val = split_train_val(data, fraction, seed=seed)
    whole = leaves(ArrayDataset(data).data)
    assert shape_of(train) == shape_of(val) == shape_of(data)
    for a, b, c in zip(leaves(train), leaves(val), whole, strict=True):
        assert len(a) >= 1
        assert len(b) == min(max(round(len(c) * fraction), 1), len(c) - 1)
        assert sorted(torch.cat([a, b]).flatten().tolist()) == sorted(c.flatten().tolist())
    again = split_train_val(data, fraction, seed=seed)
    assert all(torch.equal(a, b) for a, b in zip(leaves((train, val)), leaves(again), strict=True))


def test_a_dataset_is_split_into_subsets() -> None:
    """A dataset of the user gives two subsets of it, and an ArrayDataset does so too."""
    for dataset in (TensorDataset(torch.arange(10)), ArrayDataset(torch.arange(10))):
        train, val = split_train_val(dataset, 0.3)
        assert isinstance(train, Subset)
        assert train.dataset is dataset
        assert (len(train), len(val)) == (7, 3)


class _Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(5))


@pytest.mark.parametrize(
    ("data", "fraction", "error", "message"),
    [
        (torch.arange(5), 1.0, ConfigurationError, "val_fraction should lie between 0 and 1, got 1.0"),
        (torch.arange(1), 0.5, ConfigurationError, "at least two samples, the data holds 1"),
        (
            DataLoader(TensorDataset(torch.arange(3))),
            0.5,
            ArgumentError,
            "a DataLoader cannot be split; split the data",
        ),
        (_Stream(), 0.5, ArgumentError, "_Stream has no length"),
    ],
)
def test_what_cannot_be_split_is_refused(data: Any, fraction: float, error: type[Exception], message: str) -> None:
    """A fraction outside (0, 1), a single sample, a loader and a stream raise."""
    with pytest.raises(error, match=message):
        split_train_val(data, fraction)
