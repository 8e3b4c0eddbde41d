"""`graph`: steps that run as soon as what they need is there.

Invariants:
    * A step runs once in a call, after all that it gets something from; what can run at the same time does.
    * What a step gets stands in the order in which its edges were added.
    * A graph has no circle, and no edge to a step that is not there.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple, Self

from replayml.core.errors import ConfigurationError, suggestion
from replayml.core.hooks import edit
from replayml.lifecycle.branches import is_watched
from replayml.lifecycle.flows import Flow
from replayml.lifecycle.packages import call, joined, package, spread
from replayml.lifecycle.threads import Left, apart, side_by_side

__all__ = ["graph"]

START, END = "__start__", "__end__"
_MOST_WORKERS = 32


class Edge(NamedTuple):
    """A way on which a step gets something.

    Attributes:
        target: The step that gets it.
        source: The step that returns it; None for a value that is always the same.
        kept: The attribute of the graph that has the formatter, or that value.
    """

    target: str
    source: str | None
    kept: str | None


class graph(Flow):
    """Steps that get the outputs of those before them by edges.

    Args:
        *steps: Steps without a name: ``"0"``, ``"1"``, ...
        _concurrent: False to run one after another; a number to run so many at once.
        **named: Steps by name.

    Edges go from ``graph.start_node_name``, which stands for the arguments of the graph, to ``graph.end_node_name``,
    which stands for what it returns. A step with one edge gets what comes along it, the items of a `package` as
    several arguments; one with several edges gets what comes along each as one positional argument.

    Example:
        >>> with graph() as g:
        ...     g.twice = lambda x: 2 * x
        ...     g.square = lambda x: x * x
        ...     g.minus = lambda a, b: a - b
        >>> g.add_edge("__start__", ["twice", "square"]).add_edge(["square", "twice"], "minus")
        <Flow type=Graph items=['twice', 'square', 'minus']>
        |- <Function type=lambda>
        |- <Function type=lambda>
        └- <Function type=lambda>
        >>> g.add_edge("minus", "__end__")(5)
        15
    """

    start_node_name = START
    end_node_name = END

    def __init__(self, *steps: Any, _concurrent: bool | int = True, **named: Any) -> None:
        super().__init__(*steps, **named)
        if not isinstance(_concurrent, int) or _concurrent < 0:
            raise ConfigurationError(f"_concurrent= takes True, False or how many run at once, not {_concurrent!r}")
        self._concurrent = _concurrent
        self._edges: list[Edge] = []
        self._added = 0
        self._arguments: dict[str, list[str]] = {}

    # Edges ----------------------------------------------------------------------------------------------------

    @edit
    def add_edge(
        self, source: str | Sequence[str], target: str | Sequence[str], formatter: Callable[..., Any] | None = None
    ) -> Self:
        """Let steps get what others return.

        Args:
            source: The name of a step, or several; ``"__start__"`` for the arguments of the graph.
            target: The name of a step, or several; ``"__end__"`` for what the graph returns.
            formatter: Called with what goes along the edge; what it returns arrives.
        """
        sources, targets = _names(source), _names(target)
        for name in sources:
            self._check_end(name, START)
        for name in targets:
            self._check_end(name, END)
        if formatter is not None and not callable(formatter):
            raise ConfigurationError(f"formatter= takes a function or a module, not {formatter!r}")
        kept = None if formatter is None else self._keep(formatter)
        self._edges += [Edge(to, from_, kept) for to in targets for from_ in sources]
        self._sorted()
        return self

    @edit
    def add_const_edge(self, value: Any, target: str | Sequence[str]) -> Self:
        """Let steps get the same value in every call.

        Args:
            value: The value.
            target: The name of a step, or several.
        """
        targets = _names(target)
        for name in targets:
            self._check_end(name, END)
        kept = self._keep(value)
        self._edges += [Edge(name, None, kept) for name in targets]
        return self

    def _keep(self, value: Any) -> str:
        """Keep something of an edge, and return the name of the attribute; a module becomes a child."""
        name = f"_of_edge_{self._added}"
        self._added += 1
        setattr(self, name, value)
        return name

    @edit
    def set_node_arg_name(self, names: dict[str, list[str]]) -> Self:
        """Let steps get what comes along their edges by keyword.

        Args:
            names: For each step the names of its arguments, in the order of its edges.
        """
        for name in names:
            self._require(name)
        self._arguments = {**self._arguments, **{name: list(arguments) for name, arguments in names.items()}}
        return self

    def _check_end(self, name: str, terminal: str) -> None:
        if name != terminal and name not in self._order:
            known = [*self._order, terminal]
            raise ConfigurationError(
                f"{self._place()} has no step {name!r} for an edge.{suggestion(name, known)} It has: {', '.join(known)}"
            )

    def _remove(self, name: str) -> None:
        super()._remove(name)
        if not name.startswith("_"):
            self._edges = [edge for edge in self._edges if name not in (edge.target, edge.source)]

    def _sorted(self) -> list[str]:
        """Return the steps in an order in which each stands behind all that it gets something from."""
        sorter: TopologicalSorter[str] = TopologicalSorter({name: [] for name in self._order})
        for target, source, _ in self._edges:
            if source is not None and source != START and target != END:
                sorter.add(target, source)
        try:
            return list(sorter.static_order())
        except CycleError as error:
            raise ConfigurationError(
                f"the edges of {self._place()} go round in a circle: {' -> '.join(error.args[1])}. Leave one out"
            ) from error

    # Running --------------------------------------------------------------------------------------------------

    def forward(self, *args: Any) -> Any:
        """Run every step.

        Args:
            *args: What goes along the edges from the start; several go as a `package`.

        Returns:
            What comes along the edge to the end; a `package` where there are several.
        """
        order = self._sorted()
        for name in (*order, END):
            if all(target != name for target, _, _ in self._edges):
                raise ConfigurationError(
                    f"no edge of {self._place()} leads to {name!r}. Add one: graph.add_edge({START!r}, {name!r})"
                )
        given = joined(spread(args))
        results: dict[str, Future[Any]] = {name: Future() for name in order}
        results[START] = Future()
        results[START].set_result(given)
        tasks = [functools.partial(self._one, name, results) for name in order]
        with self._running(spread(args), {}):
            workers = self._workers(len(order))
            if workers > 1 and not is_watched():
                side_by_side(tasks, workers)
            else:
                with apart():
                    for task in tasks:
                        task()
            return joined(tuple(self._inputs(END, results)))

    def _workers(self, count: int) -> int:
        if self._is_chain():
            return 1
        return min(count, _MOST_WORKERS) if self._concurrent is True else min(count, int(self._concurrent))

    def _is_chain(self) -> bool:
        """Tell whether no two steps can run at the same time."""
        before: dict[str, set[str]] = {name: set() for name in self._order}
        for target, source, _ in self._edges:
            if source in before and target in before:
                before[target].add(source)
        order = self._sorted()
        return all(earlier in before[later] for earlier, later in itertools.pairwise(order))

    def _one(self, name: str, results: dict[str, Future[Any]]) -> None:
        """Run one step, once what it needs is there."""
        try:
            inputs = self._inputs(name, results)
            with apart():
                results[name].set_result(self._called(name, inputs))
        except BaseException as error:
            results[name].set_exception(Left(f"step {name!r} failed"))  # for those that wait for it
            if isinstance(error, Exception) and not isinstance(error, Left):
                self._tell(error, name)
            raise

    def _called(self, name: str, inputs: list[Any]) -> Any:
        step = self._step(name)
        keywords = self._arguments.get(name)
        if keywords is None:
            return call(step, inputs[0]) if len(inputs) == 1 else step(*inputs)
        if len(inputs) == 1 and type(inputs[0]) is package:
            inputs = list(inputs[0])
        if len(keywords) != len(inputs):
            raise TypeError(
                f"{len(inputs)} values come to {name!r}, and {len(keywords)} arguments are named: {keywords}"
            )
        return step(**dict(zip(keywords, inputs, strict=True)))

    def _inputs(self, name: str, results: dict[str, Future[Any]]) -> list[Any]:
        """Return what comes along the edges to a step."""
        found = []
        for target, source, kept in self._edges:
            if target != name:
                continue
            own = None if kept is None else getattr(self, kept)
            if source is None:
                found.append(own)
            else:
                value = results[source].result()
                found.append(value if own is None else call(own, value))
        return found


def _names(given: str | Sequence[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)
