"""From a parsed document to a plan, and from a plan to the record of a model.

Two phases: the *plan* is made of data, runs nothing and knows every name that the document needs; the *record* is
made only after every name was found and everything fits.

Invariants:
    * Whatever JSON value is given, the outcome is a plan or a `RecipeError` that names every fault.
    * An object that stands in more than one place of the document becomes one object.
    * No class of a ``$call`` is called here; dataclasses, enums and codecs are, which the caller trusts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from replayml.core.tape import CallRecord
from replayml.recipe.faults import DOCUMENT, Fault, Flaw, refuse
from replayml.recipe.format import FORMAT, Limits
from replayml.recipe.migrate import Renames
from replayml.recipe.text.grammar import Walk
from replayml.recipe.text.names import Kind, Names
from replayml.recipe.text.parts import CallPart, EntryPart, Maker, NamedPart
from replayml.recipe.values.leaves import check_keys
from replayml.recipe.values.opaque import OpaquePart, locked
from replayml.recipe.versions import upgraded

__all__ = ["Plan", "plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a document says, as data.

    Attributes:
        root: The constructor call of the model.
        named: Every part with a name, in the order of the document.
        entries: Every tape entry, each with the call that has it on its tape.
        opaque: Every pickled value.
        packages: The versions that the document was written with.
        version: The version of the format that it was written in.
        document: The whole as a document of the present version.
    """

    root: CallPart
    named: tuple[NamedPart, ...]
    entries: tuple[tuple[CallPart, EntryPart], ...]
    opaque: tuple[OpaquePart, ...]
    packages: Mapping[str, str]
    version: int
    document: Mapping[str, object]

    def record(self, names: Names, renames: Renames, allow_pickle: bool) -> CallRecord:
        """Return the record of the model.

        Args:
            names: What names stand for.
            renames: The names that things have now.
            allow_pickle: Open pickled values, which runs them.

        Raises:
            RecipeError: When a name stands for nothing, or something does not fit what its name stands for; all
                such faults are told at once, before anything is made.
        """
        found: dict[tuple[Kind, str], Any] = {}
        faults: list[Fault] = []
        self._look_up(names, renames, found, faults)
        for call, entry in self.entries:
            at_root = found.get((call.kind, call.name)) if not entry.tags else None
            try:
                names.check_method(at_root, entry.method)
            except Flaw as flaw:
                faults.append(flaw.at(entry.place))
        if self.opaque and not allow_pickle:
            faults.append(locked(self.opaque))
        if faults:
            refuse(faults)
        return self.root.make(Maker(found))

    def _look_up(self, names: Names, renames: Renames, found: dict[tuple[Kind, str], Any], faults: list[Fault]) -> None:
        missing: set[tuple[Kind, str]] = set()
        for part in self.named:
            key = (part.kind, part.name)
            if key in missing:
                continue
            try:
                if key not in found:
                    found[key] = names.find(renames.of(part.name), part.kind, suggest=len(missing) < 5)
                faults += [flaw.at(part.place) for flaw in part.flaws(found[key], names)]
            except Flaw as flaw:
                missing.add(key)
                faults.append(flaw.at(part.place))


def plan(document: object, limits: Limits) -> Plan:
    """Return the plan of a document.

    Args:
        document: What `replayml.recipe.text.strict.parse` returned.
        limits: How much the document may hold.

    Raises:
        RecipeError: When the document is not of the form that `replayml.recipe.format` describes.
    """
    try:
        version, packages, document = _envelope(document)
    except Flaw as flaw:
        refuse([flaw.at(DOCUMENT)])
    walk = Walk(limits)
    root = walk.run(document["model"])
    named, entries, opaque = tuple(walk.named), tuple(walk.entries), tuple(walk.opaque)
    return Plan(root, named, entries, opaque, packages, version, document)


def _envelope(document: object) -> tuple[int, Mapping[str, str], dict[str, object]]:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Flaw("wrong-format", f'this JSON is no recipe: it has no "format": "{FORMAT}".')
    version = document.get("version")
    document = upgraded(document)
    assert isinstance(version, int)
    check_keys(document, required=("format", "model", "packages", "version"))
    packages = document["packages"]
    if not isinstance(packages, dict) or not all(isinstance(item, str) for item in packages.values()):
        raise Flaw("bad-value", '"packages" is an object of names and versions.')
    return version, MappingProxyType(dict(packages)), document
