"""The arguments that a module takes besides the inputs of its example, and how those of a request are told apart.

    forward(x, n=3, *, tag="a"), example (x,)    x is an input: it is checked against the example, and runs in batches
                                                 n and tag are further arguments: with one, a request runs alone

Invariants:
    * An input that is given by its name is the same as one that is given by its position.
    * An argument whose name starts with an underscore is none of them: it is for the program alone.
    * What the signature does not take is refused before anything runs, with what it takes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from replayml.serving.errors import Refusal

__all__ = ["Parameters", "is_plain_default"]

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_PLAIN = (str, int, float, bool, type(None))
_LONGEST_TEXT = 200


class Parameters:
    """The arguments of a module.

    Args:
        signature: That of its forward; None where there is none.
        inputs: How many inputs the example has; None where there is no example.

    Attributes:
        names: What its positional arguments are called.
        by_name: The further arguments that it takes by name, with their defaults.
        by_position: Those of them that may be given by position as well, behind the inputs.
        has_further: Whether it takes arguments of any name besides.

    Example:
        >>> def forward(x, n=3, *, tag="a"): ...
        >>> takes = Parameters(inspect.signature(forward), 1)
        >>> takes.by_name, takes.by_position
        ({'n': 3, 'tag': 'a'}, ('n',))
        >>> takes.placed([], {"tag": "b", "x": 0})
        ([0], {'tag': 'b'})
    """

    def __init__(self, signature: inspect.Signature | None, inputs: int | None) -> None:
        self.signature = signature
        found = [] if signature is None else list(signature.parameters.values())
        kinds = {parameter.kind for parameter in found}
        self.names = tuple(parameter.name for parameter in found if parameter.kind in _BY_POSITION)
        self.has_further = inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds
        behind = [] if inputs is None else [each for each in found if each.kind in _BY_POSITION][inputs:]
        further = [each for each in behind if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and _is_public(each)]
        self.by_position = tuple(each.name for each in further) if further == behind else ()
        by_name = [each for each in found if each.kind is inspect.Parameter.KEYWORD_ONLY and inputs is not None]
        further += [each for each in by_name if _is_public(each)]
        self.by_name: Mapping[str, Any] = {each.name: each.default for each in further}
        self._inputs = inputs or 0

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return arguments as the signature takes them: by position where that goes.

        Raises:
            Refusal: When it does not take them.
        """
        if self.signature is None:
            return args, kwargs
        try:
            found = self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise Refusal("wrong-arguments", {"expected": self._text(), "found": str(error)[:_LONGEST_TEXT]}) from error
        return found.args, found.kwargs

    def placed(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the inputs in a request, in order, and the further arguments by name.

        Raises:
            Refusal: When the signature does not take them.
        """
        given, named = self.bound(args, kwargs)
        behind = given[self._inputs :]
        further = dict(zip(self.by_position, behind, strict=False)) | dict(named)
        if len(behind) > len(self.by_position) or not (self.has_further or further.keys() <= self.by_name.keys()):
            found = f"{len(args)} by position" + (f", and {', '.join(kwargs)[:_LONGEST_TEXT]}" if kwargs else "")
            raise Refusal("wrong-arguments", {"expected": self._text(), "found": found})
        return list(given[: self._inputs]), further

    def _text(self) -> str:
        """Return what it takes, for people: the signature, without what only the code says."""
        if self.signature is None or len(self.names) < self._inputs:
            return f"{self._inputs} input{'' if self._inputs == 1 else 's'} by position"
        shown = [
            each.replace(annotation=each.empty, default=each.default if _is_shown(each.default) else ...)
            for each in self.signature.parameters.values()
        ]
        return str(inspect.Signature(shown)).replace("=Ellipsis", "=...")[:_LONGEST_TEXT]


def _is_public(parameter: inspect.Parameter) -> bool:
    return not parameter.name.startswith("_")


def _is_shown(default: Any) -> bool:
    return default is inspect.Parameter.empty or is_plain_default(default)


def is_plain_default(value: Any) -> bool:
    """Tell whether a default is a value of JSON, so that it can be told.

    Example:
        >>> [is_plain_default(value) for value in (3, "a", None, math.inf, inspect.Parameter.empty)]
        [True, True, True, False, False]
    """
    if type(value) not in _PLAIN or (isinstance(value, float) and not math.isfinite(value)):
        return False
    try:
        return len(orjson.dumps(value)) <= _LONGEST_TEXT
    except orjson.JSONEncodeError:  # an int of more than 64 bits, or text that is no Unicode
        return False
