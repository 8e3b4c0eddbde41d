"""Model files: a recipe and the weights that belong to it, on disk.

    NAME.replayml     one file: sealed weights (`replayml.recipe.files.container`) with the recipe in their header
    NAME/             a folder: recipe-*.json, model-*.safetensors, and manifest.json, which names the two in force
    NAME/             for the Hugging Face Hub: model.safetensors, as in NAME.replayml, beside config.json, its recipe

A model that is not built has a recipe only.

Invariants:
    * To open a model file runs nothing, imports nothing and reads no tensor.
    * The two files of a folder are those that its manifest names, also while another process saves to the folder.
    * One flipped bit, and one missing byte, is refused.

Codes of refusals beside those of `replayml.recipe.format`: bad-path, not-a-model, not-regular, missing-file,
wrong-size, changed-file, bad-manifest, bad-weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch

from replayml.core.errors import RecipeError
from replayml.recipe.faults import UNTOUCHED
from replayml.recipe.files.container import Container, Entry, open_container
from replayml.recipe.files.manifest import MANIFEST, FileNote, Manifest, read_manifest
from replayml.recipe.files.regular import read_file
from replayml.recipe.files.state import State
from replayml.recipe.files.sums import sha256_of
from replayml.recipe.format import Limits
from replayml.recipe.recipe import Recipe

__all__ = [
    "CARD",
    "CONFIG",
    "RECIPE_KEY",
    "STATE_KEY",
    "SUFFIX",
    "WEIGHTS",
    "Form",
    "ModelFile",
    "read_model_file",
    "verify",
]

Form = Literal["file", "folder", "pretrained"]

SUFFIX = ".replayml"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"

RECIPE_KEY, STATE_KEY = "replayml.recipe", "replayml.state"
_LIMITS = Limits()


# Reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file that was opened.

    Attributes:
        path: The file, or the folder.
        form: How it is kept.
        recipe: The text of the recipe.
        state: What is known of the built model; None for one that is not built.
        files: The sizes in bytes of its files, by name.
    """

    path: Path
    form: Form
    recipe: str
    state: State | None
    files: Mapping[str, int]
    _weights: Container | None = field(repr=False)

    @property
    def is_built(self) -> bool:
        """Whether it holds weights."""
        return self.state is not None

    @property
    def tensors(self) -> Mapping[str, Entry]:
        """Where each tensor stands, and its type and shape, by name; each is stored once."""
        return MappingProxyType({}) if self._weights is None else self._weights.entries

    @property
    def ties(self) -> Mapping[str, str]:
        """The names of weights that are stored under another name."""
        return MappingProxyType({}) if self.state is None else self.state.ties

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all weights."""
        return (*self.tensors, *self.ties)

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(entry.stop - entry.start for entry in self.tensors.values())

    def entry(self, name: str) -> Entry:
        """Return the type and the shape of a weight."""
        return self.tensors[self.ties.get(name, name)]

    def check(self) -> None:
        """Read all tensors once.

        Raises:
            RecipeError: When they are not those that were written.
        """
        if self._weights is not None:
            self._weights.check()

    def tensor(self, name: str) -> torch.Tensor:
        """Return a weight, which stays in the file until it is used; changing it does not change the file."""
        if self._weights is None:
            raise KeyError(name)
        return self._weights.tensor(self.ties.get(name, name))


def read_model_file(path: str | os.PathLike[str], *, limits: Limits = _LIMITS) -> ModelFile:
    """Open a model file. Nothing is imported, called or unpickled, and no tensor is read.

    Args:
        path: A file, or a folder.
        limits: How much the recipe may hold.

    Raises:
        RecipeError: When it is no model file, or was changed.
        OSError: When there is nothing, or it cannot be opened.
    """
    path = Path(path)
    if not path.is_dir():
        return _whole(path, "file", open_container(path, limits))
    if (path / MANIFEST).exists():
        return _read_folder(path, limits)
    if (path / WEIGHTS).exists():
        return _read_pretrained(path, limits)
    raise RecipeError(
        "not-a-model",
        str(path),
        f"this folder holds no model: it has neither {MANIFEST} nor {WEIGHTS}. A save that was cut short leaves no "
        f"model where there was none before. {UNTOUCHED}",
    )


def _whole(path: Path, form: Form, weights: Container) -> ModelFile:
    """Return a model whose recipe stands in the header of its weights."""
    metadata = weights.metadata
    state = _state_of(weights)
    if metadata.keys() - {STATE_KEY} != {RECIPE_KEY} or (state is None and weights.entries):
        raise RecipeError("bad-weights", str(weights.path), f"the header is not that of a model. {UNTOUCHED}")
    recipe = metadata[RECIPE_KEY]
    if state is not None and state.recipe != _sha256(recipe):
        raise RecipeError("bad-weights", str(weights.path), f"the recipe is that of another model. {UNTOUCHED}")
    return ModelFile(path, form, recipe, state, MappingProxyType({weights.path.name: weights.size}), weights)


def _state_of(weights: Container) -> State | None:
    text = weights.metadata.get(STATE_KEY)
    if text is None:
        return None
    state = State.from_text(text, str(weights.path))
    if set(state.ties.values()) - weights.entries.keys() or state.ties.keys() & weights.entries.keys():
        raise RecipeError("bad-weights", str(weights.path), f"a tied weight stands for none. {UNTOUCHED}")
    return state


def _read_folder(folder: Path, limits: Limits) -> ModelFile:
    manifest = read_manifest(folder)
    while True:
        try:
            return _read_named(folder, manifest, limits)
        except FileNotFoundError as error:
            old, manifest = manifest, read_manifest(folder)  # another save has put its files in the place of these
            if manifest == old:
                name = Path(str(error.filename)).name
                raise RecipeError(
                    "missing-file", str(folder), f"{MANIFEST} names {name}, which is not there. Copy the whole folder"
                ) from None


def _read_named(folder: Path, manifest: Manifest, limits: Limits) -> ModelFile:
    path = folder / manifest.recipe.name
    data = read_file(path, limits.size)
    _require_size(path, len(data), manifest.recipe)
    if hashlib.sha256(data).hexdigest() != manifest.recipe.sha256:
        raise RecipeError("changed-file", str(path), "the recipe is not the one that was written. Take another copy")
    try:
        recipe = data.decode()
    except UnicodeDecodeError as error:
        raise RecipeError("not-utf8", str(path), f"byte {error.start} is not UTF-8. {UNTOUCHED}") from None
    files = {MANIFEST: (folder / MANIFEST).stat().st_size, path.name: len(data)}
    if manifest.weights is None:
        return ModelFile(folder, "folder", recipe, None, MappingProxyType(files), None)
    weights = open_container(folder / manifest.weights.name, limits)
    _require_size(weights.path, weights.size, manifest.weights)
    state = _state_of(weights)
    if weights.seal != manifest.seal or state is None or state.recipe != manifest.recipe.sha256:
        raise RecipeError(
            "changed-file", str(weights.path), "these are the weights of another model. Take another copy"
        )
    files[weights.path.name] = weights.size
    return ModelFile(folder, "folder", recipe, state, MappingProxyType(files), weights)


def _require_size(path: Path, size: int, note: FileNote) -> None:
    if size != note.size:
        raise RecipeError(
            "wrong-size", str(path), f"the file has {size} bytes instead of {note.size}. Take a whole copy of it"
        )


def _read_pretrained(folder: Path, limits: Limits) -> ModelFile:
    file = _whole(folder, "pretrained", open_container(folder / WEIGHTS, limits))
    path = folder / CONFIG
    if not path.exists():
        raise RecipeError("missing-file", str(path), f"a recipe belongs beside {WEIGHTS}. Copy the whole folder")
    if read_file(path, limits.size) != file.recipe.encode():
        raise RecipeError(
            "changed-file",
            str(path),
            f"this is not the recipe that the weights were saved with: it was changed, or a save was cut short. "
            f"{folder / WEIGHTS} holds both and can be loaded by itself",
        )
    return file


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def verify(path: str | os.PathLike[str], *, limits: Limits = _LIMITS) -> ModelFile:
    """Read a model file completely, and compare every size and digest.

    Args:
        path: A file, or a folder.
        limits: How much the recipe may hold.

    Raises:
        RecipeError: When anything is not as it was written, or the recipe is not safe to follow.
        OSError: When there is nothing, or it cannot be opened.
    """
    file = read_model_file(path, limits=limits)
    Recipe.from_json(file.recipe, limits=limits)
    weights = file._weights
    if weights is not None:
        weights.check()
        weights.check_sha256()
    if file.form == "folder":
        noted = read_manifest(file.path).weights
        if noted is not None and noted.name in file.files and sha256_of(file.path / noted.name) != noted.sha256:
            raise RecipeError("changed-file", str(file.path / noted.name), "the SHA-256 is not that of the manifest")
    return file
