"""What is in a model file, shown without following it.

    print(replayml.inspect("net.replayml"))

Invariants:
    * Nothing is imported, called or unpickled, and no tensor is read.
    * Whatever a file gives is shown escaped, and cut where it is long.
    * What would be refused at loading is refused here, or shown: a name that is not trusted, a value that is a pickle.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from replayml.core.errors import RecipeError
from replayml.recipe.faults import MODEL, UNTOUCHED, Flaw
from replayml.recipe.files.archive import check_archive
from replayml.recipe.files.reading import SUFFIX, ModelFile, read_model_file
from replayml.recipe.files.regular import read_file
from replayml.recipe.format import Limits
from replayml.recipe.migrate import Renames
from replayml.recipe.recipe import Recipe, known_names
from replayml.recipe.text.names import Names
from replayml.recipe.text.reader import Plan
from replayml.recipe.views.structure import (
    CallNote,
    EntryNote,
    Finder,
    call_data,
    entry_data,
    line_text,
    plain_text,
    tree_lines,
)

__all__ = ["BlobNote", "CallNote", "EntryNote", "Inspection", "NameNote", "WeightsNote", "inspect"]

_LIMITS = Limits()
_LONGEST = 60
_MOST = 200
_RECIPE_KEY = "__from_ckpt_application"
_CHECKPOINTS = (".ckpt", ".pt", ".pth")
_MODELS = (SUFFIX, ".safetensors")


# What is told -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NameNote:
    """A name that the recipe needs.

    Attributes:
        name: The name.
        kinds: What it must stand for, such as ``call`` or ``function``.
        uses: In how many places it stands.
        is_trusted: It could be used now.
        reason: Why it could not.
    """

    name: str
    kinds: tuple[str, ...]
    uses: int
    is_trusted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class BlobNote:
    """A value that is kept as a pickle.

    Attributes:
        place: Where it stands.
        type: What it was, as the file says.
        bytes: How long the pickle is.
    """

    place: str
    type: str
    bytes: int


@dataclass(frozen=True, slots=True)
class WeightsNote:
    """The weights that belong to the recipe.

    Attributes:
        tensors: How many there are.
        parameters: How many numbers are in them.
        bytes: What they take.
        dtypes: How many tensors there are of each type.
        shapes: The shape of each, by name.
    """

    tensors: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is in a model file.

    Attributes:
        source: The path, or ``text``.
        form: How it is kept: ``text``, ``file``, ``folder``, ``pretrained`` or ``checkpoint``.
        version: The version of the format.
        packages: The versions of the packages that it was written with.
        fingerprint: See `Recipe.fingerprint`.
        size: Bytes of the recipe.
        structure: The constructor call of the model, with those below it.
        tape: The calls on the model since.
        names: The names that it needs, sorted.
        blobs: Its pickled values.
        counts: How many calls, entries, values and small tensors it has.
        weights: What is known of its weights; None where there are none.

    Example:
        >>> import replayml
        >>> from torch import nn
        >>> text = replayml.Layer(nn.Linear, 4, 8).configure(bias=False).recipe().to_json()
        >>> print(inspect(text))
        model in text, format 2, ... bytes, fingerprint ...
        written with python ..., replayml ..., torch ...
        structure
          Layer(Linear, 4, 8) ...
        tape
          0: model.configure(bias=False) ...
        names: all 2 can be used now
          replayml.layers.layer.Layer  call
          torch.nn.Linear              class
        1 call, 1 tape entry, ... values
        Nothing was imported, called or unpickled.
    """

    source: str
    form: str
    version: int
    packages: Mapping[str, str]
    fingerprint: str
    size: int
    structure: CallNote
    tape: tuple[EntryNote, ...]
    names: tuple[NameNote, ...]
    blobs: tuple[BlobNote, ...]
    counts: Mapping[str, int]
    weights: WeightsNote | None

    @property
    def is_trusted(self) -> bool:
        """Whether it could be loaded now, without more trust and without opening a pickle."""
        return not self.blobs and all(name.is_trusted for name in self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data, which JSON can hold."""
        return {
            "source": self.source,
            "form": self.form,
            "version": self.version,
            "packages": dict(self.packages),
            "fingerprint": self.fingerprint,
            "size": self.size,
            "trusted": self.is_trusted,
            "structure": call_data(self.structure),
            "tape": [entry_data(entry) for entry in self.tape],
            "names": [
                {
                    "name": note.name,
                    "kinds": list(note.kinds),
                    "uses": note.uses,
                    "trusted": note.is_trusted,
                    "reason": note.reason,
                }
                for note in self.names
            ],
            "blobs": [{"place": blob.place, "type": blob.type, "bytes": blob.bytes} for blob in self.blobs],
            "counts": dict(self.counts),
            "weights": None if self.weights is None else _weights_data(self.weights),
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"model in {self.source}, format {self.version}, {self.size} bytes, fingerprint {self.fingerprint[:12]}"
        packages = ", ".join(
            f"{plain_text(name)} {plain_text(version)}" for name, version in sorted(self.packages.items())
        )
        yield f"written with {packages}" if packages else "written with nothing that it tells"
        yield from _cut("structure", list(tree_lines(self.structure)))
        yield from _cut("tape", [f"{entry.number}: {entry.call}{line_text(entry.where)}" for entry in self.tape])
        yield from self._name_lines()
        if self.blobs:
            title = f"pickled values: {len(self.blobs)}, which run code when they are opened (allow_pickle=True)"
            yield from _cut(title, [f"{blob.place}: {blob.type}, {blob.bytes} bytes" for blob in self.blobs])
        if self.weights is not None:
            dtypes = ", ".join(f"{count} {dtype}" for dtype, count in self.weights.dtypes.items())
            yield f"weights: {self.weights.parameters} numbers, {self.weights.bytes} bytes, in tensors: {dtypes or 0}"
        yield ", ".join(_counted(what, count) for what, count in self.counts.items() if count)
        yield UNTOUCHED

    def _name_lines(self) -> Iterator[str]:
        unknown = sum(not note.is_trusted for note in self.names)
        total = len(self.names)
        title = f"names: {unknown} of {total} cannot be used now" if unknown else f"names: all {total} can be used now"
        texts = [plain_text(note.name) for note in self.names]
        width = min(max(map(len, texts)), _LONGEST)
        yield from _cut(
            title,
            [
                f"{text:{width}}  {', '.join(note.kinds)}" + (f"  ! {note.reason}" if not note.is_trusted else "")
                for text, note in zip(texts, self.names, strict=True)
            ],
        )


def _weights_data(weights: WeightsNote) -> dict[str, Any]:
    return {
        "tensors": weights.tensors,
        "parameters": weights.parameters,
        "bytes": weights.bytes,
        "dtypes": dict(weights.dtypes),
        "shapes": {name: list(shape) for name, shape in weights.shapes.items()},
    }


def _cut(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield title
        yield from (f"  {line}" for line in lines[:_MOST])
    if len(lines) > _MOST:
        yield f"  ... and {len(lines) - _MOST} more"


def _counted(what: str, count: int) -> str:
    plural = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{count} {what if count == 1 else plural}"


# Looking ------------------------------------------------------------------------------------------------------------


def inspect(
    source: str | bytes | os.PathLike[str] | Recipe,
    *,
    trust: Sequence[object] = (),
    rename: Mapping[str, str] | None = None,
    limits: Limits = _LIMITS,
) -> Inspection:
    """Return what is in a model file. Nothing is imported, called or unpickled, and no tensor is read.

    Args:
        source: A path (a model file, a folder, a checkpoint, or the text of a recipe in a file), or the text itself.
        trust: What loading would be given; the names that it makes usable are shown as such.
        rename: As for `Recipe.record`.
        limits: How much the recipe may hold.

    Raises:
        RecipeError: When it is no recipe within the limits; it names every fault and its place.
        OSError: When there is no such file.

    Example:
        >>> import replayml
        >>> found = inspect(replayml.MultiLayerPerceptron(4, [8], 2).recipe())
        >>> found.structure.name, found.is_trusted
        ('replayml.blocks.components.MultiLayerPerceptron', True)
    """
    place, form, recipe, weights = _opened(source, limits)
    plan = recipe.plan
    names, renames = known_names(trust), Renames(rename)
    model: Any = plan.document["model"]
    finder = Finder()
    structure = finder.call(model, MODEL)
    return Inspection(
        source=place,
        form=form,
        version=plan.version,
        packages=plan.packages,
        fingerprint=recipe.fingerprint,
        size=len(recipe.to_json()),
        structure=structure,
        tape=structure.entries,
        names=tuple(_names(plan, names, renames)),
        blobs=tuple(BlobNote(str(part.place), plain_text(part.type), len(part.data)) for part in plan.opaque),
        counts=finder.counts(plan, model),
        weights=weights,
    )


def _opened(source: Any, limits: Limits) -> tuple[str, str, Recipe, WeightsNote | None]:
    """Return where something stands, how it is kept, its recipe, and what is known of its weights."""
    if isinstance(source, Recipe):
        return "text", "text", source, None
    if isinstance(source, bytes) or (isinstance(source, str) and source.lstrip()[:1] in ("{", "[", "")):
        return "text", "text", Recipe.from_json(source, limits=limits), None
    path = Path(source)
    if path.is_dir() or path.suffix in _MODELS:
        file = read_model_file(path, limits=limits)
        weights = _weights_of(file) if file.is_built else None
        return str(path), file.form, Recipe.from_json(file.recipe, limits=limits), weights
    if path.suffix in _CHECKPOINTS:
        return str(path), "checkpoint", *_checkpoint(path, limits)
    return str(path), "text", Recipe.from_json(read_file(path, limits.size), limits=limits), None


def _weights_of(file: ModelFile) -> WeightsNote:
    shapes = {name: tuple(entry.shape) for name, entry in file.tensors.items()}
    return _note_weights(shapes, Counter(_dtype(entry.dtype) for entry in file.tensors.values()), file.nbytes)


def _note_weights(shapes: Mapping[str, tuple[int, ...]], dtypes: Counter[str], size: int) -> WeightsNote:
    parameters = sum(torch.Size(shape).numel() for shape in shapes.values())
    return WeightsNote(len(shapes), parameters, size, dict(dtypes.most_common()), shapes)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _checkpoint(path: Path, limits: Limits) -> tuple[Recipe, WeightsNote]:
    """Return the recipe in the hyper-parameters of a checkpoint, and what its weights are."""
    check_archive(path, str(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:
        message = "this is no checkpoint that can be opened without unpickling, and nothing was unpickled."
        raise RecipeError("unsafe-file", str(path), message) from error
    parameters = content.get("hyper_parameters") if isinstance(content, dict) else None
    text = parameters.get(_RECIPE_KEY) if isinstance(parameters, dict) else None
    if not isinstance(text, str):
        raise RecipeError("no-recipe", str(path), f"this checkpoint carries no recipe. {UNTOUCHED}")
    state = content.get("state_dict")
    tensors = {
        plain_text(str(name)): tensor
        for name, tensor in (state.items() if isinstance(state, dict) else ())
        if isinstance(tensor, torch.Tensor)
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtypes = Counter(_dtype(tensor.dtype) for tensor in tensors.values())
    return Recipe.from_json(text, limits=limits), _note_weights(
        shapes, dtypes, sum(tensor.nbytes for tensor in tensors.values())
    )


def _names(plan: Plan, names: Names, renames: Renames) -> Iterator[NameNote]:
    """Yield every name of a recipe, and whether it could be used now."""
    uses: dict[str, Counter[Any]] = {}
    for part in plan.named:
        uses.setdefault(part.name, Counter())[part.kind] += 1
    unknown = 0
    for name in sorted(uses):
        reason = ""
        try:
            for kind in uses[name]:
                names.find(renames.of(name), kind, suggest=unknown < 5)
        except Flaw as flaw:
            unknown += 1
            reason = flaw.message
        yield NameNote(name, tuple(sorted(uses[name])), uses[name].total(), not reason, reason)
