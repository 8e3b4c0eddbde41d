"""Whether a built model is what its recipe makes again, beside its weights.

Invariants:
    * What torch, Lightning and replayml put on modules themselves is no change.
    * Of attributes, the settings of torch's own layers are compared, and of other modules those that somebody has set
      from outside: what modules count, or keep from one call to the next, is theirs to change.
    * What a lazy layer of torch becomes when it is first called is no change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from replayml.core.copying import describe, realize
from replayml.module.attributes import is_setting, package_of, set_from_outside
from replayml.recipe.files import weights
from replayml.recipe.format import Limits
from replayml.recipe.recipe import known_names
from replayml.recipe.views.effective import Comparison

__all__ = ["ATTRIBUTES", "FORWARD", "HOOKS", "LIGHT", "MORE", "SETTINGS", "modules", "other_modules"]

SETTINGS = "other settings"
ATTRIBUTES = "attributes that were set"
MORE = "attributes that came new"
HOOKS = "forward hooks"
FORWARD = "another forward"
LIGHT = "other modules"
_HEAVY = "other modules with weights"
_FOREIGN = "parts of another model"
_ITSELF = "the model itself"

# What a lazy layer reads off its first input.
_FROM_INPUT = frozenset({"in_channels", "in_features", "num_features"})

_OURS = frozenset({"lightning", "lightning_fabric", "pytorch_lightning", "replayml", "torch", "torchmetrics"})


def modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module with its normal path; what torch put around one, such as ``torch.compile``, comes before it."""
    for path, module in model.named_modules(remove_duplicate=False):
        yield ".".join(name for name in path.split(".") if name not in weights.WRAPPERS), module


def other_modules(model: nn.Module, remade: nn.Module, again: Callable[[], nn.Module]) -> dict[str, list[str]]:
    """Return the places that differ, with both values where there are two, grouped by what differs.

    What stands under `MORE` makes a difference only to who looks for it.

    Args:
        model: A model.
        remade: What its recipe makes.
        again: Makes it once more.

    Example:
        >>> changed = nn.Sequential(nn.MultiheadAttention(4, 2))
        >>> changed[0].batch_first = True
        >>> make = lambda: nn.Sequential(nn.MultiheadAttention(4, 2))
        >>> other_modules(changed, make(), make)
        {'other settings': ['0.batch_first is True instead of False']}
    """
    found, expected = dict(modules(model)), dict(modules(remade))
    strange = _strange(found, expected)
    light = {path for path in strange if _is_light(found.get(path)) and _is_light(expected.get(path))}
    if len(light) < len(strange):
        heavy = sorted(text for path, text in strange.items() if path not in light)
        return {_HEAVY: heavy} | ({LIGHT: sorted(strange[path] for path in light)} if light else {})
    found = {path: module for path, module in found.items() if path not in light}
    expected = {path: expected[path] for path in found}
    groups: dict[str, list[str]] = {LIGHT: sorted(strange.values())}
    groups |= {title: [] for title in (SETTINGS, _FOREIGN, ATTRIBUTES, MORE)} | {
        title: [path or _ITSELF for path in found if differ(found[path], expected[path])] for title, differ in _CHECKS
    }
    for path in found:
        groups[SETTINGS] += _other_settings(path, found[path], expected[path])
    groups[_FOREIGN] += _foreign(model, found, expected)
    for setting in set_from_outside(found, expected, lambda: dict(modules(again()))):
        groups[ATTRIBUTES if setting.is_read else MORE].append(str(setting))
    return {title: places for title, places in groups.items() if places}


def _strange(found: dict[str, nn.Module], expected: dict[str, nn.Module]) -> dict[str, str]:
    """Return the paths where only one of two models has a module, or they have some of another kind; with texts."""
    places = {path: path or _ITSELF for path in found | expected if path not in found or path not in expected}
    return places | {
        path: f"{path or _ITSELF}: {_short(found[path])} instead of {_short(expected[path])}"
        for path in found.keys() & expected.keys()
        if not _are_of_one_kind(found[path], expected[path])
    }


def _is_light(module: nn.Module | None) -> bool:
    """Tell whether there is no tensor in a module."""
    return module is None or not any(True for tensors in (module.parameters(), module.buffers()) for _ in tensors)


def _class_of(module: nn.Module) -> type:
    """Return the class of a module, without what torch mixes in where its weights are sharded."""
    return next(cls for cls in type(module).__mro__ if not cls.__module__.startswith("torch.distributed"))


