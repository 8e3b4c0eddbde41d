"""The hyper-parameters of an application as loggers show them: one line each, under the path of what it is about.

    classtype: Classifier, num_classes: 10, model.classtype: MultiLayerPerceptron, model.hidden_features: [64],
    model.blocks.0.layer.bias: False, optimizer.classtype: Adam, optimizer.lr: 0.001

Invariants:
    * They are what was chosen: the arguments of the application and of the modules among them, defaults included, and
      what the user configured. None, which chooses nothing, is left out.
    * Every value is a number, a text, or a list of those; there are 200 at the most.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from replayml.core.signatures import bind, signature_of
from replayml.layers.external import External
from replayml.layers.optimizer import Optimizer
from replayml.module.module import Module

__all__ = ["chosen", "readable"]

_MOST = 200  # lines; more of them tell a reader nothing
_LONGEST = 200  # characters of a value
_SCALARS = (bool, int, float, str)


def chosen(app: Module) -> dict[str, Any]:
    """Return what was chosen for an application that is not built, by path.

    Example:
        >>> import replayml
        >>> app = replayml.Regressor(replayml.LinearBlock(2, 1)).configure("model", bias=False)
        >>> chosen(app)["model.classtype"], chosen(app)["model.bias"], chosen(app)["optimizer.lr"]
        ('LinearBlock', False, 0.001)
    """
    held = {name: readable(name, getattr(app, name, None)) for name in ("loss", "optimizer")}
    found = {name: value for one in held.values() for name, value in one.items()}
    found |= {name: value for name, value in readable("", app).items() if name.partition(".")[0] not in held}
    for path, value in app.get_user_configuration().items():
        found |= readable(".".join(path), value)
    if len(found) > _MOST:
        return {**dict(list(found.items())[:_MOST]), "further_settings": len(found) - _MOST}
    return found


def readable(path: str, value: Any) -> dict[str, Any]:
    """Return one value by path, or what it consists of.

    Args:
        path: The path of the value.
        value: Anything.

    Example:
        >>> from replayml.layers.layer import Layer
        >>> readable("model", {"head": Layer(nn.Linear, 2, 3), "sizes": (1, 2), "name": None})
        {'model.head.classtype': 'Linear', 'model.head.in_features': 2, 'model.head.out_features': 3, \
'model.sizes': [1, 2]}
    """
    below = f"{path}." if path else ""
    if isinstance(value, nn.Module):
        found = {f"{below}classtype": _shown(value.classtype if isinstance(value, External) else type(value))}
        parts: Mapping[Any, Any] = _arguments(value) if isinstance(value, Module) else {}
    elif isinstance(value, Mapping):
        found, parts = {}, value
    elif isinstance(value, (list, tuple)) and not all(isinstance(item, (*_SCALARS, np.generic)) for item in value):
        found, parts = {}, dict(enumerate(value))
    else:
        return {} if value is None else {path: _shown(value)}
    for name, part in parts.items():
        found |= readable(f"{below}{name}", part)
    return found


def _arguments(module: Module) -> dict[str, Any]:
    """Return the arguments of a module as they are in force, defaults included where they are its own."""
    if isinstance(module, Optimizer):
        return {
            name: value
            for name, value in {"lr": getattr(module, "lr", None), **module.kwargs}.items()
            if name != "params"
        }
    if isinstance(module, External):
        return module.kwargs
    if module._has_built:
        return {}
    args, kwargs = module.get_init_args()
    named, surplus = bind(type(module), args, kwargs)
    parameters = signature_of(type(module)).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    return {**defaults, **named, **{str(index): value for index, value in enumerate(surplus)}}


def _shown(value: Any) -> Any:
    """Return a value as a number, a text or a list of those."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, (list, tuple)):
        return [_shown(item) for item in value] if len(value) <= _LONGEST else reprlib.repr(value)
    name = getattr(value, "__name__", None)
    return name if isinstance(name, str) else reprlib.repr(value)
