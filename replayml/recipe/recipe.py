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
from functools import cache, partial
from importlib import metadata
from typing import Any

import torch

from replayml.core.copying import realize
from replayml.core.hooks import is_recorded
from replayml.core.meta import registered_classes
from replayml.core.tape import CallRecord
from replayml.recipe.codecs import Codec
from replayml.recipe.data_sets import is_plain, without_data_sets
from replayml.recipe.format import FORMAT, VERSION, Limits, canonical
from replayml.recipe.migrate import Renames
from replayml.recipe.provenance import without_provenance
from replayml.recipe.text.metering import measured, rehearse
from replayml.recipe.text.names import Names
from replayml.recipe.text.reader import Plan, plan
from replayml.recipe.text.strict import parse
from replayml.recipe.text.writer import Writer
from replayml.recipe.views.diff import RecipeDiff, compare, compare_weights
from replayml.recipe.views.effective import Comparison

__all__ = ["Recipe", "known_names", "without_large_data"]

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
        allow_pickle: bool = False,
    ) -> Recipe:
        """Return the recipe of a model.

        What `evalset` and `trainset` were given is in it only where that is names and a few plain values.

        Args:
            record: The model before it is an object.
            codecs: The data forms of the user's own types.
            built: The model has been built and used: the mode and ``requires_grad`` of layers of torch among its
                arguments belong to its life and are not compared with those of new layers.
            limits: How much the recipe may hold.
            allow_pickle: Keep a value without a data form, such as a lambda, as a pickle. Who opens the recipe must
                allow it too, since that runs the pickle; the fingerprint then tells equal models apart whose code
                stands in different files. A pickle holds copies: a part of the model that it refers to, as a closure
                can, is another object than that part afterwards.

        Raises:
            RecipeError: When something in the model has no data form; it names the path.
        """
        record = without_large_data(record)
        model = Writer(known_names(()), codecs, built, limits, allow_pickle).write(record)
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
        identity = canonical(without_provenance(checked.document["model"]))
        digest = hashlib.sha256(identity.encode("ascii")).hexdigest()
        return cls(canonical(checked.document), checked, digest, limits)

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

    @property
    def plan(self) -> Plan:
        """What the recipe says, as data."""
        return self._plan

    def record(
        self,
        trust: Sequence[object] = (),
        rename: Mapping[str, str] | None = None,
        allow_pickle: bool = False,
    ) -> CallRecord:
        """Return the model before it is an object.

        Args:
            trust: Classes, functions and codecs, as objects, that the recipe may use beside replayml modules that the
                program has imported and torch's own layers.
            rename: Names that the recipe gives, and those that the same things have now: whole names, or the names of
                modules from which everything has moved.
            allow_pickle: Open values that are kept as pickles. This runs whatever code their author put into them.

        Raises:
            RecipeError: When a name stands for nothing trusted, or arguments do not fit; every fault is named before
                anything is made.

        Example:
            >>> old = Recipe.of(CallRecord(torch.nn.ReLU)).to_json().replace("torch.nn.ReLU", "acme.nets.Rectifier")
            >>> Recipe.from_json(old).record(rename={"acme.nets.Rectifier": "torch.nn.ReLU"}).cls
            <class 'torch.nn.modules.activation.ReLU'>
        """
        return self._plan.record(known_names(trust), Renames(rename), allow_pickle)

    def model(
        self,
        trust: Sequence[object] = (),
        rename: Mapping[str, str] | None = None,
        allow_pickle: bool = False,
    ) -> Any:
        """Return the model, unbuilt: its constructor is called and its tape replayed.

        It is made twice: first in a dry run, where its tensors have no memory and are counted.

        Args:
            trust: As for `record`.
            rename: As for `record`.
            allow_pickle: As for `record`.

        Raises:
            RecipeError: As for `record`, and when it takes more than the limits of this recipe allow.
            ReplayError: When an entry of the tape cannot be replayed.
        """
        record = self.record(trust, rename, allow_pickle)
        return measured(lambda: realize(record), self._limits)

    def diff(
        self,
        other: Recipe,
        *,
        trust: Sequence[object] = (),
        rename: Mapping[str, str] | None = None,
        allow_pickle: bool = False,
        weights: tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]] | None = None,
    ) -> RecipeDiff:
        """Return what differs between this recipe and another, and the calls that turn this model into the other.

        Both models are made, unbuilt, to compare what is in force in them.

        Args:
            other: The other recipe.
            trust: As for `record`, for both.
            rename: As for `record`, for both.
            allow_pickle: As for `record`, for both.
            weights: The ``state_dict`` of this model and of the other, to be compared as well.

        Raises:
            RecipeError: As for `model`.

        Example:
            >>> import replayml
            >>> net = replayml.Layer(torch.nn.Linear, 2, 3)
            >>> found = net.recipe().diff(net.new().configure(bias=False).recipe())
            >>> print(found)
            1 setting differs:
              model.bias: True -> False
            calls on one tape only:
              + 0: model.configure(bias=False) ...
            calls that turn the first into the second:
              model.configure(bias=False)
            >>> found.apply(net).bias
            False
        """
        names, codecs = known_names(trust), [thing for thing in trust if isinstance(thing, Codec)]

        def identity(record: CallRecord) -> tuple[str, list[str]]:
            recipe = Recipe.of(record, codecs=codecs, built=True, limits=self._limits, allow_pickle=True)
            call = without_provenance(recipe._plan.document["model"])
            assert isinstance(call, dict)
            tape = call.pop("tape", [])
            return recipe.fingerprint, [canonical(part) for part in (call, *tape)]

        ones, others = (recipe.record(trust, rename, allow_pickle) for recipe in (self, other))
        for recipe, record in ((self, ones), (other, others)):
            rehearse(partial(realize, record), recipe._limits)
        comparison = Comparison(names, codecs, self._limits)
        return compare(ones, others, comparison, identity, () if weights is None else compare_weights(*weights))

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


def known_names(trust: Sequence[object]) -> Names:
    """Return the names that this program knows: the one place where the registry comes in."""
    return Names(registered_classes(), is_recorded, trust)


def _packages() -> dict[str, str]:
    return {"python": platform.python_version(), "replayml": _own_version(), "torch": torch.__version__}


@cache
def _own_version() -> str:
    """Return the version of the installed package; a checkout that was never installed has none."""
    try:
        return metadata.version("replayml")
    except metadata.PackageNotFoundError:
        return "unknown"


def without_large_data(record: CallRecord) -> CallRecord:
    """Return a record as it is written: without the data sets that are more than names and a few plain values."""
    return without_data_sets(record, partial(is_plain, has_name=known_names(()).has))
