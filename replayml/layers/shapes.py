"""Which argument of which layer class can be read off the example input.

A rule tells, for one argument of one class, what the inputs of ``forward`` imply for it. `torch_shapes` holds a rule
for every torch layer with an argument that is a size of its input; a user adds those of their own classes with
`register`.

Invariants:
    * A rule holds for the subclasses too, as far as their constructor still has the argument.
    * An argument is inferred only where it is None, or absent with no default but None: a value that the user or the
      class gives is never replaced.
    * The rules for torch are fixed. What is registered lives in the table, the one object here that changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from numbers import Integral
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from replayml.core.errors import ArgumentError, BuildError, suggestion
from replayml.core.signatures import signature_of

__all__ = ["ShapeTable", "check", "infer", "inferable", "register", "torch_shapes"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class _Call:
    """One argument of a layer class, and the inputs that its ``forward`` gets."""

    cls: type
    argument: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def given(self, position: int, name: str) -> tuple[str, Any]:
        """Return the name and the value of an input; the value is None where it is absent."""
        names = signature_of(self.cls.forward).positional[1:]  # type: ignore[attr-defined]
        name = names[position] if position < len(names) else name
        return name, self.args[position] if position < len(self.args) else self.kwargs.get(name)

    def tensor(self, position: int, name: str, least: int, most: int | None = None) -> Tensor:
        """Return an input as a tensor.

        Args:
            position: Its place among the inputs.
            name: Its name in torch's own class.
            least: How many dimensions it must have at the least.
            most: How many it may have at the most, or None for any number.

        Raises:
            BuildError: If it is absent, no tensor, or has another number of dimensions.
        """
        name, value = self.given(position, name)
        if isinstance(value, PackedSequence):
            value = value.data
        what = f"{self.cls.__name__} reads {self.argument!r} off its input {name!r}"
        advice = f"Give {self.argument!r}, or another example input."
        if value is None:
            raise BuildError(f"{what}, which was not given. {advice}")
        if not isinstance(value, Tensor):
            raise BuildError(f"{what}, which must be a tensor and is a {type(value).__name__}. {advice}")
        if not least <= value.dim() <= (most or value.dim()):
            wanted = {None: f"at least {least}", least: str(least)}.get(most, f"{least} to {most}")
            raise BuildError(
                f"{what}, which must have {wanted} dimensions and has the shape {tuple(value.shape)}. {advice}"
            )
        return value


class _Rule(Protocol):
    """What the inputs imply for one argument."""

    def implied(self, call: _Call, given: Any) -> Any:
        """Return the implied value: ``given`` where that fits, None where there is nothing to say."""


@dataclass(frozen=True, slots=True)
class _Size:
    """The argument is the size of one dimension of one input.

    Attributes:
        dim: The dimension.
        least: How many dimensions the input must have at the least.
        most: How many it may have at the most, or None for any number.
        name: The name of the input in torch's class.
        position: The place of the input.
    """

    dim: int
    least: int = 1
    most: int | None = None
    name: str = "input"
    position: int = 0

    def implied(self, call: _Call, given: Any) -> Any:
        return call.tensor(self.position, self.name, self.least, self.most).size(self.dim)


@dataclass(frozen=True, slots=True)
class _SizeIfOther:
    """The argument is the size of one dimension, and None says that it equals that of the first input."""

    size: _Size
    first: _Size

    def implied(self, call: _Call, given: Any) -> Any:
        if call.given(self.size.position, self.size.name)[1] is None:
            return given
        value = self.size.implied(call, given)
        return None if given is None and value == self.first.implied(call, given) else value


@dataclass(frozen=True, slots=True)
class _TrailingShape:
    """The argument is the size of the last dimension, or the sizes of as many as are given."""

    name: str

    def implied(self, call: _Call, given: Any) -> Any:
        tensor = call.tensor(0, self.name, least=1)
        if not isinstance(given, Sequence) or not given:
            return tensor.size(-1)
        trailing = tuple(tensor.shape[-len(given) :])
        return given if tuple(given) == trailing else trailing


class _ChannelsOrOne:
    """The argument is the number of channels, and 1 stands for one value that all channels share."""

    def implied(self, call: _Call, given: Any) -> Any:
        tensor = call.tensor(0, "input", least=0)
        return 1 if given == 1 or tensor.dim() < 2 else tensor.size(1)


@dataclass(frozen=True, slots=True)
class _Computed:
    """The argument is what a user's function makes of the inputs."""

    function: Callable[..., Any]

    def implied(self, call: _Call, given: Any) -> Any:
        try:
            return self.function(*call.args, **call.kwargs)
        except Exception as error:
            error.add_note(f"while computing {call.argument!r} of {call.cls.__name__} from its inputs")
            raise


