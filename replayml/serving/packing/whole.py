"""What is served, as one model that a worker can replay: see `whole`.

    pipeline(encoder, ServerModule(head))         as the user has it: `encoder` is built, the service runs
      ─► pipeline(the call of encoder, UrlModule("http://127.0.0.1:4711"))          and the weights of encoder

Invariants:
    * What the user has stays as it is; weights are shared, not copied.
    * A service below becomes one client of it, however often it stands there; its module does not travel.
    * Data sets, for training and for evaluation, do not travel.
    * What is not what its recipe makes again is refused, as when it is saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from replayml.core.arguments import modules_in
from replayml.core.copying import describe, realize
from replayml.core.errors import ConfigurationError
from replayml.core.meta import ExtendedConstructorMeta
from replayml.core.tags import walk
from replayml.core.tape import CallRecord, Path, PlainRecord, TapeEntry
from replayml.module.gathering import shared
from replayml.module.keeping import Again, require_recipe_of
from replayml.module.sizes import BUILD_DTYPE, built_again, default_dtype, remember_call, sizes_of
from replayml.module.unsaved import places, put_back
from replayml.recipe.data_sets import without_data_sets
from replayml.recipe.files import weights

__all__ = ["StandIn", "Whole", "is_service", "unserved", "whole"]


class StandIn(NamedTuple):
    """What calls a service from another process.

    Attributes:
        call: The call that makes the client.
        key: The address or name of the service, which tells the clients in a model apart.
        owner: What shows the service that its own program calls; it is no part of the model.
    """

    call: CallRecord
    key: str
    owner: str


class Whole(NamedTuple):
    """What can be saved in the place of a module.

    Attributes:
        model: It.
        owners: What its clients show to the services that they call, by the names or addresses of those.
    """

    model: Any
    owners: dict[str, str]


def is_service(module: Any) -> bool:
    """Tell whether a module, or a class, has others behind it that run in processes of their own."""
    return hasattr(module if isinstance(module, type) else type(module), "_stand_in")


def unserved(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each place of a model, with the services but without what is behind them."""
    yield from _unserved(model, "")


