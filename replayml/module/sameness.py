"""Whether a built model is what its recipe makes again, beside its weights.

Invariants:
    * What torch, Lightning and replayml put on modules themselves is no change.
    * Of attributes only the settings of torch's own layers are compared: what other modules count, or keep from one
      call to the next, is theirs to change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import nn

__all__ = ["modules", "other_modules"]

_COMPILED = "_orig_mod"
_OURS = frozenset({"lightning", "lightning_fabric", "pytorch_lightning", "replayml", "torch", "torchmetrics"})
_PLAIN = (bool, int, float, complex, str, type(None))


def modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each module with its normal path; what ``torch.compile`` put around one comes before it."""
    for path, module in model.named_modules(remove_duplicate=False):
        yield ".".join(name for name in path.split(".") if name != _COMPILED), module


def other_modules(model: nn.Module, remade: nn.Module) -> dict[str, list[str]]:
    """Return the paths of modules that differ, grouped by what differs.

    Example:
        >>> changed = nn.Sequential(nn.MultiheadAttention(4, 2))
        >>> changed[0].batch_first = True
        >>> other_modules(changed, nn.Sequential(nn.MultiheadAttention(4, 2)))
        {'other settings': ['0']}
    """
    found, expected = dict(modules(model)), dict(modules(remade))
    strange = [path for path in found | expected if path not in found or path not in expected]
    strange += [path for path in found if path in expected and _kind(found[path]) != _kind(expected[path])]
    if strange:
        return {"other modules": _shown(strange)}
    groups = {title: _shown(path for path in found if differ(found[path], expected[path])) for title, differ in _CHECKS}
    return {title: paths for title, paths in groups.items() if paths}


def _shown(paths: Any) -> list[str]:
    return [path or "the model itself" for path in paths]


def _kind(module: nn.Module) -> tuple[str, str]:
    """Return the class of a module, and of torch's own the settings that it shows as well."""
    cls = next(cls for cls in type(module).__mro__ if not cls.__module__.startswith("torch.distributed"))
    settings = module.extra_repr() if _is_torch(cls) else ""
    return f"{cls.__module__}.{cls.__qualname__}", settings


def _is_torch(cls: type) -> bool:
    return cls.__module__.startswith("torch.nn.modules.")


# Checks ---------------------------------------------------------------------------------------------------------


def _settings_differ(module: nn.Module, remade: nn.Module) -> bool:
    if not _is_torch(type(remade)):
        return False
    values, others = module.__dict__, remade.__dict__
    return any(
        _is_setting(value) and _is_setting(values.get(name, ...)) and values[name] != value
        for name, value in others.items()
        if not name.startswith("_") and name != "training"
    )


def _is_setting(value: object) -> bool:
    if isinstance(value, FunctionType):
        return "<" not in value.__qualname__  # a lambda of a constructor is another one each time
    if isinstance(value, tuple):
        return all(_is_setting(item) for item in value)
    return isinstance(value, BuiltinFunctionType) or (isinstance(value, _PLAIN) and value == value)


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
    return list(module._modules) != list(remade._modules)


_CHECKS: tuple[tuple[str, Callable[[nn.Module, nn.Module], bool]], ...] = (
    ("other settings", _settings_differ),
    ("forward hooks", _hooks_differ),
    ("another forward", _forward_differs),
    ("another order of children", _order_differs),
)
