"""Flows drawn at random, what they are in plain Python, and the functions that they are made of."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

import replayml
from replayml import _0, bind, diverter, ifs, loop, package, parallel, pipeline, switch, warp

seen: ContextVar[list[str] | None] = ContextVar("seen", default=None)


def note(name: str) -> None:
    """Keep the name of a function that was called, where somebody listens."""
    calls = seen.get()
    if calls is not None:
        calls.append(name)


def inc(x: int) -> int:
    """Add one."""
    note("inc")
    return x + 1


def negate(x: int) -> int:
    """Change the sign."""
    note("negate")
    return -x


def triple(x: int) -> int:
    """Multiply by three."""
    note("triple")
    return 3 * x


def fussy(x: int) -> int:
    """Halve, or fail for a third of the numbers."""
    note("fussy")
    if x % 3 == 2:
        raise ValueError(f"{x} is not to its taste")
    return x // 2


def picky(x: int) -> int:
    """Subtract seven, or fail for a fifth of the numbers."""
    note("picky")
    if x % 5 == 4:
        raise KeyError(x)
    return x - 7


def is_even(x: int) -> bool:
    """Tell whether a number is even."""
    note("is_even")
    return x % 2 == 0


def total(*values: int) -> int:
    """Add up."""
    note("total")
    return sum(values)


def mix(given: int | tuple[int, ...], x: int) -> int:
    """Add what a flow was given."""
    note("mix")
    return (sum(given) if isinstance(given, tuple) else given) + x


def both(x: int) -> package:
    """Return two numbers."""
    note("both")
    return package((x, x + 1))


class Shift(replayml.Module):
    """A module as a step."""

    def __init__(self, by: int = 1) -> None:
        self.by = by

    def forward(self, x: int) -> int:
        note("Shift")
        return x + self.by


FUNCTIONS: list[Callable[..., Any]] = [inc, negate, triple, fussy, picky]
TRUST = [*FUNCTIONS, is_even, total, mix, both]


@dataclass(frozen=True)
class Spec:
    """A step before it is made.

    Attributes:
        kind: What it is.
        form: How its steps are given: by position, by name, in a ``with`` block.
        steps: What is in it.
        value: A number: which function, how often, which of the flows around it.
    """

    kind: str
    form: str = "position"
    steps: tuple[Spec, ...] = field(default=())
    value: int = 0

    @property
    def names(self) -> list[str]:
        """The names of its steps."""
        if self.kind == "ifs":
            return ["tpath", "fpath"]
        mark = "" if self.form == "position" or self.kind == "switch" else "s"
        return [f"{mark}{number}" for number in range(len(self.steps))]

    def is_put_in_first(self, around: Spec) -> bool:
        """Tell whether it is put into the flow around it before its own steps are put into it."""
        written = self.form == around.form == "with"
        return written and self.kind in ("pipeline", "parallel", "loop") and around.kind not in ("ifs", "switch")


LEAVES = st.one_of(
    st.builds(Spec, st.just("function"), value=st.integers(0, len(FUNCTIONS) - 1)),
    st.builds(Spec, st.just("module"), value=st.integers(-3, 3)),
    st.builds(Spec, st.just("bound"), value=st.integers(0, 3)),
)
FORMS = st.sampled_from(["position", "name", "with"])


def _flows(steps: st.SearchStrategy[Spec]) -> st.SearchStrategy[Spec]:
    some = st.lists(steps, min_size=1, max_size=3).map(tuple)
    two = st.tuples(steps, steps)
    return st.one_of(
        st.builds(Spec, st.just("pipeline"), FORMS, some),
        st.builds(Spec, st.just("parallel"), FORMS, some),
        st.builds(Spec, st.just("diverter"), FORMS, two),
        st.builds(Spec, st.just("warp"), FORMS, st.tuples(steps)),
        st.builds(Spec, st.just("loop"), FORMS, some, st.integers(0, 2)),
        st.builds(Spec, st.just("ifs"), st.just("position"), two),
        st.builds(Spec, st.just("switch"), st.sampled_from(["position", "with"]), two),
    )


SPECS = st.recursive(LEAVES, _flows, max_leaves=12).filter(lambda spec: bool(spec.steps))


class Maker:
    """Makes the flows of specs.

    Args:
        in_order: Whether what could run side by side is to run in order.
    """

    def __init__(self, in_order: bool = False) -> None:
        self._options: dict[str, Any] = {"_concurrent": False} if in_order else {}
        self._open: list[Any] = []

    def make(self, spec: Spec) -> Any:
        """Return the step of a spec."""
        match spec.kind:
            case "function":
                return FUNCTIONS[spec.value]
            case "module":
                return Shift(spec.value)
            case "bound":
                if not self._open:
                    return inc
                return bind(mix, self._open[-1 - spec.value % len(self._open)].input, _0)
            case "ifs":
                return ifs(is_even, *map(self.make, spec.steps))
        flow = self._switch(spec) if spec.kind == "switch" else self._flow(spec)
        return pipeline(both, flow, total) if spec.kind in ("diverter", "warp") else flow

    def _empty(self, spec: Spec, *steps: Any, **named: Any) -> Any:
        match spec.kind:
            case "pipeline":
                return pipeline(*steps, **named)
            case "loop":
                return loop(*steps, count=spec.value, **named)
            case "parallel":
                return parallel(*steps, **named, **self._options).sum
            case "diverter":
                return diverter(*steps, **named, **self._options)
            case _:
                return warp(*steps, **named, **self._options)

    def _flow(self, spec: Spec) -> Any:
        if spec.form == "position":
            return self._empty(spec, *map(self.make, spec.steps))
        if spec.form == "name":
            return self._empty(spec, **dict(zip(spec.names, map(self.make, spec.steps), strict=True)))
        with self._empty(spec) as flow:
            self._fill(flow, spec)
        return flow

    def _fill(self, flow: Any, spec: Spec) -> None:
        self._open.append(flow)
        for name, step in zip(spec.names, spec.steps, strict=True):
            if step.is_put_in_first(spec):
                setattr(flow, name, self._empty(step))
                with getattr(flow, name) as inner:
                    self._fill(inner, step)
            else:
                setattr(flow, name, self.make(step))
        self._open.pop()

    def _switch(self, spec: Spec) -> Any:
        even, other = spec.steps
        if spec.form == "position":
            return switch(is_even, self.make(even), "default", self.make(other))
        with switch() as flow:
            self._open.append(flow)
            flow.case[is_even : self.make(even)]
            flow.case("default", self.make(other))
            self._open.pop()
        return flow


class StepError(Exception):
    """An error of a step, and the path of the step."""

    def __init__(self, error: Exception, path: str) -> None:
        super().__init__(error, path)
        self.error = error
        self.path = path


def outcome(function: Callable[[], Any]) -> Any:
    """Return what a call returns, or the type, arguments and place of the error that it raises."""
    try:
        return function()
    except StepError as failed:
        return type(failed.error), failed.error.args, failed.path
    except (ValueError, KeyError) as error:
        places = [note.split("'")[1] for note in error.__notes__ if note.startswith("in step '")]
        return type(error), error.args, places[0]


class Plain:
    """Does in plain Python what the flow of a spec does."""

    def __init__(self) -> None:
        self._given: list[int | tuple[int, ...]] = []

    def run(self, spec: Spec, x: int, path: str = "") -> int:
        """Return what the flow returns for a number.

        Raises:
            StepError: With the error that the flow raises.
        """
        match spec.kind:
            case "function":
                return self._called(FUNCTIONS[spec.value], x, path)
            case "module":
                note("Shift")
                return x + spec.value
            case "bound":
                if not self._given:
                    return inc(x)
                return mix(self._given[-1 - spec.value % len(self._given)], x)
        outer = self._given
        if spec.form == "with":
            self._given = [*outer, x]
        try:
            return self._flow(spec, x, f"{path}." if path else "")
        finally:
            self._given = outer

    def _called(self, function: Callable[[int], int], x: int, path: str) -> int:
        try:
            return function(x)
        except (ValueError, KeyError) as error:
            raise StepError(error, path) from error

    def _flow(self, spec: Spec, x: int, path: str) -> int:
        pairs = list(zip(spec.names, spec.steps, strict=True))
        match spec.kind:
            case "pipeline" | "loop":
                for _ in range(spec.value if spec.kind == "loop" else 1):
                    for name, step in pairs:
                        x = self.run(step, x, path + name)
                return x
            case "parallel":
                return sum(self.run(step, x, path + name) for name, step in pairs)
            case "diverter" | "warp":
                if spec.form == "with":
                    self._given[-1] = (x, x + 1)
                note("both")
                if spec.kind == "warp":
                    pairs = pairs * 2
                outputs = [self.run(step, x + i, f"{path}1.{name}") for i, (name, step) in enumerate(pairs)]
                return total(*outputs)
            case _:
                (first, even), (second, other) = pairs
                chosen, name = (even, first) if is_even(x) else (other, second)
                return self.run(chosen, x, path + name)
