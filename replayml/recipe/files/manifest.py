"""The manifest of a model folder: which files are the model now, with the size and the SHA-256 of each.

Invariants:
    * A folder holds the model that its manifest names; replacing the manifest is what changes the model.
    * Each save has file names of its own, so that no file that a manifest names is ever written again.
    * One flipped bit anywhere in the manifest is refused: it has one spelling, and a seal over it.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from replayml.core.errors import RecipeError
from replayml.recipe.faults import UNTOUCHED
from replayml.recipe.files.regular import read_file
from replayml.recipe.format import Limits
from replayml.recipe.text.strict import parse

__all__ = ["MANIFEST", "FileNote", "Manifest", "is_data_name", "new_names", "read_manifest"]

MANIFEST = "manifest.json"
FORMAT = "replayml.manifest"
VERSION = 1

_MOST_BYTES = 64 * 1024
_RECIPE = re.compile(r"recipe-[0-9a-f]{16}\.json")
_WEIGHTS = re.compile(r"model-[0-9a-f]{16}\.safetensors")
_SHA256 = re.compile("[0-9a-f]{64}")


class FileNote(NamedTuple):
    """What a manifest says of one file.

    Attributes:
        name: Its name in the folder.
        size: Its size in bytes.
        sha256: The SHA-256 of its bytes.
    """

    name: str
    size: int
    sha256: str


class Manifest(NamedTuple):
    """What a folder holds.

    Attributes:
        recipe: The recipe.
        weights: The weights; None for a model that is not built.
        seal: The seal of the header of the weights; empty where there are none.

    Example:
        >>> manifest = Manifest(FileNote("recipe-0123456789abcdef.json", 2, "0" * 64), None, "")
        >>> Manifest.from_bytes(manifest.to_bytes(), "somewhere") == manifest
        True
    """

    recipe: FileNote
    weights: FileNote | None
    seal: str

    @property
    def names(self) -> frozenset[str]:
        """The names of the files."""
        return frozenset(note.name for note in (self.recipe, self.weights) if note is not None)

    def to_bytes(self) -> bytes:
        """Return the text, in UTF-8."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "recipe": self.recipe._asdict(),
            "weights": None if self.weights is None else {**self.weights._asdict(), "seal": self.seal},
        }
        return _text({**document, "seal": hashlib.sha256(_text(document)).hexdigest()})

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Manifest:
        """Return what a text says.

        Args:
            data: The text, in UTF-8.
            where: The file, for a refusal.

        Raises:
            RecipeError: When it is none that `to_bytes` wrote, or was changed since.
        """
        document = parse(data, Limits(size=_MOST_BYTES))
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise RecipeError("not-a-model", where, f"this is no manifest of a model. {UNTOUCHED}")
        version = document.get("version")
        if type(version) is int and version > VERSION:
            raise RecipeError(
                "newer-version",
                where,
                f"the manifest has version {version}; this replayml reads up to {VERSION}. Install a newer one",
            )
        recipe, weights = _note(document.get("recipe"), _RECIPE), document.get("weights")
        noted = None if weights is None else _note(weights, _WEIGHTS)
        if recipe is not None and (weights is None) == (noted is None):
            manifest = cls(recipe, noted, "" if weights is None else str(weights.get("seal")))
            if manifest.to_bytes() == data:
                return manifest
        raise RecipeError("bad-manifest", where, f"the manifest was changed. Take another copy of it. {UNTOUCHED}")


def _note(data: Any, names: re.Pattern[str]) -> FileNote | None:
    match data:
        case {"name": str() as name, "size": int() as size, "sha256": str() as sha256}:
            if names.fullmatch(name) and type(size) is int and size >= 0 and _SHA256.fullmatch(sha256):
                return FileNote(name, size, sha256)
    return None


def _text(document: Mapping[str, object]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode("ascii")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a folder.

    Raises:
        RecipeError: When it was changed, or is none of a model.
        FileNotFoundError: When there is none.
    """
    path = folder / MANIFEST
    return Manifest.from_bytes(read_file(path, _MOST_BYTES), str(path))


def new_names() -> tuple[str, str]:
    """Return a name for a recipe, and one for weights, that no other save uses."""
    token = secrets.token_hex(8)
    return f"recipe-{token}.json", f"model-{token}.safetensors"


def is_data_name(name: str) -> bool:
    """Tell whether a name is one that `new_names` gives.

    Example:
        >>> is_data_name("recipe-0123456789abcdef.json"), is_data_name("recipe.json")
        (True, False)
    """
    return (_RECIPE.fullmatch(name) or _WEIGHTS.fullmatch(name)) is not None
