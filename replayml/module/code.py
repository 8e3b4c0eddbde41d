"""A model as the Python code that makes it.

    import replayml
    from torch import nn

    model = replayml.Sequential(replayml.Layer(nn.Linear, 4, 8), replayml.Layer(nn.ReLU))
    model[0].configure(bias=False)

Invariants:
    * Running the code makes a model with the same constructor call and the same tape.
    * What stands in several places is one variable; nothing is written twice.
    * What has no source form raises, with its place; nothing is left out.
"""

from __future__ import annotations

import dataclasses
import keyword
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

from replayml.core.copying import describe
from replayml.core.errors import ConfigurationError
from replayml.core.meta import ExtendedConstructorMeta
from replayml.core.replay import Replayer
from replayml.core.signatures import signature_of
from replayml.core.tags import walk
from replayml.core.tape import CallRecord, Path, PlainRecord, TapeEntry, TreeRef, Where
from replayml.module.expressions import Expressions, NoSourceError, Special
from replayml.recipe.faults import Flaw
from replayml.recipe.recipe import without_large_data
from replayml.recipe.values.plain import call_of, is_layer

__all__ = ["to_code"]

WIDTH = 100


def to_code(model: Any, *, lines: bool = False) -> str:
    """Return the Python code that makes a model: the imports, the constructor call, then the tape as calls.

    Data sets that were given to `evalset` and `trainset` are in it only where they are names and a few plain values.

    Args:
        model: A replayml module; for a built one, the code makes it as it was before the build.
        lines: Add the user's lines, from which the calls come, as comments.

    Returns:
        The source; it binds the model to ``model``.

    Raises:
        ConfigurationError: When an argument has no source form, such as a lambda or a tensor; names the place.

    Example:
        >>> import replayml
        >>> model = replayml.Sequential(replayml.Layer(nn.Linear, 4, 8), replayml.Layer(nn.ReLU))
        >>> model[0].configure(bias=False)
        Layer(Linear, in_features=4, out_features=8, bias=False)
        >>> model.note = "small"
        >>> print(to_code(model))
        import replayml
        from torch import nn
        <BLANKLINE>
        model = replayml.Sequential(replayml.Layer(nn.Linear, 4, 8), replayml.Layer(nn.ReLU))
        model[0].configure(bias=False)
        model.note = 'small'
        <BLANKLINE>
    """
    record = without_large_data(describe(model))
    return _Writer(record, lines).source()


class _Tree(NamedTuple):
    """A model while its code is written: the variable that holds it, the model itself, and what it is made for."""

    variable: str
    top: Any
    outer: _Tree | None

    @property
    def tops(self) -> tuple[Any, ...]:
        """The models, from the outermost one on."""
        return (*(() if self.outer is None else self.outer.tops), self.top)


