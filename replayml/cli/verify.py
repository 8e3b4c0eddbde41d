"""`replayml verify`: whether a file is whole.

Invariants:
    * Every byte of a model file is read and compared with its digest; nothing is imported, called or unpickled.
    * A checkpoint and a bare recipe carry no digests: that they can be opened is all that is found out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from replayml.cli.opening import Opened, open_file
from replayml.cli.report import Answer, lines
from replayml.recipe.files.reading import verify

__all__ = ["run"]


def run(path: Path) -> Answer:
    """Check a file.

    Args:
        path: The file.
    """
    opened = open_file(path)
    is_sealed = opened.form not in ("recipe", "checkpoint")
    data: dict[str, Any] = {
        "file": str(path),
        "form": opened.form,
        "fingerprint": opened.recipe.fingerprint,
        "tensors": None if opened.weights is None else len(opened.weights),
        "is_sealed": is_sealed,
    }
    if is_sealed:
        file = verify(path)
        data |= {"files": dict(file.files), "bytes": sum(file.files.values())}
    return Answer(data, lines(_told(opened, data)))


def _told(opened: Opened, data: dict[str, Any]) -> str:
    weights = "no weights" if opened.weights is None else f"{len(opened.weights)} tensors"
    what = f"{opened.path}: {opened.form}, {weights}, model {opened.recipe.fingerprint[:12]}"
    if data["is_sealed"]:
        return f"{what}; {data['bytes']} bytes read, all as they were written"
    return f"{what}; it can be opened, and has no digests to compare"
