"""``forward`` of a built model, against the same model written by hand."""

from __future__ import annotations

import statistics
from functools import partial

import torch

from benchmarks.measure import Result, seconds, shown
from benchmarks.models import WIDTH, ByHand, Recorded

DEPTH = 50
CALLS = 20
ROUNDS = 101


def run() -> list[Result]:
    """Measure the budget: the median of the ratios of neighbouring runs, since both take the same path."""
    built, hand = Recorded(DEPTH).build(), ByHand(DEPTH)
    x = torch.randn(8, WIDTH)

    def call(model: torch.nn.Module) -> None:
        with torch.inference_mode():
            for _ in range(CALLS):
                model(x)

    for model in (built, hand, built, hand):
        call(model)
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(ROUNDS):
        pair = [(ours, built), (theirs, hand)]
        for times, model in pair if number % 2 else reversed(pair):
            times.append(seconds(partial(call, model)))
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return [
        Result(
            "forward of a built model / by hand",
            ratio,
            1.01,
            f"{shown(min(ours) / CALLS)}, {shown(min(theirs) / CALLS)}",
        )
    ]
