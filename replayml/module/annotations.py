"""Whether a value contradicts the annotation of a parameter, as far as that can be said for certain.

Invariants:
    * Where there is doubt there is no contradiction: an annotation that is not one of the simple ones takes anything.
    * None never contradicts: whether a value may be absent is another question.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from inspect import Parameter
from numbers import Number
from types import MappingProxyType
from typing import Any, Union, get_args, get_origin

from torch import nn

__all__ = ["contradicts", "taken", "written"]

_CONTAINERS = (list, tuple, dict, set, frozenset)
_SIMPLE: Mapping[str, Any] = MappingProxyType({"int": int, "float": float, "bool": bool, "str": str, "None": None})
_OPTIONAL = re.compile(r"(?:typing\.|t\.)?Optional\[(\w+)\]")


def contradicts(value: Any, annotation: Any) -> bool:
    """Tell whether a value is certainly none of what an annotation allows.

    Args:
        value: The value.
        annotation: The annotation of a parameter, as a type or as it was written.

    Example:
        >>> contradicts("8", int), contradicts(8, float), contradicts(None, int)
        (True, False, False)
        >>> contradicts("3", int | tuple[int, int]), contradicts("same", "str | int")
        (True, False)
    """
    return value is not None and not any(_allows(option, value) for option in _options(annotation))


def written(annotation: Any) -> str:
    """Return an annotation as a person would write it.

    Example:
        >>> written(int), written(int | None), written("float")
        ('int', 'int | None', 'float')
    """
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "").strip("'\"")


def _options(annotation: Any) -> list[Any]:
    """Return the alternatives of an annotation."""
    if isinstance(annotation, str):
        text = _OPTIONAL.sub(r"\1 | None", annotation.strip("'\" "))
        return [_SIMPLE.get(name.strip(), Any) for name in text.split("|")] if "[" not in text else [Any]
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for alternative in get_args(annotation) for option in _options(alternative)]
    return [annotation]


def _allows(option: Any, value: Any) -> bool:
    """Tell whether one alternative may allow a value."""
    if option is None or option is type(None):
        return False
    if option is bool:
        return not isinstance(value, (str, bytes, type, nn.Module, *_CONTAINERS))
    if option is int:
        return hasattr(type(value), "__index__")
    if option is float:
        return hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
    if option is str:
        return not isinstance(value, (Number, *_CONTAINERS))
    if (get_origin(option) or option) in (list, tuple, Sequence):
        return not isinstance(value, (str, bytes, Number, type))
    return True


def taken(parameter: Parameter | None) -> Any:
    """Return the annotation of a parameter; anything goes where there is none."""
    return Any if parameter is None or parameter.annotation is Parameter.empty else parameter.annotation