class _Writer:
    """Writes one model; replays it along the way, since a path is written by what stands there at the time.

    Args:
        record: The model as data.
        lines: Whether the user's lines are added.
    """

    def __init__(self, record: CallRecord, lines: bool) -> None:
        self._record = record
        self._lines = lines
        self._statements: list[str] = []
        self._calls: dict[int, CallRecord] = {}  # of modules that stand in the record as they are
        self._variables: dict[int, str] = {}
        self._replayer = Replayer({})
        self._places = Counter(id(thing) for thing in self._identities(record, set()))
        self._expressions = Expressions()
        self._name = self._expressions.imports.bind("model")

    def source(self) -> str:
        """Return the code."""
        self._define(self._record, None)
        return "\n".join([*self._expressions.imports.lines(), "", *self._statements, ""])

    # Statements -----------------------------------------------------------------------------------------------

    def _define(self, record: CallRecord, outer: _Tree | None) -> str:
        """Write the statements that make a module; return its variable."""
        head, parts = self._call(record, outer)
        is_root = record is self._record
        name = self._name if is_root else self._expressions.imports.bind(_variable_for(record))
        self._variables[id(record)] = name
        self._write(f"{name} = {head}(", parts, ")", record.where)
        trees = () if outer is None else outer.tops
        live = self._replayer.realize(record, trees, upto=0)
        tree = _Tree(name, live, outer)
        for number, entry in enumerate(record.tape):
            self._write_entry(tree, entry)
            self._replayer.replay(live, number, entry, trees)
        return name

    def _write_entry(self, tree: _Tree, entry: TapeEntry) -> None:
        target = walk(tree.top, entry.tags)
        path = _path(tree, entry.tags)
        place = f"{entry} (made at {entry.where})" if entry.where else str(entry)
        args = [self._value(value, place, tree) for value in entry.args]
        ending = _assignable(target, entry)
        if ending is not None and entry.method == "set":
            self._write(f"{path}{ending} = {args[1]}", [], "", entry.where)
        elif ending is not None and entry.method == "unset":
            self._write(f"del {path}{ending}", [], "", entry.where)
        else:
            parts = [*args, *self._keywords(entry.kwargs, place, tree)]
            self._write(f"{path}.{entry.method}(", parts, ")", entry.where)

    def _write(self, head: str, parts: list[str], tail: str, where: Where | None) -> None:
        """Write a statement, on several lines when it is long."""
        text = f"{head}{', '.join(parts)}{tail}"
        if len(text) > WIDTH and parts:
            text = "\n".join([head, *(f"    {part}," for part in parts), tail])
        self._statements.append(f"{text}  # {where}" if self._lines and where is not None else text)

    # Values ---------------------------------------------------------------------------------------------------

    def _call(self, record: CallRecord, outer: _Tree | None) -> tuple[str, list[str]]:
        place = f"{record} (made at {record.where})" if record.where else str(record)
        head = self._source_of(record.cls, place)
        args = [self._value(value, place, outer) for value in record.args]
        return head, [*args, *self._keywords(record.kwargs, place, outer)]

    def _keywords(self, kwargs: Mapping[str, Any], place: str, tree: _Tree | None) -> Iterator[str]:
        for name, value in kwargs.items():
            text = self._value(value, place, tree)
            yield f"{name}={text}" if _is_name(name) else f"**{{{name!r}: {text}}}"

    def _value(self, value: Any, place: str, tree: _Tree | None) -> str:
        """Return the expression for an argument.

        Args:
            value: The argument.
            place: The call that it is an argument of, for a message.
            tree: The tree that the call is made on.
        """

        def special(item: Any) -> str | None:
            if isinstance(item, TreeRef):
                return _reference(item, tree)
            if isinstance(item, PlainRecord):
                item = item.module
            if isinstance(item, (CallRecord, nn.Module)):
                return self._module(item, place, tree)
            if self._places[id(item)] < 2:
                return None
            if id(item) not in self._variables:
                text = self._expressions.written(item, special)
                self._variables[id(item)] = name = self._expressions.imports.bind("shared")
                self._write(f"{name} = {text}", [], "", None)
            return self._variables[id(item)]

        return self._source_of(value, place, special)

    def _module(self, value: Any, place: str, tree: _Tree | None) -> str:
        record = self._call_for(value, place)
        if id(record) in self._variables:
            return self._variables[id(record)]
        if record.tape or self._places[id(record)] > 1:
            return self._define(record, tree)
        head, parts = self._call(record, tree)
        return f"{head}({', '.join(parts)})"

    def _source_of(self, value: Any, place: str, special: Special | None = None) -> str:
        try:
            return self._expressions.of(value, special)
        except NoSourceError as error:
            raise _refusal(place, str(error)) from error

    def _call_for(self, value: Any, place: str = "") -> CallRecord:
        """Return the call that makes a module."""
        if isinstance(value, CallRecord):
            return value
        if id(value) in self._calls:
            return self._calls[id(value)]
        if isinstance(type(value), ExtendedConstructorMeta):
            if value._record.built:
                raise _refusal(place, f"this {type(value).__name__} is built, and weights have no source form")
            call: CallRecord = value._record.call
            return call
        if not is_layer(value):
            name = type(value).__name__
            raise _refusal(place, f"this {name} was not made by replayml. Hand in replayml.Layer({name}, ...)")
        try:
            self._calls[id(value)] = call_of(value)
        except Flaw as flaw:
            raise _refusal(place, flaw.message) from flaw
        return self._calls[id(value)]

    # Sharing --------------------------------------------------------------------------------------------------

    def _identities(self, value: Any, seen: set[int]) -> Iterator[Any]:
        """Yield every thing that is told from its equals, once for each place in which it stands."""
        if isinstance(value, PlainRecord):
            self._calls.update((id(below), call) for below, call in value.inside)
            value = value.module
        if isinstance(value, nn.Module):
            value = self._call_for(value)
        if isinstance(value, CallRecord):
            yield value
            inner = [*value.args, *value.kwargs.values()]
            for entry in value.tape:
                inner += [*entry.args, *entry.kwargs.values()]
        elif isinstance(value, (list, dict, set)) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
            yield value
            inner = list(value.values()) if isinstance(value, dict) else list(value) if type(value) is list else []
        else:
            inner = list(value) if type(value) is tuple else []
        if id(value) in seen:
            return
        seen.add(id(value))
        for item in inner:
            yield from self._identities(item, seen)


def _refusal(place: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"to_code() cannot write {place}: {reason}. print(model.tape) shows every call")


# Names and paths ------------------------------------------------------------------------------------------------


def _path(tree: _Tree, tags: Path) -> str:
    """Return the expression for what stands at some tags of a tree now."""
    text, module = tree.variable, tree.top
    for tag in tags:
        child = None if module is None else module._modules.get(tag)
        if _is_name(tag) and (child is None or getattr(module, tag, None) is child):
            text += f".{tag}"
        elif isinstance(module, (nn.ModuleList, nn.Sequential)):
            text += f"[{tag}]"
        elif "." not in tag and getattr(module, tag, None) is child:
            text += f".get_submodule({tag!r})"
        else:
            text += f"._modules[{tag!r}]"
        module = child
    return text


def _reference(reference: TreeRef, tree: _Tree | None) -> str:
    for _ in range(reference.outer):
        tree = None if tree is None else tree.outer
    assert tree is not None
    path = _path(tree, reference.tags)
    return path if reference.name is None else f"{path}.{reference.name}"


def _assignable(target: Any, entry: TapeEntry) -> str | None:
    """Return how to go on after a module to assign, or delete, what a call sets; None when only the call does it."""
    if len(entry.args) != {"set": 2, "unset": 1}.get(entry.method) or entry.kwargs:
        return None
    name = entry.args[0]
    if entry.method == "set" and name in signature_of(type(target)).names and name not in target._modules:
        return None  # an assignment would look like a setting, and be warned of
    if _is_name(name) and name not in type(target)._untracked:
        return f".{name}"
    if isinstance(target, nn.ModuleList) and name in target._modules and entry.method == "set":
        return f"[{name}]"
    return None


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def _variable_for(record: CallRecord) -> str:
    """Return a variable name for a module, after its class or the one that it wraps."""
    first = record.args[0] if record.args else None
    name = first.__name__ if isinstance(first, type) else record.cls.__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name).lower()
