"""What a name in a recipe stands for.

A name is found in one of three places: what the caller trusts, the classes that the metaclass has made in modules
that the program imported, and the pinned tables.

Invariants:
    * A name from a file is a key of a dict. Nothing is imported, and no attribute is looked up by it.
    * What was found is checked again: a class where a class belongs, a function where a function belongs.
    * Trust is made of objects, given per call.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Literal

from torch import nn

from replayml.core.errors import ArgumentError
from replayml.recipe.codecs import Codec
from replayml.recipe.faults import Flaw, shown
from replayml.recipe.text.torch_names import BUILTINS, CLASSES, FUNCTIONS, LAYERS, own_classes, torchmetrics_classes
from replayml.recipe.values.instances import is_pydantic

__all__ = ["Kind", "Names"]

Kind = Literal["call", "class", "function", "enum", "dataclass", "namedtuple", "pydantic", "codec"]

_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_SCRIPT = "__main__"
_LONGEST_SUGGESTED = 200
_LEAST_ALIKE = 0.7

_EXPECTED: Mapping[Kind, str] = {
    "call": "a replayml module, a layer of torch.nn, a metric, or a class that was handed in with trust=",
    "class": "a class",
    "function": "a function",
    "enum": "an Enum class",
    "dataclass": "a dataclass",
    "namedtuple": "a named tuple class",
    "pydantic": "a pydantic model",
    "codec": "a Codec",
}


def qualified(thing: object) -> str | None:
    """Return ``module.qualname`` of a class or a function, or None when it has none.

    Example:
        >>> qualified(Codec)
        'replayml.recipe.codecs.Codec'
    """
    module = getattr(thing, "__module__", None)
    name = getattr(thing, "__qualname__", None)
    return f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else None


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def is_namedtuple(cls: object) -> bool:
    """Tell whether a class is a tuple with named fields."""
    return isinstance(cls, type) and issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


class Names:
    """The names that may be used, and what they stand for.

    Args:
        registry: The classes that the metaclass made, by name.
        is_recorded: Tells whether a function is a recorded method.
        trust: Classes, functions and codecs that the caller trusts as well.

    Raises:
        ArgumentError: When something is trusted that is no class, function or codec with a name.

    Example:
        >>> names = Names({}, is_recorded=lambda function: False)
        >>> names.find("torch.nn.ReLU", "class")
        <class 'torch.nn.modules.activation.ReLU'>
        >>> names.of(nn.ReLU)
        'torch.nn.ReLU'
    """

    def __init__(
        self,
        registry: Mapping[str, type],
        is_recorded: Callable[[object], bool],
        trust: Sequence[object] = (),
    ) -> None:
        self._registry = registry
        self._is_recorded = is_recorded
        self._trusted: dict[str, object] = {}
        self._codecs: dict[str, object] = {}
        for thing in trust:
            self._add(thing)
        self._metrics = torchmetrics_classes()
        self._tables: tuple[Mapping[str, object], ...] = (
            self._trusted,
            registry,
            LAYERS,
            CLASSES,
            FUNCTIONS,
            BUILTINS,
            self._metrics,
            own_classes(),
        )
        self._pinned = {id(thing): name for table in self._tables[2:] for name, thing in table.items()}
        self._methods: dict[str, bool] = {}

    def _add(self, thing: object) -> None:
        is_codec = isinstance(thing, Codec)
        target = thing.type if isinstance(thing, Codec) else thing
        name = qualified(target)
        if name is None or not callable(target):
            raise ArgumentError(
                f"trust= takes classes, functions and Codecs, the objects themselves; {target!r} is none of them."
            )
        (self._codecs if is_codec else self._trusted)[name] = thing

    # Reading --------------------------------------------------------------------------------------------------------

    def find(self, name: str, kind: Kind, suggest: bool = True) -> object:
        """Return what a name stands for.

        Args:
            name: The name.
            kind: What belongs there.
            suggest: Look for similar names when there is no such name, which takes a while.

        Raises:
            Flaw: ``untrusted-name`` when nothing may be called so, ``wrong-kind`` when it is something else than
                what belongs there.
        """
        tables = (self._codecs,) if kind == "codec" else self._tables
        for table in tables:
            if name in table:
                found = table[name]
                if self._fits(found, name, kind):
                    return found
                raise Flaw("wrong-kind", f"{shown(name)} is not {_EXPECTED[kind]}, which belongs here.")
        raise Flaw("untrusted-name", self._untrusted(name, kind, suggest))

    def _fits(self, found: object, name: str, kind: Kind) -> bool:
        if kind == "codec":
            return isinstance(found, Codec)
        if kind == "function":
            return callable(found) and not isinstance(found, type)
        if not isinstance(found, type):
            return False
        match kind:
            case "call":
                is_layer = (name in LAYERS or name in self._metrics) and issubclass(found, nn.Module)
                return name in self._trusted or name in self._registry or is_layer or found is OrderedDict
            case "enum":
                return issubclass(found, Enum)
            case "dataclass":
                return dataclasses.is_dataclass(found)
            case "namedtuple":
                return is_namedtuple(found)
            case "pydantic":
                return is_pydantic(found)
            case _:
                return True

    def _untrusted(self, name: str, kind: Kind, suggest: bool) -> str:
        what = "codec" if kind == "codec" else "function" if kind == "function" else "class"
        text = f"the {what} {shown(name)} is not known to this program, or not trusted."
        similar = self._nearest(name) if suggest and len(name) <= _LONGEST_SUGGESTED else None
        if similar is not None:
            text += f" The nearest name that is: {similar!r}."
            if _last(similar) == _last(name):
                text += f" If it has moved there: rename={{{name!a}: {similar!r}}}."
        if kind == "codec":
            return f"{text} Pass its codec: trust=[Codec(...)]."
        if name.startswith(f"{_SCRIPT}."):
            last = shown(name.removeprefix(f"{_SCRIPT}."))[1:-1]
            return (
                f"{text} It stood in a script, which is {_SCRIPT} only while it runs. Move it to a module that both "
                "programs import, and save again; or import the module that has it now, and say which one that is: "
                f"rename={{'{_SCRIPT}.{last}': 'MODULE.{last}'}}."
            )
        return (
            f"{text} If it is a replayml module, import the module that defines it; "
            "anything else that you trust is handed in as an object: trust=[...]."
        )

    def _nearest(self, name: str) -> str | None:
        """Return the known name that is most like another one: by its last part, and then by all of it."""
        known: dict[str, list[str]] = {}
        for table in self._tables:
            for other in table:
                known.setdefault(_last(other), []).append(other)
        last = _last(name)
        close = [last] if last in known else difflib.get_close_matches(last, known, n=1, cutoff=_LEAST_ALIKE)
        if not close:
            return None
        return max(known[close[0]], key=lambda other: difflib.SequenceMatcher(None, name, other).ratio())

    def check_method(self, cls: type | None, name: object) -> None:
        """Refuse a method that a tape may not call.

        Args:
            cls: The class of the module that is called, or None while it is not known; then one of the
                registered classes must have such a method.
            name: The name of the method.

        Raises:
            Flaw: When it is no recorded method.
        """
        if not (isinstance(name, str) and name.isascii() and _METHOD.fullmatch(name)):
            raise Flaw("bad-method", f"{shown(name)} cannot be a recorded method: it is no public ASCII identifier.")
        if cls is not None:
            if not self._has_method(cls, name):
                raise Flaw("bad-method", f"{cls.__qualname__} has no recorded method {shown(name)}.")
            return
        if name not in self._methods:
            self._methods[name] = any(self._has_method(other, name) for other in self._registry.values())
        if not self._methods[name]:
            raise Flaw("bad-method", f"no module that this program imported has a recorded method {shown(name)}.")

    def _has_method(self, cls: type, name: str) -> bool:
        found = inspect.getattr_static(cls, name, None)
        return isinstance(found, FunctionType) and self._is_recorded(found)

    # Writing --------------------------------------------------------------------------------------------------------

    def of(self, thing: object) -> str:
        """Return the name under which a class or a function will be found again.

        Raises:
            Flaw: When it has no such name, as a lambda or a class inside a function.
        """
        if id(thing) in self._pinned:
            return self._pinned[id(thing)]
        name = qualified(thing)
        if name is not None and self._registry.get(name) is thing:
            return name
        what = "class" if isinstance(thing, type) else "function"
        if name is None or "<" in name:
            raise Flaw(
                "no-name",
                f"the {what} {name or repr(thing)} has no name by which it can be found again.",
            )
        if _reached(thing) is not thing:
            raise Flaw(
                "no-name",
                f"the name {name} no longer leads to this {what}, but to {_reached(thing)!r}. Use the one that the "
                "name stands for now, or give this one a name of its own.",
            )
        return name

    def has(self, thing: object) -> bool:
        """Tell whether a class or a function has a name under which it will be found again."""
        try:
            self.of(thing)
        except Flaw:
            return False
        return True

    def is_registered(self, cls: type) -> bool:
        """Tell whether the metaclass made a class."""
        return any(self._registry.get(qualified(base) or "") is base for base in cls.__mro__)

    @staticmethod
    def is_function(value: object) -> bool:
        """Tell whether a value is a function that stands for itself, not one bound to an object."""
        if isinstance(value, BuiltinFunctionType):
            return value.__self__ is None or inspect.ismodule(value.__self__) or isinstance(value.__self__, type)
        return isinstance(value, FunctionType)


def _reached(thing: object) -> object:
    """Return what the qualified name of something of the running program leads to now, or None."""
    found: object = sys.modules.get(str(getattr(thing, "__module__", "")))
    for step in str(getattr(thing, "__qualname__", "")).split("."):
        found = getattr(found, step, None)
    return found
