"""The records of a training: series of numbers by level and metric, and how they are drawn.

Invariants:
    * A series is three lists of one length: the values, and the epoch and optimizer step of each.
    * The name of a series tells its stage, so that training, validation and test never share one.
    * What is handed out is a copy; nobody changes a record from outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

from replayml.core.errors import CheckpointError, ConfigurationError, suggestion

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "Level",
    "LoggedMetrics",
    "Series",
    "Stage",
    "checked",
    "copied",
    "draw",
    "empty",
    "metric_of",
    "series_name",
]

Stage = Literal["train", "val", "test"]
Level = Literal["epoch", "step"]

_STAGE_WORD = re.compile(r"(train|val|test)(?:ing|id|idation)?(?![A-Za-z])[_/ .:-]?")
_OWN_PREFIX = ("train:", "val:", "test:")


class Series(TypedDict):
    """The values of one metric, with where they were logged; three lists of one length."""

    value: list[Any]
    epoch: list[int]
    step: list[int]


class LoggedMetrics(Mapping[str, Series]):
    """The series of one level, by the name of the metric; read only, what it returns are copies.

    Example:
        >>> metrics = LoggedMetrics({"val_loss": {"value": [0.5], "epoch": [0], "step": [8]}})
        >>> metrics["val_loss"]["value"]
        [0.5]
    """

    __slots__ = ("_series",)

    def __init__(self, series: Mapping[str, Series]) -> None:
        self._series = series

    def __getitem__(self, name: str) -> Series:
        if name not in self._series:
            raise KeyError(_no_such_metric(name, list(self._series)))
        return copied(self._series[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._series)

    def __len__(self) -> int:
        return len(self._series)

    def __repr__(self) -> str:
        counts = (f"{name}: {len(series['value'])}" for name, series in self._series.items())
        return f"LoggedMetrics({', '.join(counts)})"


def empty() -> Series:
    """Return a series without values."""
    return {"value": [], "epoch": [], "step": []}


def copied(series: Series) -> Series:
    """Return a copy of a series."""
    return {"value": list(series["value"]), "epoch": list(series["epoch"]), "step": list(series["step"])}


def checked(state: Any, level: Level) -> dict[str, Series]:
    """Return a copy of one level of saved records.

    Raises:
        CheckpointError: When they do not have the form of records; it names the metric at fault.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"the saved history has no {level!r} part; it was not written by LogHistory.state_dict()")
    for name, series in state.items():
        columns = [series.get(column) if isinstance(series, dict) else None for column in ("value", "epoch", "step")]
        lists = [column for column in columns if isinstance(column, list)]
        if len(lists) < len(columns) or len({len(column) for column in lists}) > 1:
            raise CheckpointError(
                f"the saved history of {name!r} at level {level!r} is not three lists of one length: value, epoch, step"
            )
    return {str(name): copied(series) for name, series in state.items()}


def series_name(stage: Stage, name: str) -> str:
    """Return the name under which a metric of a stage is kept.

    A name that tells its own stage stays, and so does a training metric whose name tells none. Any other gets the
    stage in front, with a colon. No two metrics share a name: ``loss`` and ``val_loss`` of one validation are two.

    Example:
        >>> series_name("train", "accuracy"), series_name("val", "val_accuracy"), series_name("val", "accuracy")
        ('accuracy', 'val_accuracy', 'val:accuracy')
    """
    found = _STAGE_WORD.match(name)
    told = found[1] if found else "train"
    return name if told == stage and not name.startswith(_OWN_PREFIX) else f"{stage}:{name}"


def metric_of(series: str) -> str:
    """Return the name of the metric without its stage.

    Example:
        >>> metric_of("val_loss"), metric_of("loss"), metric_of("value")
        ('loss', 'loss', 'value')
    """
    return _STAGE_WORD.sub("", series, count=1) if _STAGE_WORD.match(series) else series


def draw(
    epoch: Mapping[str, Series],
    step: Mapping[str, Series],
    keys: str | Sequence[str] | None,
    x: Level,
    axes: Axes | None,
) -> Figure:
    """Draw series, one panel per metric; the arguments are those of `LogHistory.plot`."""
    names = _chosen(keys, list(dict.fromkeys((*epoch, *step))))
    if x == "epoch":
        names = [name for name in names if name in epoch]
    if not names:
        raise ConfigurationError(
            f"there is nothing to plot over the {x}s; train with this history first, or use x='step'"
        )
    metrics = list(dict.fromkeys(metric_of(name) for name in names))
    places = _new_panels(len(metrics)) if axes is None else [axes] * len(metrics)
    for name in names:
        place = places[metrics.index(metric_of(name))]
        color = f"C{len(place.get_legend_handles_labels()[1])}"
        if name in epoch:
            series = epoch[name]
            place.plot(series[x], series["value"], marker="o", markersize=4, color=color, label=name)
        if name in step and x == "step":
            series = step[name]
            label = None if name in epoch else name
            place.plot(series["step"], series["value"], linewidth=1, alpha=0.6, color=color, label=label)
    for place in places:
        place.set_xlabel(x)
        place.legend()
    return cast("Figure", places[0].get_figure(root=True))


def _chosen(keys: str | Sequence[str] | None, names: list[str]) -> list[str]:
    """Return the full names that the keys of a plot stand for."""
    if keys is None:
        return names
    chosen: list[str] = []
    for key in [keys] if isinstance(keys, str) else keys:
        found = [name for name in names if key in (name, metric_of(name))]
        if not found:
            raise ConfigurationError(_no_such_metric(key, names))
        chosen += found
    return list(dict.fromkeys(chosen))


def _new_panels(count: int) -> list[Axes]:
    """Return that many axes side by side in a new figure, which a notebook shows once."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError('LogHistory.plot needs matplotlib: pip install "replayml[demo]"') from error
    with pyplot.ioff():
        figure = pyplot.figure(figsize=(4.5 * count, 3.2), layout="constrained")
    return list(figure.subplots(1, count, squeeze=False)[0])


def _no_such_metric(name: str, known: list[str]) -> str:
    listed = ", ".join(map(repr, known)) or "nothing yet"
    return f"no metric {name!r} was logged.{suggestion(name, known)} There is: {listed}"
