"""`replayml inspect`: what is in a file.

Invariants:
    * Nothing that the file names is imported, and nothing in it is run.
"""

from __future__ import annotations

from pathlib import Path

from replayml.cli.opening import import_known, open_file
from replayml.cli.report import Answer, lines
from replayml.recipe.views.inspection import inspect

__all__ = ["run"]


def run(path: Path) -> Answer:
    """Show what is in a file.

    Args:
        path: The file.
    """
    import_known(open_file(path).recipe.names, ())
    found = inspect(path)
    return Answer({"file": str(path), **found.to_dict()}, lines(found))
