"""``new()`` of an unbuilt model, against ``copy.deepcopy`` of the built one."""

from __future__ import annotations

import copy

from benchmarks.measure import Result, best_of, shown
from benchmarks.models import Recorded

COUNT = 1000


def run() -> list[Result]:
    """Measure the budget."""
    unbuilt = Recorded(COUNT)
    built = unbuilt.create()
    new, deepcopy = best_of(unbuilt.new, lambda: copy.deepcopy(built))
    return [Result("new() / deepcopy of the built model", new / deepcopy, 0.5, f"{shown(new)}, {shown(deepcopy)}")]
