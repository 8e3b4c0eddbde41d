"""Opening a file for a command that looks at it: its recipe, and which weights it has.

Invariants:
    * Nothing is imported, called or unpickled, and no weight is read. A checkpoint is opened by torch's own reader of
      tensors and plain values.
    * A model is made only of classes of replayml and torch, and of modules that the user names with ``--import``;
      it is not built and holds no memory for weights.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from replayml.cli.report import UsageError
from replayml.core.errors import RecipeError, ReplaymlError
from replayml.module.saving import import_own
from replayml.module.sizes import read_sizes, take_sizes
from replayml.recipe import Limits, Recipe
from replayml.recipe.faults import shown
from replayml.recipe.files.reading import SUFFIX, ModelFile, read_model_file
from replayml.recipe.files.regular import read_file
from replayml.recipe.migrate import Renames

__all__ = ["Opened", "Tensor", "import_known", "make_model", "open_file", "read_renames", "require_module", "with_hint"]

ZIP = b"PK\x03\x04"
RECIPE_KEY = "__from_ckpt_application"
KWARGS_KEY = "__build_kwargs"

_LIMITS = Limits()


class Tensor(NamedTuple):
    """What is known of a weight without reading it.

    Attributes:
        shape: Its shape.
        dtype: Its type, such as ``"float32"``.
    """

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that was opened.

    Attributes:
        path: Where it is.
        form: What it is: recipe, checkpoint, file, folder or pretrained.
        recipe: The model.
        weights: Its tensors by name; None where the file holds a recipe alone.
        tensors: Reads the tensors; for what only looks at their shapes there is no need to.
        sizes: What its build read off the example input, as `replayml.module.sizes` writes it.
    """

    path: Path
    form: str
    recipe: Recipe
    weights: Mapping[str, Tensor] | None
    tensors: Callable[[], Mapping[str, torch.Tensor]]
    sizes: object = "[]"


def open_file(path: Path) -> Opened:
    """Open a model file, a checkpoint, or a file with a recipe.

    Raises:
        RecipeError: When it is none of these, or not safe.
        OSError: When it cannot be read.
    """
    if path.is_dir() or path.suffix in (SUFFIX, ".safetensors"):
        file = read_model_file(path)
        recipe = Recipe.from_json(file.recipe)
        if file.state is None:
            return Opened(path, file.form, recipe, None, dict)
        weights = {name: _tensor(file.entry(name)) for name in sorted(file.names)}
        return Opened(path, file.form, recipe, weights, partial(_tensors, file), file.state.sizes)
    if path.is_file() and _starts_with_zip(path):
        return _open_checkpoint(path)
    return Opened(path, "recipe", Recipe.from_json(read_file(path, _LIMITS.size)), None, dict)


def _tensors(file: ModelFile) -> dict[str, torch.Tensor]:
    file.check()
    return {name: file.tensor(name) for name in file.names}


def _starts_with_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(ZIP)) == ZIP


def _open_checkpoint(path: Path) -> Opened:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file makes torch raise whatever it may
        raise _unsafe(path, error) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    parameters = content.get("hyper_parameters") if isinstance(content, dict) else None
    text = parameters.get(RECIPE_KEY) if isinstance(parameters, dict) else None
    if isinstance(text, bytes):
        raise RecipeError(
            "not-text",
            f"hyper_parameters.{RECIPE_KEY}",
            "this old checkpoint keeps its model as a pickle, which was not opened. Where you trust whoever wrote it: "
            "replayml convert IN OUT --i-trust-this-file",
        )
    if not isinstance(text, str) or not isinstance(state, dict):
        raise RecipeError("no-recipe", str(path), "this file of torch holds no recipe and 'state_dict' of replayml")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    weights = {name: _tensor(value) for name, value in tensors.items()}
    build = parameters.get(KWARGS_KEY) if isinstance(parameters, dict) else None
    sizes = build.get("sizes", "[]") if isinstance(build, dict) else "[]"
    return Opened(path, "checkpoint", Recipe.from_json(text), weights, lambda: tensors, sizes)


def _unsafe(path: Path, error: Exception) -> RecipeError:
    reason = shown((str(error).splitlines() or [type(error).__name__])[0])
    return RecipeError(
        "unsafe-file",
        str(path),
        f"this is no checkpoint that can be opened without unpickling, and nothing was unpickled: {reason}",
    )


