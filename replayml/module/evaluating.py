"""Evaluating: what a module makes of the items of a test set.

    items ─► load_f, each ─► the module, one item a call; rows of a tensor in batches ─► collect_f, all ─► the result

Invariants:
    * The result follows the test set: another one, an update or ``eval()`` has it computed again when it is read.
    * The module is in evaluation mode while it is evaluated, and no gradients are kept; nothing that its ``forward``
      does is recorded.
    * An item that fails is told by its number; the exception keeps its type.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TextIO

import torch

from replayml import module as package  # imports what runs batches when that is used
from replayml.core.arguments import read_once
from replayml.core.errors import ArgumentError
from replayml.core.hooks import edit
from replayml.core.meta import quiet
from replayml.module.runtime import claimed, places_of, runtime_of
from replayml.module.yielding import yielding, yielding_property

__all__ = ["Evalset", "Evaluating", "Progress", "evaluate_now", "is_shown", "is_to_be_evaluated"]

Progress = bool | Callable[..., Iterable[Any]] | None


class Evalset(NamedTuple):
    """A test set and what is done with it; see `Evaluating.evalset`."""

    data: Any
    load_f: Callable[[Any], Any] | None = None
    collect_f: Callable[[Any], Any] | None = None

    def loaded(self) -> Any:
        """Return the data; of a function, what it returns."""
        return self.data() if callable(self.data) else self.data


class Evaluating:
    """The part of `replayml.Module` that this file is about."""

    if TYPE_CHECKING:
        _record: Any

    @edit
    def evalset(
        self,
        data: Any,
        load_f: Callable[[Any], Any] | None = None,
        collect_f: Callable[[Any], Any] | None = None,
    ) -> None:
        """Set what this module is evaluated with; recorded before the build.

        Copies have it. Files, recipes and `to_code` have it only where it is made of names, of functions and classes,
        and a few plain values: other data is no part of a model file.

        Args:
            data: Items, of which each is the one argument of a call: a list, a range, any iterable. A tensor or NumPy
                array ``(rows, ...)`` runs through a built module in batches. An `Application` takes data with targets
                too, as its ``test`` does. A function without arguments is called for the data when it is needed.
            load_f: Called with each item; returns what the module is called with.
            collect_f: Called with the results, a list or what the batches make; returns what becomes of them.

        Raises:
            ArgumentError: When the data has no items, or a function is none.

        Example:
            >>> import replayml
            >>> class Shout(replayml.Module):
            ...     def forward(self, text):
            ...         return text.upper() + "!"
            >>> shout = Shout()
            >>> shout.evalset(["hello", "world"])
            >>> shout.eval().eval_result
            ['HELLO!', 'WORLD!']
            >>> shout.evalset(["hello", "world"], load_f=str.title, collect_f=" ".join)
            >>> shout.new().eval_result
            'HELLO! WORLD!'
        """
        (data,), _ = read_once((data,), {})
        for name, function in (("load_f", load_f), ("collect_f", collect_f)):
            if function is not None and not callable(function):
                raise ArgumentError(f"evalset({name}=...) takes a function, not {function!r}")
        self._check_evalset(data, load_f)
        self._evalset = Evalset(list(data) if type(data) is list else data, load_f, collect_f)
        runtime_of(self).forget()

    @yielding
    def evaluate(self, *, batch_size: int = 32, progress: Progress = None) -> Any:
        """Evaluate this module: run its evaluation tasks, then its test set.

        Args:
            batch_size: How many rows run at once, where the data is a tensor or an array.
            progress: Whether to show how far it is; by default on a terminal. Or a function that shows it, such as
                ``rich.progress.track``: called with the items and ``total=``, it returns what to iterate over.

        Returns:
            The result, which `eval_result` returns from now on: that of the test set; where there is none, what the
            evaluation tasks return; else None.

        Raises:
            LifecycleError: When the module is being updated or evaluated in another thread.

        Example:
            >>> import torch, replayml
            >>> mlp = replayml.MultiLayerPerceptron(4, [8], 2).build()
            >>> mlp.evalset(torch.zeros(100, 4))
            >>> mlp.evaluate(batch_size=10).shape
            torch.Size([100, 2])
        """
        with claimed(places_of(self), f"evaluate() of {type(self).__name__}"):
            return evaluate_now(self, batch_size=batch_size, progress=progress)

    @yielding_property
    def eval_result(self) -> Any:
        """The result of the evaluation, which runs when this is read first: see `evaluate`."""
        runtime = runtime_of(self)
        if runtime.has_result:
            return runtime.result
        try:
            with claimed(places_of(self), f"eval_result of {type(self).__name__}"):
                return evaluate_now(self)
        except AttributeError as error:
            # As an AttributeError, Python would take it for a missing attribute of that name, and tell nothing else.
            raise RuntimeError(f"{type(self).__name__} could not be evaluated: {error}") from error

    def eval(self) -> Self:
        """Set the evaluation mode, as torch does; `eval_result` is computed again when it is read."""
        record = self.__dict__.get("_record")
        if record is not None and record.runtime is not None:
            record.runtime.forget()
        return super().eval()  # type: ignore[misc,no-any-return]

    # For classes that know more of their data ------------------------------------------------------------------

    def _get_eval_tasks(self) -> Callable[[], Any] | None:
        """Return what to run when the module is evaluated: a callable without arguments, or None."""
        return None

    @property
    def _takes_batches(self) -> bool:
        """Whether ``forward`` takes many rows at once, its first dimension counting them."""
        return bool(self._record.built)

    def _check_evalset(self, data: Any, load_f: Callable[[Any], Any] | None) -> None:
        """Raise when data is nothing that the module can be evaluated with."""
        is_many = isinstance(data, Iterable) or hasattr(data, "__getitem__")
        if not (callable(data) or is_many) or isinstance(data, (str, bytes, Mapping)):
            raise ArgumentError(
                f"evalset() of {type(self).__name__} takes items: a list, an array of rows or another iterable, or a "
                f"function that returns one, not a {type(data).__name__}. A single item is a list of one: [item]"
            )

    def _results(self, data: Any, load_f: Callable[[Any], Any] | None, batch_size: int, progress: Progress) -> Any:
        """Return what the module makes of data."""
        if load_f is None and self._takes_batches and _is_array(data):
            return _rows(self, data, batch_size, progress)
        return self._run_items(data, load_f, progress)

    def _run_items(self, items: Any, load_f: Callable[[Any], Any] | None, progress: Progress) -> list[Any]:
        """Return what the module makes of each item; for a class to override that can run several at once."""
        module: Any = self
        results: list[Any] = []
        total = len(items) if isinstance(items, Sized) else None
        with quiet(), package.predicting.evaluating(module), torch.no_grad():
            try:
                for item in tracked(items, total, progress):
                    results.append(module(item if load_f is None else load_f(item)))  # noqa: PERF401 - a failure counts
            except Exception as error:
                error.add_note(f"while evaluating item {len(results)} of the test set of {type(self).__name__}")
                raise
        return results


def is_to_be_evaluated(module: Any) -> bool:
    """Tell whether a module has a test set."""
    return isinstance(module.__dict__.get("_evalset"), Evalset)


def evaluate_now(module: Any, task: Any = None, *, batch_size: int = 32, progress: Progress = None) -> Any:
    """Evaluate a module, and keep the result.

    Args:
        module: The module.
        task: Its evaluation tasks, if they are known already.
        batch_size: As for `Evaluating.evaluate`.
        progress: As for `Evaluating.evaluate`.
    """
    task = module._get_eval_tasks() if task is None else task
    result = None if task is None else task()
    if is_to_be_evaluated(module):
        given: Evalset = module.__dict__["_evalset"]
        result = module._results(given.loaded(), given.load_f, batch_size, progress)
        if given.collect_f is not None:
            result = given.collect_f(result)
    runtime_of(module).keep(result)
    return result


def _is_array(data: Any) -> bool:
    return (isinstance(data, torch.Tensor) or hasattr(data, "__array__")) and data.ndim > 0


def _rows(module: Any, data: Any, batch_size: int, progress: Progress) -> Any:
    """Return the outputs for the rows of an array, which run in batches."""
    rows = len(data)
    if batch_size < 1 or rows == 0:
        return package.predicting.predict(module, data, batch_size=batch_size)
    batches = [(data[start : start + batch_size],) for start in range(0, rows, batch_size)]
    with quiet():
        return package.predicting.predict_batches(module, tracked(batches, len(batches), progress))


# Progress -------------------------------------------------------------------------------------------------------


def is_shown(progress: Progress) -> bool:
    """Tell whether progress is to be shown: where it was asked for, or on a terminal."""
    if progress is None:
        return sys.stderr is not None and sys.stderr.isatty()
    return bool(progress)


def tracked(items: Iterable[Any], total: int | None, progress: Progress) -> Iterable[Any]:
    """Return what to iterate over, to see how far it is.

    Example:
        >>> list(tracked("ab", 2, progress=False))
        ['a', 'b']
        >>> list(tracked("ab", 2, progress=lambda items, total: (f"{item} of {total}" for item in items)))
        ['a of 2', 'b of 2']
    """
    if not is_shown(progress):
        return items
    return progress(items, total=total) if callable(progress) else _bar(items, total, sys.stderr)


def _bar(items: Iterable[Any], total: int | None, stream: TextIO, width: int = 30, pause: float = 0.1) -> Iterator[Any]:
    """Yield items, and show on one line of a terminal how many were taken."""
    shown_at = 0.0

    def show(count: int) -> None:
        if total is None:
            text = f"evaluating {count}"
        else:
            full = width * count // max(total, 1)
            text = f"evaluating {'█' * full}{'░' * (width - full)} {count}/{total}"
        stream.write(f"\r{text}")
        stream.flush()

    count = 0
    try:
        for item in items:
            if time.monotonic() - shown_at >= pause:
                shown_at = time.monotonic()
                show(count)
            yield item
            count += 1
    finally:
        show(count)
        stream.write("\n")
