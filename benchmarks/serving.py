"""Requests a second and how long they take, beside bare FastAPI on uvicorn, LitServe and LazyLLM's ServerModule.

    python -m benchmarks.serving                    replayml alone, batched and not
    python -m benchmarks.serving --fastapi PYTHON   also FastAPI, with the interpreter of an environment that has it
    python -m benchmarks.serving --fastapi PYTHON --litserve PYTHON --lazyllm PYTHON

The model is an MLP 256 -> 1024 -> 1024 -> 10, a request one row in JSON, each model runs in one process with one torch
thread. The client is a process of its own (`benchmarks.asking`). The other sides have no limits and no checks but those
that they bring along; replayml has all of its own. Beside the load: the processor time that a side uses while nobody
asks, and the time from its start to its first answer.

The environments: ``pip install -c constraints.txt fastapi uvicorn httptools torch`` for FastAPI, so that it parses HTTP
with the same code; ``litserve torch``; ``lazyllm httptools torch``.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.asking import Load, ask
from benchmarks.sides import Side, fastapi, lazyllm, litserve, ours

CONNECTIONS = (1, 8, 64)
SECONDS = 2.0
ROUNDS = 3
IDLE = 10.0

OWN, BATCHED = "replayml", "replayml, batched"
FASTAPI, LITSERVE, LITSERVE_BATCHED, LAZYLLM = "FastAPI", "LitServe", "LitServe, batched", "LazyLLM"

BUDGETS = {
    (OWN, FASTAPI): {1: 0.9, 8: 0.9, 64: 0.9},
    (BATCHED, FASTAPI): {1: 0.9, 8: 2.0, 64: 2.5},
    (OWN, LITSERVE): {1: 2.0, 8: 2.0, 64: 2.0},
    (BATCHED, LITSERVE_BATCHED): {1: 2.0, 8: 2.0, 64: 2.0},
    (OWN, LAZYLLM): {1: 2.0, 8: 2.0, 64: 2.0},
}
"""How many times as many requests a second one side answers as the other, at least."""

MOST_IDLE = 0.01
MOST_START = 1.2


class Results:
    """What was found.

    Attributes:
        loads: The run with the most requests a second, by side and connections.
        starts: The shortest start, by side.
        idle: Which part of a processor a side takes while nobody asks.
    """

    def __init__(self) -> None:
        self.loads: dict[tuple[str, int], Load] = {}
        self.starts: dict[str, float] = {}
        self.idle: dict[str, float] = {}

    def measure(self, name: str, side: Side) -> None:
        """Run a side once."""
        with side() as running:
            self.starts[name] = min(running.start, self.starts.get(name, running.start))
            for connections in CONNECTIONS:
                found = ask(running.port, running.request, connections, SECONDS)
                known = self.loads.get((name, connections), found)
                self.loads[name, connections] = max(found, known)
            if name not in self.idle:
                before = running.used()
                time.sleep(IDLE)
                self.idle[name] = (running.used() - before) / IDLE


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.partition("\n")[0])
    for name in ("fastapi", "litserve", "lazyllm"):
        parser.add_argument(f"--{name}", metavar="PYTHON", help=f"interpreter of an environment that has {name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sides: dict[str, Side] = {OWN: lambda: ours(batch=False), BATCHED: lambda: ours(batch=True)}
    if options.fastapi:
        sides[FASTAPI] = lambda: fastapi(options.fastapi)
    if options.litserve:
        sides[LITSERVE] = lambda: litserve(options.litserve, batch=False)
        sides[LITSERVE_BATCHED] = lambda: litserve(options.litserve, batch=True)
    if options.lazyllm:
        sides[LAZYLLM] = lambda: lazyllm(options.lazyllm)
    results = Results()
    for _ in range(ROUNDS):
        for name, side in sides.items():
            results.measure(name, side)
    console = Console(width=120)
    console.print(_loads(results))
    budgets, is_met = _budgets(results)
    console.print(budgets)
    return 0 if is_met else 1


def _loads(results: Results) -> Table:
    table = Table("side", "connections", "requests/s", "p50 ms", "p99 ms", "client busy", "idle", "start s")
    for (name, connections), found in sorted(results.loads.items(), key=lambda item: (item[0][1], item[0][0])):
        times = [f"{found.p50 * 1000:.2f}", f"{found.p99 * 1000:.2f}"]
        once = [f"{results.idle[name]:.2%}", f"{results.starts[name]:.2f}"] if connections == CONNECTIONS[0] else []
        table.add_row(name, str(connections), f"{found.rate:.0f}", *times, f"{found.busy:.0%}", *once)
    return table


def _budgets(results: Results) -> tuple[Table, bool]:
    """Return what was to be reached and what was, and whether all of it was."""
    table = Table("what", "measured", "budget", "met")
    all_met = True

    def row(what: str, measured: float, budget: float, *, at_least: bool) -> None:
        nonlocal all_met
        is_met = measured >= budget if at_least else measured <= budget
        all_met = all_met and is_met
        table.add_row(what, f"{measured:.3g}", f"{'≥' if at_least else '≤'} {budget:.3g}", "yes" if is_met else "NO")

    for (mine, other), budgets in BUDGETS.items():
        for connections, budget in budgets.items():
            if (other, connections) in results.loads:
                ratio = results.loads[mine, connections].rate / results.loads[other, connections].rate
                row(f"requests/s of {mine} / {other}, {connections} connections", ratio, budget, at_least=True)
    most = CONNECTIONS[-1]
    for name in (OWN, BATCHED):
        if FASTAPI in results.starts:
            late = results.loads[FASTAPI, most].p99 * 1000
            row(f"p99 of {name}, {most} connections, ms", results.loads[name, most].p99 * 1000, late, at_least=False)
            ratio = results.starts[name] / results.starts[FASTAPI]
            row(f"start of {name} / {FASTAPI}", ratio, MOST_START, at_least=False)
        row(f"processor while nobody asks, {name}", results.idle[name], MOST_IDLE, at_least=False)
    return table, all_met


if __name__ == "__main__":
    sys.exit(main())
