"""Strategies: random scripts, models and edits; and the picture of a model, by which models are compared."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from replayml.core.errors import ConfigurationError
from replayml.core.settings import settings_of
from replayml.core.signatures import bind
from replayml.core.tags import walk
from replayml.core.tape import CallRecord, PlainRecord
from replayml.layers.containers import LayerList
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.module import Module
from tests.properties.models import CLASSES, KINDS, Mixed, Refused, Scripted, below, make, pick, width_of

# Models -----------------------------------------------------------------------------------------------------------

small = st.integers(0, 3)
number = st.integers(0, 11)
name = st.sampled_from("abcd")
kind = st.sampled_from(KINDS)
widths = st.integers(1, 6)
words = st.sampled_from(["x", "y"])


def scripts(depth: int = 2) -> st.SearchStrategy[Any]:
    """Return scripts that nest so deep."""
    steps = [
        st.tuples(st.just("make"), name, kind, small),
        st.tuples(st.just("make"), name, kind, small),
        st.tuples(st.just("wrap"), name, st.sampled_from(["external", "holder", "pair"]), number),
        st.tuples(st.just("alias"), name, number),
        st.tuples(st.just("hand"), number, number, name),
        st.tuples(st.just("move"), number, number, name),
        st.tuples(st.just("given"), name),
        st.tuples(st.just("value"), st.sampled_from(["v", "w", "a"]), small),
        st.tuples(st.just("configure"), number, small),
        st.tuples(st.just("setattr"), number, st.sampled_from(["v", "w"]), small),
        st.tuples(st.just("append"), number, kind),
        st.tuples(st.just("insert"), number, small, kind),
        st.tuples(st.just("pop"), number, small),
        st.tuples(st.just("mark"), number, words),
        st.tuples(st.just("count"), number, small),
        st.tuples(st.just("grow"), number, name),
        st.tuples(st.just("refuse"), widths),
    ]
    if depth:
        inner = scripts(depth - 1)
        steps += [
            st.tuples(st.just("child"), name, small, inner, small),
            st.tuples(st.just("child"), name, small, inner, small),
            st.tuples(st.just("child_with"), name, small, inner, number),
            st.tuples(st.just("if_flag"), inner),
            st.tuples(st.just("if_odd"), inner),
        ]
    return st.lists(st.one_of(*steps), min_size=2 if depth else 1, max_size=7 if depth else 4).map(tuple)


def recipes() -> st.SearchStrategy[Any]:
    """Return (class number, script, width, what is given) of a model; see `construct`."""
    given = st.one_of(
        st.none(),
        st.tuples(st.just("one"), kind),
        st.tuples(st.just("scripted"), scripts(1)),
        st.tuples(st.just("list"), kind, kind),
        st.tuples(st.just("twice"), kind),
        st.tuples(st.just("dict"), kind, scripts(1)),
    )
    return st.tuples(small, scripts(), widths, given)


def tidy(recipe: Any) -> Any:
    """Return a recipe whose scripts give no module of theirs to another one, and use no name twice."""
    number_, script, width, given = recipe
    if given is not None:
        given = tuple(_tidy_script(part) if isinstance(part, tuple) else part for part in given)
    return number_, _tidy_script(script), width, given


def tidy_edit(edit: Any) -> Any:
    """Return an edit whose scripts are tidy."""
    return tuple(_tidy_script(part) if isinstance(part, tuple) else part for part in edit)


_NAMING = frozenset({"make", "child", "child_with", "wrap", "alias", "given", "value"})


def _tidy_script(script: Any, names: set[str] | None = None) -> Any:
    taken = set() if names is None else names
    kept = []
    for what, *operands in script:
        if what in ("hand", "move", "child_with") or (what in _NAMING and operands[0] in taken):
            continue
        if what in _NAMING:
            taken |= {operands[0], "c", "d"} if what == "given" else {operands[0]}
        inner = taken if what.startswith("if_") else None
        kept.append((what, *(_tidy_script(part, inner) if isinstance(part, tuple) else part for part in operands)))
    return tuple(kept)


def construct(recipe: Any) -> Any:
    """Return a new model made by a recipe."""
    number_, script, width, given = recipe
    extra: Any = None
    if given is not None:
        how, *what = given
        if how == "one":
            extra = make(what[0], 2)
        elif how == "scripted":
            extra = Scripted(what[0], 2)
        elif how == "list":
            extra = [make(what[0], 2), make(what[1], 3)]
        elif how == "twice":
            inner = make(what[0], 2)
            extra = (inner, inner)
        else:
            inner = make(what[0], 2)
            extra = {"c": Scripted((("given", "a"), *what[1]), 3, inner), "d": inner}
    return pick([*CLASSES, Mixed], number_)(script, width=width, extra=extra)


# Edits ------------------------------------------------------------------------------------------------------------


def edits() -> st.SearchStrategy[Any]:
    """Return edits, each a tuple of a name and operands; see `perform`."""
    return st.one_of(
        st.tuples(st.just("configure"), number, widths),
        st.tuples(st.just("configure"), number, widths),
        st.tuples(st.just("configure_many"), number, widths, st.booleans()),
        st.tuples(st.just("configure_path"), number, widths),
        st.tuples(st.just("configure_script"), number, scripts(0)),
        st.tuples(st.just("configure_extra"), number, kind),
        st.tuples(st.just("configure_extra_shared"), number, number),
        st.tuples(st.just("configure_child"), number, number, kind),
        st.tuples(st.just("swap_class"), number, small),
        st.tuples(st.just("select"), st.sampled_from(["a", "b", "0", "first", "one", "nothing"]), widths),
        st.tuples(st.just("set_value"), number, st.sampled_from(["v", "w", "a"]), small),
        st.tuples(st.just("set_new"), number, name, kind),
        st.tuples(st.just("set_scripted"), number, name, scripts(1)),
        st.tuples(st.just("set_shared"), number, name, number),
        st.tuples(st.just("set_fresh_around"), number, name, number),
        st.tuples(st.just("replace"), number, number, kind),
        st.tuples(st.just("delete"), number, number),
        st.tuples(st.just("append"), number, kind),
        st.tuples(st.just("append_shared"), number, number),
        st.tuples(st.just("insert"), number, small, kind),
        st.tuples(st.just("pop"), number, small),
        st.tuples(st.just("remove"), number, small),
        st.tuples(st.just("extend"), number, kind, kind),
        st.tuples(st.just("setitem"), number, small, kind),
        st.tuples(st.just("rotate"), number),
        st.tuples(st.just("count"), number, small),
        st.tuples(st.just("widen"), number, small),
        st.tuples(st.just("mark"), number, words),
        st.tuples(st.just("grow"), number, name),
        st.tuples(st.just("finish"), number, words),
        st.tuples(st.just("prepare"), number, words),
        st.tuples(st.just("spoil"), number, small),
        st.tuples(st.just("unknown"), number),
        st.tuples(st.just("append_wrong"), number),
        st.tuples(st.just("extend_wrong"), number, kind),
        st.tuples(st.just("set_cycle"), number, number),
    )


def _all(model: Any) -> list[Any]:
    return [model, *below(model)]


def _scripted(model: Any) -> list[Any]:
    return [module for module in _all(model) if isinstance(module, Scripted)]


def _lists(model: Any) -> list[Any]:
    return [module for module in _all(model) if isinstance(module, LayerList)]


def _with_width(model: Any) -> list[Any]:
    return [module for module in _all(model) if width_of(module)]


_OF_LISTS = frozenset(
    {"append", "append_shared", "insert", "pop", "remove"}
    | {"extend", "setitem", "rotate", "append_wrong", "extend_wrong"}
)


def perform(model: Any, edit: Any) -> None:
    """Carry out an edit on a model; edits without a target do nothing."""
    what, first, *rest = edit
    scripted: Any = pick(_scripted(model), first) if isinstance(first, int) else None
    lists: Any = pick(_lists(model), first) if what in _OF_LISTS else None
    if what in _OF_LISTS and lists is None:
        return
    if what == "configure":
        target = pick(_with_width(model), first)
        target.configure(width_of(target), rest[0])
    elif what == "configure_many":
        scripted.configure(width=rest[0], flag=rest[1])
    elif what == "configure_path":
        target = pick(_with_width(model), first)
        path = target.tags[0]
        if (
            path
            and all(part.isidentifier() for part in path)
            and not any(isinstance(m, External) for m in _above(model, path))
        ):
            model.configure(*path, **{str(width_of(target)): rest[0]})
    elif what == "configure_script":
        scripted.configure(script=rest[0])
    elif what == "configure_extra":
        scripted.configure(extra=make(rest[0], 2))
    elif what == "configure_extra_shared":
        scripted.configure(extra=pick(_all(model), rest[0]))
    elif what == "configure_child":
        if scripted._modules:
            scripted.configure(**{pick(list(scripted._modules), rest[0]): make(rest[1], 3)})
    elif what == "swap_class":
        target = pick([m for m in _all(model) if isinstance(m, Layer)], first)
        if target is not None:
            target.configure(pick([nn.GELU, nn.Identity, nn.ELU], rest[0]))
    elif what == "select":
        model[..., first].configure(out_features=rest[0])
    elif what == "set_value":
        setattr(pick(_all(model), first), rest[0], [rest[1]])
    elif what == "set_new":
        setattr(scripted, rest[0], make(rest[1], 3))
    elif what == "set_scripted":
        setattr(scripted, rest[0], Scripted(rest[1], 3))
    elif what == "set_shared":
        setattr(scripted, rest[0], pick(_all(model), rest[1]))
    elif what == "set_fresh_around":
        setattr(
            scripted, rest[0], Scripted((("given", "a"), ("make", "b", "linear", 0)), 3, pick(_all(model)[1:], rest[1]))
        )
    elif what == "replace":
        if scripted._modules:
            scripted.replace(pick(list(scripted._modules), rest[0]), make(rest[1], 3))
    elif what == "delete":
        if scripted._modules:
            delattr(scripted, pick(list(scripted._modules), rest[0]))
    elif what == "append":
        lists.append(make(rest[0], 3))
    elif what == "append_shared":
        lists.append(pick(_all(model), rest[0]))
    elif what == "insert":
        lists.insert(rest[0], make(rest[1], 3))
    elif what == "pop":
        lists.pop(rest[0])
    elif what == "remove":
        if len(lists):
            lists.remove(lists[rest[0] % len(lists)])
    elif what == "extend":
        lists.extend([make(rest[0], 3), make(rest[1], 4)])
    elif what == "setitem":
        lists[rest[0]] = make(rest[1], 3)
    elif what == "rotate":
        # An element that the model was given is one object, and in a copy two: the given and the appended one.
        if len(lists) and not any(lists[0] is given for module in _all(model) for given in given_to(module)):
            lists.append(lists.pop(0))
    elif what == "unknown":
        pick(_all(model), first).configure(widht=3)
    elif what == "append_wrong":
        lists.append(nn.ReLU)
    elif what == "extend_wrong":
        lists.extend([make(rest[0], 3), "no module"])
    elif what == "set_cycle":
        scripted.z = pick(_all(model), rest[0])
    else:
        getattr(scripted, what)(*rest)


def given_to(module: Any) -> list[Any]:
    """Return the modules among the arguments of a module."""
    return _modules_in([module._record.args, module._record.kwargs])


def configured_with(module: Any) -> list[Any]:
    """Return the modules among the settings in force for a module."""
    return _modules_in([setting.value for setting in settings_of(module).values()])


def _modules_in(values: list[Any]) -> list[Any]:
    stack = list(values)
    found = []
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack += value.values()
        elif isinstance(value, (list, tuple)):
            stack += value
        elif isinstance(value, Module):
            found.append(value)
    return found


def _above(model: Any, path: Any) -> list[Any]:
    found = [model]
    for part in path:
        found.append(found[-1]._modules[part])
    return found[:-1]


# Pictures ---------------------------------------------------------------------------------------------------------

_TORCH = frozenset(nn.Module().__dict__) - {"training"}
_OURS = frozenset({"_record", "_classtype", "_named", "_surplus"})


def picture(model: Any) -> list[Any]:
    """Return all that can be seen of a model: paths, classes, arguments in force, attributes, sharing, hooks."""
    return _picture(model, {})


def _picture(model: Any, groups: dict[int, int]) -> list[Any]:
    _number(model, groups)
    return [
        (path, type(module).__qualname__, groups[id(module)], _effective(module, groups), _own(module, groups))
        for path, module in model.named_modules(remove_duplicate=False)
    ]


def _number(model: Any, groups: dict[int, int]) -> None:
    """Give each module a number, in the order in which they are met, by which sharing is seen."""
    for module in model.modules():
        groups.setdefault(id(module), len(groups))


def _effective(module: Any, groups: dict[int, int]) -> Any:
    if not isinstance(module, Module):
        return [_plain(value, groups) for value in (*module._parameters.values(), *module._buffers.values())]
    if module._record.built:
        return "built"
    if isinstance(module, External):
        named = {key: _plain(value, groups) for key, value in module.kwargs.items()}
        return module.classtype, named, _plain(module.__dict__["_surplus"], groups)
    if isinstance(module, LayerList):
        return None  # its arguments are its elements, unless they were taken out
    named, surplus = bind(type(module), module._record.args, module._record.kwargs)
    named = {**named, **{key: setting.value for key, setting in settings_of(module).items()}}
    return {key: _plain(value, groups) for key, value in sorted(named.items())}, _plain(surplus, groups)


def _own(module: Any, groups: dict[int, int]) -> Any:
    attributes = {
        key: _plain(value, groups) for key, value in sorted(module.__dict__.items()) if key not in _TORCH | _OURS
    }
    hooks: Any = {}
    if isinstance(module, Module) and module._record.hooks:
        hooks = {
            phase: [(call.function.__qualname__, _plain(call.args, groups)) for call in calls]
            for phase, calls in module._record.hooks.items()
            if calls
        }
    return attributes, hooks


def _plain(value: Any, groups: dict[int, int]) -> Any:
    if isinstance(value, CallRecord):
        if id(value) in groups:
            return groups[id(value)]
        groups[id(value)] = len(groups)
        tape = [_entry(entry, groups) for entry in value.tape]
        return value.cls.__name__, _plain(value.args, groups), _plain(value.kwargs, groups), tape
    if isinstance(value, PlainRecord):
        return _plain(value.module, groups), [_plain(call, groups) for _, call in value.inside]
    if isinstance(value, nn.Module):
        return groups[id(value)] if id(value) in groups else _picture(value, groups)
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, groups) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item, groups) for key, item in value.items()}
    return value


def recorded(model: Any) -> list[Any]:
    """Return the tape of a model in a form that can be compared."""
    groups: dict[int, int] = {}
    _number(model, groups)
    return [_entry(entry, groups) for entry in model.tape]


def _entry(entry: Any, groups: dict[int, int]) -> Any:
    return entry.tags, entry.method, _plain(entry.args, groups), _plain(dict(entry.kwargs), groups)


def user_settings(model: Any) -> Any:
    """Return what the user configured, by the number of the module and the name of the setting, to be compared."""
    groups: dict[int, int] = {}
    _number(model, groups)
    shown: dict[Any, Any] = {}
    for path, value in model.get_user_configuration().items():
        module = walk(model, path[:-1])
        if module is not None:
            shown[groups[id(module)], path[-1]] = _plain(value, groups)
    return shown


def trace(*roots: Any) -> Any:
    """Return everything that a failed call might have changed, identities included."""
    lines: list[Any] = []
    for root in roots:
        if isinstance(root, Module):
            lines.append([id(entry) for entry in root._record.call.tape])
            config = root._record.config
            lines.append([] if config is None else [(key, list(value)) for key, value in config.items()])
        for path, module in root.named_modules(remove_duplicate=False):
            seen: list[Any] = [path, id(module), [(key, id(child)) for key, child in module._modules.items()]]
            seen.append({key: id(value) for key, value in module.__dict__.items() if key not in _TORCH})
            if isinstance(module, Module):
                record = module._record
                seen.append([(id(parent), slots) for parent, slots in record.links])
                seen.append({slots: id(child) for slots, child in record.children.items()})
                seen.append({key: setting.value for key, setting in record.resolved.items()})
                seen.append(None if record.slots is None else list(record.slots.order))
                seen.append({phase: len(calls) for phase, calls in (record.hooks or {}).items() if calls})
                seen.append(sorted(record.applied or ()))
                seen.append([id(entry) for entry in record.call.tape])
                seen.append(id(record.maker))
                seen.append((record.constructing, record.rebuilding, record.deferred))
                seen.append(sorted(module.tags))
            lines.append(seen)
    return lines


# Attempts ---------------------------------------------------------------------------------------------------------

REFUSALS = (Refused, ConfigurationError, IndexError, KeyError, ValueError, TypeError)


def attempt(recipe: Any) -> Any:
    """Return a new model made by a recipe, or None when the recipe is refused."""
    try:
        return construct(recipe)
    except (Refused, ConfigurationError, TypeError, KeyError):
        return None


def try_to_perform(model: Any, edit: Any) -> type[Exception] | None:
    """Carry out an edit; return the type of the error with which it was refused."""
    try:
        perform(model, edit)
    except REFUSALS as error:
        return type(error)
    except AttributeError as error:
        if edit[0] != "select":  # a selection of plain modules, which have no `configure`
            raise
        return type(error)
    return None
