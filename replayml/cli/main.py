"""The `replayml` command and its subcommands.

Exit codes: 0 done, 1 the command failed, 2 wrong usage, 3 an extra is not installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from replayml.cli import demo

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: The words after ``replayml``; by default those of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="replayml", description="Replayable PyTorch models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demonstration = commands.add_parser("demo", help="train, reload and vary a model on real handwritten digits")
    demonstration.add_argument("--out", type=Path, default=Path("replayml-demo"), help="folder for the files it writes")
    demonstration.add_argument("--epochs", type=int, default=12, help="how often each model sees the data")
    demonstration.add_argument("--seed", type=int, default=0, help="seed of the weights and of the shuffling")
    options = parser.parse_args(arguments)
    return demo.run(options.out, epochs=options.epochs, seed=options.seed)


if __name__ == "__main__":
    sys.exit(main())
