"""Binding: what a step of a flow is called with, besides the output of the step before it.

    with pipeline() as p:
        p.twice = twice
        p.add = bind(add, p.input, _0)          # add(what the flow was given, what twice returned)
        p.last = bind(show, p.output("twice"))

``p.input`` and ``p.output("twice")`` are `Reference`: they say which value is meant, and ``p.input["x"]``,
``p.input[0]``, ``p.input.shape`` which part of it. `bind` makes a `Bound` of them, which holds plain data.

Invariants:
    * A bound step finds the values of the very flow that it was bound to, in copies of that flow too, from any depth
      below it and from any thread of it. Calls of one flow at the same time do not see each other's values.
    * A step may be bound to a flow before it, or the flow that it is in, is put into that flow. Where it never is, and
      in a copy of the step without that flow, it is bound to none, and says so when it is called.
    * A part is an item or a public attribute; nothing is called to get it.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, NoReturn

from torch import nn

from replayml.core.errors import ConfigurationError
from replayml.module.module import Module
from replayml.module.showing import make_repr, name_of, tree

__all__ = ["Bound", "Reference", "Scope", "bind", "running"]

Parts = tuple[tuple[str, Any], ...]
Source = tuple[Any, ...]

VALUE, GIVEN, FLOW, CHILD = "value", "given", "flow", "child"
ITEM, ATTRIBUTE = "item", "attribute"


class Scope(Module):
    """Tells a flow from every other one: a child of the flow, which the steps hold that are bound to it."""

    _passes_through: ClassVar[bool] = True  # it is no module that anyone put into the flow


class Run:
    """One call of a flow to which steps are bound.

    Attributes:
        scope: Which flow it is.
        given: What it was called with.
        outputs: What its steps returned so far, by name.
    """

    __slots__ = ("given", "outputs", "scope")

    def __init__(self, scope: Scope, given: Any) -> None:
        self.scope = scope
        self.given = given
        self.outputs: dict[str, Any] = {}


_runs: ContextVar[tuple[Run, ...]] = ContextVar("replayml_runs", default=())


@contextmanager
def running(scope: Scope, given: Any) -> Iterator[dict[str, Any]]:
    """Let the steps of a flow find its input, and the outputs that are put into the dict, while the block runs."""
    run = Run(scope, given)
    token = _runs.set((*_runs.get(), run))
    try:
        yield run.outputs
    finally:
        _runs.reset(token)


class Reference:
    """A value that a step will be called with: the input of a flow, the output of a step, or a part of one.

    ``reference["key"]``, ``reference[0]`` and ``reference.name`` are parts of it.
    """

    __slots__ = ("_origin", "_parts")
    __iter__ = None  # an item for every number would be one without end

    def __init__(self, origin: Any, parts: Parts = ()) -> None:
        self._origin = origin
        self._parts = parts

    def __getitem__(self, key: Any) -> Reference:
        return Reference(self._origin, (*self._parts, (ITEM, key)))

    def __getattr__(self, name: str) -> Reference:
        if name.startswith("_"):
            raise AttributeError(f"a step is bound to public attributes only, not to {name!r}")
        return Reference(self._origin, (*self._parts, (ATTRIBUTE, name)))

    def __repr__(self) -> str:
        if isinstance(self._origin, int):
            start = f"_{self._origin}"
        else:
            flow, step = self._origin
            start = f"{type(flow).__name__}.input" if step is None else f"{type(flow).__name__}.output({step!r})"
        return start + _shown(self._parts)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise ConfigurationError(
            f"{self!r} is a value of a flow that does not run yet. Give it to bind(...), as an argument of its own"
        )


def placeholder(number: int) -> Reference:
    """Return the reference to a positional argument of the bound step: ``_0`` for the first, ``_1``, ...

    Example:
        >>> bind(divmod, placeholder(1), placeholder(0))(3, 17)
        (5, 2)
    """
    return Reference(number)


_0, _1, _2, _3, _4, _5, _6, _7, _8, _9 = (placeholder(number) for number in range(10))


class Bound(Module):
    """A step with arguments: what `bind` makes.

    Args:
        function: The function or module.
        args: Where each positional argument comes from. Without any, and without a keyword argument that is one of
            the step's own, these are handed on.
        kwargs: Where each keyword argument comes from. What the step itself gets by keyword comes on top.
    """

    _passes_through: ClassVar[bool] = True  # the modules in it are those of the module that it is in

    def __init__(
        self, function: Callable[..., Any], args: Sequence[Source] = (), kwargs: Mapping[str, Source] | None = None
    ) -> None:
        self.function = function
        self._args = [self._own(str(index), source) for index, source in enumerate(args)]
        self._kwargs = {name: self._own(name, source) for name, source in (kwargs or {}).items()}
        self._hands_on = not self._args and all(source[0] != GIVEN for source in self._kwargs.values())

    @property
    def _scopes(self) -> list[Scope]:
        """The flows that this step is bound to."""
        return [source[1] for source in (*self._args, *self._kwargs.values()) if source[0] == FLOW]

    def _own(self, name: str, source: Source) -> Source:
        """Return where an argument comes from; a module becomes a child, so that it is built with this one."""
        _check(source)
        if source[0] == VALUE and isinstance(source[1], nn.Module):
            setattr(self, f"argument_{name}", source[1])
            return (CHILD, f"argument_{name}")
        return source

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with what it is bound to."""
        if self._kwargs:
            kwargs = {**{name: self._value(source, args) for name, source in self._kwargs.items()}, **kwargs}
        if not self._hands_on:
            args = tuple(self._value(source, args) for source in self._args)
        return self.function(*args, **kwargs)

    def _value(self, source: Source, args: tuple[Any, ...]) -> Any:
        kind = source[0]
        if kind == VALUE:
            return source[1]
        if kind == CHILD:
            return getattr(self, source[1])
        if kind == GIVEN:
            _, index, parts = source
            if index >= len(args):
                raise TypeError(f"the step gets {len(args)} positional arguments, so there is no _{index}")
            return _part(args[index], parts)
        _, scope, step, parts = source
        run = next((run for run in reversed(_runs.get()) if run.scope is scope), None)
        if run is None:
            raise ConfigurationError(
                "this step is bound to a flow that is not running. Call that flow, with the step in it; for what "
                "the step itself gets, bind to _0"
            )
        if step is None:
            return _part(run.given, parts)
        if step not in run.outputs:
            raise ConfigurationError(
                f"this step is bound to the output of {step!r}, which has not run. "
                f"Those that have: {', '.join(map(repr, run.outputs)) or 'none'}"
            )
        return _part(run.outputs[step], parts)

    @property
    def _shown_name(self) -> str:
        return name_of(self.function)

    def _tree(self) -> str:
        """Return the tree of this step: see `replayml.module.showing`."""
        shown = [self._source_shown(source) for source in self._args]
        shown += [f"{name}={self._source_shown(source)}" for name, source in self._kwargs.items()]
        is_module = isinstance(self.function, nn.Module)
        subs = [tree(self.function)] if is_module else []
        return make_repr("Bind", self._shown_name, subs=subs, args=f"({', '.join(shown)})")

    def _source_shown(self, source: Source) -> str:
        kind = source[0]
        if kind == FLOW:
            start = "input" if source[2] is None else f"output({source[2]!r})"
            return start + _shown(source[3])
        if kind == GIVEN:
            return f"_{source[1]}{_shown(source[2])}"
        value = source[1] if kind == VALUE else getattr(self, source[1])
        return name_of(value) if callable(value) else reprlib.repr(value)


