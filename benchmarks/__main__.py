"""Run the benchmarks and print the table; exit code 1 when a budget is not met."""

from __future__ import annotations

import argparse
import sys

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import configure, construct, copies, deeplay, flows, forward, growth, imports, reload

BENCHMARKS = {
    "construct": construct.run,
    "copies": copies.run,
    "configure": configure.run,
    "growth": growth.run,
    "forward": forward.run,
    "flows": flows.run,
    "reload": reload.run,
    "imports": imports.run,
}


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Speed budgets, as ratios.")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], help="which to run; by default all")
    parser.add_argument("--deeplay", metavar="PYTHON", help="interpreter of an environment that has Deeplay")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [result for name in options.names or BENCHMARKS for result in BENCHMARKS[name]()]
    if options.deeplay:
        results += deeplay.run(options.deeplay)
    table = Table("what", "measured", "budget", "met", "times")
    for result in results:
        bound = f"{'≥' if result.at_least else '≤'} {result.budget:g}"
        table.add_row(result.what, f"{result.measured:.3g}", bound, "yes" if result.met else "NO", result.detail)
    Console(width=150).print(table)
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
