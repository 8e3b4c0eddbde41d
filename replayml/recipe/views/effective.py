"""What is in force in a model: the class and the arguments of everything that stands in it, by path.

Two models are compared by what is in force, not by how it came about: a width that one was made with and the other was
configured to is the same width.

Invariants:
    * Defaults count like arguments that were given.
    * Modules among the arguments are compared where they stand in the tree; those that stand nowhere, as values.
    * Looking changes neither model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from replayml.core.arguments import ATOMS
from replayml.core.errors import RecipeError, ReplaymlError
from replayml.core.meta import ExtendedConstructorMeta, capture
from replayml.core.replay import Replayer
from replayml.core.signatures import bind, signature_of
from replayml.core.tags import walk
from replayml.core.tape import CallRecord, Path, TapeEntry
from replayml.recipe.codecs import Codec
from replayml.recipe.faults import type_name
from replayml.recipe.format import Limits, canonical
from replayml.recipe.provenance import without_provenance
from replayml.recipe.text.names import Names, qualified
from replayml.recipe.text.writer import Writer

__all__ = ["Change", "Comparison", "apply", "path_text", "value_text"]

CLASS = "classtype"
SURPLUS = "*args"

_LONGEST = 60
_ROUNDS = 3  # a class, then its arguments, then those that only the new class takes


def path_text(path: Path) -> str:
    """Return a path as the user would type it.

    Example:
        >>> path_text(("blocks", "0", "layer"))
        'model.blocks[0].layer'
    """
    return "model" + "".join(f"[{tag}]" if tag.isdigit() else f".{tag}" for tag in path)


def value_text(value: object) -> str:
    """Return a short text for a value.

    Example:
        >>> value_text(nn.GELU), value_text(0.5), value_text("a" * 100)[-4:]
        ('GELU', '0.5', 'a...')
    """
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, CallRecord):
        return str(value)
    if isinstance(type(value), ExtendedConstructorMeta):
        return value_text(capture(value))
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    text = repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


@dataclass(frozen=True, slots=True)
class Change:
    """Something that is in force in one model and not in another.

    Attributes:
        path: Where it stands below the root.
        name: The name of the argument; empty when the module itself is another one.
        old: A short text for what it is in the first model; empty where nothing stands there.
        new: The same for the second model.
    """

    path: Path
    name: str
    old: str
    new: str

    def __str__(self) -> str:
        place = path_text(self.path) + (f".{self.name}" if self.name else "")
        return f"{place}: {self.old or 'nothing'} -> {self.new or 'nothing'}"


@dataclass(frozen=True, slots=True)
class _Standing:
    """One module: its class, what it takes, and the forms of that, by which it is compared."""

    cls: type
    owner: Any
    is_external: bool
    is_replayml: bool
    values: Mapping[str, Any]
    forms: Mapping[str, str]


_Ids = Callable[[], set[int]]


def _ids_in(model: Any) -> _Ids:
    """Return what tells the identities of all modules of a tree; it looks when it is first asked."""
    return cache(lambda: {id(module) for module in model.modules()})


class Comparison:
    """Compares unbuilt models.

    Args:
        names: What classes and functions are called.
        codecs: The data forms of the user's own types.
        limits: How much a value may hold.
    """

    def __init__(self, names: Names, codecs: Sequence[Codec[Any]], limits: Limits) -> None:
        self._names = names
        self._codecs = codecs
        self._limits = limits

    # Differences --------------------------------------------------------------------------------------------------

    def changes(self, old: Any, new: Any) -> list[Change]:
        """Return what differs between two models, outer modules first."""
        ones, others = self._all(old), self._all(new)
        paths = list(dict.fromkeys([*ones, *others]))
        return [change for path in paths for change in self._at(path, ones, others)]

    def _all(self, model: Any) -> dict[Path, _Standing]:
        found = {}
        ids = _ids_in(model)
        for name, module in model.named_modules(remove_duplicate=False):
            found[tuple(name.split(".")) if name else ()] = self._standing(module, ids)
        return found

    def _at(self, path: Path, ones: Mapping[Path, _Standing], others: Mapping[Path, _Standing]) -> Iterator[Change]:
        one, other = ones.get(path), others.get(path)
        if one is None or other is None:
            above = path[:-1]
            if above in ones and above in others:  # of what is gone, or new, the topmost module tells enough
                yield Change(path, "", _text(one), _text(other))
        elif one.cls is not other.cls:
            yield Change(path, "", _text(one), _text(other))
        else:
            names = one.forms.keys() | other.forms.keys()
            if one.forms.get(CLASS) != other.forms.get(CLASS):  # what only one of two classes takes says nothing
                names = one.forms.keys() & other.forms.keys()
            for name in sorted(names):
                if one.forms.get(name) != other.forms.get(name):
                    texts = [value_text(each.values[name]) if name in each.values else "" for each in (one, other)]
                    yield Change(path, name, *texts)

    def _standing(self, module: Any, ids: _Ids) -> _Standing:
        cls = type(module)
        if not isinstance(cls, ExtendedConstructorMeta):
            text = module.extra_repr()
            return _Standing(cls, cls, False, False, {"arguments": text}, {"arguments": text})
        args, kwargs = module.get_init_args()
        if module.is_external:
            owner, named, surplus = args
        else:
            owner = cls
            named, surplus = bind(cls, args, kwargs)
        parameters = signature_of(owner).parameters.values()
        values = {p.name: p.default for p in parameters if p.default is not p.empty}
        values |= named
        if surplus:
            values[SURPLUS] = tuple(surplus)
        if module.is_external:
            values[CLASS] = owner
        forms = {name: self._form(value, ids) for name, value in values.items()}
        return _Standing(cls, owner, module.is_external, True, values, forms)

    def _form(self, value: Any, ids: _Ids) -> str:
        """Return a text that is equal for equal values, and for any two modules that stand in the tree."""
        if type(value) in ATOMS and value is not None and isinstance(value, type):
            return f"class {qualified(value)} {id(value)}"
        if type(value) in (bool, int, str, type(None)):
            return repr(value)
        if _holds_module(value):
            value = _without_modules(value, ids())
        plain = capture(value)
        try:
            node = Writer(self._names, self._codecs, True, self._limits, allow_pickle=True).write(plain)
        except RecipeError:
            return f"{type_name(value)} {value!r}"
        return canonical(without_provenance(node))

    # From one to the other ----------------------------------------------------------------------------------------

    def steps(self, work: Any, target: Any) -> Iterator[TapeEntry]:
        """Change one model into another as far as calls of ``configure`` can, and yield these calls.

        Outer modules come first, since what is set on them often is what the inner ones differ in.
        """
        for path, wanted in self._all(target).items():
            for _ in range(_ROUNDS):
                entry = self._step(path, work, wanted)
                if entry is None:
                    break
                try:
                    apply(work, [entry])
                except ReplaymlError:
                    break  # the module refuses it; it is in the rest
                yield entry

    def _step(self, path: Path, work: Any, wanted: _Standing) -> TapeEntry | None:
        module = walk(work, path)
        if module is None or not wanted.is_replayml or type(module) is not wanted.cls:
            return None
        found = self._standing(module, _ids_in(work))
        if wanted.is_external and found.forms[CLASS] != wanted.forms[CLASS]:
            known = signature_of(wanted.owner)
            given = {name: value for name, value in wanted.values.items() if name in known.names}
            plain = {name: capture(value) for name, value in given.items() if not _holds_module(value)}
            defaults = {name: p.default for name, p in known.parameters.items()}
            kwargs = {name: value for name, value in plain.items() if value is not defaults[name]}
            return TapeEntry(path, "configure", (wanted.owner,), kwargs)
        kwargs = {
            name: capture(wanted.values[name])
            for name, form in wanted.forms.items()
            if found.forms.get(name) != form and name not in (SURPLUS, CLASS) and not _holds_module(wanted.values[name])
        }
        return TapeEntry(path, "configure", (), kwargs) if kwargs else None


def apply(model: Any, entries: Sequence[TapeEntry]) -> None:
    """Make some recorded calls on a model, as its user."""
    replayer = Replayer({})
    for number, entry in enumerate(entries):
        replayer.replay(model, number, entry)


def _text(standing: _Standing | None) -> str:
    if standing is None:
        return ""
    owner = getattr(standing.owner, "__name__", repr(standing.owner))
    return f"{standing.cls.__name__}({owner})" if standing.is_external else standing.cls.__name__


def _without_modules(value: Any, standing: set[int]) -> Any:
    """Return a value with one mark in place of every module of the tree."""
    if isinstance(value, nn.Module):
        return ... if id(value) in standing else value
    if type(value) in (list, tuple):
        return type(value)(_without_modules(item, standing) for item in value)
    if type(value) is dict:
        return {key: _without_modules(item, standing) for key, item in value.items()}
    return value


def _holds_module(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return True
    if type(value) in (list, tuple):
        return any(map(_holds_module, value))
    return type(value) is dict and any(map(_holds_module, value.values()))
