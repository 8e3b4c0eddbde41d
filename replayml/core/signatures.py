"""What arguments a wrapped class takes, and how given arguments map to its parameters.

A class may say what it takes in its ``__signature__``, in the ``__call__`` of its metaclass, in ``__new__`` or in
``__init__``, and an ``__init__`` of ``(*args, **kwargs)`` may only hand on what the next class takes. `signature_of`
reads all of them into one small record, once per class; `bind` and `call_arguments` then need dictionaries only.

Invariants:
    * ``call_arguments(cls, *bind(cls, args, kwargs))`` calls ``cls`` with the same values as ``cls(*args, **kwargs)``.
    * Where it cannot be known what a class takes, it is taken to accept anything. Nothing legal is refused but a
      keyword for ``**kwargs`` with the name of a positional-only parameter,
      and a ninth positional argument of RNN or GRU.
    * A class is read once: a change to its ``__init__`` after its first use is not seen.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import reprlib
import textwrap
import tokenize
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from inspect import Parameter
from types import FunctionType, MappingProxyType
from typing import Any, NamedTuple, NoReturn

from torch import nn

from replayml.core.errors import ArgumentError, suggestion

__all__ = ["CallSignature", "bind", "call_arguments", "missing", "signature_of"]

_ANYTHING = (Parameter("args", Parameter.VAR_POSITIONAL), Parameter("kwargs", Parameter.VAR_KEYWORD))
_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@dataclass(frozen=True, slots=True)
class CallSignature:
    """The parameters of a class or another callable, ``self`` left out.

    Attributes:
        parameters: Every parameter by name, ``*args`` and ``**kwargs`` included.
        names: The configurable ones: all but ``*args`` and ``**kwargs``.
        positional: Those that can be given by position, in order.
        positional_only: Those that can be given by position only.
        keywords: Those that can be given by keyword.
        required: Those without a default.
        accepts_args: Whether there is a ``*args``.
        accepts_kwargs: Whether there is a ``**kwargs``.
    """

    parameters: Mapping[str, Parameter]
    names: tuple[str, ...]
    positional: tuple[str, ...]
    positional_only: frozenset[str]
    keywords: frozenset[str]
    required: frozenset[str]
    accepts_args: bool
    accepts_kwargs: bool

    @classmethod
    def of(cls, parameters: Iterable[Parameter]) -> CallSignature:
        """Return the record of these parameters."""
        listed = tuple(parameters)
        kinds = {parameter.kind for parameter in listed}
        named = [parameter for parameter in listed if parameter.kind not in _VARIADIC]
        positional_only = frozenset(p.name for p in named if p.kind is Parameter.POSITIONAL_ONLY)
        return cls(
            parameters=MappingProxyType({parameter.name: parameter for parameter in listed}),
            names=tuple(parameter.name for parameter in named),
            positional=tuple(parameter.name for parameter in named if parameter.kind in _BY_POSITION),
            positional_only=positional_only,
            keywords=frozenset(p.name for p in named) - positional_only,
            required=frozenset(p.name for p in named if p.default is Parameter.empty),
            accepts_args=Parameter.VAR_POSITIONAL in kinds,
            accepts_kwargs=Parameter.VAR_KEYWORD in kinds,
        )


def signature_of(cls: Callable[..., Any]) -> CallSignature:
    """Return what a class, or another callable, takes.

    Args:
        cls: A class, a function, a `functools.partial` or any other callable.

    Returns:
        Its parameters without ``self``; those of ``(*args, **kwargs)`` where they cannot be known.

    Example:
        >>> signature_of(nn.Linear).names
        ('in_features', 'out_features', 'bias', 'device', 'dtype')
        >>> signature_of(nn.GRU).positional[:3]
        ('input_size', 'hidden_size', 'num_layers')
        >>> signature_of(nn.Tanh).names, signature_of(nn.Sequential).accepts_args
        ((), True)
    """
    if type(cls).__hash__ is None:  # an instance with __call__ and __eq__: it cannot be a key of the cache
        return _read(cls)
    return _read_once(cls)


def bind(
    cls: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Map arguments to the names of the parameters; required ones may be absent.

    Args:
        cls: The class or other callable.
        args: The positional arguments.
        kwargs: The keyword arguments.

    Returns:
        The arguments by name, those for ``**kwargs`` included, and the surplus positional ones for ``*args``.

    Raises:
        ArgumentError: If ``cls`` does not take one of the arguments, takes fewer by position, gets one twice, or
            takes one by position only that came by keyword.

    Example:
        >>> bind(nn.Linear, (None, 64), {"bias": False})
        ({'in_features': None, 'out_features': 64, 'bias': False}, ())
        >>> bind(nn.Linear, (), {"in_feature": 3})
        Traceback (most recent call last):
        replayml.core.errors.ArgumentError: Linear takes no 'in_feature'. Did you mean 'in_features'? It takes: \
in_features, out_features, bias, device, dtype
    """
    signature = signature_of(cls)
    positional = signature.positional
    surplus = args[len(positional) :]
    if surplus and not signature.accepts_args:
        raise ArgumentError(
            f"{_name(cls)} takes at most {len(positional)} positional arguments and got {len(args)}; the first one "
            f"too many is {reprlib.repr(surplus[0])}. {_what_it_takes(signature)}"
        )
    named = dict(zip(positional, args, strict=False))
    keywords = signature.keywords
    for name, value in kwargs.items():
        if name in named:
            raise ArgumentError(
                f"{_name(cls)} got {name!r} twice: {reprlib.repr(named[name])} as positional argument "
                f"{positional.index(name) + 1} and {reprlib.repr(value)} by keyword. Give it once."
            )
        if name not in keywords and (name in signature.positional_only or not signature.accepts_kwargs):
            _refuse(cls, signature, name)
        named[name] = value
    return named, surplus


