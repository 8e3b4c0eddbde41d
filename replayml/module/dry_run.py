"""A dry run: a model carried through its build without weights, on the meta device.

Invariants:
    * No weight is allocated. Tensors that are there already, in the model or in its example input, are not changed.
    * What the meta device cannot tell is told from what is wrong: see `is_about_meta`.
    * Where there is no output to go on with, `LostTrack` ends the run; nothing is made up.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from replayml.core.copying import describe
from replayml.core.replay import realize
from replayml.core.tape import Where
from replayml.recipe.text.metering import is_about_meta

__all__ = [
    "FAULTS",
    "LostTrack",
    "Substitute",
    "Unknown",
    "copy_on_meta",
    "holds_unknown",
    "innermost",
    "is_about_meta",
    "made",
    "on_meta",
]

FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a layer, or a ``forward``, raises for values that it cannot take."""


class LostTrack(Exception):  # noqa: N818 - it is about control flow and never reaches a user
    """Raised through the user's ``forward`` when there is no output to go on with."""


class Unknown(nn.Module):
    """Stands where a layer could not be made."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raise, since the output is not known."""
        raise LostTrack


class Substitute(nn.Module):
    """A layer without weights, with defaults in place of what is wrong; good for what keeps the shape of its input.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output if it has the shape of the first input, which the right values would not change."""
        output = self.layer(*args, **kwargs)
        if args and isinstance(output, torch.Tensor) and output.shape == getattr(args[0], "shape", None):
            return output
        raise LostTrack


# On the meta device --------------------------------------------------------------------------------------------------


def copy_on_meta(model: Any) -> Any:
    """Return an unbuilt copy of a model; the tensors that its ``__init__`` makes are on the meta device if they can."""
    call = describe(model)
    try:
        with torch.device("meta"):
            return realize(call)
    except FAULTS as error:
        if not is_about_meta(error):
            raise
        return realize(call)  # an __init__ that reads the values of its tensors needs real ones


def on_meta(value: Any) -> Any:
    """Return inputs with every tensor on the meta device."""
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, PackedSequence):
        return cast(Any, value).to("meta")  # torch declares fewer arguments than it takes
    if isinstance(value, (tuple, list)):
        items = [on_meta(item) for item in value]
        return getattr(type(value), "_make", type(value))(items)
    if isinstance(value, dict):
        return {key: on_meta(item) for key, item in value.items()}
    return value


# Making and placing ---------------------------------------------------------------------------------------------------


def made(factory: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Exception | None]:
    """Return what a class makes of its arguments, or the error that it raises."""
    try:
        return factory(*args, **kwargs), None
    except FAULTS as error:
        return None, error


def holds_unknown(value: Any) -> bool:
    """Tell whether something that could not be made is among some arguments."""
    if isinstance(value, (tuple, list)):
        return any(holds_unknown(item) for item in value)
    if isinstance(value, dict):
        return any(holds_unknown(item) for item in value.values())
    return isinstance(value, Unknown)


def innermost(trace: TracebackType | None) -> Where | None:
    """Return the innermost line of the user's code in a traceback."""
    found = None
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in ("torch", __name__.partition(".")[0]):
            found = Where(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return found
