"""`replayml gc`: what saves that were cut short have left in a folder.

Invariants:
    * Only files that replayml names are removed, never those that a manifest names, nor young ones.
"""

from __future__ import annotations

from pathlib import Path

from replayml.cli.report import Answer, lines
from replayml.recipe.files.storing import collect_garbage

__all__ = ["run"]


def run(folder: Path, *, older_than: float, is_rehearsal: bool) -> Answer:
    """Remove what is left over.

    Args:
        folder: A model folder, or a folder with model files in it.
        older_than: The least age in seconds.
        is_rehearsal: Remove nothing, and tell what would be.
    """
    found = sorted(collect_garbage(folder, older_than=older_than, dry_run=is_rehearsal))
    data = {"folder": str(folder), "removed": [str(path) for path in found], "dry_run": is_rehearsal}
    verb = "would be removed" if is_rehearsal else "removed"
    return Answer(data, lines(*(f"{verb}: {path}" for path in found)) if found else lines("nothing to remove"))
