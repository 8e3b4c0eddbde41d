"""Instances of dataclasses and of pydantic models: the fields that make each up, and the instance that they make.

Invariants:
    * An instance is written only when its class makes an equal one of the fields.
    * pydantic is never imported here: its models are known when the program has imported it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping
from typing import Any

import torch

from replayml.core.errors import RecipeError
from replayml.recipe.faults import Fault, Flaw, Place, shown

__all__ = ["is_equal", "is_pydantic", "make_pydantic", "read_dataclass", "read_pydantic", "takes_more"]


def is_pydantic(cls: object) -> bool:
    """Tell whether a class is a pydantic model.

    Example:
        >>> import pydantic
        >>> class Options(pydantic.BaseModel):
        ...     rate: float = 0.1
        >>> is_pydantic(Options), is_pydantic(int)
        (True, False)
    """
    base = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    return base is not None and isinstance(cls, type) and issubclass(cls, base)


def takes_more(cls: Any) -> bool:
    """Tell whether a pydantic model takes values for which it has no field."""
    return bool(cls.model_config.get("extra") == "allow")


# Reading off --------------------------------------------------------------------------------------------------------


def read_dataclass(value: Any) -> dict[str, Any]:
    """Return the fields that a dataclass takes.

    Raises:
        Flaw: When the instance holds something that is no field.
    """
    cls = type(value)
    fields = dataclasses.fields(value)
    extra = sorted(vars(value).keys() - {field.name for field in fields}) if hasattr(value, "__dict__") else []
    if extra:
        raise Flaw("no-data-form", f"this {cls.__qualname__} has attributes that are no fields: {', '.join(extra)}.")
    given = {field.name: getattr(value, field.name) for field in fields if field.init}
    try:
        remade = cls(**given)
    except Exception as error:
        raise Flaw("no-data-form", f"a {cls.__qualname__} cannot be made from its fields ({_told(error)}).") from error
    for field in fields:
        _check_equal(cls, field.name, getattr(value, field.name), getattr(remade, field.name))
    return given


def read_pydantic(value: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a pydantic model, and the names of those that were given.

    Raises:
        Flaw: When the model does not make an equal instance of them.
    """
    cls = type(value)
    fields = {name: getattr(value, name) for name in cls.model_fields} | (value.model_extra or {})
    given = sorted(value.model_fields_set)
    try:
        remade = _validated(cls, fields, given)
    except Exception as error:
        raise Flaw("no-data-form", f"a {cls.__qualname__} cannot be made from its fields ({_told(error)}).") from error
    for name, item in fields.items():
        _check_equal(cls, name, item, getattr(remade, name))
    hidden, made = value.__pydantic_private__ or {}, remade.__pydantic_private__ or {}
    for name in sorted(hidden.keys() | made.keys()):
        _check_equal(cls, name, hidden.get(name), made.get(name))
    return fields, given


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _check_equal(cls: type, name: str, old: object, new: object) -> None:
    if old is not new and not is_equal(old, new):
        raise Flaw("no-data-form", f"a {cls.__qualname__} made from the fields of this one has another {name!r}.")


def is_equal(one: Any, other: Any) -> bool:
    """Tell whether two values of the same type are equal; tensors are compared by their values.

    Example:
        >>> is_equal(torch.ones(2), torch.ones(2)), is_equal(1, 1.0)
        (True, False)
    """
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and (one == other) is True  # an array answers with an array, which is no yes


# Making -------------------------------------------------------------------------------------------------------------


def make_pydantic(cls: Any, fields: Mapping[str, Any], given: Collection[str], place: Place) -> Any:
    """Return the instance that a pydantic model makes of its fields.

    Raises:
        RecipeError: When the model refuses them.
    """
    try:
        return _validated(cls, fields, given)
    except ValueError as error:
        fault = Fault("bad-argument", place, f"{cls.__qualname__} refuses its fields: {shown(str(error))}.")
        raise RecipeError(fault.code, str(fault.place), fault.message) from error


def _validated(cls: Any, fields: Mapping[str, Any], given: Collection[str]) -> Any:
    whole = fields["root"] if getattr(cls, "__pydantic_root_model__", False) else dict(fields)
    made = cls.model_validate(whole, by_name=True)
    made.model_fields_set.clear()
    made.model_fields_set.update(given)
    return made
