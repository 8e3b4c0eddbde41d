"""Writing model files, and clearing away what saves that were cut short have left.

Invariants:
    * At every moment of a save, whoever opens the path finds the whole old model or the whole new one. In a folder the
      files have new names in each save, since two files cannot be replaced at once, and the manifest can.
    * What was written is opened and read once before it takes the place of the old model.
    * A folder that holds something else than a model is left alone, and so are files with names of others.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from replayml.core.errors import RecipeError
from replayml.recipe.files.atomic import is_temporary, mode_of, replace_file
from replayml.recipe.files.container import open_container, write_container
from replayml.recipe.files.manifest import MANIFEST, FileNote, Manifest, is_data_name, new_names, read_manifest
from replayml.recipe.files.reading import CARD, CONFIG, RECIPE_KEY, STATE_KEY, SUFFIX, WEIGHTS, Form
from replayml.recipe.files.state import State
from replayml.recipe.files.sums import sha256_of
from replayml.recipe.format import FORMAT, Limits

__all__ = ["Content", "collect_garbage", "form_for", "write_model_file", "write_pretrained"]

_LIMITS = Limits()
_HOUR = 3600.0
_FORMAT = f'"{FORMAT}"'.encode()


@dataclass(frozen=True, slots=True)
class Content:
    """What is written.

    Attributes:
        recipe: The text of the recipe.
        state: What is known of the built model, or None.
        tensors: The weights, each once.
    """

    recipe: str
    state: State | None = None
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


def form_for(path: str | os.PathLike[str]) -> Form:
    """Return how a model is kept at a path, which may be written to.

    Raises:
        RecipeError: When the path is of no such kind, or something else stands there.

    Example:
        >>> form_for("nets/first.replayml"), form_for("nets/first")
        ('file', 'folder')
    """
    text, path = os.fspath(path), Path(path)
    if not text or "\0" in str(text):
        raise RecipeError("bad-path", ascii(text), f"this is no path. Name a file that ends in {SUFFIX}, or a folder")
    if path.suffix == SUFFIX:
        return "file"
    if not path.suffix or path.is_dir() or str(text).endswith(os.sep):
        _require_own(path)
        return "folder"
    is_number = path.suffix[1:].lstrip("v")[:1].isdigit()  # as in run.v2, or v1.0
    raise RecipeError(
        "bad-path",
        str(path),
        f"a model is saved as a file whose name ends in {SUFFIX}, or as a folder, whose name has no ending; "
        f"{path.suffix} is neither. Save it to {path.name if is_number else path.stem}{SUFFIX}; or, for a folder of "
        f"this name, write it with a slash at its end: {path.name + os.sep!r}",
    )


def _require_own(folder: Path) -> None:
    """Raise unless a folder holds a model, the rest of a save that was cut short, or nothing."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise RecipeError(
            "bad-path", str(folder), f"a file stands there, and a name without {SUFFIX} is one of a folder"
        )
    if (folder / MANIFEST).exists():
        read_manifest(folder)
    elif not all(_is_ours(name) for name in os.listdir(folder)):
        raise RecipeError(
            "not-a-model",
            str(folder),
            f"this folder holds something else than a model, and is left alone. Save to {folder / 'model'} or to "
            f"{folder / ('model' + SUFFIX)}",
        )


def _is_ours(name: str) -> bool:
    return is_data_name(name) or is_temporary(name)


def write_model_file(path: str | os.PathLike[str], content: Content) -> None:
    """Write a model, in the place of an older one if there is one.

    Args:
        path: A file that ends in ``.replayml``, or a folder.
        content: The model.

    Raises:
        RecipeError: When the path is of no such kind, or a tensor has no data form.
        OSError: When it cannot be written; an older model is there as before.
    """
    if form_for(path) == "file":
        _write_whole(Path(path), content)
    else:
        _write_folder(Path(path), content)


def _write_whole(path: Path, content: Content) -> None:
    metadata = {RECIPE_KEY: content.recipe, **_noted(content)}
    replace_file(path, partial(write_container, tensors=content.tensors, metadata=metadata), _check_written)


def _noted(content: Content) -> dict[str, str]:
    return {} if content.state is None else {STATE_KEY: content.state.to_text()}


def _check_written(path: Path) -> None:
    open_container(path, _LIMITS).check()


