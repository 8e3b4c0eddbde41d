"""Flows: modules whose steps are modules, functions and other flows.

    pipeline(f, g)                        steps by position: they are called "0" and "1"
    pipeline(clean=f, score=g)            steps by name
    with pipeline() as p:                 what is assigned to a public attribute is a step of that name
        p.clean = f
        with parallel() as p.both:        a flow in a flow
            p.both.a = g
            p.both.b = h

A step is called with what the step before it returned: as one argument, unless that is a `package`, whose items are
several. The first step gets the arguments of the flow, keywords included. A replayml class as a step stands for an
instance made without arguments.

Invariants:
    * A flow is a `replayml.Module`. Steps that are modules are its children; others are arguments on the record. Thus
      ``new()``, ``configure``, selectors, the tape, recipes and ``build`` hold for a flow as for any module.
    * A step keeps its name; what is added by position gets the next free number.
    * An error in a step keeps its type, and a note tells the step's path.
    * A flow may be called from several threads at once.

A name that every flow has, such as ``input``, ``train`` or ``double``, is none for a step and refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, ClassVar, Self, cast

from torch import nn

from replayml.core import tags
from replayml.core.errors import AlreadyBuiltError, ConfigurationError, suggestion
from replayml.core.hooks import edit
from replayml.core.journal import note, refill
from replayml.lifecycle.binding import Reference, Scope, running
from replayml.lifecycle.packages import call, joined, package
from replayml.module.module import Module
from replayml.module.showing import make_repr, name_of, tree

__all__ = ["Flow", "loop", "pipeline"]

Names = str | Iterable[str] | None

_PLAIN = frozenset({"device", "dtype", "training"})  # public attributes of a flow that are no steps


class Flow(Module):
    """The base class of flows.

    Args:
        *steps: Steps without a name: ``"0"``, ``"1"``, ...
        **named: Steps by name, after these.
    """

    _passes_through: ClassVar[bool] = True  # the modules in it are those of the module that it is in
    _has_outputs: ClassVar[bool] = False  # whether a step can be bound to what an earlier one returned

    def __init__(self, *steps: Any, **named: Any) -> None:
        self._order: list[str] = []
        for number, step in enumerate(steps):
            self._add(step, str(number))
        for name, step in named.items():
            self._add(step, name)

    # Steps ----------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> dict[str, Any]:
        """The steps by name, in order."""
        return {name: self._step(name) for name in self._order}

    @edit
    def append(self, step: Any, name: str | None = None) -> Self:
        """Add a step at the end.

        Args:
            step: A function, a module, a flow; anything that can be called.
            name: Its name; the next free number by default.

        Example:
            >>> pipeline(abs).append(str)(-1)
            '1'
        """
        self._add(step, self._free_name() if name is None else name)
        return self

    @edit
    def insert(self, index: int, step: Any, name: str | None = None) -> Self:
        """Add a step before the one at an index; the names of the others stay."""
        self._add(step, self._free_name() if name is None else name)
        self._order.insert(index, self._order.pop())
        modules = self._modules
        note(refill, modules, dict(modules))
        refill(modules, {other: modules[other] for other in sorted(modules, key=self._position)})
        return self

    def _position(self, name: str) -> int:
        """Return where a child stands; those that are no steps stand behind these."""
        return self._order.index(name) if name in self._order else len(self._order)

    def _step(self, name: str) -> Any:
        return self._modules[name] if name in self._modules else self.__dict__[name]

    def _add(self, step: Any, name: str) -> None:
        if name in self._order:
            raise ConfigurationError(f"{self._place()} has a step {name!r} already. Choose another name")
        if not name or name.startswith("_") or "." in name:
            raise ConfigurationError(f"{name!r} is no name for a step: it is empty, starts with '_' or holds a '.'")
        self._assign(name, step)

    def _free_name(self) -> str:
        return str(1 + max((int(name) for name in self._order if name.isdecimal()), default=-1))

    def _assign(self, name: str, value: Any) -> None:
        if name.startswith("_") or name in _PLAIN:
            super()._assign(name, value)
            return
        step = self._as_step(name, value)
        if name in self._modules and not isinstance(step, nn.Module):
            super()._remove(name)  # torch refuses a function where a module stands
        super()._assign(name, step)
        if name not in self._order:
            self._order.append(name)

    def _as_step(self, name: str, value: Any) -> Any:
        if hasattr(type(self), name):
            raise ConfigurationError(
                f"{name!r} is an attribute of every {type(self).__name__} and no name for a step. Choose another name"
            )
        if isinstance(value, type) and issubclass(value, nn.Module):
            if issubclass(value, Module):
                return value()
            raise ConfigurationError(
                f"{self._place(name)} takes a module, not the class {value.__name__}. Wrap it: "
                f"replayml.Layer({value.__name__}, ...)"
            )
        if not callable(value):
            raise ConfigurationError(
                f"{self._place(name)} is a step, and {value!r} cannot be called. Steps are functions, modules and "
                "flows; a value of your own needs a name that starts with '_'"
            )
        return value

    def _remove(self, name: str) -> None:
        super()._remove(name)
        if name in self._order:
            self._order.remove(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_built_step(name) and name not in self._order and callable(value):
            raise AlreadyBuiltError(
                f"{type(self).__name__} is built; {name!r} would be a new step. Add it to an unbuilt copy: flow.new()"
            )
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._is_built_step(name) and name in self._order:
            raise AlreadyBuiltError(
                f"{type(self).__name__} is built; step {name!r} cannot be taken out. Take it out of an unbuilt copy: "
                "flow.new(); or leave it out of a call: _skip_items"
            )
        super().__delattr__(name)

    def _is_built_step(self, name: str) -> bool:
        record = self.__dict__.get("_record")
        built = record is not None and record.built
        return built and not name.startswith("_") and name not in _PLAIN and not hasattr(type(self), name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the block; a flow takes steps outside of one as well."""

    # Binding --------------------------------------------------------------------------------------------------

    @property
    def input(self) -> Reference:
        """What this flow is called with, for `bind`: one argument, a `package` of several, or a dict of keywords."""
        return Reference((self, None))

    def output(self, step: Any) -> Reference:
        """Return a reference to what an earlier step returned, for `bind`.

        Args:
            step: The name of the step, or the step.
        """
        if not self._has_outputs:
            raise ConfigurationError(
                f"the steps of {self._place()} do not run one after another, so that none can use the output of "
                "another one. Use a pipeline, or a graph, whose edges carry outputs"
            )
        if not isinstance(step, str):
            names = [name for name, other in self.steps.items() if other is step]
            if len(names) != 1:
                raise ConfigurationError(
                    f"{self._place()} has {len(names)} steps that are {name_of(step)}. Give the name of one: "
                    f"{', '.join(self._order)}"
                )
            step = names[0]
        self._require(step)
        return Reference((self, step))

    def _bindable(self) -> Scope:
        """Return what tells this flow from every other one; as a child it is found again by its place."""
        if "_scope" not in self._modules:
            self.set("_scope", Scope())
        return cast(Scope, self._modules["_scope"])

    # Running --------------------------------------------------------------------------------------------------

    def _running(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[dict[str, Any] | None]:
        """Let steps find what this flow was given, and what is put into the dict, where any is bound to it."""
        if "_scope" not in self._modules:
            return nullcontext()
        return running(self._bindable(), joined(args) if args or not kwargs else kwargs)

    def _require(self, name: str) -> None:
        if name not in self._order:
            raise ConfigurationError(
                f"{self._place()} has no step {name!r}.{suggestion(name, self._order)} "
                f"Its steps: {', '.join(self._order) or 'none'}"
            )

    def _chosen(self, skip: Names, kept: Names) -> list[str]:
        """Return the names of the steps to run."""
        if skip is None and kept is None:
            return self._order
        if skip is not None and kept is not None:
            raise ConfigurationError("give _skip_items or _kept_items, not both")
        given = skip if kept is None else kept
        names = [given] if isinstance(given, str) else list(given or ())
        for name in names:
            self._require(name)
        return [name for name in self._order if (name in names) is (kept is not None)]

    def _tell(self, error: BaseException, name: str, more: str = "") -> None:
        """Note on an error in which step it happened; the innermost flow does so."""
        record = self._record
        path = ".".join((*(record.path if record.built else tags.shown(self)), name))
        step = self._step(name) if name in self._order else None
        note = f"in step {path!r}" + ("" if step is None else f" ({name_of(step)})") + more
        notes = getattr(error, "__notes__", ())
        if not any(other == note or other.startswith(f"in step '{path}.") for other in notes):
            error.add_note(note)

    # Showing --------------------------------------------------------------------------------------------------

    def _tree(self) -> str:
        """Return the tree of this flow: see `replayml.module.showing`."""
        items = [name for name in self._order if not name.isdecimal()]
        steps = [tree(step) for step in self.steps.values()]
        return make_repr("Flow", type(self).__name__.capitalize(), subs=steps, items=items)


class pipeline(Flow):
    """Steps that run one after another, each with what the one before it returned.

    Args:
        *steps: Steps without a name: ``"0"``, ``"1"``, ...
        **named: Steps by name, after these.

    A call may leave steps out: ``p(x, _skip_items=["clean"])``, or run some only: ``p(x, _kept_items=["clean"])``. The
    next step then gets what the skipped one would have got.

    Example:
        >>> with pipeline() as p:
        ...     p.clean = str.strip
        ...     p.words = str.split
        ...     p.count = len
        >>> p(" one two "), p(" one two ", _skip_items="count")
        (2, ['one', 'two'])
    """

    _has_outputs = True

    def forward(self, *args: Any, _skip_items: Names = None, _kept_items: Names = None, **kwargs: Any) -> Any:
        """Run the steps.

        Args:
            *args: The positional arguments of the first step.
            _skip_items: Names of steps to leave out.
            _kept_items: Names of the only steps to run.
            **kwargs: The keyword arguments of the first step.

        Returns:
            What the last step returned.
        """
        names = self._order
        if _skip_items is not None or _kept_items is not None:
            names = self._chosen(_skip_items, _kept_items)
        value = args[0] if len(args) == 1 else package(args)
        if kwargs and not names:
            raise TypeError(f"{self._place()} runs no step that could take {', '.join(map(repr, kwargs))}")
        if "_scope" not in self._modules:
            return self._run(names, value, kwargs, None)
        with self._running(args, kwargs) as outputs:
            return self._run(names, value, kwargs, outputs)

    def _asks(self) -> Any:
        """Return what gets the arguments of a call as they are: the first step."""
        name = next(iter(self._order), None)
        return None if name is None else self._modules.get(name, self.__dict__.get(name))

    def _run(self, names: list[str], value: Any, kwargs: dict[str, Any], outputs: dict[str, Any] | None) -> Any:
        """Run some steps; keep what each returns."""
        modules, others = self._modules, self.__dict__
        name = ""
        try:
            for name in names:
                step: Any = modules[name] if name in modules else others[name]
                if kwargs:
                    value = step(*value, **kwargs) if type(value) is package else step(value, **kwargs)
                    kwargs = {}
                else:
                    value = step(*value) if type(value) is package else step(value)
                if outputs is not None:
                    outputs[name] = value
        except Exception as error:
            self._tell(error, name)
            raise
        return value


class loop(pipeline):
    """A pipeline that runs again with what it returned, until a condition holds or a number of times.

    Args:
        *steps: Steps without a name.
        stop_condition: Called with what a pass returned; when it returns something true, that was the last pass.
        count: How many passes at the most.
        judge_on_full_input: When False, a pass returns a tuple; its first item is for ``stop_condition`` alone, and
            the rest is what the next pass gets, or what the loop returns.
        **named: Steps by name.

    Example:
        >>> loop(lambda x: 2 * x, stop_condition=lambda x: x > 100)(3)
        192
        >>> loop(lambda x: x + 1, count=4)(0)
        4
    """

    def __init__(
        self,
        *steps: Any,
        stop_condition: Callable[..., Any] | None = None,
        count: int | None = None,
        judge_on_full_input: bool = True,
        **named: Any,
    ) -> None:
        super().__init__(*steps, **named)
        if stop_condition is None and count is None:
            raise ConfigurationError("a loop without an end: give stop_condition=, count= or both")
        if stop_condition is not None and not callable(stop_condition):
            raise ConfigurationError(f"stop_condition= takes a function or a module, not {stop_condition!r}")
        if count is not None and (type(count) is not int or count < 0):
            raise ConfigurationError(f"count= takes a number of passes, 0 or more, not {count!r}")
        self._stop_condition = stop_condition
        self._count = sys.maxsize if count is None else count
        self._judges_all = judge_on_full_input

    def _run(self, names: list[str], value: Any, kwargs: dict[str, Any], outputs: dict[str, Any] | None) -> Any:
        for _ in range(self._count):
            value = super()._run(names, value, kwargs, outputs)
            kwargs = {}
            judged = value
            if not self._judges_all:
                if not isinstance(value, tuple) or not value:
                    raise TypeError(
                        f"with judge_on_full_input=False a pass of {self._place()} returns a tuple whose first item is "
                        f"judged, not {value!r}"
                    )
                judged, value = value[0], joined(tuple(value[1:]))
            if self._stop_condition is not None and self._judge(judged):
                break
        return value

    def _judge(self, judged: Any) -> Any:
        try:
            return call(self._stop_condition, judged)  # type: ignore[arg-type]
        except Exception as error:
            self._tell(error, "stop_condition")
            raise
