"""Maps: modules that read their arguments from a dict, and write their outputs into a copy of it.

Invariants:
    * An input that is no dict is passed on as it is.
    * The input dict is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from replayml.core.errors import suggestion

__all__ = ["MappedForward", "read"]


class MappedForward:
    """A ``forward`` that reads its arguments from a dict and writes its outputs into a copy of it.

    Args:
        module: The module whose ``forward`` is called.
        inputs: The keys of the positional arguments, and of the keyword arguments by name.
        outputs: Keys and the positions of the outputs that they receive; empty to return the output itself.
    """

    def __init__(
        self, module: nn.Module, inputs: tuple[tuple[str, ...], dict[str, str]] | None, outputs: dict[str, int] | None
    ) -> None:
        self.module = module
        self.inputs = inputs
        self.outputs = outputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call ``forward`` with what the dict has, or as it stands when there is no dict."""
        forward = type(self.module).forward
        if not args or not isinstance(args[0], Mapping):
            return forward(self.module, *args, **kwargs)
        values = args[0]
        if self.inputs is not None:
            names, named = self.inputs
            result = forward(
                self.module,
                *(read(self.module, values, key) for key in names),
                *args[1:],
                **{name: read(self.module, values, key) for name, key in named.items()},
                **kwargs,
            )
        else:
            result = forward(self.module, *args, **kwargs)
        if self.outputs is None:
            return result
        many = result if isinstance(result, (tuple, list)) else (result,)
        return {**values, **{key: many[position] for key, position in self.outputs.items()}}


def read(module: Any, values: Mapping[str, Any], key: str) -> Any:
    """Return what a module reads from its input dict.

    Raises:
        KeyError: When the dict has no such key.
    """
    if key not in values:
        name = getattr(module, "classtype", type(module)).__name__
        raise KeyError(
            f"{name} reads {key!r} from its input, which has {', '.join(map(repr, values))}.{suggestion(key, values)}"
        )
    return values[key]
