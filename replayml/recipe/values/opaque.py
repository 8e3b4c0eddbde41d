r"""Values without a data form, kept as pickles: lambdas, closures, objects of types that no codec is for.

    {"$opaque": [base64, ...], "type": "builtins.function"}

To open a pickle is to run what its author put into it. So both sides have to say ``allow_pickle=True``: who saves,
and who opens; and a refusal tells what that means.

Invariants:
    * Nothing is unpickled before every name was found and the caller allowed it.
    * A pickle that was just written has been opened once: what could not be opened is refused when it is saved.
    * Each piece but the last holds exactly `INLINE_BYTES` bytes, so that a pickle has one spelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dill

from replayml.core.errors import RecipeError
from replayml.core.meta import unregistered
from replayml.recipe.faults import Fault, Flaw, Place, shown, type_name
from replayml.recipe.format import INLINE_BYTES
from replayml.recipe.text.parts import Maker, Part
from replayml.recipe.values.leaves import from_base64, to_base64

__all__ = ["MEANING", "OpaquePart", "locked", "read_pieces", "write_opaque"]

MEANING = (
    "Opening a pickle runs whatever code its author put into it. If you know that author, and trust the way by which "
    "the file came to you: allow_pickle=True."
)

_PROTOCOL = 5
_LISTED = 10


@dataclass(frozen=True, slots=True)
class OpaquePart(Part):
    """A pickled value.

    Attributes:
        type: What it was, as the file says.
        data: The pickle.
        place: Where it stands.
    """

    type: str
    data: bytes
    place: Place

    def make(self, maker: Maker) -> Any:
        """Return the value: this runs the pickle."""
        try:
            with unregistered():
                return dill.loads(self.data)  # noqa: S301 - the caller allowed it
        except Exception as error:
            reason = f"({type(error).__name__}: {shown(str(error))})"
            fault = Fault("bad-pickle", self.place, f"this pickle of {shown(self.type)} cannot be opened {reason}.")
            raise RecipeError(fault.code, str(fault.place), fault.message) from error


def write_opaque(value: object, why: Flaw) -> dict[str, object]:
    """Return the node of a value that has no data form.

    Args:
        value: The value.
        why: Why it has none.

    Raises:
        Flaw: When it cannot be pickled either.

    Example:
        >>> node = write_opaque(lambda x: x + 1, Flaw("no-data-form", "a lambda."))
        >>> node["type"], len(node["$opaque"])
        ('builtins.function', 1)
    """
    try:
        data = dill.dumps(value, protocol=_PROTOCOL, recurse=True)
        with unregistered():
            dill.loads(data)  # noqa: S301 - these are our own bytes
    except Exception as error:
        reason = f"{why.message} Nor can it be pickled ({type(error).__name__}: {error})."
        raise Flaw(why.code, reason) from error
    pieces = [to_base64(data[start : start + INLINE_BYTES]) for start in range(0, len(data), INLINE_BYTES)]
    return {"$opaque": pieces, "type": type_name(value)}


def read_pieces(payload: object) -> bytes:
    """Return the bytes of a pickle.

    Raises:
        Flaw: When the pieces are not the one spelling of any bytes.
    """
    if not isinstance(payload, list) or not payload:
        raise Flaw("bad-value", f"a list of base64 texts is expected here, not {shown(payload)}.")
    pieces = [from_base64(piece) for piece in payload]
    if any(len(piece) != INLINE_BYTES for piece in pieces[:-1]) or not 0 < len(pieces[-1]) <= INLINE_BYTES:
        raise Flaw("not-canonical", f"each piece of a pickle but the last has {INLINE_BYTES} bytes, and none is empty.")
    return b"".join(pieces)


def locked(parts: Sequence[OpaquePart]) -> Fault:
    """Return the refusal of all pickled values of a recipe."""
    first, *rest = parts
    places = ", ".join(str(part.place) for part in parts[:_LISTED]) + (", ..." if len(parts) > _LISTED else "")
    count = "a value is a pickle" if not rest else f"{len(parts)} values are pickles"
    return Fault("opaque-value", first.place, f"{count}, which no data form describes: {places}. {MEANING}")