def _unserved(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    yield path, module
    if not is_service(module):
        for name, child in module._modules.items():
            if child is not None:
                yield from _unserved(child, f"{path}.{name}" if path else name)


def whole(model: Any) -> Whole:
    """Return a module as one that can be saved: itself, or a copy that has its weights.

    In the copy the call of each built module stands in the place of that module, a client in the place of each service,
    and nothing in the places of data sets.

    Args:
        model: A replayml module.

    Raises:
        ConfigurationError: When a service in it does not run.
        CheckpointError: When it is not what its recipe makes.
    """
    described = describe(model)
    trimmed = without_data_sets(described)
    rewriter = _Rewriter()
    record = rewriter.call(trimmed)
    tree = list(unserved(model))
    services = {path: module for path, module in tree if is_service(module)}
    if trimmed is described and not (rewriter.parts or services):
        return Whole(model, {})
    _refuse_hidden(tree, rewriter.parts)
    parts = {id(module): module for _, module in tree if id(module) in rewriter.parts}
    stand_ins = {id(service): _stand_in(path, service) for path, service in services.items()}
    if model._record.built:
        _require_same(model, record)
    else:
        require_recipe_of(model)
    for part in parts.values():
        if part is not model:
            _require_same(part, rewriter.value(part))
    if services:
        record = _without_services(record, {path: stand_ins[id(each)].call for path, each in services.items()})
    has_weights = bool(parts) or model._record.built
    copy = _Copy(model, record, services).make() if has_weights else realize(record)
    return Whole(copy, {each.key: each.owner for each in stand_ins.values()})


def _require_same(model: Any, record: CallRecord) -> None:
    """Raise when a built module is not what a record makes."""
    _Again(model, record).require_same({weights.normal_name(name): value for name, value in model.state_dict().items()})


class _Again(Again):
    """Makes a built model again from a record that has no built modules in it."""

    def __init__(self, model: Any, record: CallRecord) -> None:
        super().__init__(model)
        self._record = record

    def make(self) -> nn.Module:
        """Return the model, made and built; see `Again.make`."""
        with default_dtype(self._model.__dict__.get(BUILD_DTYPE, torch.get_default_dtype())):
            result: nn.Module = built_again(realize(self._record), sizes_of(self._model))
            return result


def _refuse_hidden(tree: Sequence[tuple[str, nn.Module]], parts: Mapping[int, Any]) -> None:
    """Raise when what should go along stands where torch does not see it."""
    seen = {id(module) for _, module in tree}
    for path, module in tree:
        for name, value in vars(module).items() if not is_service(module) else ():
            for found in modules_in(value):
                if id(found) not in seen and (id(found) in parts or is_service(found)):
                    place = ".".join(filter(None, ("model", path, name)))
                    raise ConfigurationError(
                        f"{place} holds a {type(found).__name__} in a {type(value).__name__}, where torch does not see "
                        "it, so that its weights would be lost. Hold it in a replayml.LayerList, or as an attribute"
                    )


# The record -----------------------------------------------------------------------------------------------------


class _Rewriter:
    """Copies a record, with records in the places of built modules.

    Args:
        instead: What to put in the place of some records, by their ids.
        left_out: Entries of tapes to leave out, by their ids.

    Attributes:
        parts: The built modules, by their ids.
    """

    def __init__(self, instead: Mapping[int, CallRecord] | None = None, left_out: frozenset[int] = frozenset()) -> None:
        self.parts: dict[int, Any] = {}
        self._instead = instead or {}
        self._left_out = left_out
        self._copies: dict[int, Any] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def call(self, record: CallRecord) -> CallRecord:
        """Return a record with everything in it rewritten; the same for the same one."""
        known: CallRecord | None = self._copies.get(id(record))
        if known is None:
            instead = self._instead.get(id(record))
            known = instead or replace(record, args=self.value(record.args), kwargs=self.value(record.kwargs), tape=[])
            self._copies[id(record)] = known
            self._kept.append(record)
            if instead is None:
                known.tape.extend(self._entry(entry) for entry in record.tape if id(entry) not in self._left_out)
        return known

    def _entry(self, entry: TapeEntry) -> TapeEntry:
        return replace(entry, args=self.value(entry.args), kwargs=self.value(dict(entry.kwargs)))

    def value(self, value: Any) -> Any:
        """Return a value with everything in it rewritten."""
        kind = type(value)
        if kind is CallRecord:
            return self.call(value)
        if isinstance(kind, ExtendedConstructorMeta):
            return self._part(value)
        if kind in (tuple, list):
            return self._known(value, lambda: kind(map(self.value, value)))
        if kind is dict:
            return self._known(value, lambda: {key: self.value(item) for key, item in value.items()})
        if kind is PlainRecord:
            return self._plain(value.module, value.inside)
        if isinstance(value, nn.Module):
            return self._plain(value, ())
        return value

    def _known(self, value: Any, make: Any) -> Any:
        """Return what stands for a container; one that stands in several places stays one."""
        if id(value) not in self._copies:
            new = make()
            items = (value.values(), new.values()) if isinstance(value, dict) else (value, new)
            self._copies[id(value)] = value if all(a is b for a, b in zip(*items, strict=True)) else new
            self._kept.append(value)
        return self._copies[id(value)]

    def _part(self, module: Any) -> CallRecord:
        if id(module) not in self._copies:
            self._kept.append(module)
            self.parts[id(module)] = module
            self._copies[id(module)] = self.call(without_data_sets(describe(module)))
        part: CallRecord = self._copies[id(module)]
        return part

    def _plain(self, module: nn.Module, inside: tuple[tuple[Any, CallRecord], ...]) -> Any:
        """Return what stands for a plain module: a record of it, where recorded modules stand in it."""
        known = {id(below) for below, _ in inside}
        built = tuple((below, self._part(below)) for below in _topmost(module) if id(below) not in known)
        unbuilt = tuple((below, self.call(call)) for below, call in inside)
        return PlainRecord(module, unbuilt + built) if unbuilt or built else module


def _topmost(module: nn.Module) -> Iterator[Any]:
    """Yield the topmost recorded modules inside of a plain one."""
    for child in module._modules.values():
        if child is not None:
            if isinstance(type(child), ExtendedConstructorMeta):
                yield child
            else:
                yield from _topmost(child)


def _without_services(record: CallRecord, clients: Mapping[str, CallRecord]) -> CallRecord:
    """Return a record with the call of a client in the place of each service, by their paths."""
    if "" in clients:
        return clients[""]

    def make() -> tuple[Any, dict[int, Any]]:
        made: dict[int, Any] = {}
        return realize(record, made), made

    model, made = weights.skeleton(make)
    copies = {id(walk(model, _names(path))): client for path, client in clients.items()}
    instead, left_out = {}, set()
    for each in _records(record, {}):
        module = made.get(id(each))
        if id(module) in copies:
            instead[id(each)] = copies[id(module)]
        elif module is not None:
            left_out |= {id(entry) for entry in each.tape if _is_about(entry.tags, module, copies)}
    return _Rewriter(instead, frozenset(left_out)).call(record)


def _stand_in(path: str, service: Any) -> StandIn:
    found: StandIn | None = service._stand_in()
    if found is None:
        raise ConfigurationError(
            f"the {type(service).__name__} at {'.'.join(filter(None, ('model', path)))!r} of what is to be served does "
            "not run. Call start() of the whole, which starts the services in it first"
        )
    return found


def _names(path: str) -> Path:
    return tuple(path.split(".")) if path else ()


def _is_about(tags: Path, module: Any, copies: Mapping[int, Any]) -> bool:
    """Tell whether an entry is about one of some modules, or about what is below it."""
    return any(id(walk(module, tags[: length + 1])) in copies for length in range(len(tags)))


def _records(value: Any, seen: dict[int, Any]) -> Iterator[CallRecord]:
    """Yield all records in a value, each once."""
    if isinstance(value, (CallRecord, list, tuple, dict, PlainRecord)):
        if id(value) in seen:
            return
        seen[id(value)] = value
    if isinstance(value, CallRecord):
        yield value
        for part in (value.args, value.kwargs, *(part for entry in value.tape for part in (entry.args, entry.kwargs))):
            yield from _records(part, seen)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _records(item, seen)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _records(item, seen)
    elif isinstance(value, PlainRecord):
        for _, call in value.inside:
            yield from _records(call, seen)


# The weights ----------------------------------------------------------------------------------------------------


class _Copy:
    """Makes a built copy of a model that shares its weights.

    Args:
        model: The model.
        record: What the copy is made from.
        services: The services in the model, which are clients in the copy.
    """

    def __init__(self, model: Any, record: CallRecord, services: Mapping[str, Any]) -> None:
        self._model = model
        self._record = record
        self._sizes = {
            path: found
            for path, found in _sizes(model).items()
            if not any(path[: len(above)] == above for above in map(_names, services))
        }
        built = [below for _, below in unserved(model) if below.__dict__.get(BUILD_DTYPE) is not None]
        self._dtype = built[0].__dict__[BUILD_DTYPE] if built else torch.get_default_dtype()

    def make(self) -> Any:
        """Return the copy."""
        copy = weights.skeleton(self._built)
        put_back(copy, places(self._model))
        own = {weights.normal_name(name): tensor for name, tensor in copy.state_dict(keep_vars=True).items()}
        state = {weights.normal_name(name): tensor for name, tensor in self._model.state_dict().items()}
        given = _untied({name: tensor for name, tensor in state.items() if name in own}, own)
        weights.assign(copy, given, strict=True, make=self._built, follow_type=False)
        remember_call(copy, lambda: realize(self._record))
        return copy

    def _built(self) -> Any:
        with default_dtype(self._dtype):
            return built_again(realize(self._record), self._sizes)


def _sizes(model: Any) -> dict[Path, dict[str, Any]]:
    """Return the sizes that were found when a model, or parts of it, were built."""
    if model._record.built:
        return sizes_of(model)
    found: dict[Path, dict[str, Any]] = {}
    for path, module in unserved(model):
        record = module.__dict__.get("_record")
        if record is not None and record.built:
            for place, values in sizes_of(module).items():
                found[(*_names(path), *place)] = values
    return found


def _untied(given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return weights with a copy of its own for each place that the copy of the model does not tie to another one."""
    result = dict(given)
    for group in shared({name: value for name, value in given.items() if isinstance(value, torch.Tensor)}):
        owners: dict[int, Any] = {}
        for name in group:
            first = not owners
            if id(own[name]) not in owners:
                owners[id(own[name])] = given[name] if first else given[name].clone()
            result[name] = owners[id(own[name])]
    return result
