"""How construct, configure-all, ``new`` and ``build`` grow from 100 to 10 000 layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.measure import Result, exponent, seconds, shown
from benchmarks.models import Recorded

SIZES = (100, 316, 1000, 3162, 10_000)
ROUNDS = 3


def _construct(count: int) -> Callable[[], Any]:
    return lambda: Recorded(count)


def _configure_all(count: int) -> Callable[[], Any]:
    model = Recorded(count)
    return lambda: model["layers", :].configure(bias=False)


def _new(count: int) -> Callable[[], Any]:
    return Recorded(count).new


def _new_after_configuring(count: int) -> Callable[[], Any]:
    model = Recorded(count)
    model["layers", :].configure(bias=False)
    return model.new


def _build(count: int) -> Callable[[], Any]:
    return Recorded(count).build


def run() -> list[Result]:
    """Measure the budgets."""
    results = []
    operations = {
        "construct": _construct,
        "configure all": _configure_all,
        "new()": _new,
        "new() after configuring all": _new_after_configuring,
        "build": _build,
    }
    for name, prepare in operations.items():
        times = [min(seconds(prepare(size)) for _ in range(ROUNDS)) for size in SIZES]
        detail = ", ".join(f"{size}: {shown(value)}" for size, value in zip(SIZES, times, strict=True))
        results.append(Result(f"growth of {name}, exponent", exponent(SIZES, times), 1.1, detail))
    return results
