"""`External`: any class, called later.

Invariants:
    * Arguments are checked against the signature of the wrapped class when they are given.
    * The wrapped class keeps its own argument names, ``*args``, keyword-only and positional-only parameters.
    * Unbuilt modules among the arguments are children: they are configured, selected and built with the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import nn

from replayml.core.arguments import ATOMS, CONTAINERS, rebuilt
from replayml.core.errors import ArgumentError, BuildError, ConfigurationError, suggestion
from replayml.core.hooks import edit
from replayml.core.meta import ExtendedConstructorMeta
from replayml.core.settings import settings_of
from replayml.core.signatures import bind, call_arguments, missing, signature_of
from replayml.module.building import Builder
from replayml.module.hints import about_variadic
from replayml.module.module import Module
from replayml.module.showing import name_of

__all__ = ["External"]

SURPLUS = "*args"
OTHER_CLASS = "*class"  # the setting of the class, where the wrapped class has an argument called 'classtype'
HOOK_TABLES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
OWN_ATTRIBUTES = frozenset(vars(nn.Module())) | {
    "_record",
    "_classtype",
    "_named",
    "_surplus",
    "_computed",
    "_input_output_maps",
}


class External(Module):
    """A class and its arguments, to be called when the model is built.

    Args:
        classtype: The class (or another callable) that makes the real object.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Raises:
        ArgumentError: When the class does not take the arguments.

    Example:
        >>> import replayml
        >>> from fractions import Fraction
        >>> replayml.External(Fraction, 1, denominator=2).configure(denominator=3).build()
        Fraction(1, 3)
    """

    _init_method: ClassVar[str] = "_actual_init"
    _base: ClassVar[type] = object
    is_external: ClassVar[bool] = True
    is_layer: ClassVar[bool] = False
    _is_network_part: ClassVar[bool] = True
    _defers: ClassVar[bool] = False

    def __init__(self, classtype: Any, /, *args: Any, **kwargs: Any) -> None:
        """Take a class and its arguments; see the class."""

    def _actual_init(self, classtype: Any, named: dict[str, Any], surplus: tuple[Any, ...]) -> None:
        self.__dict__.update(_classtype=classtype, _named=named, _surplus=surplus)
        for name, value in named.items():
            if isinstance(type(value), ExtendedConstructorMeta):
                self._assign(name, value)
        for index, value in enumerate(surplus):
            if isinstance(type(value), ExtendedConstructorMeta):
                self._assign(str(index), value)

    def get_init_args(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the class, its arguments by name, and those of its ``*args``, as they are in force."""
        record = self._record
        if not record.args:
            raise ArgumentError(f"{type(self).__name__}() lacks the class: {type(self).__name__}(nn.Linear, 8, 8)")
        given, *args = record.args
        self._check_class(given)
        named, surplus = bind(given, tuple(args), record.kwargs)
        settings = settings_of(self)
        record.resolved = settings
        if settings:
            key = OTHER_CLASS if OTHER_CLASS in settings else self._class_key
            classtype = settings[key].value if key in settings else given
            signature = signature_of(classtype)
            named = {**named, **{name: setting.value for name, setting in settings.items() if name != key}}
            surplus = named.pop(SURPLUS, surplus if signature.accepts_args else ())
            if not signature.accepts_kwargs:
                named = {name: value for name, value in named.items() if name in signature.names}
            given = classtype
        return (given, named, surplus), {}

    def _takes(self, name: str) -> bool:
        signature = signature_of(self.classtype)
        return name in (self._class_key, OTHER_CLASS, SURPLUS) or name in signature.names or signature.accepts_kwargs

    def _check_class(self, classtype: Any) -> None:
        wrong = not callable(classtype) or (isinstance(classtype, type) and not issubclass(classtype, self._base))
        if wrong or isinstance(classtype, nn.Module):
            hint = f" Give its class: {type(classtype).__name__}" if isinstance(classtype, nn.Module) else ""
            kind = "a class" if self._base is object else f"a subclass of {self._base.__module__}.{self._base.__name__}"
            raise ArgumentError(f"{type(self).__name__} wraps {kind}, not {classtype!r}.{hint}")

    # Reading --------------------------------------------------------------------------------------------------

    @property
    def _class_key(self) -> str:
        """The name of the setting that exchanges the class."""
        record = self._record
        is_taken = "classtype" in record.kwargs or "classtype" in signature_of(record.args[0]).names
        return OTHER_CLASS if is_taken or OTHER_CLASS in record.resolved else "classtype"

    @property
    def classtype(self) -> Any:
        """The class that makes the real object."""
        return self.__dict__["_classtype"]

    @property
    def _shown_name(self) -> str:
        return name_of(self.classtype)

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments in force, by name."""
        named: dict[str, Any] = self.__dict__["_named"]
        return {**named, **self._record.inferred} if self._record.inferred else dict(named)

    def _given(self) -> dict[str, Any]:
        return self.kwargs

    @property
    def configurables(self) -> set[str]:
        """The names that `configure` takes: those of the wrapped class, and ``classtype``."""
        return {*signature_of(self.classtype).names, "classtype"}

    def __getattr__(self, name: str) -> Any:
        attributes = self.__dict__
        if "_named" in attributes:
            if name in attributes["_named"]:
                return attributes["_named"][name]
            parameter = signature_of(attributes["_classtype"]).parameters.get(name)
            if parameter is not None and parameter.default is not parameter.empty:
                return parameter.default
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        """Return the class and its arguments, for ``repr``."""
        if "_named" not in self.__dict__:
            return ""
        surplus = [repr(value) for value in self.__dict__["_surplus"] if not isinstance(value, Module)]
        named = [f"{name}={value!r}" for name, value in self.kwargs.items() if not isinstance(value, Module)]
        return ", ".join([getattr(self.classtype, "__name__", repr(self.classtype)), *surplus, *named])

    # Configuring ----------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        record = self.__dict__.get("_record")
        if record is not None and record.constructed and not record.built and name in self.configurables:
            self.configure(name, value)
        else:
            super().__setattr__(name, value)

    @edit
    def set(self, name: str, value: Any) -> Self:
        """Set an argument of the wrapped class, or an attribute of the object that is made."""
        if name in self.configurables:
            return self.configure(name, value)
        self._assign(name, value)
        return self

    def _sort_out(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], list[tuple[str, tuple[tuple[Any, ...], dict[str, Any]]]]]:
        classtype = self.classtype
        key = self._class_key
        if key == "classtype" and "classtype" in kwargs:
            kwargs = dict(kwargs)
            args = (kwargs.pop("classtype"), *args)
        if args and callable(args[0]) and not isinstance(args[0], str):
            classtype, *rest = args
            self._check_class(classtype)
            named, surplus = bind(classtype, tuple(rest), kwargs)
            key = OTHER_CLASS if "classtype" in named else key
            return {key: classtype, **named, **({SURPLUS: surplus} if surplus else {})}, []
        if args and args[0] == SURPLUS and len(args) == 2:
            return {SURPLUS: args[1]}, []
        if args and args[0] in (key, OTHER_CLASS) and len(args) == 2:
            return self._sort_out((args[1],), kwargs)
        if args and args[0] in self._modules and (len(args) > 2 or kwargs):
            return {}, [(args[0], (args[1:], kwargs))]
        if args:
            if not isinstance(args[0], str) or len(args) != 2 or kwargs:
                raise ConfigurationError(
                    f"{self._place()} takes a class, names and values, or one name and its value, not {args!r}"
                )
            kwargs = {args[0]: args[1]}
        signature = signature_of(classtype)
        for name in kwargs:
            if name not in signature.names and not signature.accepts_kwargs:
                raise self._unknown(name)
        return dict(kwargs), []

    def _unknown(self, name: str) -> ConfigurationError:
        signature = signature_of(self.classtype)
        class_name = getattr(self.classtype, "__name__", repr(self.classtype))
        path = self._place().partition(" at ")[2]
        place = f"{class_name} at {path}" if path else class_name
        line = self._record.call.where
        return ConfigurationError(
            f"{place} takes no {name!r}.{suggestion(name, signature.names)} "
            f"It takes: {', '.join(signature.names) or 'no arguments'}."
            f"{about_variadic(self.classtype, signature, self._modules)}" + (f" (made at {line})" if line else "")
        )

    # Building -------------------------------------------------------------------------------------------------

    def _take_sizes(self, sizes: Mapping[str, Any]) -> None:
        self._record.inferred = {**self._record.inferred, **sizes}

    def _left_open(self, named: Mapping[str, Any]) -> list[str]:
        """Return the arguments without which the class cannot be called."""
        return missing(self.classtype, named)

    def _build_self(self, builder: Builder) -> Any:
        classtype, named = self.classtype, self.kwargs
        left_open = self._left_open(named)
        if left_open:
            raise BuildError(
                f"{getattr(classtype, '__name__', classtype)}{self._where_it_stands()} lacks {', '.join(left_open)}. "
                "Configure it, or let build(example_input) read it off the input"
                + (f" (made at {self._record.call.where})" if self._record.call.where else "")
            )
        surplus = self.__dict__["_surplus"]
        if any(type(value) not in ATOMS for value in (*named.values(), *surplus)):
            named = {name: _built(value, builder) for name, value in named.items()}
            surplus = tuple(_built(value, builder) for value in surplus)
        args, kwargs = call_arguments(classtype, named, surplus)
        result = builder.construct(self, classtype, args, kwargs)
        if isinstance(result, Module) and not result._has_built:
            result = builder.make(result)
        if isinstance(result, nn.Module):
            self._connect_maps(result)
        return result

    def _where_it_stands(self) -> str:
        path = ".".join(self.tags[0])
        return f" at {path!r}" if path else ""

    def _hand_over(self, result: Any) -> None:
        """Give the real object what was put on this module: torch's hooks, attributes, the mode."""
        if not isinstance(result, nn.Module):
            return
        attributes = self.__dict__
        if any(map(attributes.__getitem__, HOOK_TABLES)):
            for name in HOOK_TABLES:
                getattr(result, name).update(attributes[name])
        if attributes["_buffers"] or attributes["_parameters"]:
            for name, buffer in attributes["_buffers"].items():
                result.register_buffer(name, buffer, name not in attributes["_non_persistent_buffers_set"])
            for name, parameter in attributes["_parameters"].items():
                result.register_parameter(name, parameter)
        if not attributes.keys() <= OWN_ATTRIBUTES:
            for name in [name for name in attributes if name not in OWN_ATTRIBUTES]:
                setattr(result, name, attributes[name])
        if not self.training:
            result.eval()


def _built(value: Any, builder: Builder) -> Any:
    """Return a value with each unbuilt module in it built; containers are new ones, one for one in a build."""
    if isinstance(value, Module):
        return builder.make(value)
    if type(value) is tuple:
        return tuple(_built(item, builder) for item in value)
    if type(value) not in CONTAINERS:
        return value
    if id(value) not in builder.copies:
        builder.copies[id(value)] = rebuilt(value, lambda item: _built(item, builder))
    return builder.copies[id(value)]