def bind(*given: Any, **kwargs: Any) -> Any:
    """Return a step that calls a function, or a module, with these arguments.

    An argument is a value, ``flow.input``, ``flow.output("step")``, a part of one of these, or a placeholder: ``_0``
    is the first positional argument of the step itself, ``_1`` the second. Without positional arguments and
    placeholders here the step hands on its own. ``function | bind(...)`` is the same as ``bind(function, ...)``.

    Args:
        *given: The function or module, and its positional arguments.
        **kwargs: Its keyword arguments.

    Example:
        >>> from replayml.lifecycle.flows import pipeline
        >>> with pipeline() as p:
        ...     p.twice = lambda x: 2 * x
        ...     p.minus = bind(lambda a, b: a - b, p.input, p.output("twice"))
        >>> p(5)
        -5
    """
    if not given or not callable(given[0]):
        return _Waiting(given, kwargs)
    function, *args = given
    sources = tuple(map(_source, args))
    if not kwargs:
        return Bound(function, sources)
    return Bound(function, sources, {name: _source(value) for name, value in kwargs.items()})


class _Waiting:
    """Arguments that wait for their function: the right side of ``function | bind(...)``."""

    __slots__ = ("_args", "_kwargs")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._args = args
        self._kwargs = kwargs

    def __ror__(self, function: Any) -> Any:
        if not callable(function):
            return NotImplemented
        return bind(function, *self._args, **self._kwargs)

    def __repr__(self) -> str:
        return "bind(...) without a function. Write bind(function, ...) or function | bind(...)"


def _source(value: Any) -> Source:
    """Return where an argument comes from, as plain data."""
    if not isinstance(value, Reference):
        _refuse_hidden(value)
        return (VALUE, value)
    if isinstance(value._origin, int):
        return (GIVEN, value._origin, value._parts)
    flow, step = value._origin
    return (FLOW, flow._bindable(), step, value._parts)


def _refuse_hidden(value: Any) -> None:
    if isinstance(value, (list, tuple, set, frozenset)):
        inside: list[Any] = list(value)
    elif isinstance(value, dict):
        inside = list(value.values())
    else:
        return
    for item in inside:
        if isinstance(item, Reference):
            raise ConfigurationError(
                f"bind() got {item!r} inside of a {type(value).__name__}. Give it as an argument of its own"
            )
        _refuse_hidden(item)


def _check(source: Any) -> None:
    """Refuse what is no source, which a damaged recipe may hold."""
    match source:
        case ("value", _):
            return
        case ("given", int(index), parts) if index >= 0 and _are_parts(parts):
            return
        case ("flow", Scope(), str() | None, parts) if _are_parts(parts):
            return
    raise ConfigurationError(f"a Bound step takes what bind() makes, not {source!r}. Use bind(function, ...)")


def _are_parts(parts: Any) -> bool:
    return isinstance(parts, tuple) and all(
        isinstance(part, tuple)
        and len(part) == 2
        and (part[0] == ITEM or (part[0] == ATTRIBUTE and isinstance(part[1], str) and not part[1].startswith("_")))
        for part in parts
    )


def _part(value: Any, parts: Parts) -> Any:
    for kind, key in parts:
        value = value[key] if kind == ITEM else getattr(value, key)
    return value


def _shown(parts: Parts) -> str:
    return "".join(f"[{key!r}]" if kind == ITEM else f".{key}" for kind, key in parts)
