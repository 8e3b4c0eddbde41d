"""Constructing and building 1 000 layers, against the same torch layers."""

from __future__ import annotations

from benchmarks.measure import Result, best_of, shown
from benchmarks.models import ByHand, Recorded

COUNT = 1000


def run() -> list[Result]:
    """Measure both budgets."""
    torch_time, construct, build = best_of(
        lambda: ByHand(COUNT), lambda: Recorded(COUNT), lambda: Recorded(COUNT).build()
    )
    detail = f"torch {shown(torch_time)}"
    return [
        Result("construct 1 000 unbuilt layers / torch", construct / torch_time, 0.5, f"{shown(construct)}, {detail}"),
        Result("construct + build / torch", build / torch_time, 1.6, f"{shown(build)}, {detail}"),
    ]
