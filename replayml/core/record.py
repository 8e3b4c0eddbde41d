"""What replayml knows about one module, in one object beside the module's own attributes.

Invariants:
    * The record is the only attribute that replayml adds to a module: ``module.__dict__["_record"]``.
    * ``links`` of a child and ``children`` of its parent always agree.
    * The record of a built model holds its blueprint, and the calls that wait for training, and nothing else, so that
      a built model is as light and as picklable as a plain ``torch.nn.Module``. What is known of it while the program
      runs is no part of any copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

from replayml.core.arguments import Kept
from replayml.core.config import Config, Setting
from replayml.core.journal import note
from replayml.core.tape import CallRecord, Path

__all__ = ["Blueprint", "Forecast", "HookCall", "Record", "Slots"]

NOTHING: Any = MappingProxyType({})

Line = tuple[type, Any, int]


class Blueprint:
    """The record of a model as it was when it was built; copies of the built model share it.

    Attributes:
        call: The model as data.
        sizes: What was read off the example input: tags -> name -> value.
    """

    __slots__ = ("call", "sizes")

    def __init__(self, call: CallRecord, sizes: dict[Path, dict[str, Any]]) -> None:
        self.call = call
        self.sizes = sizes

    def __deepcopy__(self, memo: dict[int, Any]) -> Blueprint:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Blueprint, (self.call, self.sizes)


class HookCall:
    """A method call that waits for its phase, such as ``after_build``.

    Attributes:
        function: The recorded method, or a function of the user.
        args: Its positional arguments, without the module.
        kwargs: Its keyword arguments.
        target: The object that a layer became, for what waits beyond the build; None for the module itself.
    """

    __slots__ = ("args", "function", "kwargs", "target")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.target: Any = None

    def __call__(self, module: Any) -> None:
        """Make the call; of a recorded method what stands below its decorator, which would record it."""
        function = self.function
        if hasattr(function, "__recorded__"):
            function = function.__wrapped__  # type: ignore[attr-defined]
        function(module if self.target is None else self.target, *self.args, **self.kwargs)


class Forecast(NamedTuple):
    """Where a module stood that an ``__init__`` made: where it will stand when that ``__init__`` does the same again.

    Attributes:
        module: The module; it becomes the same object again, so that who holds it holds the new one.
        path: Its slots below the module that made it.
        below: The same for what it made itself.
    """

    module: Any
    path: Path
    below: dict[Line, list[Forecast | None]]


class Slots:
    """The slots of a list whose elements were moved: which slot stands at which index."""

    __slots__ = ("_index", "order")

    def __init__(self, order: list[str]) -> None:
        self.order = order
        self._index: dict[str, int] | None = None

    def index(self, slot: str) -> int | None:
        """Return the current index of a slot, or None when its element is gone."""
        if self._index is None:
            self._index = {slot: index for index, slot in enumerate(self.order)}
        return self._index.get(slot)

    def insert(self, index: int, slot: str) -> None:
        """Put a slot at an index."""
        if index == len(self.order) and self._index is not None:
            self._index[slot] = index
        else:
            self._index = None
        self.order.insert(index, slot)

    def put(self, index: int, slot: str) -> None:
        """Put another slot at an index."""
        self.order[index] = slot
        self._index = None

    def remove(self, index: int) -> None:
        """Take out the slot at an index."""
        del self.order[index]
        self._index = None


class Record:
    """What replayml knows about one module.

    Attributes:
        args: The positional arguments, as they were when the caller passed them.
        kwargs: The keyword arguments, likewise.
        kept: The lists, dicts and sets among these arguments, and among those of the calls that it was told of.
        call: The module as data; its tape grows while the module is a root.
        maker: The module in whose ``__init__`` this one was made; None for the user, also when the user took it out.
        first_maker: The same, also when the user took it out.
        links: Where the module stands: its parents and its slots below each.
        children: The replayml modules right below, by their slots.
        config: The settings made while this module was a root; None when there are none.
        resolved: The settings in force when the module was last constructed.
        made: What its ``__init__`` set on others.
        applied: The serials of the edits that were carried out on it since it was last constructed.
        hooks: The calls that wait for a phase.
        slots: For a list whose elements were moved.
        replaced: The slots of children that the user put in the place of others, by name.
        inferred: The sizes that were read off the example input.
        creations: The modules that its ``__init__`` made, in order.
        made_at: How many of them each line made.
        line: The line that made it: its class, the code and the line number.
        forecast: Where the modules stood that each line made in the run before.
        expected: Where a module that stands nowhere yet will stand, if its maker does as the last time.
        speculative: Whether it, or something below it, was made with settings of the place where it was expected.
        loose: What others had put below it, while it is constructed again: that is put in again.
        rewrapped: Whether it was put into a tree around something that stood there: it is made anew with the tree.
        running: The phase whose waiting calls run at the moment, or None.
        deferred: What brings it in line with its settings, while it waits for that.
        sharing: Whether it, or something below it, stands in several places.
        left: The root of the tree that it was taken out of last, or None.
        gone: Where its successor stands, after its parent was constructed again.
        runtime: What is known of it while the program runs: see `replayml.module.runtime`.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = NOTHING
    kept: list[Kept] = ()  # type: ignore[assignment]
    call: CallRecord
    maker: Any = None
    first_maker: Any = None
    links: list[tuple[Any, Path]] = ()  # type: ignore[assignment]
    children: dict[Path, Any] = NOTHING
    config: Config | None = None
    resolved: dict[str, Setting] = NOTHING
    made: list[Any] | None = None
    applied: set[int] | None = None
    hooks: dict[str, list[HookCall]] | None = None
    slots: Slots | None = None
    replaced: dict[str, str] | None = None
    plain: set[int] | None = None
    loose: list[Any] = ()  # type: ignore[assignment]
    creations: list[Any] | None = None
    made_at: dict[Line, int] | None = None
    line: Line | None = None
    forecast: dict[Line, list[Forecast | None]] | None = None
    speculative: bool = False
    expected: tuple[Any, Path] | None = None
    left: Any = None
    gone: tuple[Any, Path] | None = None
    deferred: Callable[[Any], None] | None = None
    constructing: bool = False
    constructed: bool = False
    constructed_at: int = 0
    running: str | None = None
    rebuilding: bool = False
    sharing: bool = False
    rewrapped: bool = False
    built: bool = False
    blueprint: Blueprint | None = None
    inferred: dict[str, Any] = NOTHING
    path: Path = ()
    runtime: Any = None

    def name_of(self, slot: str) -> str:
        """Return the name under which a slot is found in the module's children."""
        index = None if self.slots is None else self.slots.index(slot)
        if index is not None:
            return str(index)
        return slot.partition("@")[0] if "@" in slot else slot

    def slot_of(self, name: str) -> str:
        """Return the slot of the child of that name."""
        if self.replaced is not None and name in self.replaced:
            return self.replaced[name]
        if self.slots is None or not name.isdigit() or int(name) >= len(self.slots.order):
            return name
        return self.slots.order[int(name)]

    def apply(self, serial: int) -> None:
        """Remember that an edit was carried out."""
        if self.applied is None:
            self.applied = set()
        self.applied.add(serial)
        note(self.applied.discard, serial)

    def seal(self, blueprint: Blueprint, path: Path) -> None:
        """Keep the blueprint, and what waits for a later phase, and forget the rest: the module is built."""
        hooks, runtime = self.hooks, self.runtime
        self.__dict__.clear()
        self.built = True
        self.blueprint = blueprint
        self.path = path
        if hooks:
            self.hooks = hooks
        if runtime is not None:
            self.runtime = runtime

    def wait(self, hooks: dict[str, list[HookCall]]) -> None:
        """Add calls that wait for a phase."""
        if self.hooks is None:
            self.hooks = {}
        for phase, calls in hooks.items():
            self.hooks.setdefault(phase, []).extend(calls)

    def __deepcopy__(self, memo: dict[int, Any]) -> Record:
        new = Record()
        new.__dict__.update(self.__getstate__())
        new.hooks = copy.deepcopy(self.hooks, memo)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {"built": self.built, "blueprint": self.blueprint, "path": self.path, "hooks": self.hooks}
