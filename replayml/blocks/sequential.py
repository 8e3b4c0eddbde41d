"""`SequentialBlock`: named modules that run one after another, in an order that can be changed.

Invariants:
    * ``order`` names children that exist; a name may stand in it more than once.
    * The children are registered in the order in which they run, and so are the keys of the ``state_dict``.
    * Each change of the order or of a child is recorded, and made again when the block is constructed again.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, ClassVar, Self

from torch import nn

from replayml.core.errors import ConfigurationError, suggestion
from replayml.core.hooks import edit
from replayml.core.journal import note, transaction
from replayml.core.signatures import signature_of
from replayml.layers.external import External
from replayml.layers.layer import Layer
from replayml.module.module import Module

__all__ = ["Addable", "SequentialBlock", "as_module", "is_module"]


def is_module(value: object) -> bool:
    """Tell whether a value is a module or a class of modules.

    Example:
        >>> is_module(nn.ReLU), is_module(nn.ReLU()), is_module(3)
        (True, True, False)
    """
    return isinstance(value, nn.Module) or (isinstance(value, type) and issubclass(value, nn.Module))


def as_module(value: Any) -> Any:
    """Return a module as it is, a torch class as a `Layer`, and a replayml class as an instance.

    Args:
        value: A module or a class of modules.

    Example:
        >>> as_module(nn.ReLU)
        Layer(ReLU)
    """
    if isinstance(value, nn.Module):
        return value
    if not is_module(value):
        raise ConfigurationError(f"{value!r} is no module. Give a class or a module: nn.ReLU, Layer(nn.ReLU)")
    return value() if issubclass(value, Module) else Layer(value)


class Addable:
    """A child that a block can have under a certain name; where it is absent, configuring it adds it.

    Args:
        mode: How it is added: see `SequentialBlock.set`.

    Example:
        >>> from replayml.blocks.linear import LinearBlock
        >>> block = LinearBlock(4, 8)
        >>> block.normalization
        <no normalization>
        >>> block.normalization.configure(nn.LayerNorm).order
        ['layer', 'normalization']
    """

    def __init__(self, mode: str = "append") -> None:
        self._mode = mode

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, block: Any, owner: type) -> Any:
        if block is None:
            return self
        child = block.__dict__.get("_modules", {}).get(self._name)
        if child is None and block._has_built:
            raise AttributeError(self._name)
        return _Absent(block, self._name, self._mode) if child is None else child


class _Absent:
    """Stands for a child that a block does not have yet."""

    def __init__(self, block: Any, name: str, mode: str) -> None:
        self._block = block
        self._name = name
        self._mode = mode

    def configure(self, *args: Any, **kwargs: Any) -> Any:
        """Add the child to the block, which is returned."""
        if not args or not (is_module(args[0]) or callable(args[0])):
            raise ConfigurationError(
                f"{self._block._place()} has no {self._name} to configure. "
                f"Add one: .configure({self._name}=...) with a class or a module"
            )
        module = args[0] if isinstance(args[0], nn.Module) else Layer(*args, **kwargs)
        return self._block.set(self._name, module, mode=self._mode)

    def __repr__(self) -> str:
        return f"<no {self._name}>"


class SequentialBlock(Module):
    """Named modules that run one after another.

    Args:
        order: The names of the modules in the order in which they run; by default that in which they are given.
        **modules: The modules, or classes of modules.

    Raises:
        ConfigurationError: When ``order`` has a name that is not given.

    Example:
        >>> import torch
        >>> block = SequentialBlock(layer=Layer(nn.Linear, 2, 3), activation=nn.ReLU)
        >>> block.append_dropout(0.1).order
        ['layer', 'activation', 'dropout']
        >>> block.configure(activation=nn.GELU, order=["layer", "activation"]).build()(torch.zeros(1, 2)).shape
        torch.Size([1, 3])
    """

    _is_network_part: ClassVar[bool] = True
    order: list[str]

    def __init__(self, order: Sequence[str] | None = None, **modules: Any) -> None:
        for name, module in modules.items():
            self._check_name(name)
            setattr(self, name, as_module(module))
        self._run_in(list(modules) if order is None else order)

    def forward(self, x: Any) -> Any:
        """Run the modules in ``order``.

        Args:
            x: What the first module takes.

        Returns:
            What the last module returns.
        """
        for name in self.order:
            x = self._modules[name](x)  # type: ignore[misc]
        return x

    # Changing which modules run -------------------------------------------------------------------------------

    @edit
    def append(self, module: Any, name: str | None = None) -> Self:
        """Run a module after all others.

        Args:
            module: A module, which is put in as it is, or a class of modules.
            name: Its name; by default the name of its class, in lower case.

        Raises:
            ConfigurationError: When the name is in use.
        """
        return self._add(module, name, len(self.order))

    @edit
    def prepend(self, module: Any, name: str | None = None) -> Self:
        """Run a module before all others; see `append`."""
        return self._add(module, name, 0)

    @edit
    def insert(self, module: Any, after: str, name: str | None = None) -> Self:
        """Run a module right after another one; see `append`.

        Args:
            module: A module, which is put in as it is, or a class of modules.
            after: The name of the one that runs before it.
            name: Its name; by default the name of its class, in lower case.
        """
        return self._add(module, name, self._position_after(after))

    @edit
    def remove(self, name: str, allow_missing: bool = False) -> Self:
        """Take out a module.

        Args:
            name: Its name.
            allow_missing: Whether to do nothing when there is none of that name.
        """
        if self._modules.get(name) is not None:
            delattr(self, name)
            self._forget(name)
        elif not allow_missing:
            raise self._no_such(name, "remove")
        return self

    @edit
    def reorder(self, order: Sequence[str]) -> Self:
        """Run the modules in another order; the same as ``configure(order=...)``.

        Args:
            order: The names of the modules, also several times, or left out, to run a module several times or not.
        """
        return self._run_in(order)

    @edit
    def set(self, name: str, value: Any, mode: str = "append", after: str | None = None) -> Self:
        """Set an attribute or a module; the same as an assignment.

        Args:
            name: The name.
            value: Anything. A module, or a class of modules, takes the place of the one of that name; where there is
                none, it is added as ``mode`` says. None takes a module out.
            mode: ``"append"``, ``"prepend"``, ``"insert"``, or ``"replace"`` to add nothing.
            after: For ``"insert"``, the name of the module that runs before it.
        """
        if name == "order":
            return self._run_in(value)
        if is_module(value):
            return self._put(name, as_module(value), mode, after)
        if value is None and self._modules.get(name) is not None:
            delattr(self, name)
        setattr(self, name, value)
        return self

    def _add(self, module: Any, name: str | None, position: int) -> Self:
        module = as_module(module)
        if name is None:
            name = getattr(module.classtype if isinstance(module, External) else type(module), "__name__", "").lower()
        if name in self.order:
            raise ConfigurationError(
                f"{self._place()} has a module {name!r} already. Give another name: name=..., change it: "
                f".configure({name}=...), or run it several times: .configure(order=[...])"
            )
        return self._place_at(name, module, position)

    def _put(self, name: str, module: Any, mode: str, after: str | None) -> Self:
        """Replace a module, or add it as ``mode`` says."""
        if mode not in ("append", "prepend", "insert", "replace"):
            raise ConfigurationError(
                f"{mode!r} is no mode to add a module.{suggestion(mode, ['append', 'prepend', 'insert', 'replace'])} "
                "The modes: 'append', 'prepend', 'insert' (with after=...), 'replace'"
            )
        if mode == "insert" and after is None:
            raise ConfigurationError(f"mode='insert' lacks the module after which {name!r} runs: after='layer'")
        if name in self.order:
            setattr(self, name, module)
            self._arrange()
        elif mode != "replace":
            at = {"append": len(self.order), "prepend": 0}
            self._place_at(name, module, self._position_after(str(after)) if mode == "insert" else at[mode])
        return self

    def _place_at(self, name: str, module: Any, position: int) -> Self:
        self._check_name(name)
        setattr(self, name, module)
        self.order = [*self.order[:position], name, *self.order[position:]]
        self._arrange()
        return self

    def _position_after(self, name: str) -> int:
        if name not in self.order:
            raise self._no_such(name, "insert after")
        return self.order.index(name) + 1

    def _no_such(self, name: str, purpose: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self._place()} has no module {name!r} to {purpose}.{suggestion(name, self.order)} "
            f"Its order: {', '.join(self.order) or 'empty'}"
        )

    def _run_in(self, order: Sequence[str]) -> Self:
        for name in order:
            if self._modules.get(name) is None:
                raise ConfigurationError(
                    f"{self._place()} has no module {name!r} to run.{suggestion(name, self._modules)} "
                    f"Its modules: {', '.join(self._modules) or 'none'}"
                )
        self.order = list(order)
        self._arrange()
        return self

    def _remove(self, name: str) -> None:
        super()._remove(name)
        self._forget(name)

    def _forget(self, name: str) -> None:
        if name in self.__dict__.get("order", ()):
            self.order = [other for other in self.order if other != name]
            self._arrange()

    def _check_name(self, name: str) -> None:
        known = inspect.getattr_static(type(self), name, None)
        if not name or "." in name or name in self.__dict__ or not (known is None or isinstance(known, Addable)):
            raise ConfigurationError(
                f"{self._place()} cannot have a module named {name!r}: "
                + ("an attribute has that name" if name and "." not in name else "a name is a word without dots")
                + ". Give another name: name=..."
            )

    def _arrange(self) -> None:
        """Register the children in the order in which they run; subclasses also find their sizes."""
        wanted = [*dict.fromkeys(self.order), *self._modules]
        if list(dict.fromkeys(wanted)) != list(self._modules):
            before = dict(self._modules)
            note(_refill, self._modules, before)
            _refill(self._modules, {name: before[name] for name in wanted})

    # Dropout --------------------------------------------------------------------------------------------------

    @edit
    def append_dropout(self, p: float, name: str = "dropout") -> Self:
        """Run a dropout after all others.

        Args:
            p: The probability of dropping a value.
            name: The name of the dropout.
        """
        return self.append(Layer(nn.Dropout, p), name)

    @edit
    def prepend_dropout(self, p: float, name: str = "dropout") -> Self:
        """Run a dropout before all others; see `append_dropout`."""
        return self.prepend(Layer(nn.Dropout, p), name)

    @edit
    def insert_dropout(self, p: float, after: str, name: str = "dropout") -> Self:
        """Run a dropout right after another module; see `append_dropout`."""
        return self.insert(Layer(nn.Dropout, p), after, name)

    @edit
    def remove_dropout(self, name: str = "dropout", allow_missing: bool = False) -> Self:
        """Take out a dropout; see `remove`."""
        return self.remove(name, allow_missing)

    @edit
    def set_dropout(
        self, p: float, name: str = "dropout", on_missing: str = "append", after: str | None = None
    ) -> Self:
        """Set the probability of a dropout, which is added where there is none.

        Args:
            p: The probability of dropping a value.
            name: The name of the dropout.
            on_missing: How to add it: ``"append"``, ``"prepend"`` or ``"insert"``.
            after: For ``"insert"``, the name of the module that runs before it.
        """
        if name in self.order and isinstance(self._modules[name], External):
            getattr(self, name).configure(p=p)
            return self
        return self._put(name, Layer(nn.Dropout, p), on_missing, after)

    # Configuring ----------------------------------------------------------------------------------------------

    def configure(self, *args: Any, **kwargs: Any) -> Self:
        """Change arguments, the order or modules; see `Module.configure`.

        Args:
            *args: Nothing; or a name and its value; or the name of a module and what its ``configure`` takes.
            **kwargs: Names and their values: arguments of this block, ``order``, and modules by name. A class is
                passed on to the `Layer` of that name; a module takes its place.

        Example:
            >>> SequentialBlock(layer=Layer(nn.Linear, 2, 3)).configure("layer", bias=False)
            SequentialBlock(
              (layer): Layer(Linear, in_features=2, out_features=3, bias=False)
            )
        """
        if self._record.built or (args and not isinstance(args[0], str)):
            return super().configure(*args, **kwargs)
        parts = [(args[0], args[1:], kwargs)] if args else [(name, (value,), {}) for name, value in kwargs.items()]
        order = next((values[0] for name, values, _ in parts if name == "order" and len(values) == 1), None)
        rest: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        with transaction():
            for name, values, named in parts:
                if name == "order" and len(values) == 1:
                    continue
                if not self._configure_module(name, values, named, order or ()):
                    rest.append((name, values, named))
            if rest and args:
                super().configure(*args, **kwargs)
            elif rest:
                super().configure(**{name: values[0] for name, values, _ in rest})
            if order is not None:
                self.reorder(order)
        return self

    # What it calls goes on the tape, each under its own name, so that a replay may call this one.
    functools.update_wrapper(configure, Module.configure, assigned=())

    def _configure_module(
        self, name: str, values: tuple[Any, ...], named: dict[str, Any], order: Sequence[str]
    ) -> bool:
        """Add or replace a module, and tell whether that was what the values ask for."""
        if name in signature_of(type(self)).names:
            return False
        child = self._modules.get(name)
        given = values[0] if values else None
        if child is None:
            absent = getattr(self, name, None)
            if isinstance(absent, _Absent):
                absent.configure(*values, **named)
            elif is_module(given) and name in order:
                self.set(name, given if isinstance(given, nn.Module) else Layer(*values, **named))
            else:
                raise self._unknown(name)
            return True
        if isinstance(given, nn.Module) and len(values) == 1 and not named:
            self.set(name, given)
            return True
        if is_module(given) and not isinstance(child, External):
            self.set(name, Layer(*values, **named))
            return True
        return False


def _refill(children: dict[str, Any], content: dict[str, Any]) -> None:
    children.clear()
    children.update(content)
