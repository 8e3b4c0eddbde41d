"""What users give as metrics, as named modules.

Invariants:
    * Each phase has metrics of its own: what is given is copied, and unbuilt where it is an `External`.
    * No metric is lost: two of one name are refused.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torchmetrics import Metric, MetricCollection

from replayml.core.errors import ArgumentError, ConfigurationError
from replayml.layers.external import External

__all__ = ["as_data", "named_metrics"]

_TAKEN = "loss"  # what an application logs by itself


def named_metrics(groups: Mapping[str, Any], owner: str = "the application") -> nn.ModuleDict:
    """Return metrics under their names.

    Args:
        groups: Metrics by the name of the argument with which they were given: None; a torchmetrics metric, its class,
            or an `External` of it; a collection of metrics; a dict of those by name; or a list of those, in which a
            pair ``(name, metric)`` names one.
        owner: Who got them, for an error.

    Raises:
        ArgumentError: When something is no metric.
        ConfigurationError: When two metrics have the same name.

    Example:
        >>> from torchmetrics import MeanAbsoluteError, MeanSquaredError
        >>> given = {"metrics": [MeanSquaredError()], "val_metrics": {"error": External(MeanAbsoluteError)}}
        >>> sorted(named_metrics(given))
        ['error', 'meansquarederror']
    """
    found: dict[str, nn.Module] = {}
    for place, group in groups.items():
        for name, metric in _named(group, place, owner):
            if name in found or name == _TAKEN:
                raise ConfigurationError(
                    f"two metrics of {owner} are called {name!r}. Give them names of their own: "
                    "metrics={'a': ..., 'b': ...}"
                    if name in found
                    else f"a metric cannot be called {name!r}: the loss is logged under that name"
                )
            found[name] = metric
    return nn.ModuleDict(found)


def as_data(value: Any) -> Any:
    """Return a collection of metrics as a dict of them by name, also inside of a list; other values as they are.

    A collection knows which of its metrics share a state, which a record cannot say; logged one by one they do not.
    """
    if isinstance(value, MetricCollection):
        return dict(value.items(keep_base=False))
    if type(value) in (list, tuple) and any(isinstance(item, MetricCollection) for item in value):
        return type(value)(as_data(item) for item in value)
    return value


def _named(group: Any, place: str, owner: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and copies of what is given at one place."""
    if group is None:
        return
    group = as_data(group)
    if isinstance(group, Mapping):
        for name, metric in group.items():
            yield str(name), _copied(metric, f"{place}[{name!r}]", owner)
    elif isinstance(group, tuple) and len(group) == 2 and isinstance(group[0], str):
        yield group[0], _copied(group[1], f"{place}[1]", owner)
    elif isinstance(group, (list, tuple)):
        for index, item in enumerate(group):
            yield from _named(item, f"{place}[{index}]", owner)
    else:
        metric = _copied(group, place, owner)
        cls = metric.classtype if isinstance(metric, External) else type(metric)
        yield cls.__name__.lower(), metric


def _copied(metric: Any, place: str, owner: str) -> nn.Module:
    if isinstance(metric, External):
        return metric.new()
    if isinstance(metric, Metric):
        return metric.clone()
    if isinstance(metric, type) and issubclass(metric, Metric):
        return External(metric)
    shown = f"the class {metric.__name__}" if isinstance(metric, type) else reprlib.repr(metric)
    raise ArgumentError(
        f"{place} of {owner} is {shown}, which is no metric. Give a torchmetrics metric, such as "
        "torchmetrics.MeanSquaredError(), or an External of one, in a list or in a dict by name"
    )
