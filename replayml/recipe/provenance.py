"""Where a recorded call was made: the file and the line of the user's code.

Invariants:
    * A recipe tells no folder of the machine on which it was written.
    * Provenance takes no part in the identity of a recipe.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path, PurePath

__all__ = ["relative", "source_roots", "without_provenance"]


def source_roots() -> list[Path]:
    """Return the folders below which code is found, the innermost first."""
    folders = {Path.cwd(), *(Path(entry).absolute() for entry in sys.path if entry)}
    below_root = [folder for folder in folders if len(folder.parts) > 1]
    return sorted(below_root, key=lambda folder: len(folder.parts), reverse=True)


def relative(file: str, roots: Sequence[Path]) -> str:
    """Return where a file is below the folder from which it is found.

    Args:
        file: The file of a recorded call.
        roots: What `source_roots` returned.

    Example:
        >>> relative("/home/me/project/nets/cnn.py", [Path("/home/me/project")])
        'nets/cnn.py'
        >>> relative("/elsewhere/cnn.py", [Path("/home/me/project")])
        'cnn.py'
    """
    path = PurePath(file)
    if not path.is_absolute():
        return path.as_posix()
    for root in roots:
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return path.name


def without_provenance(node: object) -> object:
    """Return a node without the lines of code at which its calls were made.

    Example:
        >>> without_provenance({"$call": "acme.Net", "args": [{"where": 1}], "where": ["train.py", 3]})
        {'$call': 'acme.Net', 'args': [{'where': 1}]}
    """
    if isinstance(node, list):
        return [without_provenance(item) for item in node]
    if isinstance(node, dict):
        is_call = "$call" in node or "$entry" in node
        return {key: without_provenance(item) for key, item in node.items() if not (is_call and key == "where")}
    return node