def call_arguments(
    cls: Callable[..., Any], named: Mapping[str, Any], surplus: Sequence[Any] = ()
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments to call ``cls`` with: the inverse of `bind`.

    Whatever can be given by keyword is, so that an absent argument keeps its default.

    Args:
        cls: The class or other callable.
        named: The arguments by name.
        surplus: Further positional arguments, for ``*args``.

    Raises:
        ArgumentError: If ``cls`` does not take one of them, or if a parameter without value and default stands
            before one that has to be given by position.

    Example:
        >>> call_arguments(nn.Linear, {"in_features": 3, "out_features": 4})
        ((), {'in_features': 3, 'out_features': 4})
        >>> call_arguments(divmod, {"x": 7, "y": 2})
        ((7, 2), {})
    """
    signature = signature_of(cls)
    if surplus and not signature.accepts_args:
        raise ArgumentError(
            f"{_name(cls)} takes no further positional arguments and got {reprlib.repr(tuple(surplus))}. "
            f"{_what_it_takes(signature)}"
        )
    if not signature.accepts_kwargs:
        for name in named:
            if name not in signature.parameters:
                _refuse(cls, signature, name)
    leading = _leading(signature, named, surplus)
    args = []
    for name in leading:
        value = named.get(name, signature.parameters[name].default)
        if value is Parameter.empty:
            raise ArgumentError(
                f"{_name(cls)} needs a value for {name!r}: it has no default, and arguments after it are given by "
                f"position. Set {name!r} first."
            )
        args.append(value)
    return (*args, *surplus), {name: value for name, value in named.items() if name not in leading}


def missing(cls: Callable[..., Any], named: Mapping[str, Any]) -> list[str]:
    """Return the required parameters that have no argument, in the order of the signature.

    Example:
        >>> missing(nn.Conv2d, {"out_channels": 8})
        ['in_channels', 'kernel_size']
    """
    signature = signature_of(cls)
    return [name for name in signature.names if name in signature.required and name not in named]


def _leading(signature: CallSignature, named: Mapping[str, Any], surplus: Sequence[Any]) -> tuple[str, ...]:
    """Return the parameters that have to be given by position."""
    if surplus:
        return signature.positional
    if not signature.positional_only:
        return ()
    places = [i for i, name in enumerate(signature.positional) if name in signature.positional_only and name in named]
    return signature.positional[: places[-1] + 1] if places else ()


def _refuse(cls: Callable[..., Any], signature: CallSignature, name: str) -> NoReturn:
    """Raise the error for a keyword that ``cls`` does not take."""
    if name in signature.positional_only:
        raise ArgumentError(
            f"{_name(cls)} takes {name!r} by position only, not by keyword. Give it as positional argument "
            f"{signature.positional.index(name) + 1}."
        )
    hint = suggestion(name, signature.keywords)
    raise ArgumentError(f"{_name(cls)} takes no {name!r}.{hint} {_what_it_takes(signature)}")


def _what_it_takes(signature: CallSignature) -> str:
    """Return the sentence that lists the parameters."""
    listed = [str(p.replace(annotation=p.empty, default=p.empty)) for p in signature.parameters.values()]
    return f"It takes: {', '.join(listed)}" if listed else "It takes no arguments."


def _name(cls: Callable[..., Any]) -> str:
    """Return the name of a callable for a message."""
    return getattr(cls, "__name__", None) or f"the {type(cls).__name__}"


# Reading a class ------------------------------------------------------------------------------------------------


def _read(cls: Callable[..., Any]) -> CallSignature:
    """Read the signature of a callable."""
    return CallSignature.of(_of_class(cls) if isinstance(cls, type) else _of_callable(cls))


_read_once = lru_cache(maxsize=4096)(_read)


def _of_callable(target: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Return the parameters of a callable that is no class."""
    try:
        return tuple(inspect.signature(target).parameters.values())
    except (ValueError, TypeError):  # written in C, without a signature
        return _ANYTHING


def _of_method(method: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Return the parameters of an unbound method, the first one (``self`` or ``cls``) left out."""
    parameters = _of_callable(method)
    return parameters[1:] if parameters and parameters[0].kind in _BY_POSITION else parameters


def _is_open(parameters: Sequence[Parameter]) -> bool:
    """Say whether these parameters are variadic ones alone, which tell nothing."""
    return bool(parameters) and all(parameter.kind in _VARIADIC for parameter in parameters)


def _owner(cls: type, *names: str) -> int:
    """Return the place in the MRO of the first class that defines one of these names."""
    return next(i for i, base in enumerate(cls.__mro__) if any(name in vars(base) for name in names))


def _of_class(cls: type) -> tuple[Parameter, ...]:
    """Return the parameters of a class, from the place that decides about them."""
    declared = getattr(cls, "__signature__", None)
    if isinstance(declared, inspect.Signature) and not hasattr(type(cls), "_shows_its_init"):
        owners = [i for i, base in enumerate(cls.__mro__) if "__signature__" in vars(base)]
        # One that a base declares says nothing about a subclass with its own constructor.
        if not owners or owners[0] <= _owner(cls, "__init__", "__new__"):
            return tuple(declared.parameters.values())
    metaclass_call: Any = type(cls).__call__
    if metaclass_call is not type.__call__:
        called = _of_method(metaclass_call)
        if not _is_open(called):
            return called
    new_owner, init_owner, last = _owner(cls, "__new__"), _owner(cls, "__init__"), len(cls.__mro__) - 1
    if new_owner == last:
        return _of_init(cls)
    created = _of_method(cls.__new__)
    if init_owner == last:
        return created
    initialised = _of_init(cls)
    if _is_open(created) or (init_owner < new_owner and not _is_open(initialised)):
        return initialised
    return created


def _of_init(cls: type, start: int = 0) -> tuple[Parameter, ...]:
    """Return what the first ``__init__`` at or after a place in the MRO takes."""
    place = next(i for i, base in enumerate(cls.__mro__) if i >= start and "__init__" in vars(base))
    owner: Any = cls.__mro__[place]
    if owner is object:
        return ()
    if owner is nn.Module:  # it declares (*args, **kwargs) and refuses every argument, unless asked to hand them on
        return _of_init(cls, place + 1) if cls.call_super_init else ()  # type: ignore[attr-defined]
    if owner in (nn.RNN, nn.LSTM, nn.GRU):
        return _of_recurrent(owner)
    own = _of_method(owner.__init__)
    forward = _forward(vars(owner)["__init__"])
    followed = None if forward is None else _follow(own, forward, _of_init(cls, place + 1))
    return own if followed is None else followed


def _of_recurrent(owner: type) -> tuple[Parameter, ...]:
    """Return what `torch.nn.RNN`, ``LSTM`` or ``GRU`` takes, which their ``(*args, **kwargs)`` hide."""
    parameters = [parameter for parameter in _of_method(nn.RNNBase.__init__) if parameter.name != "mode"]
    if owner is nn.LSTM:
        return tuple(parameters)
    # The other two refuse `proj_size` by keyword and, by position, would take the next argument for it.
    place = [parameter.name for parameter in parameters].index("proj_size")
    after = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters[place + 1 :]]
    parameters = parameters[:place] + after
    if owner is nn.RNN:
        parameters.insert(3, Parameter("nonlinearity", Parameter.POSITIONAL_OR_KEYWORD, default="tanh"))
    return tuple(parameters)


# Following an __init__ that hands its arguments on ----------------------------------------------------------------


class _Forward(NamedTuple):
    """How an ``__init__`` hands its variadic arguments to the next one.

    Attributes:
        leading: How many positional arguments of its own it gives first.
        keywords: The keyword arguments of its own that it gives.
        args: Whether it hands on its ``*args``.
        kwargs: Whether it hands on its ``**kwargs``.
    """

    leading: int
    keywords: frozenset[str]
    args: bool
    kwargs: bool


def _forward(method: object) -> _Forward | None:
    """Return how a method calls ``super().__init__``, or None if that cannot be said with certainty.

    It can where the call is a statement of its own in the body, and the variadic arguments that it hands on are
    used nowhere else.
    """
    node = _source_tree(method)
    if node is None or hasattr(method, "__wrapped__"):
        return None
    calls = [s.value for s in node.body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Call)]
    calls = [call for call in calls if ast.unparse(call.func) == "super().__init__"]
    returns = [part.lineno for part in ast.walk(node) if isinstance(part, ast.Return)]
    if len(calls) != 1 or any(line < calls[0].lineno for line in returns):
        return None
    call = calls[0]
    starred = [ast.unparse(part.value) for part in call.args if isinstance(part, ast.Starred)]
    unpacked = [ast.unparse(part.value) for part in call.keywords if part.arg is None]
    if not (starred or unpacked) or (starred and not isinstance(call.args[-1], ast.Starred)):
        return None
    uses = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
    for given, variadic in ((starred, node.args.vararg), (unpacked, node.args.kwarg)):
        if given and (variadic is None or given != [variadic.arg] or uses.count(variadic.arg) != 1):
            return None
    keywords = frozenset(part.arg for part in call.keywords if part.arg is not None)
    return _Forward(len(call.args) - len(starred), keywords, bool(starred), bool(unpacked))


def _source_tree(method: object) -> ast.FunctionDef | None:
    """Return the source of a variadic function as a tree, or None where there is none or it is not the function's."""
    if not isinstance(method, FunctionType) or not method.__code__.co_flags & (
        inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
    ):
        return None
    code = method.__code__
    lines = linecache.getlines(code.co_filename, method.__globals__)[code.co_firstlineno - 1 :]
    if not lines:
        return None
    try:
        (node,) = ast.parse(textwrap.dedent("".join(inspect.getblock(lines)))).body
    except (SyntaxError, ValueError, tokenize.TokenError):  # the file is no longer the one that was imported
        return None
    if not isinstance(node, ast.FunctionDef) or node.name != code.co_name:
        return None
    taken = node.args
    listed = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, *filter(None, (taken.vararg, taken.kwarg))]
    names = tuple(argument.arg for argument in listed)
    return node if names == code.co_varnames[: len(names)] else None


def _follow(own: Sequence[Parameter], forward: _Forward, base: Sequence[Parameter]) -> tuple[Parameter, ...] | None:
    """Return the parameters of an ``__init__`` together with those of the one that it hands on to, or None.

    Args:
        own: What the ``__init__`` takes.
        forward: How it calls the next one.
        base: What the next one takes.
    """
    kept = [parameter for parameter in own if parameter.kind not in _VARIADIC]
    kept += [parameter for parameter in own if parameter.kind is Parameter.VAR_POSITIONAL and not forward.args]
    kept += [parameter for parameter in own if parameter.kind is Parameter.VAR_KEYWORD and not forward.kwargs]
    by_position = forward.args
    place = 0
    for parameter in base:
        if parameter.kind in _BY_POSITION:
            place += 1
            if place <= forward.leading:
                continue
        if parameter.name in forward.keywords:
            by_position = by_position and parameter.kind not in _BY_POSITION  # what stands behind is out of reach
            continue
        kind = _reached(parameter.kind, by_position, forward.kwargs)
        if kind is not None:
            kept.append(parameter.replace(kind=kind))
    if len({parameter.name for parameter in kept}) < len(kept):
        return None
    return tuple(sorted(kept, key=lambda parameter: max(parameter.kind, Parameter.POSITIONAL_OR_KEYWORD)))


def _reached(kind: Any, by_position: bool, by_keyword: bool) -> Any:
    """Return the kind that a parameter has for those who reach it by these ways, or None if they do not."""
    if kind is Parameter.POSITIONAL_OR_KEYWORD and by_position != by_keyword:
        return Parameter.POSITIONAL_ONLY if by_position else Parameter.KEYWORD_ONLY
    reached = by_position if kind in (*_BY_POSITION, Parameter.VAR_POSITIONAL) else by_keyword
    return kind if reached else None
