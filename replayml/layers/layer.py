"""`Layer`: any torch layer, made later, with the sizes that it finds in its input.

Invariants:
    * A size that is None or left out is read off the example input, if the layer is one of those in
      `replayml.layers.shapes`.
    * A built layer is the torch object itself; nothing of replayml remains in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from replayml.core.errors import NotBuiltError
from replayml.core.journal import note
from replayml.core.signatures import signature_of
from replayml.layers.external import External
from replayml.layers.shapes import check, infer, inferable, torch_shapes
from replayml.module.building import current, describe_place
from replayml.module.mapping import read

__all__ = ["Layer"]


class Layer(External):
    """A torch layer and its arguments, open to change until the model is built.

    Args:
        classtype: A subclass of ``torch.nn.Module``.
        *args: Its positional arguments; None for a size that the input tells.
        **kwargs: Its keyword arguments.

    Raises:
        ArgumentError: When the class does not take the arguments.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = Layer(nn.Linear, None, 2)
        >>> layer.configure(bias=False).build(torch.zeros(4, 3))
        Linear(in_features=3, out_features=2, bias=False)
        >>> Layer(nn.ReLU).configure(nn.GELU).build()
        GELU(approximate='none')
    """

    _base: ClassVar[type] = nn.Module
    is_layer: ClassVar[bool] = True

    def __init__(self, classtype: Callable[..., nn.Module], /, *args: Any, **kwargs: Any) -> None:
        """Take a torch layer's class and its arguments; see the class."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Find the open sizes in the input and pass it through the real layer; works during ``build`` only."""
        builder = current()
        if builder is None:
            path = ".".join(self.tags[0]) if not self._has_built else ""
            raise NotBuiltError(
                f"{self.classtype.__name__}{f' at {path!r}' if path else ''} has no weights yet. "
                "Build the model first: model.build(), or model.build(example_input) to find open sizes"
            )
        seen, seen_by_name = self._seen(args, kwargs)
        named = self.kwargs
        computed = {
            name: function(*seen, **seen_by_name) for name, function in self.__dict__.get("_computed", {}).items()
        }
        sizes = {**infer(self.classtype, named, seen, seen_by_name), **computed}
        if sizes:
            note(setattr, self._record, "inferred", self._record.inferred)
            self._take_sizes(sizes)
            builder.note_sizes(self, sizes)
        built = builder.object_for(self).eval()
        try:
            return built.forward(*args, **kwargs)
        except Exception as error:
            shapes = ", ".join(str(tuple(value.shape)) for value in args if isinstance(value, torch.Tensor))
            error.add_note(f"while the example input, here {shapes}, ran through {describe_place(self)}")
            raise

    def _seen(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return the inputs of the real layer, which an input map reads from a dict."""
        inputs = self.__dict__.get("_input_output_maps", {}).get("inputs")
        if inputs is None or not args or not isinstance(args[0], Mapping):
            return args, kwargs
        values = args[0]
        named = {name: read(self, values, key) for name, key in inputs[1].items()}
        return (*(read(self, values, key) for key in inputs[0]), *args[1:]), {**kwargs, **named}

    def _told_by_input(self) -> tuple[str, ...]:
        """Return the arguments that an input tells; for `replayml.module.checking`."""
        return (*inferable(self.classtype), *self.__dict__.get("_computed", {}))

    def _check_sizes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Return the sizes that an input contradicts, as ``(name, given, implied)``; for `replayml.module.checking`."""
        return check(self.classtype, self.kwargs, *self._seen(args, kwargs))

    @classmethod
    def register_computed(cls, classtype: type[nn.Module]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Tell how an argument of your own layer class follows from the input of its ``forward``.

        The name of the function is the name of the argument.

        Args:
            classtype: The layer class.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> class Scale(nn.Module):
            ...     def __init__(self, features):
            ...         super().__init__()
            ...         self.weight = nn.Parameter(torch.ones(features))
            ...
            ...     def forward(self, x):
            ...         return x * self.weight
            >>> @Layer.register_computed(Scale)
            ... def features(x):
            ...     return x.shape[-1]
            >>> Layer(Scale).build(torch.zeros(2, 5)).weight.shape
            torch.Size([5])
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            torch_shapes.register(classtype, function.__name__, function)
            return function

        return register

    def _left_open(self, named: Mapping[str, Any]) -> list[str]:
        signature = signature_of(self.classtype)
        if named.keys() >= signature.required and not any(value is None for value in named.values()):
            return []
        parameters = signature.parameters
        unset = [
            name
            for name in inferable(self.classtype)
            if name in named
            and named[name] is None
            and (name not in parameters or parameters[name].default is not None)
        ]
        return list(dict.fromkeys([*super()._left_open(named), *unset]))
