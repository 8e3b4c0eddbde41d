"""A model before it has weights: `Module`, selectors, `explain`; saving and loading."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replayml.module import checking, code, explain, hub, predicting, saving

__all__ = ["checking", "code", "explain", "hub", "predicting", "saving"]


def __getattr__(name: str) -> Any:
    """Import what tells of models, and reads and writes files, when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'replayml.module' has no attribute {name!r}")
    return importlib.import_module(f"replayml.module.{name}")
