"""Paths as texts: where a module stands, as a person writes it.

    blocks.0.layer    by names and indices, as torch writes it
    blocks[0].layer   as the calls on a tape show it

Both mean the same, wherever a path is taken.

Invariants:
    * This is the one place in which a text is split into a path.
    * What is in brackets and no index stays as it is, and so leads to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from replayml.core.tape import Path

__all__ = ["dotted", "path_of", "split"]

_INDEX = re.compile(r"\[([0-9]+)\](?=[.\[]|$)")


def split(text: str) -> list[str]:
    """Return the steps of a path; none for the empty one, which is the model itself.

    Example:
        >>> split("blocks[0].layer"), split("blocks.0.layer"), split("")
        (['blocks', '0', 'layer'], ['blocks', '0', 'layer'], [])
    """
    return _INDEX.sub(r".\1", text).removeprefix("." if text.startswith("[") else "").split(".") if text else []


def path_of(path: str | Iterable[str | int]) -> Path:
    """Return the tags of a module, given as a text or step by step.

    Args:
        path: ``"blocks.0.layer"``, ``"blocks[0].layer"`` or ``("blocks", 0, "layer")``.

    Example:
        >>> path_of("blocks[0].layer") == path_of(("blocks", 0, "layer"))
        True
    """
    return tuple(split(path)) if isinstance(path, str) else tuple(str(step) for step in path)


def dotted(path: str) -> str:
    """Return a path as torch writes it, which is how the names of weights begin.

    Example:
        >>> dotted("blocks[0].layer.weight")
        'blocks.0.layer.weight'
    """
    return ".".join(split(path))
