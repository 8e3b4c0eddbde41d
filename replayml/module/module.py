"""`Module`: a model before it has weights.

A module records the call that made it, may be configured and edited, copied (`new`), and built (`build`). Building
makes the weights; from then on the module is an ordinary ``torch.nn.Module``.

Invariants:
    * A module needs no ``super().__init__()``; with it, or in any inheritance shape, it works the same.
    * Before the build every change by the user is on the tape, an assignment of an attribute included.
    * After the build no replayml code runs in ``forward``; ``__call__`` is torch's own.
    * A call that raises changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import nn

from replayml.core import tags, tree
from replayml.core.config import Config, Setting, next_serial
from replayml.core.copying import along, describe
from replayml.core.deferral import catch_up, defer
from replayml.core.errors import AlreadyBuiltError, ConfigurationError, suggestion
from replayml.core.hooks import edit, run_hooks, stateful
from replayml.core.journal import note, refill
from replayml.core.meta import CALL, CONSTRUCT, QUIET, REPLAY, ExtendedConstructorMeta, not_top_level, scope
from replayml.core.record import Record
from replayml.core.replay import realize
from replayml.core.signatures import bind, call_arguments, signature_of
from replayml.core.tape import Path, Tape
from replayml.module import building, checking, code, explain, predicting, wiring
from replayml.module.checking import Problem
from replayml.module.explain import Explanation
from replayml.module.selection import select
from replayml.recipe import Codec, Recipe

__all__ = ["Module"]


class Module(wiring.Wiring, nn.Module, metaclass=ExtendedConstructorMeta):
    """The base class of everything that replayml records.

    Write it like a ``torch.nn.Module``; use `replayml.Layer` where a torch layer should stay open to change.

    Example:
        >>> import torch, replayml
        >>> from torch import nn
        >>> class Net(replayml.Module):
        ...     def __init__(self, width=8):
        ...         self.hidden = replayml.Layer(nn.Linear, 4, width)
        ...         self.activation = replayml.Layer(nn.ReLU)
        ...         self.out = replayml.Layer(nn.Linear, width, 2)
        ...
        ...     def forward(self, x):
        ...         return self.out(self.activation(self.hidden(x)))
        >>> net = Net().configure(width=16)
        >>> net["activation"].configure(nn.GELU)
        Selection(activation)
        >>> net.build()(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    _init_method: ClassVar[str] = "__init__"
    is_external: ClassVar[bool] = False
    _defers: ClassVar[bool] = True
    _untracked: ClassVar[frozenset[str]] = frozenset()
    if TYPE_CHECKING:  # TorchScript reads the annotations of a class and knows none of ours
        _record: Record

    # Construction ---------------------------------------------------------------------------------------------

    def __init__(self) -> None:
        """Do nothing: what torch needs is in place before any ``__init__`` runs."""

    def __pre_init__(self, *args: Any, **kwargs: Any) -> None:
        """Prepare a new object before its ``__init__``; called with the caller's arguments."""

    def __post_init__(self) -> None:
        """Complete an object after its ``__init__`` and its ``after_init`` hooks."""

    def __construct__(self) -> None:
        """Run ``__init__`` with the arguments in force; what an earlier run made is gone before."""
        record = self._record
        with not_top_level(self):
            if record.constructed:
                tree.reset(self)
                self.__pre_init__(*record.args, **record.kwargs)
            record.constructing = True
            try:
                args, kwargs = self.get_init_args()
                getattr(self, self._init_method)(*args, **kwargs)
                if record.hooks is not None:
                    run_hooks(self, "after_init")
            finally:
                record.constructing = False
            record.constructed = True
            record.constructed_at = next_serial()
            self.__post_init__()

    def _init_torch(self) -> None:
        """Put in place what torch expects of a module."""
        nn.Module.__init__(self)

    def get_init_args(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the positional and keyword arguments in force: the caller's, and what was configured since."""
        record = self._record
        settings = tree.settings_of(self)
        record.resolved = settings
        if not settings:
            return record.args, dict(record.kwargs)
        signature = signature_of(type(self))
        values = {
            name: setting.value
            for name, setting in settings.items()
            if name in signature.names or signature.accepts_kwargs
        }
        named, surplus = bind(type(self), record.args, dict(record.kwargs))
        return call_arguments(type(self), {**named, **values}, surplus)

    @classmethod
    def _from_checkpoint_call(cls, kwargs: dict[str, Any]) -> Any:
        raise TypeError(f"{cls.__name__} is no replayml.Application; only those are loaded from a Lightning checkpoint")

    # Configuring ----------------------------------------------------------------------------------------------

    @property
    def configurables(self) -> set[str]:
        """The names that `configure` takes for this module itself."""
        return set(signature_of(type(self)).names)

    @stateful
    def configure(self, *args: Any, **kwargs: Any) -> Self:
        """Change arguments of this module, or of one below it; the module is constructed again at once.

        Args:
            *args: Nothing; or a name and its value; or the name of a child and what its ``configure`` takes.
            **kwargs: Names and their values. The name of a child passes the value on to the child.

        Returns:
            The module itself.

        Raises:
            ConfigurationError: When there is no such name. Nothing is changed then.
            AlreadyBuiltError: When the model is built.

        Example:
            >>> import replayml
            >>> mlp = replayml.MultiLayerPerceptron(4, [8], 2)
            >>> mlp.configure(out_features=3).configure("blocks", 0, "layer", bias=False).out_features
            3
        """
        if self._record.built:
            raise AlreadyBuiltError(
                f"{type(self).__name__} is built; its configuration is fixed. "
                "Configure an unbuilt copy: model.new().configure(...).build()"
            )
        if self._record.deferred is not None and (args or not kwargs.keys() <= self.configurables):
            catch_up(self)
        settings, delegated = self._sort_out(args, kwargs)
        for name, value in settings.items():
            self._check_setting(name, value)
        for name, arguments in delegated:
            self._configure_child(name, arguments)
        if settings:
            self._apply_settings(settings)
        return self

    def _sort_out(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], list[tuple[str, tuple[tuple[Any, ...], dict[str, Any]]]]]:
        """Sort what `configure` was given into own settings and calls for children."""
        signature = signature_of(type(self))
        own = signature.names
        settings: dict[str, Any] = {}
        delegated: list[tuple[str, tuple[tuple[Any, ...], dict[str, Any]]]] = []
        if args:
            name, *rest = args
            if not isinstance(name, str):
                raise self._unknown(repr(name))
            if name in own and len(rest) == 1 and not kwargs:
                return {name: rest[0]}, []
            if name in self._modules and (rest or kwargs):
                return {}, [(name, (tuple(rest), kwargs))]
            if name in own and not rest:
                raise ConfigurationError(f"configure({name!r}) lacks the value: configure({name!r}, value)")
            raise self._unknown(name)
        for name, value in kwargs.items():
            if name in own:
                settings[name] = value
            elif name in self._modules:
                delegated.append((name, ((value,), {})))
            elif signature.accepts_kwargs:
                settings[name] = value
            else:
                raise self._unknown(name)
        return settings, delegated

    def _configure_child(self, name: str, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        args, kwargs = arguments
        child = self._modules[name]
        if len(args) == 1 and not kwargs and isinstance(args[0], nn.Module):
            self._assign(name, args[0])
        elif isinstance(child, Module):
            child.configure(*args, **kwargs)
        else:
            raise ConfigurationError(
                f"{self._place(name)} is a {type(child).__name__}, which records no settings. "
                f"Wrap it where it is made: replayml.Layer({type(child).__name__}, ...)"
            )

    def _check_setting(self, name: str, value: Any) -> None:
        """Refuse a setting that the module cannot take; subclasses know more."""

    def _apply_settings(self, settings: Mapping[str, Any]) -> None:
        top = scope()
        by = None if top is None else top.by
        if self._record.constructing and top is not None and top.kind is CONSTRUCT:
            raise ConfigurationError(
                f"{type(self).__name__}.__init__ configures its own {', '.join(map(repr, settings))} while it runs. "
                "Give the value to super().__init__(), or configure a child"
            )
        maker = by if top is None or top.edit is None else top.edit
        told = tags.shown(self)
        for name, value in settings.items():
            serial = top.edit.serial if top is not None and top.edit is not None else next_serial()
            setting = Setting(by, maker, value, None if top is None else top.where, serial, told)
            setting.during = 0 if top is None else top.during
            tree.add_setting(self, name, setting)
        if by is not None and self._defers and self._record.constructed:
            defer(self, tree.bring_in_line_for_maker)
        else:
            tree.bring_in_line(self)

    def _unknown(self, name: str) -> ConfigurationError:
        own, children = list(signature_of(type(self)).names), list(self._modules)
        takes = f" It takes: {', '.join(own)}." if own else " It takes no arguments."
        below = f" Its children: {', '.join(children[:20])}." if children else ""
        return ConfigurationError(
            f"{self._place()} has no setting {name!r}.{suggestion(name.strip(chr(39)), own + children)}{takes}{below}"
        )

    def _place(self, *below: str) -> str:
        path = ".".join((*tags.shown(self), *below))
        return f"{type(self).__name__} at {path!r}" if path else type(self).__name__

    def get_user_configuration(self) -> dict[Path, Any]:
        """Return what the user configured at and below this module: tags and name -> value."""
        found: dict[Path, Any] = {}
        for top, path in tags.paths(self):
            for at, node in () if top._record.config is None else top._record.config.below(path):
                for name, settings in node.items.items():
                    own = [setting for setting in settings if setting.by is None]
                    if own:
                        found[(*tags.visible(self, at[len(path) :]), name)] = own[-1].value
        return found

    # Attributes and children ----------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        record: Record | None = self.__dict__.get("_record")
        if record is None or record.built or name in self._untracked:
            super().__setattr__(name, value)
            return
        top = scope()
        if record.constructing or (
            top is not None and (top.kind is QUIET or (top.module is self and top.kind is not REPLAY))
        ):
            self._assign(name, value)
        else:
            self.set(name, value)

    def __delattr__(self, name: str) -> None:
        record: Record | None = self.__dict__.get("_record")
        top = scope()
        if record is None or record.built or name in self._untracked:
            super().__delattr__(name)
        elif record.constructing or (top is not None and top.kind is not REPLAY and top.module in (self, None)):
            self._remove(name)
        else:
            self.unset(name)

    @edit
    def set(self, name: str, value: Any) -> Self:
        """Set an attribute or a child; the same as an assignment.

        Args:
            name: The name of the attribute.
            value: Anything; a class is wrapped as a `Layer` by blocks only.
        """
        self._assign(name, value)
        return self

    @edit
    def unset(self, name: str) -> Self:
        """Delete an attribute or a child; the same as ``del``."""
        self._remove(name)
        return self

    @edit
    def replace(self, target: str, replacement: nn.Module) -> Self:
        """Put another module in the place of a child.

        Args:
            target: The name of the child.
            replacement: The module to put there.
        """
        if target not in self._modules:
            raise ConfigurationError(
                f"{self._place()} has no child {target!r} to replace.{suggestion(target, self._modules)} "
                f"Its children: {', '.join(self._modules)}"
            )
        self._assign(target, replacement)
        return self

    def _assign(self, name: str, value: Any) -> None:
        """Assign without recording."""
        record = self._record
        old = self._modules.get(name)
        if old is not None and isinstance(value, type) and issubclass(value, nn.Module):
            raise ConfigurationError(
                f"{self._place(name)} takes a module, not the class {value.__name__}. Wrap it: Layer({value.__name__})"
            )
        if not record.constructing:
            self._note_attribute(name, leaves=not isinstance(value, nn.Module))
        if old is not None and old is not value:
            self._drop_child(name, old)
        super().__setattr__(name, value)
        if isinstance(value, nn.Module) and value is not old and self._modules.get(name) is value:
            top = scope()
            if old is not None and not record.constructing and top is not None and top.by is None:
                self._new_occupant(name, top.edit.serial if top.edit is not None else top.during)
            self._take_child(name, value)

    def _new_occupant(self, name: str, serial: int) -> None:
        """Give the child that takes the place of another a slot of its own: what was set on the other is not for it."""
        record = self._record
        note(setattr, record, "replaced", record.replaced)
        record.replaced = {**(record.replaced or {}), name: f"{name}@{serial}"}

    def _remove(self, name: str) -> None:
        """Delete without recording."""
        old = self._modules.get(name)
        if not self._record.constructing:
            self._note_attribute(name, leaves=True)
        if old is not None:
            self._drop_child(name, old)
        super().__delattr__(name)

    def _note_attribute(self, name: str, leaves: bool) -> None:
        """Note an attribute's value; with ``leaves`` also its place in the order of children."""
        for place in (self.__dict__, self._modules, self._parameters, self._buffers):
            if name in place and leaves and place is not self.__dict__:
                note(refill, place, dict(place))
            elif name in place:
                note(place.__setitem__, name, place[name])
            else:
                note(place.pop, name, None)

    def _take_child(self, name: str, child: nn.Module) -> None:
        """Note a new child: its place, and what waits for it there."""
        slot = self._record.slot_of(name)
        if isinstance(child, Module) and not child._record.built:
            tree.attach(self, (slot,), child)
            return
        for above in tags.ancestors(self):
            if above._record.plain is None:
                above._record.plain = set()
            above._record.plain |= {id(module) for module in child.modules()}
        for path, below in building.unbuilt_inside(child):
            tree.attach(self, (slot, *path), below)

    def _drop_child(self, name: str, child: nn.Module) -> None:
        """Forget a child that was taken out."""
        slot = self._record.slot_of(name)
        if self._record.constructing:
            tree.forget_own(self, slot)
        for slots, below in [(slots, below) for slots, below in self._record.children.items() if slots[0] == slot]:
            taken_along = None if self._record.constructing else along(below)
            tree.detach(self, slots, below)
            if taken_along is not None and not below._record.links:
                taken_along()

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Add a child, as ``torch.nn.Module.add_module`` does."""
        if self._record.built or module is None:
            super().add_module(name, module)
        else:
            setattr(self, name, module)

    def register_module(self, name: str, module: nn.Module | None) -> None:
        """Add a child; the same as `add_module`."""
        self.add_module(name, module)

    # Where it stands ------------------------------------------------------------------------------------------

    @property
    def tags(self) -> list[Path]:
        """The paths of this module below its root, one for each place at which it stands."""
        root = tags.root(self)
        return [tags.visible(top, slots) for top, slots in tags.paths(self) if top is root]

    @property
    def root_module(self) -> Any:
        """The topmost module above this one."""
        return tags.root(self)

    @property
    def tape(self) -> Tape:
        """The calls recorded for this hierarchy, as a sequence; for a built model, those before the build."""
        record = self._record
        return Tape(describe(self).tape if record.built else tags.root(self)._record.call.tape)

    @property
    def is_constructing(self) -> bool:
        """Whether the ``__init__`` of this module is running."""
        return self._record.constructing

    @property
    def _has_built(self) -> bool:
        return self._record.built

    @property
    def _actual_init_args(self) -> dict[str, Any]:
        return {"args": self._record.args, "kwargs": dict(self._record.kwargs)}

    @property
    def _config_tape(self) -> list[Any]:
        return list(self.tape)

    @property
    def _is_calling_stateful_method(self) -> bool:
        top = scope()
        return top is not None and top.kind is CALL

    @property
    def _user_config(self) -> Config:
        return tree.config_of(tags.root(self))

    # Copying --------------------------------------------------------------------------------------------------

    def new(self, upto: int | None = None) -> Self:
        """Return an unbuilt copy: the same constructor call, and the tape replayed.

        A module inside a tree keeps what was set from above. Modules among the arguments are copied likewise;
        everything else is deep-copied, except functions, classes and modules of Python.

        Args:
            upto: Replay only that many entries of the tape; a negative number leaves out that many at its end.

        Raises:
            ReplayError: When an entry of the tape cannot be replayed.

        Example:
            >>> import replayml
            >>> mlp = replayml.MultiLayerPerceptron(4, [8], 2).configure(out_features=3)
            >>> mlp.new().out_features, mlp.new(upto=0).out_features
            (3, 2)
        """
        copy: Self = realize(describe(self), upto=upto)
        top = scope()
        if top is not None and top.by is not None:
            copy._record.maker = top.by
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        record: Record | None = self.__dict__.get("_record")
        if record is None or record.built:
            return super().__reduce_ex__(protocol)
        return realize, (describe(self),)

    def recipe(self, *, codecs: Sequence[Codec[Any]] = ()) -> Recipe:
        """Return this model as data: strict JSON that `Recipe.from_json` reads in another process.

        Args:
            codecs: How to write values of types of your own; reading takes the same as ``trust=``.

        Raises:
            RecipeError: When an argument has no data form; names the place.

        Example:
            >>> import replayml
            >>> mlp = replayml.MultiLayerPerceptron(4, [8], 2).configure(out_features=3)
            >>> replayml.Recipe.from_json(mlp.recipe().to_json()).model().out_features
            3
        """
        return Recipe.of(describe(self), codecs=codecs, built=self._record.built)

    # Building -------------------------------------------------------------------------------------------------

    def build(
        self,
        *args: Any,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Make the weights: replace every layer below by the real object.

        Args:
            *args: Example inputs. They run through the model once, without gradients, to find the sizes left open.
            device: Where to make the weights; ``"meta"`` allocates nothing.
            dtype: The floating point type of the weights.
            seed: Draw the initial weights of each layer from a generator of its own, derived from the seed and the
                layer's tag. The global generator is not touched then.
            **kwargs: Example inputs by keyword.

        Returns:
            The object to use: the module itself; for a `Layer` or `External`, the object that it stands for.

        Raises:
            BuildError: When a value is missing.

        Example:
            >>> import torch, replayml
            >>> from torch import nn
            >>> replayml.Layer(nn.Linear, None, 2).build(torch.zeros(1, 5))
            Linear(in_features=5, out_features=2, bias=True)
        """
        if self._record.built:
            return self
        return building.build(self, args, kwargs, device=device, dtype=dtype, seed=seed)

    def create(self, *args: Any, **kwargs: Any) -> Any:
        """Return a built copy; this module stays unbuilt. Takes what `build` takes."""
        return self.new().build(*args, **kwargs)

    def _build_self(self, builder: building.Builder) -> Any:
        """Return the object that stands for this module once its children are built."""
        self._connect_maps(self)
        return self

    def _hand_over(self, result: Any) -> None:
        """Give the object that stands for this module what was put on this one; they are the same here."""

    def _take_sizes(self, sizes: Mapping[str, Any]) -> None:
        """Take the settings that were read off an example input."""
        self.configure(**sizes)

    # Selecting and telling ------------------------------------------------------------------------------------

    def __getitem__(self, selector: Any) -> Any:
        """Select modules below this one: ``model["blocks", 0, "layer"]``, ``model[..., "activation"]``."""
        return select(self, selector)

    def explain(self, path: str | Path, name: str) -> Explanation:
        """Tell why a setting has its value: see `replayml.module.explain`."""
        return explain.explain(self, path, name)

    def check(self, *args: Any, **kwargs: Any) -> list[Problem]:
        """List every unset, mistyped or shape-inconsistent value, without building: see `replayml.module.checking`."""
        return checking.check(self, args, kwargs)

    def to_code(self, *, lines: bool = False) -> str:
        """Return the Python code that makes this model: see `replayml.module.code`."""
        return code.to_code(self, lines=lines)

    def predict(
        self,
        *inputs: Any,
        batch_size: int = 32,
        device: torch.device | str | None = None,
        output_device: torch.device | str | None = None,
    ) -> Any:
        """Return the output of this built module for many rows, batch by batch: see `replayml.module.predicting`."""
        return predicting.predict(self, *inputs, batch_size=batch_size, device=device, output_device=output_device)
