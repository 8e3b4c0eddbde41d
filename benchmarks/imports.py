"""``import replayml``, against ``import torch``, each in a fresh process.

Both are read from bytecode, as after an installation: the first import writes it where it is missing, and the smallest
time counts.
"""

from __future__ import annotations

import os
import subprocess
import sys

from benchmarks.measure import Result, best_of, shown

HEAVY = ("lightning", "torchmetrics", "sklearn", "matplotlib")


def _import(name: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run([sys.executable, "-c", f"import {name}"], check=True, env=environment)


def run() -> list[Result]:
    """Measure the budget, and see that nothing heavy is imported."""
    check = f"import replayml, sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout.split()
    ours, torch_time = best_of(lambda: _import("replayml"), lambda: _import("torch"), rounds=7)
    detail = f"{shown(ours)}, {shown(torch_time)}; heavy modules imported: {', '.join(loaded) or 'none'}"
    return [Result("import replayml / import torch", ours / torch_time if not loaded else float("inf"), 1.15, detail)]
