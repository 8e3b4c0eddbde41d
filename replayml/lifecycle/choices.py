"""Flows that run one of their steps: `switch` and `ifs`.

Invariants:
    * Conditions are asked in order, until one holds; those after it are not asked.
    * Conditions that are modules are children, like steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from replayml.core.errors import ConfigurationError
from replayml.core.hooks import edit
from replayml.lifecycle.flows import Flow
from replayml.lifecycle.packages import joined, spread
from replayml.module.showing import name_of

__all__ = ["ifs", "switch"]

DEFAULT = "default"


class switch(Flow):
    """The step of the first condition that holds.

    Args:
        *cases: A condition, its step, the next condition, its step, ...; or one dict of conditions and steps.
        conversion: Called with what is judged, before the conditions see it.
        judge_on_full_input: When False, the first argument is judged, and the step gets the others only.

    A condition is a function or a module, which is called with what is judged, or a value, which is compared with it;
    several arguments are compared as a tuple. ``"default"`` holds when no other one does; without it, an input that
    no condition holds for is a `ValueError`. In a ``with`` block: ``s.case[condition:step]`` or
    ``s.case(condition, step)``. Steps are called ``"0"``, ``"1"``, ... in order.

    Example:
        >>> sign = switch(lambda x: x < 0, lambda x: "minus", 0, lambda x: "zero", "default", lambda x: "plus")
        >>> sign(-3), sign(0), sign(5)
        ('minus', 'zero', 'plus')
        >>> with switch(judge_on_full_input=False) as s:
        ...     s.case["up" : str.upper]
        ...     s.case("down", str.lower)
        >>> s("up", "Text"), s("down", "Text")
        ('TEXT', 'text')
    """

    def __init__(
        self, *cases: Any, conversion: Callable[..., Any] | None = None, judge_on_full_input: bool = True
    ) -> None:
        super().__init__()
        if len(cases) == 1 and isinstance(cases[0], Mapping):
            cases = tuple(part for pair in cases[0].items() for part in pair)
        if len(cases) % 2:
            raise ConfigurationError(
                f"switch takes pairs of a condition and a step; {len(cases)} arguments are no pairs. For a step "
                "without a condition: 'default', step"
            )
        if conversion is not None and not callable(conversion):
            raise ConfigurationError(f"conversion= takes a function or a module, not {conversion!r}")
        self._conversion = conversion
        self._judges_all = judge_on_full_input
        for condition, step in zip(cases[::2], cases[1::2], strict=True):
            self._add_case(condition, step)

    @edit
    def add_case(self, condition: Any, step: Any) -> None:
        """Add a condition, and the step to run where it holds; what ``case`` records."""
        self._add_case(condition, step)

    @property
    def case(self) -> _Cases:
        """Adds cases: ``switch.case[condition:step]``, ``switch.case(condition, step)``."""
        return _Cases(self)

    def _add_case(self, condition: Any, step: Any) -> None:
        name = self._free_name()
        setattr(self, f"_when_{name}", condition)
        self._add(step, name)

    def _as_step(self, name: str, value: Any) -> Any:
        if not hasattr(self, f"_when_{name}"):
            raise ConfigurationError(
                f"step {name!r} of {self._place()} has no condition. Add it with one: switch.case(condition, step)"
            )
        return super()._as_step(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step of the first condition that holds.

        Args:
            *args: What is judged, and the positional arguments of the step.
            **kwargs: The keyword arguments of the step.
        """
        args = spread(args)
        if not args:
            raise TypeError(f"{self._place()} was called without an argument that it could judge")
        judged, args = (args, args) if self._judges_all else (args[:1], args[1:])
        with self._running(args, kwargs):
            name = self._found(judged)
            try:
                return self._step(name)(*args, **kwargs)
            except Exception as error:
                self._tell(error, name)
                raise

    def _found(self, judged: tuple[Any, ...]) -> str:
        """Return the name of the step to run."""
        if self._conversion is not None:
            judged = spread((self._asked("conversion", self._conversion, judged),))
        fallback = None
        for name in self._order:
            condition = getattr(self, f"_when_{name}")
            if isinstance(condition, str) and condition == DEFAULT:
                fallback = name
            elif callable(condition):
                if self._asked(name, condition, judged):
                    return name
            elif self._asked(name, functools.partial(_equal, condition), judged):
                return name
        if fallback is None:
            conditions = [getattr(self, f"_when_{name}") for name in self._order]
            shown = ", ".join(name_of(one) if callable(one) else repr(one) for one in conditions)
            raise ValueError(
                f"{self._place()} has no case for {joined(judged)!r}. Its conditions: {shown or 'none'}. For all "
                "others: switch.case('default', step)"
            )
        return fallback

    def _asked(self, name: str, function: Callable[..., Any], judged: tuple[Any, ...]) -> Any:
        try:
            return function(*judged)
        except Exception as error:
            self._tell(error, f"condition {name}" if name in self._order else name)
            raise


def _equal(value: Any, *judged: Any) -> bool:
    """Tell whether a value is what is judged."""
    found = value == (judged[0] if len(judged) == 1 else judged)
    try:
        return bool(found)
    except (RuntimeError, ValueError) as error:
        error.add_note("a case that is a value is compared with ==; for arrays give a function: lambda x: ...")
        raise


class _Cases:
    """Adds cases to a switch."""

    __slots__ = ("_flow",)

    def __init__(self, flow: switch) -> None:
        self._flow = flow

    def __call__(self, condition: Any, step: Any) -> None:
        self._flow.add_case(condition, step)

    def __getitem__(self, pair: Any) -> None:
        if isinstance(pair, slice) and pair.step is None:
            pair = (pair.start, pair.stop)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise ConfigurationError("a case is a condition and a step: switch.case[condition:step]")
        self._flow.add_case(*pair)


class ifs(Flow):
    """One step where a condition holds, another one where it does not.

    Args:
        cond: Called with the arguments of the flow.
        tpath: The step to run when it returns something true.
        fpath: The step to run when it does not.

    Example:
        >>> halve = ifs(lambda x: x % 2 == 0, lambda x: x // 2, lambda x: 3 * x + 1)
        >>> halve(8), halve(7)
        (4, 22)
    """

    def __init__(self, cond: Any, tpath: Any, fpath: Any) -> None:
        super().__init__(cond=cond, tpath=tpath, fpath=fpath)

    def _as_step(self, name: str, value: Any) -> Any:
        if name not in ("cond", "tpath", "fpath"):
            raise ConfigurationError(f"{self._place()} has the steps cond, tpath and fpath; {name!r} is none of them")
        return super()._as_step(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Ask the condition, and run one of the steps, with the same arguments."""
        args = spread(args)
        with self._running(args, kwargs):
            name = "cond"
            try:
                name = "tpath" if self._step(name)(*args, **kwargs) else "fpath"
                return self._step(name)(*args, **kwargs)
            except Exception as error:
                self._tell(error, name)
                raise
