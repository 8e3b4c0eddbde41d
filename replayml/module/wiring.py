"""What a module does besides holding layers: read and write dicts, keep logs, hooks of the user, initial weights.

Invariants:
    * Each of these is recorded before the build, and works as an ordinary method after it.
    * On a layer it takes effect on the real object that replaces the layer.
    * A module without a map is called as it stands: nothing is put in the way of its ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from replayml.core.errors import NotBuiltError
from replayml.core.hooks import after_build, after_init, edit
from replayml.core.record import HookCall
from replayml.core.registry import Table, Words, no_such, place_of
from replayml.module import building
from replayml.module.mapping import MappedForward

__all__ = ["LogHook", "Wiring"]


class LogHook:
    """A forward hook that keeps the last input or output of a module in a dict.

    Args:
        logs: Where to keep it.
        name: Under which name.
        inputs: Keep the inputs instead of the output.
    """

    def __init__(self, logs: dict[str, Any], name: str, inputs: bool) -> None:
        self.logs = logs
        self.name = name
        self.inputs = inputs

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:
        """Keep the value."""
        value = (args[0] if len(args) == 1 else args) if self.inputs else output
        self.logs[self.name] = value


class Wiring:
    """The part of `replayml.Module` that this file is about."""

    _styles: ClassVar[Table[Callable[..., Any]]]
    if TYPE_CHECKING:
        _record: Any

    # Dicts as input and output --------------------------------------------------------------------------------

    @after_init
    def set_input_map(self, *args: str, **kwargs: str) -> Self:
        """Read the arguments of ``forward`` from a dict.

        Args:
            *args: The keys of the positional arguments, in order.
            **kwargs: The keys of keyword arguments, by argument name.

        Example:
            >>> import torch, replayml
            >>> from torch import nn
            >>> layer = replayml.Layer(nn.Linear, 2, 3).set_input_map("x").set_output_map("y").build()
            >>> sorted(layer({"x": torch.zeros(1, 2)}))
            ['x', 'y']
        """
        self._maps()["inputs"] = (args, kwargs)
        return self

    @after_init
    def set_output_map(self, *args: str, **kwargs: int) -> Self:
        """Write what ``forward`` returns into a copy of the input dict.

        Args:
            *args: The keys of the outputs, in order.
            **kwargs: Keys and the positions of the outputs that they receive.
        """
        self._maps()["outputs"] = {**{key: position for position, key in enumerate(args)}, **kwargs}
        return self

    def _maps(self) -> dict[str, Any]:
        maps = dict(self.__dict__.get("_input_output_maps", {}))
        self._input_output_maps = maps
        return maps

    def _connect_maps(self, target: Any) -> None:
        """Let a built object read and write dicts as this module was told to."""
        maps = self.__dict__.get("_input_output_maps")
        if maps:
            target.__dict__["forward"] = MappedForward(target, maps.get("inputs"), maps.get("outputs"))

    # Logs -----------------------------------------------------------------------------------------------------

    @property
    def logs(self) -> dict[str, Any]:
        """What `log_input`, `log_output` and `log_tensor` kept, by name; one dict for the whole built model."""
        builder = building.current()
        if builder is not None:
            builder.is_logging = True
            return builder.logs
        if "_logs" not in self.__dict__:
            self.__dict__["_logs"] = {}
        return self.__dict__["_logs"]  # type: ignore[no-any-return]

    @after_build
    def log_output(self, name: str) -> Self:
        """Keep the last output of this module in `logs` under a name."""
        self.register_forward_hook(LogHook(_logs_of(self), name, inputs=False))
        return self

    @after_build
    def log_input(self, name: str) -> Self:
        """Keep the last input of this module in `logs` under a name."""
        self.register_forward_pre_hook(LogHook(_logs_of(self), name, inputs=True))
        return self

    def log_tensor(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a tensor in `logs` under a name; for use inside ``forward``."""
        self.logs[name] = tensor

    # Initial weights ------------------------------------------------------------------------------------------

    @after_build
    def initialize(self, initializer: Any, tensors: str | tuple[str, ...] = ("weight", "bias")) -> Self:
        """Initialize tensors of this module, and of all below it, once they exist.

        Of two calls on one module the later wins; that on an outer module comes after those on what is below it.

        Args:
            initializer: An object with ``initialize(module, tensors)``: see `replayml.initializers`.
            tensors: The names of the tensors.
        """
        names = (tensors,) if isinstance(tensors, str) else tuple(tensors)
        for module in self.modules():  # type: ignore[attr-defined]
            initializer.initialize(module, names)
        return self

    # Hooks of the user ----------------------------------------------------------------------------------------

    @edit
    def register_after_init_hook(self, function: Callable[[Any], Any]) -> Self:
        """Call ``function(module)`` after each construction of this module; now, if it is constructed."""
        if self._record.constructing:
            self._wait_for("after_init", function)
        else:
            function(self)
        return self

    @edit
    def register_before_build_hook(self, function: Callable[[Any], Any]) -> Self:
        """Call ``function(module)`` when the model is about to be built."""
        return self._wait_for("before_build", function)

    @edit
    def register_after_build_hook(self, function: Callable[[Any], Any]) -> Self:
        """Call ``function(module)`` on the built module; on a layer, on the object that replaced it."""
        return self._wait_for("after_build", function)

    def _wait_for(self, phase: str, function: Callable[[Any], Any]) -> Self:
        record = self._record
        if record.hooks is None:
            record.hooks = {}
        record.hooks.setdefault(phase, []).append(HookCall(function, (), {}))
        return self

    def register_forward_hook(self, hook: Callable[..., Any], **kwargs: Any) -> Any:
        """Register a hook of torch; before the build it is kept for the object that will be built."""
        return self._torch_hook("register_forward_hook", hook, kwargs)

    def register_forward_pre_hook(self, hook: Callable[..., Any], **kwargs: Any) -> Any:
        """Register a hook of torch; before the build it is kept for the object that will be built."""
        return self._torch_hook("register_forward_pre_hook", hook, kwargs)

    def register_full_backward_hook(self, hook: Callable[..., Any], prepend: bool = False) -> Any:
        """Register a hook of torch; before the build it is kept for the object that will be built."""
        return self._torch_hook("register_full_backward_hook", hook, {"prepend": prepend})

    def register_full_backward_pre_hook(self, hook: Callable[..., Any], prepend: bool = False) -> Any:
        """Register a hook of torch; before the build it is kept for the object that will be built."""
        return self._torch_hook("register_full_backward_pre_hook", hook, {"prepend": prepend})

    @edit
    def _torch_hook(self, method: str, hook: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        return getattr(nn.Module, method)(self, hook, **kwargs)

    # What needs weights ---------------------------------------------------------------------------------------

    @edit
    def train(self, mode: bool = True) -> Self:
        """Set the training mode of this module and of all below it, as torch does; kept by the build."""
        for module in self.modules():  # type: ignore[attr-defined]
            module.__dict__["training"] = bool(mode)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze or thaw the parameters, as torch does."""
        self._require_weights("requires_grad_()")
        return super().requires_grad_(requires_grad)  # type: ignore[misc,no-any-return]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        self._require_weights("to(), half(), cuda() and the like")
        return super()._apply(fn, recurse)  # type: ignore[misc,no-any-return]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the tensors by name, as torch does."""
        self._require_weights("state_dict()")
        return super().state_dict(*args, **kwargs)  # type: ignore[misc]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Take tensors by name, as torch does."""
        self._require_weights("load_state_dict()")
        return super().load_state_dict(*args, **kwargs)  # type: ignore[misc]

    def _require_weights(self, method: str) -> None:
        """Raise when a method needs weights that do not exist yet."""
        record = self.__dict__.get("_record")
        if record is None or record.built or building.current() is not None:
            return
        waiting = next((below for below in self.modules() if getattr(below, "is_layer", False)), None)  # type: ignore[attr-defined]
        if waiting is not None:
            raise NotBuiltError(
                f"{method} of {type(self).__name__} needs weights, which do not exist yet. "
                "Build the model first: model.build(), model.build(device=..., dtype=...)"
            )

    # Styles ---------------------------------------------------------------------------------------------------

    @classmethod
    def register_style(cls, function: Callable[..., Any]) -> Callable[..., Any]:
        """Register a function as a named style of this class: ``function(module, *args, **kwargs)``.

        A style of a subclass may have the name of one of its bases, whose place it takes there.

        Raises:
            ConfigurationError: When this class has another style of that name.

        Example:
            >>> import replayml
            >>> class Net(replayml.Module):
            ...     def __init__(self, width=1):
            ...         self.width = width
            >>> @Net.register_style
            ... def wide(net, factor=2):
            ...     net.configure(width=net.width * factor)
            >>> Net(width=3).style("wide").width
            6
        """
        if "_styles" not in cls.__dict__:
            cls._styles = Table(_style_words(cls))
        cls._styles.add(function.__name__, function, place_of(function))
        return function

    @classmethod
    def available_styles(cls) -> dict[str, Callable[..., Any]]:
        """Return the styles of this class and its bases, by name."""
        found: dict[str, Callable[..., Any]] = {}
        for base in reversed(cls.__mro__):
            if "_styles" in base.__dict__:
                found |= base.__dict__["_styles"].things()
        return found

    def style(self, style: str, *args: Any, **kwargs: Any) -> Self:
        """Apply a registered style; its calls are recorded one by one.

        Args:
            style: The name under which the style is registered.
            *args: For the style's function.
            **kwargs: For the style's function.
        """
        styles = self.available_styles()
        if style not in styles:
            raise no_such(_style_words(type(self)), style, styles)
        styles[style](self, *args, **kwargs)
        return self

    # Values computed from the input ---------------------------------------------------------------------------

    def computed(self, name: Any, function: Callable[..., Any] | None = None) -> Any:
        """Compute a setting from the example input that ``build`` gets.

        Args:
            name: The name of the setting. Without ``function`` this is a decorator.
            function: Called with the inputs of this module; returns the value.

        Example:
            >>> import torch, replayml
            >>> from torch import nn
            >>> layer = replayml.Layer(nn.Linear, None, 3)
            >>> @layer.computed("in_features")
            ... def _(x):
            ...     return x.shape[-1]
            >>> layer.build(torch.zeros(2, 7)).in_features
            7
        """
        if function is not None:
            self.set_computed(name, function)
            return self
        if callable(name):
            self.set_computed(name.__name__, name)
            return name

        def register(given: Callable[..., Any]) -> Callable[..., Any]:
            self.set_computed(name, given)
            return given

        return register

    @edit
    def set_computed(self, name: str, function: Callable[..., Any]) -> None:
        """Compute a setting from the example input; what `computed` records."""
        if name not in self.configurables:  # type: ignore[attr-defined]
            raise self._unknown(name)  # type: ignore[attr-defined]
        self._computed = {**self.__dict__.get("_computed", {}), name: function}

    # Using a built model --------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """The device of the first parameter; the CPU when there is none."""
        if "device" in self.__dict__:
            return self.__dict__["device"]  # type: ignore[no-any-return]
        return next((tensor.device for tensor in self._tensors()), torch.device("cpu"))

    @device.setter
    def device(self, value: Any) -> None:
        self.__dict__["device"] = value  # a user's own attribute of that name

    @property
    def dtype(self) -> torch.dtype:
        """The type of the first floating point parameter; torch's default when there is none."""
        if "dtype" in self.__dict__:
            return self.__dict__["dtype"]  # type: ignore[no-any-return]
        return next((t.dtype for t in self._tensors() if t.is_floating_point()), torch.get_default_dtype())

    @dtype.setter
    def dtype(self, value: Any) -> None:
        self.__dict__["dtype"] = value  # a user's own attribute of that name

    def _tensors(self) -> Iterable[torch.Tensor]:
        yield from self.parameters()  # type: ignore[attr-defined]
        yield from self.buffers()  # type: ignore[attr-defined]


def _style_words(cls: type) -> Words:
    return Words(
        absent=f"{cls.__name__} has no style {{}}",
        listed="Registered",
        called=f"the style {{}} of {cls.__name__}",
        remedy="Give one of the functions another name",
    )


def _logs_of(module: Any) -> dict[str, Any]:
    """Return the logs of a built module, or of the build that is going on."""
    builder = building.current()
    if builder is None:
        logs: dict[str, Any] = module.logs
        return logs
    builder.is_logging = True
    return builder.logs
