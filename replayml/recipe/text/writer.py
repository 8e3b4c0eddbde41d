"""From the record of a model to the JSON value that stands for it.

Invariants:
    * A value is written completely or refused with its path; nothing is dropped.
    * An object that is reached twice is written once and referred to.
    * The record and the values in it are not changed, and no tensor is copied before its size is known to be small.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, Flag
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from replayml.core.tape import CallRecord, PlainRecord, TapeEntry, TreeRef, Where
from replayml.recipe.codecs import Codec
from replayml.recipe.faults import MODEL, Fault, Flaw, Place, noting, refuse, type_name
from replayml.recipe.format import Limits, canonical, is_plain_dict
from replayml.recipe.migrate import class_version
from replayml.recipe.provenance import relative, source_roots
from replayml.recipe.text.names import Names, is_namedtuple, qualified
from replayml.recipe.text.nesting import Nesting
from replayml.recipe.text.sharing import Held, numbered
from replayml.recipe.text.strict import check_integer, check_string
from replayml.recipe.values.instances import is_pydantic, read_dataclass, read_pydantic
from replayml.recipe.values.leaves import LEAVES, Leaf, check_keyword, check_tag, is_plain_float
from replayml.recipe.values.opaque import write_opaque
from replayml.recipe.values.plain import call_of, check_sizes, is_container, is_layer
from replayml.recipe.values.tensors import DATA_LEAVES, storage_of

__all__ = ["Writer"]

_LEAVES: Mapping[type, Leaf] = MappingProxyType(
    {cls: leaf for leaf in (*LEAVES, *DATA_LEAVES) for cls in leaf.types if cls is not float}
)
_FLOAT = LEAVES[0]

_WAYS_OUT = (
    "Three ways out: name a function or a class that stands at the top level of a module instead; register a codec for "
    "the type, codecs=[Codec(...)]; or keep it as a pickle, allow_pickle=True, which runs code when it is opened."
)
_WITHOUT_FORM = frozenset({"bare-module", "no-data-form", "no-name"})


class Writer(Nesting):
    """Writes one model.

    Args:
        names: What classes and functions are called.
        codecs: How the user's own types are written.
        built: The model has been built and used; see `replayml.recipe.values.plain.call_of`.
        limits: How deep the values of the model may be nested.
        allow_pickle: Write a value without a data form as a pickle.
    """

    def __init__(
        self, names: Names, codecs: Sequence[Codec[Any]], built: bool, limits: Limits, allow_pickle: bool = False
    ) -> None:
        super().__init__()
        self._names = names
        self._allow_pickle = allow_pickle
        self._codecs = {codec.type: codec for codec in codecs}
        self._built = built
        self._limits = limits
        self._held: dict[int, Held] = {}
        self._calls_of: dict[int, CallRecord] = {}  # of unbuilt modules that stand inside of plain ones
        self._open: set[int] = set()
        self._kept: list[object] = []  # so that no id is used twice
        self._storages: dict[int, tuple[object, Place]] = {}
        self._depth = 0
        self._calls = 0  # how many calls it has met
        self._roots = source_roots()

    def write(self, value: object) -> object:
        """Return the JSON value of a model, given as its `CallRecord`, or of any value.

        Raises:
            RecipeError: When something in it has no data form.
        """
        return numbered(self._value(value, MODEL))

    def _value(self, value: Any, place: Place) -> object:
        """Return the node of a value."""
        self._depth += 1
        try:
            if self._depth > self._limits.depth:
                raise Flaw("too-deep", f"more than {self._limits.depth} values stand inside one another.")
            return self._node(value, place)
        except Flaw as flaw:
            if flaw.code not in _WITHOUT_FORM:
                refuse([flaw.at(place)], note="")
            return self._without_form(value, place, flaw)
        finally:
            self._depth -= 1

    def _without_form(self, value: Any, place: Place, flaw: Flaw) -> object:
        """Return the node of a value that has no data form: a pickle, or a refusal."""
        if not self._allow_pickle or isinstance(value, (CallRecord, TreeRef)):
            message = flaw.message if "allow_pickle=" in flaw.message else f"{flaw.message} {_WAYS_OUT}"
            refuse([Fault(flaw.code, place, message)], note="")
        try:
            return self._identified(value, place, lambda value, _: write_opaque(value, flaw))
        except Flaw as reason:
            refuse([reason.at(place)], note="")

    def _node(self, value: Any, place: Place) -> object:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind in self._codecs:
            return self._identified(value, place, self._codec)
        if kind is str:
            check_string(value, self._limits)
            return value
        if kind is int:
            check_integer(value)
            return value
        if kind is float:
            return value if is_plain_float(value) else {"$float": _FLOAT.write(value)}
        if kind in _LEAVES:
            return self._leaf(_LEAVES[kind], value, place)
        method = _BY_TYPE.get(kind)
        if method is not None:
            return method(self, value, place)
        return self._by_nature(value, place)

    def _by_nature(self, value: Any, place: Place) -> object:
        """Return the node of a value whose exact type is not in a table."""
        kind: Any = type(value)
        if isinstance(value, Enum):
            return self._enum(value)
        if isinstance(value, type):
            return {"$class": self._names.of(value)}
        if self._names.is_function(value):
            return {"$function": self._names.of(value)}
        if is_namedtuple(kind):
            with self._inside():
                return {"$namedtuple": self._names.of(kind), "items": self._all(value, place.below("items"))}
        if dataclasses.is_dataclass(value):
            if kind.__dataclass_params__.frozen and kind.__hash__ is not None:
                return self._dataclass(value, place)
            return self._identified(value, place, self._dataclass)
        if is_pydantic(kind):
            return self._identified(value, place, self._pydantic)
        if id(value) in self._calls_of:
            return self._call(self._calls_of[id(value)], place)
        if isinstance(value, nn.Module):
            return self._identified(value, place, self._module)
        raise Flaw("no-data-form", f"a {type_name(value)} has no data form.")

    # Objects that may stand in several places -----------------------------------------------------------------------

    def _identified(self, value: Any, place: Place, write: Callable[[Any, Place], object]) -> object:
        """Return the node of an object that is told from its equals."""
        if self._keys:
            raise Flaw("no-data-form", f"a {type_name(value)} cannot be a key or stand in a set.")
        known = self._held.get(id(value))
        if known is not None:
            if id(value) in self._open:
                raise Flaw("cycle", f"this {type_name(value)} contains itself, which JSON cannot say.")
            if known.has_calls:
                self._note_call(value)
            known.is_shared = True
            return known
        held = self._held[id(value)] = Held()
        self._kept.append(value)
        self._open.add(id(value))
        calls = self._calls
        try:
            held.node = write(value, place)
        except Flaw:
            del self._held[id(value)]
            raise
        finally:
            self._open.discard(id(value))
        held.has_calls = self._calls > calls
        return held

    def _note_call(self, value: object) -> None:
        """Note a module, or refuse it where it would not be made again."""
        if self._sealed:
            raise Flaw(
                "no-data-form",
                f"a module ({type_name(value)}) is recorded as an argument, or in a list, a tuple or a dict that is "
                "one; not inside of other values.",
            )
        self._calls += 1

    # Values ---------------------------------------------------------------------------------------------------------

    def _leaf(self, leaf: Leaf, value: Any, place: Place) -> object:
        if self._keys and not leaf.is_hashable:
            raise Flaw("no-data-form", f"a {type_name(value)} cannot be a key or stand in a set.")
        if isinstance(value, TreeRef):
            self._note_call(value)
        if isinstance(value, torch.Tensor):
            self._check_memory(value, value, place)
        if leaf.has_identity:
            return self._identified(value, place, lambda value, _: {leaf.tag: leaf.write(value)})
        payload = leaf.write(value)
        if isinstance(payload, str):
            check_string(payload, self._limits)
        return {leaf.tag: payload}

    def _check_memory(self, tensor: torch.Tensor, owner: object, place: Place) -> None:
        """Refuse a tensor that shares memory with that of another owner, since that would be lost."""
        storage = storage_of(tensor)
        if storage is None:
            return
        other, where = self._storages.setdefault(storage, (owner, place))
        if other is not owner:
            raise Flaw(
                "shared-memory",
                f"the memory of a tensor here is also that of {where}, which a recipe cannot say. "
                "Hand in one and the same object twice, or a copy: tensor.clone().",
            )

    def _all(self, values: Sequence[Any], place: Place) -> list[object]:
        return [self._value(value, place.below(index)) for index, value in enumerate(values)]

    def _list(self, value: list[Any], place: Place) -> object:
        return self._identified(value, place, self._all)

    def _tuple(self, value: tuple[Any, ...], place: Place) -> object:
        return {"$tuple": self._all(value, place)}

    def _set(self, value: set[Any], place: Place) -> object:
        return self._identified(value, place, lambda value, place: {"$set": self._unordered(value, place)})

    def _frozenset(self, value: frozenset[Any], place: Place) -> object:
        return {"$frozenset": self._unordered(value, place)}

    def _unordered(self, values: Any, place: Place) -> list[object]:
        with self._inside(key=True):
            nodes = [self._value(value, place.below("{}")) for value in values]
        return sorted(nodes, key=canonical)

    def _dict(self, value: dict[Any, Any], place: Place) -> object:
        return self._identified(value, place, self._pairs)

    def _ordered(self, value: OrderedDict[Any, Any], place: Place) -> object:
        if any(isinstance(item, (CallRecord, nn.Module)) for item in value.values()):
            return self._identified(value, place, self._ordered_call)
        with self._inside():
            return self._identified(value, place, lambda value, place: {"$ordered": self._listed(value, place)})

    def _ordered_call(self, value: OrderedDict[Any, Any], place: Place) -> object:
        """Write a dict of modules as the call that makes it."""
        call = CallRecord(OrderedDict, (list(value.items()),))
        self._kept.append(call)
        return self._call_node(call, place)

    def _pairs(self, value: Mapping[Any, Any], place: Place) -> object:
        pairs = self._listed(value, place)
        return dict(pairs) if is_plain_dict(list(value)) else {"$dict": pairs}

    def _listed(self, value: Mapping[Any, Any], place: Place) -> list[Any]:
        pairs = []
        for key, item in value.items():
            at = place.below(key if type(key) is str else repr(key))
            with self._inside(key=True):
                node = self._value(key, at)
            pairs.append([node, self._value(item, at)])
        return pairs

    # Values of the user's types -------------------------------------------------------------------------------------

    def _codec(self, value: Any, place: Place) -> object:
        codec = self._codecs[type(value)]
        with noting(f"while the codec of {type_name(value)} wrote {place}"):
            data = codec.encode(value)
        self._kept.append(data)
        with self._inside():
            return {"$codec": qualified(codec.type), "data": self._value(data, place)}

    def _enum(self, value: Enum) -> object:
        cls = type(value)
        if cls.__members__.get(value.name) is value:
            return {"$enum": self._names.of(cls), "member": value.name}
        members = sorted(str(member.name) for member in value) if isinstance(value, Flag) else None
        if members is None or sum(cls.__members__[name].value for name in members) != value.value:
            raise Flaw("no-data-form", f"{value!r} is no named member of {cls.__qualname__}, nor made up of such.")
        return {"$enum": self._names.of(cls), "member": members}

    def _dataclass(self, value: Any, place: Place) -> object:
        fields = read_dataclass(value)
        return {"$dataclass": self._names.of(type(value)), "fields": self._fields(fields, place)}

    def _pydantic(self, value: Any, place: Place) -> object:
        fields, given = read_pydantic(value)
        return {"$pydantic": self._names.of(type(value)), "fields": self._fields(fields, place), "set": given}

    def _fields(self, fields: Mapping[str, Any], place: Place) -> dict[str, object]:
        with self._inside():
            return {name: self._value(item, place.below("fields").below(name)) for name, item in fields.items()}

    def _module(self, module: nn.Module, place: Place) -> object:
        if self._names.is_registered(type(module)):
            raise Flaw(
                "no-data-form",
                f"the call of this {type(module).__qualname__} is not known here: it is built, or stands inside of "
                "something else than a list, a tuple or a dict. Hand in an unbuilt one: module.new().",
            )
        if not is_layer(module):
            raise Flaw(
                "no-data-form",
                f"this {type_name(module)} is a plain torch module, whose constructor call is not known. Derive it "
                "from replayml.Module, hand in replayml.Layer(cls, ...) or replayml.External(cls, ...), register a "
                "codec, codecs=[Codec(...)], or keep it with its weights as a pickle: allow_pickle=True.",
            )
        check_sizes(module)
        for parameter in module.parameters(recurse=not is_container(module)):
            self._check_memory(parameter, module, place)
        call = call_of(module, self._built)
        self._kept.append(call)
        return self._call_node(call, place)

    # Calls ----------------------------------------------------------------------------------------------------------

    def _plain(self, record: PlainRecord, place: Place) -> object:
        self._calls_of.update((id(below), call) for below, call in record.inside)
        return self._by_nature(record.module, place)

    def _call(self, record: CallRecord, place: Place) -> object:
        return self._identified(record, place, self._call_node)

    def _call_node(self, record: CallRecord, place: Place) -> object:
        self._note_call(record)
        node: dict[str, object] = {
            "$call": self._names.of(record.cls),
            "args": self._all(record.args, place.below("args")),
            "kwargs": self._kwargs(_in_order(record.cls, record.kwargs), place),
        }
        version = class_version(record.cls)
        if version:
            node["version"] = version
        if record.tape:
            tape = place.below("tape")
            node["tape"] = [
                self._entry(entry, record.cls, tape.below(index)) for index, entry in enumerate(record.tape)
            ]
        return self._with_where(node, record.where)

    def _entry(self, entry: TapeEntry, cls: type, place: Place) -> object:
        try:
            self._names.check_method(None if entry.tags else cls, entry.method)
            tags = [check_tag(tag) for tag in entry.tags]
        except Flaw as flaw:
            refuse([flaw.at(place)], note="")
        node: dict[str, object] = {
            "$entry": entry.method,
            "args": self._all(entry.args, place.below("args")),
            "kwargs": self._kwargs(entry.kwargs, place),
            "tags": tags,
        }
        return self._with_where(node, entry.where)

    def _kwargs(self, kwargs: Mapping[str, Any], place: Place) -> object:
        place = place.below("kwargs")
        for name in kwargs:
            try:
                check_keyword(name)
            except Flaw as flaw:
                refuse([flaw.at(place)], note="")
        return self._pairs(kwargs, place)

    def _with_where(self, node: dict[str, object], where: Where | None) -> dict[str, object]:
        if where is not None:
            node["where"] = [relative(where.file, self._roots), where.line]
        return node


_BY_TYPE: Mapping[type, Callable[[Writer, Any, Place], object]] = MappingProxyType(
    {
        CallRecord: Writer._call,
        PlainRecord: Writer._plain,
        OrderedDict: Writer._ordered,
        dict: Writer._dict,
        frozenset: Writer._frozenset,
        list: Writer._list,
        set: Writer._set,
        tuple: Writer._tuple,
    }
)


def _in_order(cls: type, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return keyword arguments with those in sorted order whose order the class cannot see.

    Python hands an ``__init__`` its named parameters without their order; only what ends up in ``**kwargs`` keeps it.
    """
    try:
        parameters = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return kwargs
    named = {name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    rest = [name for name in kwargs if name not in named]
    in_order = sorted(kwargs.keys() & named)
    return {name: kwargs[name] for name in ([*in_order, *rest] if rest != sorted(rest) else sorted(kwargs))}