def _tensor(entry: Any) -> Tensor:
    return Tensor(tuple(entry.shape), str(entry.dtype).removeprefix("torch."))


# The model ------------------------------------------------------------------------------------------------------


def make_model(opened: Opened, imports: Sequence[str] = (), rename: Sequence[str] = ()) -> Any:
    """Return the model of a file, unbuilt, with the sizes of its build; tensors of its constructors hold no memory.

    Args:
        opened: The file.
        imports: Modules that the user names: they are imported, and the recipe may use their classes.
        rename: Names in the file and those of today, as ``OLD=NEW``.

    Raises:
        UsageError: When a renaming is none.
        RecipeError: When the recipe needs other names.
        ReplaymlError: When the model cannot be made.
    """
    renames = read_renames(rename)
    import_known(opened.recipe.names, imports, renames)
    sizes = read_sizes(opened.sizes)
    try:
        with torch.device("meta"):
            model = opened.recipe.model(rename=renames)
            take_sizes(model, sizes, changed=False)
            return model
    except RecipeError as error:
        raise with_hint(error) from error
    except ReplaymlError:
        raise
    except Exception as error:
        raise ReplaymlError(f"the model cannot be made: {type(error).__name__}: {error}") from error


def read_renames(rename: Sequence[str]) -> dict[str, str]:
    """Return old names and new ones, of what the user wrote as ``OLD=NEW``.

    Raises:
        UsageError: When something is no such pair.

    Example:
        >>> read_renames(["__main__=train", "old.Net=new.Net"])
        {'__main__': 'train', 'old.Net': 'new.Net'}
    """
    found = {}
    for renaming in rename:
        old, _, new = renaming.partition("=")
        if not (old and new) or old.endswith(".") or new.endswith("."):
            raise UsageError("bad-rename", f"{renaming!r} is no renaming. Write --rename OLD=NEW")
        found[old] = new
    return found


def import_known(names: Iterable[str], imports: Sequence[str], rename: Mapping[str, str] | None = None) -> None:
    """Import what the user names, and what of replayml a file needs.

    Args:
        names: The names that a file needs.
        imports: Modules that the user names.
        rename: Names in the file and those of today.

    Raises:
        UsageError: When one of the modules is not there.
        ReplaymlError: When one of the modules cannot be imported.
    """
    for name in imports:
        _import(name)
    renames = Renames(rename)
    import_own(renames.of(name) for name in names)


def with_hint(error: RecipeError) -> RecipeError:
    """Return a refusal with what helps on the command line, in the place of what helps in a program."""
    if error.code != "untrusted-name":
        return error
    hint = "A class of a replayml module is known with the module that has it: --import MODULE"
    if "'__main__." in error.message:
        hint += "; for a class of a script, also where it is now: --rename __main__=MODULE"
    hint += ". Other classes and functions are trusted by a program: replayml.load(FILE, trust=[...])"
    message = _RENAME.sub(r"--rename \1=\2", _IN_A_PROGRAM.sub("", error.message))
    return RecipeError(error.code, error.where, f"{message}\n{hint}")


_IN_A_PROGRAM = re.compile(r" If it is a replayml module, [^;]*; anything else [^\[]*: trust=\[\.\.\.\]\.")
_RENAME = re.compile(r"rename=\{'([^']*)': '([^']*)'\}")


def require_module(name: str) -> None:
    """Refuse the name of a module that is not there, also not in the current folder; it is not imported.

    Raises:
        UsageError: When there is none.
    """
    _look_here()
    try:
        is_there = name in sys.modules or find_spec(name) is not None
    except ModuleNotFoundError:  # of a package that is not there
        is_there = False
    if not is_there:
        raise _missing(name, f"No module named {name!r}")


def _missing(name: str, text: object) -> UsageError:
    return UsageError("no-module", f"--import {name}: {text}, here or among what is installed")


def _look_here() -> None:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _import(name: str) -> None:
    """Import a module that the user named, which may stand in the current folder."""
    _look_here()
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise _missing(name, error) from error
        raise ReplaymlError(f"--import {name}: {error}") from error
    except ImportError as error:
        raise ReplaymlError(f"--import {name}: {error}") from error
