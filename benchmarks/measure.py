"""How the benchmarks measure.

Invariants:
    * What is compared is run in turn, A B A B ..., so that a drift of the machine's speed hits both.
    * The smallest time counts: noise only ever adds. The garbage collector is off while the clock runs.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Task = Callable[[], Any]


class Result(NamedTuple):
    """One line of the table.

    Attributes:
        what: What was measured.
        measured: The ratio, or the exponent.
        budget: What it may be at the most; for ``at_least``, at the least.
        detail: The times behind it.
        at_least: Whether the budget is a lower bound.
    """

    what: str
    measured: float
    budget: float
    detail: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the budget is met."""
        return self.measured >= self.budget if self.at_least else self.measured <= self.budget


def seconds(task: Task) -> float:
    """Return how long one call takes."""
    gc.collect()
    gc.disable()
    try:
        start = time.perf_counter()
        task()
        return time.perf_counter() - start
    finally:
        gc.enable()


def best_of(*tasks: Task, rounds: int = 7) -> list[float]:
    """Return the smallest time of each task; the tasks take turns."""
    best = [math.inf] * len(tasks)
    for _ in range(rounds):
        for index, task in enumerate(tasks):
            best[index] = min(best[index], seconds(task))
    return best


def exponent(sizes: Sequence[int], times: Sequence[float]) -> float:
    """Return k of the best fit of ``time ~ size ** k``.

    Example:
        >>> round(exponent([10, 100], [1.0, 10.0]), 3)
        1.0
    """
    xs = [math.log(size) for size in sizes]
    ys = [math.log(value) for value in times]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / sum((x - mean_x) ** 2 for x in xs)


def shown(value: float) -> str:
    """Return a time for a person."""
    return f"{value * 1e6:.0f} µs" if value < 1e-3 else f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"
