"""Documents of earlier versions: each is turned into one of the version after it, until it is of the present one.

Invariants:
    * A version that was ever written is read for ever, and gives the model that it gave then.
    * A document may hold only what its own version knew.
    * Nothing is looked up, imported or called: a document is data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from replayml.recipe.faults import MODEL, Fault, Flaw, Place, refuse, shown
from replayml.recipe.format import VERSION

__all__ = ["upgraded"]

Document = dict[str, object]


def upgraded(document: Document) -> Document:
    """Return a document of the present version.

    Args:
        document: A document with a version.

    Raises:
        Flaw: When the version is none, or one that this replayml does not know.
        RecipeError: When the document holds what its version did not have.

    Example:
        >>> old = {"format": "replayml.recipe", "version": 1, "packages": {}, "model": {"$call": "torch.nn.ReLU"}}
        >>> upgraded(old)["version"]
        2
    """
    version = document.get("version")
    if type(version) is not int or version < 1:
        raise Flaw("bad-version", f"the version of a recipe is an integer from 1, not {shown(version)}.")
    if version > VERSION:
        raise Flaw(
            "newer-version",
            f"the recipe has version {version}; this replayml reads up to {VERSION}. Install a newer replayml.",
        )
    for old in range(version, VERSION):
        document = _READERS[old](document)
    return document


def _read_1(document: Document) -> Document:
    """Version 2 added two tags and the version of a call, and changed nothing else."""
    faults: list[Fault] = []
    _find_news(document.get("model"), MODEL, faults)
    if faults:
        refuse(faults)
    return {**document, "version": 2}


def _find_news(node: object, place: Place, faults: list[Fault]) -> None:
    """Note what version 1 did not have."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            _find_news(item, place.below(index), faults)
    elif isinstance(node, dict):
        tags = sorted(node.keys() & {"$opaque", "$pydantic"})
        faults += [Fault("unknown-tag", place, f"the tag {tag!r} is unknown in version 1.") for tag in tags]
        if "$call" in node and "version" in node:
            faults.append(Fault("unknown-key", place, "the key 'version' is unknown in a call of version 1."))
        for key, item in node.items():
            _find_news(item, place.below(key), faults)


_READERS: Mapping[int, Callable[[Document], Document]] = MappingProxyType({1: _read_1})
