"""Flows whose steps run side by side: `parallel`, `diverter`, `warp`; and `barrier`, where they wait for one another.

    parallel(f, g)(x)                f(x), g(x)                 every step gets the same
    diverter(f, g)(x, y)             f(x), g(y)                 every step gets its own
    warp(f)(x, y, z)                 f(x), f(y), f(z)           one step gets all, one after another

Each returns a `package`, so that a step behind it gets the outputs as its positional arguments. ``.asdict``,
``.aslist``, ``.astuple``, ``.sum`` and ``.join(", ")`` change that; they are recorded, and return the flow.

Invariants:
    * Outputs stand in the order of the steps, however long each took.
    * The steps run in threads: see `replayml.lifecycle.threads`. ``parallel.sequential(...)`` runs them in order, and
      so does every flow while a model is built or traced.
    * What is returned, and which error is raised, is the same in threads and in order.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch

from replayml.core.errors import ConfigurationError, suggestion
from replayml.core.hooks import edit
from replayml.lifecycle.flows import Flow, Names
from replayml.lifecycle.packages import joined, package, spread
from replayml.lifecycle.threads import apart, meet, side_by_side
from replayml.module import building
from replayml.module.module import Module

__all__ = ["barrier", "diverter", "parallel", "warp"]

_WAYS = ("package", "dict", "list", "tuple", "sum", "join")
_MOST_WORKERS = 32  # of a warp, which may get any number of inputs


class Branches(Flow):
    """What the flows of this file have in common.

    Args:
        *steps: Steps without a name.
        _concurrent: False to run one after another; a number to run so many at once.
        **named: Steps by name.
    """

    def __init__(self, *steps: Any, _concurrent: bool | int = True, **named: Any) -> None:
        super().__init__(*steps, **named)
        if not isinstance(_concurrent, int) or _concurrent < 0:
            raise ConfigurationError(f"_concurrent= takes True, False or how many run at once, not {_concurrent!r}")
        self._concurrent = _concurrent
        self._way = "package"
        self._separator = ""

    @classmethod
    def sequential(cls, *steps: Any, **named: Any) -> Self:
        """Return a flow whose steps run one after another.

        Example:
            >>> parallel.sequential(abs, str)(-1)
            (1, '-1')
        """
        return cls(*steps, _concurrent=False, **named)

    # What is returned -----------------------------------------------------------------------------------------

    @edit
    def gather(self, way: str, separator: str = "") -> Self:
        """Choose what to return.

        Args:
            way: ``"package"``, ``"dict"``, ``"list"``, ``"tuple"``, ``"sum"`` or ``"join"``.
            separator: What to put between the texts, for ``"join"``.
        """
        if way not in _WAYS:
            raise ConfigurationError(f"gather({way!r}) is unknown.{suggestion(way, _WAYS)} Known: {', '.join(_WAYS)}")
        self._way = way
        self._separator = separator
        return self

    @property
    def asdict(self) -> Self:
        """Make this flow return a dict, by the names of the steps; returns the flow."""
        return self._gathering("dict")

    @property
    def aslist(self) -> Self:
        """Make this flow return a list, which is one argument of the next step; returns the flow."""
        return self._gathering("list")

    @property
    def astuple(self) -> Self:
        """Make this flow return an ordinary tuple, which is one argument of the next step; returns the flow."""
        return self._gathering("tuple")

    @property
    def sum(self) -> Self:
        """Make this flow return the sum of the outputs, by ``+`` in order; returns the flow.

        Example:
            >>> parallel(abs, float).sum(-3)
            0.0
        """
        return self._gathering("sum")

    def join(self, separator: str = "") -> Self:
        """Make this flow return the outputs as one text; returns the flow.

        Args:
            separator: What to put between them.

        Example:
            >>> parallel(abs, float).join(" or ")(-3)
            '3 or -3.0'
        """
        return self.gather("join", separator)

    def _gathering(self, way: str) -> Self:
        return self if self._way == way else self.gather(way)

    def _gathered(self, names: Sequence[str], outputs: list[Any]) -> Any:
        match self._way:
            case "dict":
                return dict(zip(names, outputs, strict=True))
            case "list":
                return outputs
            case "tuple":
                return tuple(outputs)
            case "sum":
                if not outputs:
                    raise TypeError(f"{self._place()} ran no step, so that there is nothing to add up")
                return functools.reduce(operator.add, outputs)
            case "join":
                return self._separator.join(map(str, outputs))
            case _:
                return package(outputs)

    # Running --------------------------------------------------------------------------------------------------

    def _run(self, names: Sequence[str], inputs: Sequence[tuple[Any, ...]], kwargs: dict[str, Any], more: bool) -> Any:
        """Run steps, each with its own positional arguments and the same keywords.

        Args:
            names: The names of the steps.
            inputs: The arguments of each.
            kwargs: The keyword arguments of all of them.
            more: Whether a note on an error tells the number of the input as well.
        """
        tasks = [
            functools.partial(self._one, name, f", with input {number}" if more else "", args, kwargs)
            for number, (name, args) in enumerate(zip(names, inputs, strict=True))
        ]
        workers = self._workers(len(tasks))
        if workers > 1 and not is_watched():
            return self._gathered(names, side_by_side(tasks, workers))
        with apart():
            return self._gathered(names, [task() for task in tasks])

    def _workers(self, count: int) -> int:
        return count if self._concurrent is True else min(count, int(self._concurrent))

    def _one(self, name: str, more: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self._step(name)(*args, **kwargs)
        except Exception as error:
            self._tell(error, name, more)
            raise


def is_watched() -> bool:
    """Tell whether somebody follows what torch does in this thread: a build, a trace, a compiler."""
    return building.current() is not None or torch.compiler.is_compiling() or bool(torch.jit._trace.is_tracing())  # type: ignore[no-untyped-call]


class parallel(Branches):
    """Steps that run side by side, each with the arguments of the flow.

    Args:
        *steps: Steps without a name: ``"0"``, ``"1"``, ...
        _concurrent: False to run one after another; a number to run so many at once.
        **named: Steps by name.

    A call may leave steps out, whose outputs are absent then: ``p(x, _skip_items=["a"])``, ``_kept_items=["a"]``.

    Example:
        >>> parallel(abs, float)(-1)
        (1, -1.0)
        >>> parallel(size=abs, same=float).asdict(-1)
        {'size': 1, 'same': -1.0}
    """

    def forward(self, *args: Any, _skip_items: Names = None, _kept_items: Names = None, **kwargs: Any) -> Any:
        """Run the steps; see the class.

        Args:
            *args: The positional arguments of each step.
            _skip_items: Names of steps to leave out.
            _kept_items: Names of the only steps to run.
            **kwargs: The keyword arguments of each step.
        """
        names = list(self._chosen(_skip_items, _kept_items))
        args = spread(args)
        with self._running(args, kwargs):
            return self._run(names, [args] * len(names), kwargs, more=False)


class diverter(Branches):
    """Steps that run side by side, each with an argument of its own.

    Args:
        *steps: Steps without a name: ``"0"``, ``"1"``, ...
        _concurrent: False to run one after another; a number to run so many at once.
        **named: Steps by name.

    It is called with as many arguments as it has steps, with one list or tuple of as many, or with keywords or one
    dict by the names of the steps. An argument that is a `package` stands for several of its step.

    Example:
        >>> diverter(abs, str.upper)(-1, "x")
        (1, 'X')
        >>> diverter(size=abs, text=str.upper).asdict(text="x", size=-1)
        {'size': 1, 'text': 'X'}
    """

    def forward(self, *args: Any, _skip_items: Names = None, _kept_items: Names = None, **kwargs: Any) -> Any:
        """Run the steps; see the class.

        Args:
            *args: The argument of each step.
            _skip_items: Names of steps to leave out; their arguments are given all the same.
            _kept_items: Names of the only steps to run.
            **kwargs: The argument of each step, by its name.
        """
        names = list(self._chosen(_skip_items, _kept_items))
        inputs = self._divided(args, kwargs)
        with self._running(args, kwargs):
            return self._run(names, [spread((inputs[name],)) for name in names], {}, more=False)

    def _divided(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the argument of each step."""
        order = self._order
        by_name: Mapping[str, Any] | None = kwargs if kwargs and not args else None
        if not kwargs:
            if len(args) == len(order):
                return dict(zip(order, args, strict=True))
            if len(args) == 1 and isinstance(args[0], (list, tuple)) and len(args[0]) == len(order):
                return dict(zip(order, args[0], strict=True))
            if len(args) == 1 and isinstance(args[0], Mapping):
                by_name = args[0]
        if by_name is None or set(by_name) != set(order):
            got = list(by_name) if by_name is not None else f"{len(args)} positional and {len(kwargs)} keyword ones"
            raise TypeError(
                f"{self._place()} takes an argument for each of its {len(order)} steps, by position or by name "
                f"({', '.join(order)}); it got {got}"
            )
        return dict(by_name)


