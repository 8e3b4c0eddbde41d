"""How much a document comes to once it is written out: ranges by their elements, references by what they refer to.

A few bytes of a file can stand for a list of any length: ``range(10**11)``, or a list of references to a list of
references. Whoever is given one may go through all of it in a single operation, which nothing can break off.

Invariants:
    * The elements of all ranges are at most `Limits.values`.
    * What references repeat is at most `REPEATED` times that. A module is one value, however much is in it.
"""

from __future__ import annotations

from replayml.recipe.faults import Flaw

__all__ = ["REPEATED", "Extent"]

REPEATED = 20
"""How many times `Limits.values` the references of a document may repeat, in all."""


class Extent:
    """Counts the values of a document in the order in which they are read.

    Args:
        most: `Limits.values`.

    Attributes:
        size: How many values there were so far, those in modules left out.

    Example:
        >>> extent = Extent(10)
        >>> extent.add_range(range(0, 10, 3))
        >>> extent.size
        4
        >>> extent.add_range(range(10**11))
        Traceback (most recent call last):
            ...
        replayml.recipe.faults.Flaw: ('too-many', 'ranges of 100000000004 elements; at most 10 values are read. ...
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._ranged = 0
        self._repeated = 0
        self._shared: dict[int, int] = {}
        self.size = 0

    def add_range(self, value: range) -> None:
        """Count the elements of a range as if they stood there.

        Raises:
            Flaw: When they are too many.
        """
        length = max(0, -((value.start - value.stop) // value.step))  # `len` ends at 64 bits
        self.size += length
        self._ranged += length
        if self._ranged > self._most:
            raise Flaw(
                "too-many",
                f"ranges of {self._ranged} elements; at most {self._most} values are read. Raise Limits(values=).",
            )

    def share(self, number: int, before: int) -> None:
        """Note what an object with a number comes to: what was counted since ``size`` was ``before``."""
        self._shared[number] = self.size - before

    def add_reference(self, number: int) -> None:
        """Count an object again that is referred to.

        Raises:
            Flaw: When that is too much.
        """
        self.size += self._shared[number]
        self._repeated += self._shared[number]
        most = self._most * REPEATED
        if self._repeated > most:
            raise Flaw(
                "too-many",
                f"what is referred to comes to more than {most} values, written out. Raise Limits(values=).",
            )
