"""`Optimizer`: a torch optimizer whose parameters arrive later; `Adam`, `AdamW`, `SGD`, `RMSprop`.

Invariants:
    * An optimizer that stands in a model stays what it is when the model is built: `Optimizer.create` makes the torch
      optimizer, as often as it is called, once the parameters exist.
    * It holds no parameter and no buffer of its own and leaves no trace in a ``state_dict``.
    * Parameters that are given are used as they are, never copied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn

from replayml.core.errors import BuildError
from replayml.core.signatures import bind, call_arguments, missing, signature_of
from replayml.layers.external import External
from replayml.module.building import Builder

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop"]


class Optimizer(External):
    """A class of ``torch.optim`` and its arguments; the parameters to optimize may come later.

    Args:
        classtype: A subclass of ``torch.optim.Optimizer``.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments. ``params`` is left out, or an iterable of parameters or of parameter groups,
            or a function of the module that returns one.

    Raises:
        ArgumentError: When the class does not take the arguments.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> optimizer = Optimizer(torch.optim.Adam, lr=0.1).configure(lr=0.2)
        >>> optimizer.create(nn.Linear(2, 3).parameters()).defaults["lr"]
        0.2
    """

    _base: ClassVar[type] = torch.optim.Optimizer
    _torch_class: ClassVar[Callable[..., torch.optim.Optimizer] | None] = None

    def __init__(self, classtype: Callable[..., torch.optim.Optimizer], /, *args: Any, **kwargs: Any) -> None:
        """Take a class of ``torch.optim`` and its arguments; see the class."""

    def __pre_init__(self, *args: Any, **kwargs: Any) -> None:
        """Keep the parameters that a generator yields, and complete the arguments by the class where that is fixed."""
        record, fixed = self._record, self._torch_class
        args, kwargs = tuple(_kept(value) for value in args), _kept_by_name(kwargs)
        if fixed is None:
            record.args = record.call.args = args
            record.kwargs = record.call.kwargs = kwargs
        elif args[:1] != (fixed,):
            record.call.args, record.call.kwargs = args, kwargs
            params = kwargs.get("params")
            named = {name: value for name, value in kwargs.items() if name != "params"}
            record.kwargs, _ = bind(fixed, (params, *args), named)
            record.args = (fixed,)
            if params is None:
                del record.kwargs["params"]

    def __getstate__(self) -> dict[str, Any]:
        # The class that is fixed by this one need not be found again: dill does not find those of torch.optim.
        state = dict(self.__dict__)
        if self._torch_class is not None and state.get("_classtype") is self._torch_class:
            del state["_classtype"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_classtype": self._torch_class, **state})  # type: ignore[no-untyped-call]

    # Configuring ----------------------------------------------------------------------------------------------

    def configure(self, *args: Any, **kwargs: Any) -> Self:
        """Change arguments, or the class; see `Module.configure`."""
        return super().configure(*(_kept(value) for value in args), **_kept_by_name(kwargs))

    # What it calls goes on the tape under the same name, so that a replay may call this one.
    functools.update_wrapper(configure, External.configure, assigned=())

    def params(self, function: Callable[..., Any]) -> Self:
        """Let a function of the module choose the parameters.

        Args:
            function: Called with the module that `create` gets, or without arguments if it takes none.

        Example:
            >>> from torch import nn
            >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
            >>> optimizer = SGD(lr=0.1).params(lambda module: module[1].parameters())
            >>> [tuple(p.shape) for p in optimizer.create(net).param_groups[0]["params"]]
            [(1, 3), (1,)]
        """
        return self.configure(params=function)

    def extra_repr(self) -> str:
        """Return the class and its arguments, the parameters left out."""
        named = [f"{name}={value!r}" for name, value in self.kwargs.items() if name != "params"]
        return ", ".join([self.classtype.__name__, *named])

    # Making the torch optimizer -------------------------------------------------------------------------------

    def create(self, params: nn.Module | Iterable[Any] | None = None) -> torch.optim.Optimizer:
        """Return a torch optimizer; before and after the build, as often as needed.

        Args:
            params: An iterable of parameters or of parameter groups, which goes before what ``params`` was configured
                to; or a module, from which the configured function chooses, and whose trainable parameters are taken
                if nothing was configured. Nothing, if the parameters are configured.

        Raises:
            BuildError: When there are no parameters.

        Example:
            >>> from torch import nn
            >>> Adam(lr=0.1).create(nn.Linear(2, 3)).defaults["lr"]
            0.1
        """
        values = self.kwargs
        values["params"] = self._chosen(params, values.get("params"))
        left_open = missing(self.classtype, values)
        if left_open:
            raise BuildError(
                f"{self._what()} lacks {', '.join(left_open)}. Give a value: .configure({left_open[0]}=...)"
            )
        args, kwargs = call_arguments(self.classtype, values, self.__dict__["_surplus"])
        return self.classtype(*args, **kwargs)  # type: ignore[no-any-return]

    def _chosen(self, given: nn.Module | Iterable[Any] | None, configured: Any) -> Any:
        module = given if isinstance(given, nn.Module) else None
        if given is not None and module is None:
            return given
        if callable(configured):
            if not signature_of(configured).required:
                return configured()
            if module is None:
                raise BuildError(
                    f"{self._what()} has a function that chooses its params from a module: .create(module)"
                )
            return configured(module)
        if configured is not None:
            return configured
        if module is None:
            raise BuildError(f"{self._what()} has no params to optimize: .create(model.parameters())")
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def _what(self) -> str:
        line = None if self._record.built else self._record.call.where
        return f"{self.classtype.__name__}" + (f" (made at {line})" if line else "")

    def _left_open(self, named: Mapping[str, Any]) -> list[str]:
        return [name for name in super()._left_open(named) if name != "params"]

    def _build_self(self, builder: Builder) -> Any:
        configured = self.kwargs.get("params")
        stands_alone = not self._record.links
        if stands_alone and configured is not None and not (callable(configured) and signature_of(configured).required):
            return self.create()
        return self


class Adam(Optimizer):
    """``torch.optim.Adam``, whose parameters arrive later.

    Args:
        lr: The learning rate.
        *args: Its further positional arguments.
        **kwargs: Its keyword arguments.

    Example:
        >>> Adam(lr=1e-3)
        Adam(Adam, lr=0.001)
    """

    _torch_class = torch.optim.Adam

    def __init__(self, lr: float = 1e-3, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of the class; see there."""


class AdamW(Optimizer):
    """``torch.optim.AdamW``, whose parameters arrive later; see `Adam`."""

    _torch_class = torch.optim.AdamW

    def __init__(self, lr: float = 1e-3, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of the class; see there."""


class SGD(Optimizer):
    """``torch.optim.SGD``, whose parameters arrive later; see `Adam`."""

    _torch_class = torch.optim.SGD

    def __init__(self, lr: float = 1e-3, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of the class; see there."""


class RMSprop(Optimizer):
    """``torch.optim.RMSprop``, whose parameters arrive later; see `Adam`."""

    _torch_class = torch.optim.RMSprop

    def __init__(self, lr: float = 1e-2, *args: Any, **kwargs: Any) -> None:
        """Take the arguments of the class; see there."""


def _kept(value: Any) -> Any:
    """Return what an iterator yields as a list, which can be read more than once; other values as they are."""
    return list(value) if isinstance(value, Iterator) else value


def _kept_by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _kept(value) for name, value in values.items()}
