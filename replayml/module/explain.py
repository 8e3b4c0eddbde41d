"""Why a setting has its value.

    candidates, strongest first:  read off the input  >  configured  >  the constructor's argument  >  the default

Invariants:
    * Every value that was ever proposed for a setting, and still stands, is a candidate; the first one is in force.
    * Explaining changes nothing: a built model is explained on an unbuilt copy of its record.
    * A line is one of the user's code. What replayml's own blocks do is put down to the line that made the block.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from replayml.core import tags
from replayml.core.config import Setting, next_serial, rank
from replayml.core.copying import realize
from replayml.core.errors import ConfigurationError, nearest, suggestion
from replayml.core.meta import ExtendedConstructorMeta, quiet
from replayml.core.settings import nodes_of, settings_of
from replayml.core.signatures import bind, signature_of
from replayml.core.tags import walk
from replayml.core.tape import Path, Where
from replayml.module.hints import about_variadic
from replayml.module.paths import path_of

__all__ = ["Candidate", "Explanation", "candidates", "explain", "factory_of", "settings_taken_by", "shown"]

CLASS = "classtype"

Source = Path | str | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One value that was proposed for a setting.

    Attributes:
        value: The value.
        source: Who proposed it: None for the user, the tags of the module whose ``__init__`` configured it,
            ``"argument"`` for the call that made the module, ``"default"`` for the signature, ``"input"`` for the
            example input of ``build``.
        where: The line of the user's code, if there is one.
        origin: The same in words.
        reason: Why it lost; empty for the winner.
    """

    value: Any
    source: Source
    where: Where | None
    origin: str
    reason: str = ""

    def __str__(self) -> str:
        line = f" at {self.where}" if self.where else ""
        return f"{shown(self.value)}, {self.origin}{line}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a setting has its value.

    Attributes:
        path: The tags of the module below its root.
        name: The name of the setting.
        owner: The name of the class that takes the setting.
        value: The value in force.
        source: Where that comes from; see `Candidate`.
        where: The line of the user's code that it comes from, if there is one.
        candidates: Every proposed value, the winner first.
        via: Settings of the module that gave the value which have, or hold, the same one.

    Example:
        >>> import replayml
        >>> from torch import nn
        >>> layer = replayml.Layer(nn.Linear, 4, 8).configure(out_features=32)
        >>> print(layer.explain("", "out_features"))
        out_features of Linear is 32, configured by the user at ...
          not 8, the argument given by the user at ...: what is configured replaces the argument
    """

    path: Path
    name: str
    owner: str
    value: Any
    source: Source
    where: Where | None
    candidates: tuple[Candidate, ...]
    via: tuple[Explanation, ...] = ()

    def __str__(self) -> str:
        losers = [f"  not {candidate}" for candidate in self.candidates[1:]]
        return "\n".join([self._headline(), *self._ways(), *losers])

    def _headline(self) -> str:
        place = f" at {'.'.join(self.path)!r}" if self.path else ""
        return f"{self.name} of {self.owner}{place} is {self.candidates[0]}"

    def _ways(self) -> Iterator[str]:
        """Yield a line for each setting through which the value may have come."""
        for above in self.via:
            yield f"  the same value: {above._headline()}"
            yield from (f"  {line}" for line in above._ways())


def explain(model: Any, path: str | tuple[str | int, ...], name: str) -> Explanation:
    """Tell why a setting has its value.

    Args:
        model: A replayml module, built or not.
        path: The path below it, ``"blocks.0.layer"``, ``"blocks[0].layer"`` or ``("blocks", 0, "layer")``; ``""`` is
            the module itself.
        name: The name of the setting: an argument of the module, or ``"classtype"`` for the class of a layer.

    Returns:
        The value in force with its source and line, and every candidate that lost.

    Raises:
        ConfigurationError: When there is no such module or no such setting.

    Example:
        >>> import replayml
        >>> from torch import nn
        >>> class Net(replayml.Module):
        ...     def __init__(self, width=8):
        ...         self.hidden = replayml.Layer(nn.Linear, 4, width)
        >>> found = explain(Net().configure(width=32), "hidden", "out_features")
        >>> found.value, found.source
        (32, 'argument')
        >>> [(above.owner, above.name, above.source) for above in found.via]
        [('Net', 'width', None)]
    """
    parts = path_of(path)
    module, read_since = _unbuilt(model)
    prefix = tags.shown(module)
    for part in parts:
        child = module._modules.get(part)
        if child is None:
            raise _no_such_path(model, parts)
        module = child
        if isinstance(type(module), ExtendedConstructorMeta) and module._record.built:
            module, read_since = _unbuilt(module)
    if not isinstance(type(module), ExtendedConstructorMeta):
        raise ConfigurationError(
            f"{'.'.join(parts)!r} is a {type(module).__name__}, which records no settings. "
            f"Wrap it where it is made: replayml.Layer({type(module).__name__}, ...)"
        )
    if name not in settings_taken_by(module):
        raise _no_such_setting(module, parts, name)
    return _explanation(module, (*prefix, *parts), name, read_since)


def _explanation(module: Any, path: Path, name: str, read_since: int) -> Explanation:
    found = candidates(module, name, read_since)
    owner = type(module) if name == CLASS else factory_of(module)
    if not found:
        found = (Candidate(None, "default", None, f"not set, and {_name(owner)} has no default for it"),)
    first = found[0]
    giver = None
    if first.source == "argument":
        giver = module._record.maker
    elif isinstance(first.source, tuple):
        giver = settings_of(module)[name].by
    via = () if giver is None else tuple(_holding(giver, first.value, read_since))
    return Explanation(path, name, _name(owner), first.value, first.source, first.where, found, via)


def _holding(giver: Any, value: Any, read_since: int) -> Iterator[Explanation]:
    """Explain the settings of a module that have a value, or hold it in a list."""
    if value is None or type(value) is bool:
        return
    for name in settings_taken_by(giver):
        found = candidates(giver, name, read_since)
        if found and _holds(found[0].value, value):
            yield _explanation(giver, tags.shown(giver), name, read_since)


def _holds(whole: Any, value: Any) -> bool:
    if type(whole) in (list, tuple):
        return any(_holds(item, value) for item in whole)
    return whole is value or (type(value) in (int, float, str) and type(whole) is type(value) and whole == value)


# What a module takes --------------------------------------------------------------------------------------------


def factory_of(module: Any) -> Callable[..., Any]:
    """Return whose arguments the settings of a module are: those of its class, or of the class that it wraps."""
    wrapped: Callable[..., Any] | None = module.__dict__.get("_classtype")
    return type(module) if wrapped is None else wrapped


def settings_taken_by(module: Any) -> list[str]:
    """Return the names of the settings of a module, those that only its ``**kwargs`` take included."""
    factory = factory_of(module)
    signature = signature_of(factory)
    names = list(signature.names)
    if factory is not type(module):
        names.append(CLASS)
    if signature.accepts_kwargs:
        names += [*_arguments(module), *settings_of(module)]
    return list(dict.fromkeys(name for name in names if name.isidentifier()))


def _arguments(module: Any) -> dict[str, Any]:
    """Return the arguments of the call that made a module, by name."""
    record = module._record
    if factory_of(module) is type(module):
        return bind(type(module), record.args, record.kwargs)[0]
    wrapped, *args = record.args
    return {**bind(wrapped, tuple(args), record.kwargs)[0], CLASS: wrapped}


# Candidates -----------------------------------------------------------------------------------------------------


def candidates(module: Any, name: str, read_since: int | None = None) -> tuple[Candidate, ...]:
    """Return every value that was proposed for a setting, the one in force first.

    Args:
        module: An unbuilt replayml module.
        name: One of its settings.
        read_since: What was set from this serial on was read off the example input of a build.
    """
    record = module._record
    found: list[tuple[Setting | None, Candidate]] = []
    if name in record.inferred:
        found.append((None, _read(record.inferred[name])))
    for setting in _settings(module, name):
        if read_since is not None and setting.by is None and setting.serial >= read_since:
            found.append((None, _read(setting.value)))
        else:
            found.append((setting, _configured(setting)))
    given = _arguments(module)
    if name in given:
        found.append((None, _given(module, given[name])))
    parameter = signature_of(factory_of(module)).parameters.get(name)
    if parameter is not None and parameter.default is not parameter.empty:
        owner = _name(factory_of(module))
        found.append((None, Candidate(parameter.default, "default", None, f"the default of {owner}")))
    if not found:
        return ()
    best = found[0]
    return (best[1], *(_lost(setting, candidate, *best) for setting, candidate in found[1:]))


def _settings(module: Any, name: str) -> list[Setting]:
    """Return the settings of one name at all places where a module stands, the strongest first."""
    known: dict[tuple[int, int], Setting] = {}
    for node in nodes_of(module):
        for setting in node.items.get(name, ()):
            known.setdefault((setting.serial, id(setting.value)), setting)
    owner = tags.root(module)
    return sorted(known.values(), key=lambda setting: (*rank(setting.by, owner), setting.serial), reverse=True)


def _read(value: Any) -> Candidate:
    return Candidate(value, "input", None, "read off the example input")


def _configured(setting: Setting) -> Candidate:
    if setting.by is None:
        return Candidate(setting.value, None, setting.where, "configured by the user")
    where = _made_at(setting.by) if _is_ours(setting.by) else setting.where
    return Candidate(setting.value, tags.shown(setting.by), where, f"configured by {_init_of(setting.by)}")


def _given(module: Any, value: Any) -> Candidate:
    maker = module._record.maker
    giver = "the user" if maker is None else _init_of(maker)
    return Candidate(value, "argument", _made_at(module), f"the argument given by {giver}")


def _lost(setting: Setting | None, loser: Candidate, best: Setting | None, winner: Candidate) -> Candidate:
    """Return a candidate with the reason why it lost."""
    if loser.source == "default":
        reason = "a default counts only where nothing else is given"
    elif winner.source == "input":
        reason = "None leaves it to the input" if loser.value is None else "what is read off the input replaces it"
    elif setting is None or best is None:
        reason = "what is configured replaces the argument"
    elif setting.by is None:
        reason = "the user set it again later"
    elif best.by is None:
        reason = "the user's setting beats that of an __init__"
    elif len(tags.path(best.by)) < len(tags.path(setting.by)):
        reason = "what is set from closer to the root counts"
    else:
        reason = "it was set again later"
    return Candidate(loser.value, loser.source, loser.where, loser.origin, reason)


def _made_at(module: Any) -> Where | None:
    """Return the line that made a module, or the block of replayml that made it."""
    record = module._record
    while record.maker is not None and _is_ours(record.maker):
        record = record.maker._record
    where: Where | None = record.call.where
    return where


def _is_ours(module: Any) -> bool:
    return type(module).__module__.partition(".")[0] == __name__.partition(".")[0]


def _init_of(module: Any) -> str:
    path = ".".join(tags.shown(module))
    return f"{type(module).__name__}.__init__" + (f" ({path})" if path else "")


# Finding the module ---------------------------------------------------------------------------------------------


def _unbuilt(model: Any) -> tuple[Any, int]:
    """Return a module before its build, and the serial from which on settings were read off the example input."""
    record = model._record
    if not record.built:
        return model, next_serial()
    top = realize(record.blueprint.call)
    read_since = next_serial()
    with quiet():
        for path, sizes in record.blueprint.sizes.items():
            walk(top, path)._take_sizes(sizes)
    return walk(top, record.path), read_since


def _no_such_path(model: Any, parts: Path) -> ConfigurationError:
    top, _ = _unbuilt(model)
    existing = [name for name, _ in top.named_modules() if name]
    close = nearest(".".join(parts), existing, 3) or existing[:10]
    hint = f"The nearest existing paths: {', '.join(close)}." if close else "It has nothing below it."
    return ConfigurationError(f"there is no module at {'.'.join(parts)!r} of {type(top).__name__}. {hint}")


def _no_such_setting(module: Any, parts: Path, name: str) -> ConfigurationError:
    owner, names = factory_of(module), settings_taken_by(module)
    place = f" at {'.'.join(parts)!r}" if parts else ""
    setting = settings_of(module).get(name)
    idle = f" It was set at {setting.where}, but the class in force has no use for it." if setting is not None else ""
    return ConfigurationError(
        f"{_name(owner)}{place} takes no {name!r}.{suggestion(name, names)}{idle} "
        f"It takes: {', '.join(names) or 'no arguments'}.{about_variadic(owner, signature_of(owner), module._modules)}"
    )


# Texts ----------------------------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """Return a short text for a value.

    Example:
        >>> shown(nn.ReLU), shown(32)
        ('ReLU', '32')
    """
    if isinstance(value, type):
        return value.__name__
    if isinstance(type(value), ExtendedConstructorMeta) and not value._record.built:
        return str(value._record.call)
    if isinstance(value, nn.Module):
        return type(value).__name__
    return reprlib.repr(value)


def _name(factory: Callable[..., Any]) -> str:
    return getattr(factory, "__name__", None) or repr(factory)