class warp(Branches):
    """One step that runs on many inputs side by side.

    Args:
        *steps: The step.
        _concurrent: False to run one after another; a number to run so many at once. By default 32 at the most.
        **named: The step, by name.

    Each positional argument is an input, and so is each item of a list or tuple that is the only one; an input that is
    a `package` stands for several arguments. Keywords go to every run.

    Example:
        >>> warp(abs)(-1, -2, 3)
        (1, 2, 3)
        >>> warp(abs).aslist([-1, -2])
        [1, 2]
    """

    def _as_step(self, name: str, value: Any) -> Any:
        if self._order and name not in self._order:
            raise ConfigurationError(
                f"{self._place()} runs one step, {self._order[0]!r}, on every input; {name!r} would be a second one. "
                "Put both into a pipeline: warp(pipeline(f, g))"
            )
        return super()._as_step(name, value)

    @edit
    def gather(self, way: str, separator: str = "") -> Self:
        """Choose what to return: see `parallel`; not a dict, since inputs have no names."""
        if way == "dict":
            raise ConfigurationError("the outputs of a warp have no names for a dict. Use aslist")
        gather = Branches.gather.__wrapped__  # type: ignore[attr-defined]
        return gather(self, way, separator)  # type: ignore[no-any-return]

    def _workers(self, count: int) -> int:
        return min(count, _MOST_WORKERS) if self._concurrent is True else super()._workers(count)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step on every input; see the class.

        Args:
            *args: The inputs.
            **kwargs: Keyword arguments of every run.
        """
        if len(self._order) != 1:
            raise ConfigurationError(f"{self._place()} has no step to run. Give it one: warp(f)")
        is_one = len(args) == 1 and isinstance(args[0], (list, tuple))
        inputs = [spread((value,)) for value in (args[0] if is_one else args)]
        with self._running(args, kwargs):
            return self._run(self._order * len(inputs), inputs, kwargs, more=True)


class barrier(Module):
    """A step that waits until every other branch of the flow around it has come to its barrier, or has ended.

    It hands on what it gets. Where nothing runs side by side, there is nobody to wait for.

    Example:
        >>> from replayml.lifecycle.flows import pipeline
        >>> seen = []
        >>> wait = parallel(pipeline(seen.append, barrier, lambda _: len(seen)), pipeline(seen.append, barrier))
        >>> wait("x")[0]
        2
    """

    def forward(self, *args: Any) -> Any:
        """Wait for the others."""
        meet()
        return joined(args)
