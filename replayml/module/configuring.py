"""Configuring: `configure` of a module, which changes arguments of it and of what is below it.

Invariants:
    * Names are checked before anything is changed.
    * The module and all below it show the new values at once; inside an ``__init__`` as soon as they are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from torch import nn

from replayml.core import rebuilding, tags
from replayml.core.arguments import keep, modules_in
from replayml.core.config import Setting, next_serial
from replayml.core.deferral import catch_up, defer
from replayml.core.errors import AlreadyBuiltError, ConfigurationError, suggestion
from replayml.core.hooks import stateful
from replayml.core.leaving import forget_own, forget_users, going
from replayml.core.meta import CONSTRUCT, scope
from replayml.core.settings import add_setting, settings_of
from replayml.core.signatures import bind, signature_of
from replayml.core.tape import Path
from replayml.module.children import Children
from replayml.module.hints import about_variadic
from replayml.module.migrating import settings_now

__all__ = ["Configuring"]


class Configuring(Children):
    """The part of `replayml.Module` that this file is about."""

    _defers: ClassVar[bool] = True
    _settings_now = settings_now

    @property
    def configurables(self) -> set[str]:
        """The names that `configure` takes for this module itself."""
        return set(signature_of(type(self)).names)

    @stateful
    def configure(self, /, *args: Any, **kwargs: Any) -> Self:
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
            if isinstance(name, type):
                raise ConfigurationError(
                    f"{self._place()} is no layer whose class could be exchanged for {name.__name__}. Name a layer: "
                    f"configure('child', {name.__name__}), or select: model[..., 'child'].configure({name.__name__})"
                )
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
            Children.set.__edit__(self, name, args[0])  # type: ignore[attr-defined]
        elif isinstance(child, Configuring):
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
        site = tags.site(self)
        _, kept, _ = keep((), dict(settings))
        gone = self._displace_given(kept) if by is None else []
        for name, value in kept.items():
            serial = top.edit.serial if top is not None and top.edit is not None else next_serial()
            setting = Setting(by, maker, value, None if top is None else top.where, serial, site)
            setting.during = 0 if top is None else top.during
            add_setting(self, name, setting)
        if by is not None and self._defers and self._record.constructed:
            defer(self, rebuilding.bring_in_line_for_maker)
        else:
            rebuilding.bring_in_line(self)
        for keep_on in gone:
            keep_on()

    def _displace_given(self, settings: Mapping[str, Any]) -> list[Callable[[], None]]:
        """Take what the user set on modules that were given, and are not given any more, out of their places.

        Returns:
            What to call when all stands where it will stand: what was set goes along with them.
        """
        given = self._given()
        old = [module for name in settings for module in modules_in(given.get(name))]
        new = {id(module) for value in settings.values() for module in modules_in(value)}
        gone = []
        for slots, child in list(self._record.children.items()):
            if id(child) not in new and any(child is module for module in old):
                forget_own(self, slots)
                gone.append(going(child, self, slots))
                forget_users(self, slots)
        return gone

    def _given(self) -> dict[str, Any]:
        """Return the arguments in force, by name."""
        named, _ = bind(type(self), self._record.args, dict(self._record.kwargs))
        return {**named, **{name: setting.value for name, setting in settings_of(self).items()}}

    def _unknown(self, name: str) -> ConfigurationError:
        signature = signature_of(type(self))
        own, children = list(signature.names), list(self._modules)
        rest = about_variadic(type(self), signature, children)
        takes = f" It takes: {', '.join(own)}." if own else "" if rest else " It takes no arguments."
        below = f" Its children: {', '.join(children[:20])}." if children else ""
        hint = suggestion(name.strip(chr(39)), own + children)
        return ConfigurationError(f"{self._place()} has no setting {name!r}.{hint}{takes}{rest}{below}")

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
                    if own and tags.child_at(top, at) is not None:
                        found[(*tags.visible(self, at[len(path) :]), name)] = own[-1].value
        return found
