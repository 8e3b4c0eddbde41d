"""Where a reader or a writer of recipes is: inside of which values it stands.

Invariants:
    * A module is an argument, or stands in a list, a tuple or a dict that is one; inside of other values, and in keys,
      none is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Nesting"]


class Nesting:
    """The part of the reader and of the writer that this file is about.

    Attributes:
        _sealed: How many values it is inside of that replayml does not enter when it makes a model.
        _keys: How many keys and sets it is inside of.
    """

    def __init__(self) -> None:
        self._sealed = 0
        self._keys = 0

    @contextmanager
    def _inside(self, *, key: bool = False) -> Iterator[None]:
        """Be inside a value, or a key, in which no module can stand."""
        self._sealed += 1
        self._keys += key
        try:
            yield
        finally:
            self._sealed -= 1
            self._keys -= key
