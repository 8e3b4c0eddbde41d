"""One ``configure`` of a leaf among 10 000, against the same among 100."""

from __future__ import annotations

from functools import partial

from benchmarks.measure import Result, best_of, shown
from benchmarks.models import Recorded

CALLS = 50


def _configure(model: Recorded, layer: int) -> None:
    for number in range(CALLS):
        model.layers[layer].configure(out_features=number + 1)


def run() -> list[Result]:
    """Measure the budget; every round works on fresh models, so that no tape grows from round to round."""
    many, few = float("inf"), float("inf")
    for _ in range(5):
        large, small = Recorded(10_000), Recorded(100)
        large_time, small_time = best_of(partial(_configure, large, 5_000), partial(_configure, small, 50), rounds=1)
        many, few = min(many, large_time), min(few, small_time)
    detail = f"{shown(many / CALLS)}, {shown(few / CALLS)}"
    return [Result("configure a leaf among 10 000 / among 100", many / few, 3.0, detail)]