def _are_of_one_kind(module: nn.Module, remade: nn.Module) -> bool:
    one, other = _class_of(module), _class_of(remade)
    if isinstance(remade, LazyModuleMixin) and one is remade.cls_to_become:
        return True
    if (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__):
        return True
    # Between processes a trainer puts these in the place of those that the recipe makes, and back.
    is_synchronised = isinstance(module, nn.SyncBatchNorm) or package_of(one) in ("lightning", "pytorch_lightning")
    return is_synchronised and isinstance(module, _BatchNorm) and isinstance(remade, _BatchNorm)


def _short(module: nn.Module) -> str:
    return f"{_class_of(module).__name__}({module.extra_repr()})"


def _is_torch(module: nn.Module) -> bool:
    return _class_of(module).__module__.startswith("torch.nn.modules.")


# Checks ---------------------------------------------------------------------------------------------------------


def _other_settings(path: str, module: nn.Module, remade: nn.Module) -> list[str]:
    """Return the settings of one of torch's own layers that differ."""
    if not _is_torch(remade):
        return []
    values = module.__dict__
    unknown = _FROM_INPUT if isinstance(remade, LazyModuleMixin) else frozenset()
    names = [
        name
        for name, value in remade.__dict__.items()
        if not name.startswith("_")
        and name != "training"
        and name not in unknown
        and is_setting(value)
        and is_setting(values.get(name, ...))
        and values[name] != value
    ]
    prefix = f"{path}." if path else ""
    found = [f"{prefix}{name} is {_shown(values[name])} instead of {_shown(remade.__dict__[name])}" for name in names]
    if not found and not unknown and module.extra_repr() != remade.extra_repr():
        found = [f"{path or _ITSELF}: {_short(module)} instead of {_short(remade)}"]
    return found


def _shown(value: Any) -> str:
    return str(value.__name__) if callable(value) else repr(value)


def _foreign(model: nn.Module, found: dict[str, nn.Module], expected: dict[str, nn.Module]) -> list[str]:
    """Return what is in force in parts that come from elsewhere, and differs from what the recipe makes there."""
    at_home = {id(module) for path, module in found.items() if _is_at_home(module, path, model)}
    looked_at: list[str] = []
    changes = []
    for path, module in found.items():
        if id(module) in at_home or any(path.startswith(f"{above}.") for above in looked_at):
            continue
        looked_at.append(path)
        ours, theirs = (weights.skeleton(partial(realize, describe(part))) for part in (module, expected[path]))
        for change in Comparison(known_names(()), (), Limits()).changes(theirs, ours):
            place = ".".join(filter(None, (path, *change.path, change.name)))
            changes.append(f"{place} is {change.new or 'missing'} instead of {change.old or 'missing'}")
    return changes


def _is_at_home(module: nn.Module, path: str, model: nn.Module) -> bool:
    """Tell whether a part was built here, with its model; what has no record cannot tell."""
    record, top = (each.__dict__.get("_record") for each in (module, model))
    if not path or record is None or top is None or not (record.built and top.built):
        return True
    place = tuple(name for name in record.path[len(top.path) :] if name not in weights.WRAPPERS)
    return record.blueprint is top.blueprint and place == tuple(path.split("."))


def _hooks_differ(module: nn.Module, remade: nn.Module) -> bool:
    """Tell whether a module has hooks that its recipe does not register."""
    return bool(_hooks(module) - _hooks(remade))


def _hooks(module: nn.Module) -> Counter[str]:
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return Counter(name for name in map(_name, hooks) if name.partition(".")[0] not in _OURS)


def _name(function: Any) -> str:
    """Return where a function, a method, or an object that is called, was defined."""
    while isinstance(function, partial):
        function = function.func
    if not isinstance(getattr(function, "__qualname__", None), str):
        function = type(function)
    return f"{function.__module__}.{function.__qualname__}"


def _forward_differs(module: nn.Module, remade: nn.Module) -> bool:
    """Tell whether a module has a ``forward`` of its own that its recipe does not give it."""
    forward = module.__dict__.get("forward")
    if forward is None or _name(forward).partition(".")[0] in _OURS:
        return False
    return "forward" not in remade.__dict__


def _order_differs(module: nn.Module, remade: nn.Module) -> bool:
    common = module._modules.keys() & remade._modules.keys()
    one, other = ([name for name in each._modules if name in common] for each in (module, remade))
    return one != other


_CHECKS: tuple[tuple[str, Callable[[nn.Module, nn.Module], bool]], ...] = (
    (HOOKS, _hooks_differ),
    (FORWARD, _forward_differs),
    ("another order of children", _order_differs),
)
