"""Flows, against the same calls written by hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import nn

import replayml
from benchmarks.measure import Result, Task, best_of, seconds, shown

STEPS = 10
CALLS = 500
ROUNDS = 21
WIDTH = 64
BRANCHES = 4
WAIT = 0.02


def _step(x: int) -> int:
    return x + 1


def _by_hand(x: int) -> int:
    x = _step(x)
    x = _step(x)
    x = _step(x)
    x = _step(x)
    x = _step(x)
    x = _step(x)
    x = _step(x)
    x = _step(x)
    x = _step(x)
    return _step(x)


def _many(function: Callable[[Any], Any], x: Any) -> Task:
    def call() -> None:
        for _ in range(CALLS):
            function(x)

    return call


def _wait(x: int) -> int:
    time.sleep(WAIT)
    return x


def _threads_by_hand() -> list[int]:
    with ThreadPoolExecutor(BRANCHES) as pool:
        return [future.result() for future in [pool.submit(_wait, 1) for _ in range(BRANCHES)]]


def _ratio(ours: Task, hand: Task) -> tuple[float, str]:
    """Return the median of the ratios of neighbouring runs, and the smallest times."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(ROUNDS):
        pair = [(times[0], ours), (times[1], hand)]
        for found, task in pair if number % 2 else reversed(pair):
            found.append(seconds(task))
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    return ratio, ", ".join(shown(min(found)) for found in times)


def run() -> list[Result]:
    """Measure the budgets: trivial steps, layers, and branches that wait."""
    ours, hand = best_of(_many(replayml.pipeline(*[_step] * STEPS), 1), _many(_by_hand, 1))
    cost = (ours - hand) / CALLS / STEPS * 1e6
    detail = f"{ours / CALLS * 1e6:.2f} µs, {hand / CALLS * 1e6:.2f} µs: {ours / hand:.1f} times by hand"
    results = [Result(f"pipeline of {STEPS} trivial steps: µs more for each than by hand", cost, 3.0, detail)]

    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(STEPS)]
    x = torch.randn(1, WIDTH)
    with torch.inference_mode():
        ratio, detail = _ratio(_many(replayml.pipeline(*layers).build(), x), _many(nn.Sequential(*layers), x))
    results.append(Result(f"pipeline of {STEPS} linear layers / torch.nn.Sequential", ratio, 1.1, detail))

    branches = replayml.parallel(*[_wait] * BRANCHES)
    ratio, detail = _ratio(partial(branches, 1), _threads_by_hand)
    results.append(Result(f"parallel of {BRANCHES} waiting steps / threads by hand", ratio, 1.1, detail))
    return results
