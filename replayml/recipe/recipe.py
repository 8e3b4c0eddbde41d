"""A model as data, and data as a model.

Invariants:
    * A recipe is immutable, and every recipe was read by the strict reader: what is written can be read.
    * Equal models have equal recipes, in every process; where and with which versions they were written plays no part.
    * To open a recipe imports nothing and calls nothing; to make a model from it takes the names that it needs.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import torch

from replayml.core.copying import realize
from replayml.core.hooks import is_recorded
from replayml.core.meta import registered_classes
from replayml.core.tape import CallRecord
from replayml.recipe.codecs import Codec
from replayml.recipe.format import FORMAT, VERSION, Limits, canonical
from replayml.recipe.names import Names
from replayml.recipe.provenance import without_provenance
from replayml.recipe.reader import Plan, plan
from replayml.recipe.strict import parse
from replayml.recipe.writer import Writer

__all__ = ["Recipe"]

_DEFAULT_LIMITS = Limits()


class Recipe:
    """A model as data: its constructor call and its tape, as strict JSON.

    Use `Recipe.of` to make one from a record, and `Recipe.from_json` to open one.

    Example:
        >>> recipe = Recipe.of(CallRecord(torch.nn.Linear, (2, 3)))
        >>> copy = Recipe.from_json(recipe.to_json())
        >>> copy == recipe
        True
        >>> copy.model()
        Linear(in_features=2, out_features=3, bias=True)
    """

    __slots__ = ("_fingerprint", "_limits", "_plan", "_text")

    def __init__(self, text: str, plan: Plan, fingerprint: str, limits: Limits) -> None:
        self._text = text
        self._plan = plan
        self._fingerprint = fingerprint
        self._limits = limits

    @classmethod
    def of(
        cls,
        record: CallRecord,
        *,
        codecs: Sequence[Codec[Any]] = (),
        built: bool = False,
        limits: Limits = _DEFAULT_LIMITS,
    ) -> Recipe:
        """Return the recipe of a model.

        Args:
            record: The model before it is an object.
            codecs: The data forms of the user's own types.
            built: The model has been built and used: the mode and ``requires_grad`` of layers of torch among its
                arguments belong to its life and are not compared with those of new layers.
            limits: How much the recipe may hold.

        Raises:
            RecipeError: When something in the model has no data form; it names the path.
        """
        model = Writer(_names(()), codecs, built, limits).write(record)
        document = {"format": FORMAT, "version": VERSION, "packages": _packages(), "model": model}
        return cls.from_json(canonical(document), limits=limits)

    @classmethod
    def from_json(cls, text: str | bytes, *, limits: Limits = _DEFAULT_LIMITS) -> Recipe:
        r"""Return the recipe that a text is. Nothing is imported, called or unpickled.

        Args:
            text: The text, or its bytes in UTF-8.
            limits: How much the recipe may hold.

        Raises:
            RecipeError: When the text is anything but a recipe within the limits; it names every fault and its place.

        Example:
            >>> Recipe.from_json(b"PK\x03\x04...")
            Traceback (most recent call last):
                ...
            replayml.core.errors.RecipeError: [foreign-format] at text: this is a zip archive, such as torch.save ...
        """
        document = parse(text, limits)
        checked = plan(document, limits)
        assert isinstance(document, dict)
        identity = canonical(without_provenance(document["model"]))
        return cls(canonical(document), checked, hashlib.sha256(identity.encode("ascii")).hexdigest(), limits)

    def to_json(self) -> str:
        """Return the canonical text: ASCII, sorted keys, no white space.

        Example:
            >>> print(Recipe.of(CallRecord(torch.nn.ReLU)).to_json())
            {"format":"replayml.recipe","model":{"$call":"torch.nn.ReLU","args":[],"kwargs":{}},"packages":...}
        """
        return self._text

    @property
    def fingerprint(self) -> str:
        """The SHA-256, in hex, of the canonical text of the model without provenance and versions.

        Example:
            >>> one = Recipe.of(CallRecord(torch.nn.ReLU))
            >>> len(one.fingerprint), one.fingerprint == Recipe.of(CallRecord(torch.nn.ReLU)).fingerprint
            (64, True)
        """
        return self._fingerprint

    @property
    def packages(self) -> Mapping[str, str]:
        """The versions that the recipe was written with."""
        return self._plan.packages

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, functions and codecs that the recipe needs, sorted.

        Example:
            >>> Recipe.of(CallRecord(torch.nn.Sequential, (CallRecord(torch.nn.ReLU),))).names
            ('torch.nn.ReLU', 'torch.nn.Sequential')
        """
        return tuple(sorted({part.name for part in self._plan.named}))

    def record(self, trust: Sequence[object] = ()) -> CallRecord:
        """Return the model before it is an object.

        Args:
            trust: Classes, functions and codecs, as objects, that the recipe may use beside replayml modules that the
                program has imported and torch's own layers.

        Raises:
            RecipeError: When a name stands for nothing trusted, or arguments do not fit; every fault is named before
                anything is made.
        """
        return self._plan.record(_names(trust))

    def model(self, trust: Sequence[object] = ()) -> Any:
        """Return the model, unbuilt: its constructor is called and its tape replayed.

        Args:
            trust: As for `record`.

        Raises:
            RecipeError: As for `record`.
            ReplayError: When an entry of the tape cannot be replayed.
        """
        return realize(self.record(trust))

    def __eq__(self, other: object) -> bool:
        return self._fingerprint == other._fingerprint if isinstance(other, Recipe) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fingerprint)

    def __reduce__(self) -> tuple[Any, ...]:
        return _read_again, (self._text, self._limits)

    def __repr__(self) -> str:
        calls = sum(part.kind == "call" for part in self._plan.named)
        entries = len(self._plan.entries)
        counts = f"{calls} call{'s' * (calls != 1)}, {entries} entr{'y' if entries == 1 else 'ies'}"
        return f"<Recipe of {self._plan.root.name}: {counts}, {self._fingerprint[:12]}>"


def _read_again(text: str, limits: Limits) -> Recipe:
    """Return a recipe that was pickled or copied."""
    return Recipe.from_json(text, limits=limits)


def _names(trust: Sequence[object]) -> Names:
    """Return the names that this program knows: the one place where the registry comes in."""
    return Names(registered_classes(), is_recorded, trust)


def _packages() -> dict[str, str]:
    return {"python": platform.python_version(), "replayml": _own_version(), "torch": torch.__version__}


def _own_version() -> str:
    """Return the version of the installed package; a checkout that was never installed has none."""
    try:
        return metadata.version("replayml")
    except metadata.PackageNotFoundError:
        return "unknown"