def _write_folder(folder: Path, content: Content) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = new_names()
    try:
        manifest = _write_data(folder, content, *names)
        old = _names_in_force(folder)
        replace_file(folder / MANIFEST, lambda file: file.write(manifest.to_bytes()))
    except BaseException:
        for name in set(names) - _names_in_force(folder):
            _remove(folder / name)
        raise
    for name in old:
        _remove(folder / name)
    if old:  # without a manifest the other files may be a model that lost it
        collect_garbage(folder)


def _write_data(folder: Path, content: Content, recipe_name: str, weights_name: str) -> Manifest:
    """Write the files of a model under new names, and return the manifest that puts them in force.

    Their permissions are those of the manifest that is there.
    """
    text = content.recipe.encode()
    mode = mode_of(folder / MANIFEST)
    replace_file(folder / recipe_name, lambda file: file.write(text), mode=mode)
    recipe = FileNote(recipe_name, len(text), hashlib.sha256(text).hexdigest())
    if content.state is None:
        return Manifest(recipe, None, "")
    path = folder / weights_name
    write = partial(write_container, tensors=content.tensors, metadata=_noted(content))
    replace_file(path, write, _check_written, mode)
    written = open_container(path, _LIMITS)
    return Manifest(recipe, FileNote(weights_name, written.size, sha256_of(path)), written.seal)


def _names_in_force(folder: Path) -> frozenset[str]:
    """Return the names of the files that the manifest of a folder names."""
    return read_manifest(folder).names if (folder / MANIFEST).exists() else frozenset()


def _remove(path: Path) -> None:
    with suppress(PermissionError):  # some systems keep a file that is in use; it is removed by a later save
        path.unlink(missing_ok=True)


def write_pretrained(folder: Path, content: Content, card: str) -> None:
    """Write a model as the Hugging Face Hub keeps it.

    Args:
        folder: Where to write it; other files in it stay, and a folder with another kind of model is refused.
        content: The model.
        card: The model card; one that is there already stays.

    Raises:
        RecipeError: When a tensor has no data form, or files of others stand there.
        OSError: When it cannot be written.
    """
    _require_pretrained(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(folder / WEIGHTS, content)
    replace_file(folder / CONFIG, lambda file: file.write(content.recipe.encode()))
    if not (folder / CARD).exists():
        replace_file(folder / CARD, lambda file: file.write(card.encode()))


def _require_pretrained(folder: Path) -> None:
    """Raise when files of a model of another kind stand where one for the Hub would be written."""
    if (folder / MANIFEST).exists():
        found = f"a model that save() wrote ({MANIFEST})"
    elif (folder / CONFIG).exists() and _FORMAT not in (folder / CONFIG).read_bytes():
        found = f"a {CONFIG} of another library"
    elif (folder / WEIGHTS).exists() and not _is_whole(folder / WEIGHTS):
        found = f"a {WEIGHTS} of another library, or a damaged one"
    else:
        return
    raise RecipeError(
        "not-a-model", str(folder), f"this folder holds {found}, which is left alone. Save to another folder"
    )


def _is_whole(path: Path) -> bool:
    """Tell whether a file holds a model with its recipe."""
    try:
        return RECIPE_KEY in open_container(path, _LIMITS).metadata
    except RecipeError:
        return False


def collect_garbage(folder: str | os.PathLike[str], *, older_than: float = _HOUR, dry_run: bool = False) -> list[Path]:
    """Remove what saves that were cut short have left in a folder.

    Only files with names that replayml gives are removed, and never those that the manifest of the folder names.
    Where there is no manifest, the data may be a model that lost it, and only temporary files are removed.

    Args:
        folder: A model folder, or a folder with model files in it.
        older_than: The least age in seconds, since a save may be going on.
        dry_run: Remove nothing.

    Returns:
        The files that are removed.

    Raises:
        RecipeError: When the manifest of the folder was changed, so that it is not known which files are in force.
    """
    folder = Path(folder)
    kept = _names_in_force(folder)
    found = []
    for name in sorted(os.listdir(folder)):
        if is_temporary(name) or (kept and name not in kept and is_data_name(name)):
            with suppress(FileNotFoundError):  # another process removes them too
                if time.time() - (folder / name).stat().st_mtime >= older_than:
                    found.append(folder / name)
    for path in () if dry_run else found:
        _remove(path)
    return found