def _torch_rules() -> dict[type, dict[str, _Rule]]:
    """Return the rules for the layers of this version of torch."""
    sequence = _Size(-1, least=2, most=3)
    query, key, value = (_Size(-1, 2, 3, name, i) for i, name in enumerate(("query", "key", "value")))
    rules: dict[str, dict[str, _Rule]] = {
        "Linear": {"in_features": _Size(-1)},
        "Bilinear": {"in1_features": _Size(-1, name="input1"), "in2_features": _Size(-1, name="input2", position=1)},
        "SyncBatchNorm": {"num_features": _Size(1, least=2)},
        "GroupNorm": {"num_channels": _Size(1, least=2)},
        "LayerNorm": {"normalized_shape": _TrailingShape("input")},
        "RMSNorm": {"normalized_shape": _TrailingShape("x")},
        "PReLU": {"num_parameters": _ChannelsOrOne()},
        "RNNBase": {"input_size": sequence},
        "RNNCellBase": {"input_size": _Size(-1, least=1, most=2)},
        "MultiheadAttention": {
            "embed_dim": query,
            "kdim": _SizeIfOther(key, query),
            "vdim": _SizeIfOther(value, query),
        },
        "Transformer": {"d_model": _Size(-1, 2, 3, "src")},
        "TransformerEncoderLayer": {"d_model": _Size(-1, 2, 3, "src")},
        "TransformerDecoderLayer": {"d_model": _Size(-1, 2, 3, "tgt")},
        "AdaptiveLogSoftmaxWithLoss": {"in_features": _Size(-1, least=1, most=2, name="input_")},
        "LinearCrossEntropyLoss": {"in_features": _Size(-1, least=1, most=2)},
    }
    for n in (1, 2, 3):  # the number of spatial dimensions; one sample may come without a batch dimension
        channels = _Size(-n - 1, least=n + 1, most=n + 2)
        rules[f"Conv{n}d"] = rules[f"ConvTranspose{n}d"] = {"in_channels": channels}
        rules[f"InstanceNorm{n}d"] = {"num_features": channels}
        rules[f"BatchNorm{n}d"] = {"num_features": _Size(1, least=2 if n == 1 else n + 2, most=n + 2)}
    return {getattr(nn, name): arguments for name, arguments in rules.items() if hasattr(nn, name)}


