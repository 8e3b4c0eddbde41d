"""What is wrong with a recipe, and where.

Invariants:
    * Nothing but `RecipeError` leaves the package for a fault of a file or of a model.
    * A text that comes from a file is shown with ``ascii()`` and cut at 80 characters.
    * A refusal names every fault that was found, the first of them in full detail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

from replayml.core.errors import RecipeError

__all__ = ["DOCUMENT", "MODEL", "UNTOUCHED", "Fault", "Flaw", "Place", "noting", "refuse", "shown", "type_name"]

UNTOUCHED = "Nothing was imported, called or unpickled."

_SHOWN = 80
_LISTED = 20


class Place(NamedTuple):
    """A place in a document, or in a model.

    Example:
        >>> print(MODEL.below("args").below(0).below("a key"))
        model.args[0]['a key']
    """

    above: Place | None
    key: str | int

    def below(self, key: str | int) -> Place:
        """Return the place of an element."""
        return Place(self, key)

    def __str__(self) -> str:
        keys: list[str | int] = []
        place: Place | None = self
        while place is not None:
            keys.append(place.key)
            place = place.above
        first, *rest = reversed(keys)
        text = "".join(_step(key) for key in rest)
        return text[1:] if text.startswith(".") else f"{first}{text}"


DOCUMENT = Place(None, "document")
MODEL = DOCUMENT.below("model")


def _step(key: str | int) -> str:
    if isinstance(key, str) and key.isascii() and key.removeprefix("$").isidentifier() and len(key) <= _SHOWN:
        return f".{key}"
    return f"[{shown(key)}]"


class Flaw(Exception):  # noqa: N818 - it never reaches a user: whoever knows the place makes a `Fault` of it
    """A fault whose place is known by the caller only."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def at(self, place: Place) -> Fault:
        """Return the fault."""
        return Fault(self.code, place, self.message)


class Fault(NamedTuple):
    """One thing that is wrong.

    Attributes:
        code: One of the codes in `replayml.recipe.format`.
        place: Where it is.
        message: What it is, and what to do.
    """

    code: str
    place: Place
    message: str


def shown(value: object) -> str:
    """Return a text for something that a file gave.

    Example:
        >>> shown("é" * 100)[-6:], len(shown("é" * 100))
        ("...'", 80)
    """
    text = ascii(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 4] + "..." + text[-1]


def type_name(value: object) -> str:
    """Return the name of the type of a value, with its module.

    Example:
        >>> type_name(Exception())
        'builtins.Exception'
    """
    return f"{type(value).__module__}.{type(value).__qualname__}"


@contextmanager
def noting(note: str) -> Iterator[None]:
    """Add a note to an error of the user's code, which keeps its type."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise


def refuse(faults: Sequence[Fault], note: str = UNTOUCHED) -> NoReturn:
    """Raise the refusal of all faults at once.

    Raises:
        RecipeError: Always; its code and its place are those of the first fault.
    """
    first, *rest = faults
    lines = [first.message]
    if rest:
        lines.append(f"{len(rest)} more:")
        lines += [f"[{fault.code}] at {fault.place}: {fault.message}" for fault in rest[: _LISTED - 1]]
        if len(faults) > _LISTED:
            lines.append(f"... and {len(faults) - _LISTED} more.")
    if note:
        lines.append(note)
    raise RecipeError(first.code, str(first.place), "\n".join(lines) if rest else " ".join(lines))
