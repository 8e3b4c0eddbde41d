"""How a user gives a type of theirs a data form.

Invariants:
    * There is no global registry: a codec is handed in where a model is written, and again where it is read, since
      to read one is to run its code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["Codec"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Codec(Generic[T]):
    """The data form of a type: what its instances are written as, and how they are made again.

    Args:
        type: The type; its instances are written, those of its subclasses are not.
        encode: Returns what makes up an instance, of types that a recipe can hold (a dict, a list, a tensor, ...).
        decode: Makes an instance of what ``encode`` returned.

    Example:
        >>> from fractions import Fraction
        >>> import torch
        >>> from replayml.core.tape import CallRecord
        >>> from replayml.recipe import Recipe
        >>> codec = Codec(Fraction, lambda f: [f.numerator, f.denominator], lambda pair: Fraction(*pair))
        >>> recipe = Recipe.of(CallRecord(torch.nn.Dropout, (Fraction(1, 4),)), codecs=[codec])
        >>> Recipe.from_json(recipe.to_json()).record(trust=[codec]).args
        (Fraction(1, 4),)
    """

    type: type[T]
    encode: Callable[[T], object]
    decode: Callable[[Any], T]