class ShapeTable:
    """What can be inferred for which class: the rules for torch, and those that the user's program registers.

    Example:
        >>> import torch
        >>> table = ShapeTable()
        >>> table.infer(nn.Conv2d, {"in_channels": None, "out_channels": 8}, (torch.ones(1, 3, 9, 9),), {})
        {'in_channels': 3}
    """

    def __init__(self) -> None:
        self._fixed = MappingProxyType(_torch_rules())
        self._registered: dict[type, dict[str, _Rule]] = {}

    def register(self, cls: type, name: str, function: Callable[..., Any]) -> None:
        """Let a function of the inputs compute an argument of a class, and of its subclasses.

        A later registration for the same argument replaces an earlier one; one for a subclass goes before one for
        its base.

        Args:
            cls: The layer class.
            name: The argument.
            function: Called with the inputs exactly as ``forward`` gets them; returns the value, or None for none.

        Raises:
            ArgumentError: If ``cls`` has no such argument.

        Example:
            >>> import torch
            >>> class Gate(nn.Module):
            ...     def __init__(self, channels): ...
            >>> table = ShapeTable()
            >>> table.register(Gate, "channels", lambda x: x.shape[1])
            >>> table.infer(Gate, {}, (torch.ones(2, 5, 7),), {})
            {'channels': 5}
        """
        signature = signature_of(cls)
        if name not in signature.names and not signature.accepts_kwargs:
            raise ArgumentError(
                f"{cls.__name__} has no argument {name!r} to compute.{suggestion(name, signature.names)} "
                f"It takes: {', '.join(signature.names) or 'none'}"
            )
        # A new mapping in place of the old one: another thread may be reading that.
        self._registered[cls] = {**self._registered.get(cls, {}), name: _Computed(function)}

    def inferable(self, cls: type) -> tuple[str, ...]:
        """Return the arguments of a class that can be read off its input.

        Example:
            >>> torch_shapes.inferable(nn.Bilinear)
            ('in1_features', 'in2_features')
            >>> torch_shapes.inferable(nn.ReLU)
            ()
        """
        return tuple(self._rules(cls, {}))

    def infer(
        self, cls: type, named: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return values for the inferable arguments that have none.

        Args:
            cls: The layer class.
            named: The layer's arguments as far as they are given; None counts as not given.
            args: The positional inputs of ``forward``.
            kwargs: The keyword inputs of ``forward``.

        Raises:
            BuildError: If an input that is needed is absent, no tensor, or has too few or too many dimensions.

        Example:
            >>> import torch
            >>> torch_shapes.infer(nn.Linear, {"out_features": 4}, (torch.ones(2, 7),), {})
            {'in_features': 7}
            >>> torch_shapes.infer(nn.Linear, {"in_features": 8, "out_features": 4}, (torch.ones(2, 7),), {})
            {}
        """
        found = {}
        parameters = signature_of(cls).parameters
        for argument, rule in self._rules(cls, named).items():
            default = parameters[argument].default if argument in parameters else None
            if named.get(argument, None if default is Parameter.empty else default) is not None:
                continue
            value = rule.implied(_Call(cls, argument, args, kwargs), None)
            if value is not None:
                found[argument] = value
        return found

    def check(
        self, cls: type, named: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[tuple[str, Any, Any]]:
        """Return the given arguments that the inputs contradict, as ``(name, given, implied)``.

        It takes what `infer` takes.

        Example:
            >>> import torch
            >>> torch_shapes.check(nn.Linear, {"in_features": 8, "out_features": 4}, (torch.ones(2, 7),), {})
            [('in_features', 8, 7)]
        """
        found = []
        for argument, rule in self._rules(cls, named).items():
            given = named.get(argument)
            if given is None:
                continue
            implied = rule.implied(_Call(cls, argument, args, kwargs), given)
            if implied is not None and not _fits(given, implied):
                found.append((argument, given, implied))
        return found

    def _rules(self, cls: type, named: Mapping[str, Any]) -> dict[str, _Rule]:
        """Return the rules that hold for a class, by argument.

        Where the constructor does not tell its parameters, only arguments given by name are known to exist.
        """
        names = signature_of(cls).names
        found: dict[str, _Rule] = {}
        for base in cls.__mro__:
            for rules in (self._registered.get(base), self._fixed.get(base)):
                for argument, rule in (rules or {}).items():
                    if argument not in found and (argument in names or argument in named):
                        found[argument] = rule
        return found


def _fits(given: Any, implied: Any) -> bool:
    """Say whether a given value is the implied one; a size must be a whole number."""
    if isinstance(implied, int) and not isinstance(given, Integral):
        return False
    return given is implied or bool(given == implied)


torch_shapes = ShapeTable()
"""The table that every layer uses; `register` adds to it."""

inferable = torch_shapes.inferable
infer = torch_shapes.infer
check = torch_shapes.check


def register(cls: type) -> Callable[[_Function], _Function]:
    """Return a decorator that lets a function compute the argument of ``cls`` that it is named after.

    Args:
        cls: The layer class; its subclasses are included.

    Raises:
        ArgumentError: If ``cls`` has no argument with the name of the function.

    Example:
        >>> import torch
        >>> class Scale(nn.Module):
        ...     def __init__(self, width): ...
        >>> @register(Scale)
        ... def width(x):
        ...     return x.shape[-1]
        >>> infer(Scale, {"width": None}, (torch.ones(2, 6),), {})
        {'width': 6}
    """

    def decorate(function: _Function) -> _Function:
        torch_shapes.register(cls, function.__name__, function)
        return function

    return decorate
