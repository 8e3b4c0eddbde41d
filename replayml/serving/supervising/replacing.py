"""When workers are due that take the place of others.

Invariants:
    * The first is due at once. Each that ends young lets the next one wait longer, until one has grown old.
"""

from __future__ import annotations

__all__ = ["Replacements"]

_FIRST_WAIT = 0.25
_LONGEST_WAIT = 10.0


class Replacements:
    """The workers that are due.

    Example:
        >>> due = Replacements()
        >>> due.plan(now=60.0, is_young=True)
        >>> due.wait(now=60.0), due.take(now=60.0), due.take(now=60.25)
        (0.25, 0, 1)
        >>> due.plan(now=61.0, is_young=True)
        >>> due.wait(now=61.0)
        0.5
    """

    def __init__(self) -> None:
        self._due: list[float] = []
        self._ended_young = 0

    def plan(self, *, now: float, is_young: bool) -> None:
        """Plan the next one.

        Args:
            now: The time.
            is_young: Whether the one before ended soon after it was ready, or earlier.
        """
        self._ended_young = self._ended_young + 1 if is_young else 0
        wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (self._ended_young - 1)) if self._ended_young else 0.0
        self._due.append(now + wait)

    def take(self, *, now: float) -> int:
        """Return how many are due, and count them as started."""
        later = [due for due in self._due if due > now]
        found, self._due = len(self._due) - len(later), later
        return found

    def wait(self, *, now: float) -> float:
        """Return in how many seconds the next one is due; infinity when there is none."""
        return max(0.0, min(self._due) - now) if self._due else float("inf")

    def clear(self) -> None:
        """Forget all: a new version begins anew."""
        self._due.clear()
        self._ended_young = 0
