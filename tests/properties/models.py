"""Modules whose ``__init__`` is data, so that Hypothesis can write it, and small modules for single tests.

A *script* is a tuple of steps, each a tuple of a name and its operands. `run` carries it out inside an ``__init__``.
Operands name modules by number, modulo how many there are, so that each script fits each tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from replayml.core.hooks import after_build, after_init, before_build, edit, stateful
from replayml.layers.containers import LayerList, Parallel, Sequential
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.module import Module


class Refused(Exception):  # noqa: N818 - the tests read better so
    """Raised by a script that does not take a width."""


class Stopped(BaseException):
    """Raised like a KeyboardInterrupt."""


class Holder(nn.Module):
    """A plain module with modules among its arguments."""

    def __init__(self, inner: Any = None, *others: Any, scale: float = 1.0, table: Any = None) -> None:
        super().__init__()
        self.inner = inner
        self.others = nn.ModuleList(others)
        self.scale = scale
        self.table = table

    def forward(self, x: Any) -> Any:
        """Return the scaled input."""
        return x * self.scale


def below(module: nn.Module) -> list[Any]:
    """Return the unbuilt replayml modules below one, each once, in the order of the tree."""
    return [
        other
        for other in module.modules()
        if other is not module and isinstance(other, Module) and not other._record.built
    ]


def pick(options: list[Any], number: int) -> Any:
    """Return one of the options, or None when there is none."""
    return options[number % len(options)] if options else None


def width_of(module: Any) -> str:
    """Return the name of the setting that stands for the width of a module."""
    return (
        "width" if "width" in module.configurables else "out_features" if "out_features" in module.configurables else ""
    )


def make(kind: str, width: int, given: Any = None) -> Any:
    """Return a new small module."""
    if kind == "linear":
        return Layer(nn.Linear, width, width + 1)
    if kind == "relu":
        return Layer(nn.ReLU)
    if kind == "plain":
        return nn.PReLU()
    if kind == "plainlist":
        return nn.Sequential(Layer(nn.Linear, width, 2), nn.PReLU(), nn.Sequential(Layer(nn.Tanh)))
    if kind == "list":
        return LayerList(Layer(nn.Linear, width, 3), Layer(nn.ReLU))
    if kind == "sequential":
        return Sequential(Layer(nn.Linear, width, 3), LayerList([Layer(nn.Tanh)]))
    if kind == "parallel":
        return Parallel(Layer(nn.Linear, width, 3), left=Layer(nn.Tanh))
    if kind == "external":
        return External(Holder, given or Layer(nn.Linear, width, 3), scale=2.0)
    if kind == "holder":
        return Layer(Holder, None, given or Layer(nn.Tanh), scale=width)
    if kind == "pair":
        return Pair(width, given)
    if kind == "tail":
        return Tail(width)
    raise AssertionError(kind)


KINDS = ("linear", "relu", "plain", "plainlist", "list", "sequential", "parallel", "external", "holder", "pair", "tail")


def run(self: Any, script: Any, width: int, extra: Any, flag: bool) -> None:
    """Carry out a script inside of an ``__init__``."""
    for step in script:
        name, *operands = step
        STEPS[name](self, width, extra, flag, *operands)


def _make(self: Any, width: int, extra: Any, flag: bool, name: str, kind: str, delta: int) -> None:
    setattr(self, name, make(kind, width + delta))


def _child(self: Any, width: int, extra: Any, flag: bool, name: str, cls: int, script: Any, delta: int) -> None:
    setattr(self, name, pick(CLASSES, cls)(script, width=width + delta))


def _child_with(self: Any, width: int, extra: Any, flag: bool, name: str, cls: int, script: Any, number: int) -> None:
    setattr(self, name, pick(CLASSES, cls)(script, width + 1, pick(below(self), number)))


def _wrap(self: Any, width: int, extra: Any, flag: bool, name: str, kind: str, number: int) -> None:
    setattr(self, name, make(kind, width, pick(below(self), number)))


def _alias(self: Any, width: int, extra: Any, flag: bool, name: str, number: int) -> None:
    found = pick(below(self), number)
    if found is not None:
        setattr(self, name, found)


def _hand(self: Any, width: int, extra: Any, flag: bool, source: int, target: int, name: str) -> None:
    found, holder = pick(below(self), source), pick([m for m in below(self) if isinstance(m, Scripted)], target)
    if found is not None and holder is not None and holder not in found.modules():
        setattr(holder, name, found)


def _move(self: Any, width: int, extra: Any, flag: bool, holder: int, source: int, name: str) -> None:
    owner = pick([m for m in below(self) if isinstance(m, Scripted)], holder)
    if owner is not None and owner._modules:
        key = pick(list(owner._modules), source)
        found = owner._modules[key]
        delattr(owner, key)
        setattr(self, name, found)


def _given(self: Any, width: int, extra: Any, flag: bool, name: str) -> None:
    if isinstance(extra, (list, tuple)):
        setattr(self, name, LayerList(extra))
    elif isinstance(extra, dict):
        for key, value in extra.items():
            setattr(self, key, value)
    elif extra is not None:
        setattr(self, name, extra)


def _value(self: Any, width: int, extra: Any, flag: bool, name: str, value: Any) -> None:
    setattr(self, name, [width, value])


def _configure(self: Any, width: int, extra: Any, flag: bool, number: int, delta: int) -> None:
    found = pick([m for m in below(self) if width_of(m)], number)
    if found is not None:
        found.configure(width_of(found), width + delta)


def _setattr(self: Any, width: int, extra: Any, flag: bool, number: int, name: str, value: Any) -> None:
    found = pick([m for m in below(self) if isinstance(m, (Scripted, Layer))], number)
    if found is not None:
        setattr(found, name, value)


def _append(self: Any, width: int, extra: Any, flag: bool, number: int, kind: str) -> None:
    found = pick([m for m in below(self) if isinstance(m, LayerList)], number)
    if found is not None:
        found.append(make(kind, width))


def _insert(self: Any, width: int, extra: Any, flag: bool, number: int, index: int, kind: str) -> None:
    found = pick([m for m in below(self) if isinstance(m, LayerList)], number)
    if found is not None:
        found.insert(index, make(kind, width))


def _pop(self: Any, width: int, extra: Any, flag: bool, number: int, index: int) -> None:
    found = pick([m for m in below(self) if isinstance(m, LayerList) and len(m)], number)
    if found is not None:
        found.pop(index % len(found))


def _mark(self: Any, width: int, extra: Any, flag: bool, number: int, word: str) -> None:
    found = pick([m for m in [self, *below(self)] if isinstance(m, Scripted)], number)
    found.mark(word)


def _count(self: Any, width: int, extra: Any, flag: bool, number: int, amount: int) -> None:
    found = pick([m for m in [self, *below(self)] if isinstance(m, Scripted)], number)
    found.count(amount)


def _grow(self: Any, width: int, extra: Any, flag: bool, number: int, name: str) -> None:
    found = pick([m for m in below(self) if isinstance(m, Scripted)], number)
    if found is not None:
        found.grow(name)


def _if_flag(self: Any, width: int, extra: Any, flag: bool, script: Any) -> None:
    if flag:
        run(self, script, width, extra, flag)


def _if_odd(self: Any, width: int, extra: Any, flag: bool, script: Any) -> None:
    if width % 2:
        run(self, script, width, extra, flag)


def _refuse(self: Any, width: int, extra: Any, flag: bool, wrong: int) -> None:
    if width == wrong:
        raise Refused(wrong)


STEPS: dict[str, Callable[..., None]] = {
    "make": _make,
    "child": _child,
    "child_with": _child_with,
    "wrap": _wrap,
    "alias": _alias,
    "hand": _hand,
    "move": _move,
    "given": _given,
    "value": _value,
    "configure": _configure,
    "setattr": _setattr,
    "append": _append,
    "insert": _insert,
    "pop": _pop,
    "mark": _mark,
    "count": _count,
    "grow": _grow,
    "if_flag": _if_flag,
    "if_odd": _if_odd,
    "refuse": _refuse,
}


class Scripted(Module):
    """A module without ``super().__init__()`` that carries out a script."""

    def __init__(self, script: Any = (), width: int = 4, extra: Any = None, flag: bool = False) -> None:
        self.width = width
        self.flag = flag
        run(self, script, width, extra, flag)

    @stateful
    def count(self, amount: int) -> None:
        """Change an attribute, on the tape only."""
        self.counted = getattr(self, "counted", 0) + amount

    @stateful
    def widen(self, amount: int) -> None:
        """Configure this module and all that it can, on the tape only."""
        self.configure(width=self.width + amount)
        for other in below(self):
            if isinstance(other, Layer) and "bias" in other.configurables:
                other.configure(bias=amount % 2 == 0)

    @after_init
    def mark(self, word: str) -> None:
        """Change an attribute after each construction."""
        self.marks = [*getattr(self, "marks", ()), word, self.width]

    @edit
    def grow(self, name: str) -> None:
        """Add a child after each construction."""
        setattr(self, name, Layer(nn.Linear, self.width, 5))

    @stateful
    def spoil(self, number: int) -> None:
        """Fail after many changes."""
        self.counted = 1000
        self.flag = not self.flag
        for child in list(self._modules):
            if number % 3 == 0:
                delattr(self, child)
            elif number % 3 == 1:
                setattr(self, child, Layer(nn.Tanh))
        for other in below(self):
            if width_of(other):
                other.configure(width_of(other), 77)
        self.late = Layer(nn.Tanh)
        raise Refused("spoil")

    @after_build
    def finish(self, word: str) -> None:
        """Leave a word on the built module."""
        self.finished = word

    @before_build
    def prepare(self, word: str) -> None:
        """Leave a word on the module before it is built."""
        self.prepared = word

    def forward(self, x: Any) -> Any:
        """Return the input."""
        return x


class WithSuper(Scripted):
    """One that calls ``super().__init__()``, twice as wide."""

    def __init__(self, script: Any = (), width: int = 4, extra: Any = None, flag: bool = False) -> None:
        super().__init__((("make", "base", "linear", 0),), width * 2, flag=not flag)
        run(self, script, width, extra, flag)
        self.width = width


class Mixin:
    """A mixin with an ``__init__`` of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.mixed = True
        super().__init__(*args, **kwargs)


class Mixed(Mixin, Scripted):
    """One behind a mixin; its ``__init__`` takes anything."""

    def __init__(self, script: Any = (), width: int = 4, *, extra: Any = None, flag: bool = False) -> None:
        super().__init__(script, width=width, extra=extra, flag=flag)


CLASSES = [Scripted, WithSuper, Scripted]


class Pair(Module):
    """Two layers, and a third from outside."""

    def __init__(self, width: int = 2, third: Any = None) -> None:
        super().__init__()
        self.width = width
        self.first = Layer(nn.Linear, width, width)
        self.second = Layer(nn.Linear, width, width)
        if third is not None:
            self.third = third


class Tail(Module):
    """A layer under two names, configured from here."""

    def __init__(self, width: int = 2) -> None:
        self.width = width
        self.one = Layer(nn.Linear, 1, width)
        self.pair = Pair(width, self.one)
        self.pair.first.configure(out_features=width + 7)
        self.items = LayerList(self.one, Layer(nn.Tanh))
