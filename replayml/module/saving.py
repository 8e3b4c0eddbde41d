"""Saving a model and loading it: `Module.save` and `replayml.load`.

    save: recipe ─► dry run: would it load? ─► write      load: recipe ─► dry run ─► compare ─► read, assign

Invariants:
    * A model that would not load is not saved: what is in it must be what its recipe makes again, ties included.
    * Keys, shapes and types are compared with what the recipe makes before a tensor is read.
    * Loading initialises no weight that the file gives, copies none, and leaves the global generators alone.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from replayml.core.copying import describe
from replayml.core.errors import CheckpointError, SelectionError, suggestion
from replayml.core.replay import realize
from replayml.core.tags import walk
from replayml.core.tape import CallRecord
from replayml.module.gathering import gathered, is_first_process, is_sharded, require_values, shared
from replayml.module.keeping import Again, note_state, require_recipe_of, restore, set_modes
from replayml.module.paths import dotted, path_of
from replayml.module.sizes import (
    BUILD_DTYPE,
    built_again,
    default_dtype,
    read_sizes,
    remember_call,
    sizes_of,
    write_sizes,
)
from replayml.module.unsaved import kept, places, put_back, require_places
from replayml.recipe.codecs import Codec
from replayml.recipe.faults import noting
from replayml.recipe.files import weights
from replayml.recipe.files.dense import require_dense
from replayml.recipe.files.reading import ModelFile, read_model_file
from replayml.recipe.files.storing import Content, form_for, write_model_file
from replayml.recipe.format import Limits
from replayml.recipe.recipe import Recipe
from replayml.recipe.text.metering import free_memory, measured

__all__ = ["content_of", "import_own", "load", "load_file", "save"]

_LIMITS = Limits()
_TRAINING = "replayml.training"
_OWN: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "training": ("",),
        "lifecycle": (".action", ".binding", ".branches", ".choices", ".flows", ".graphs", ".registry"),
        "serving": (".server",),
    }
)
_EXTRAS = MappingProxyType({"training": "this model is an application, which takes Lightning: pip install lightning"})
CHECKPOINT = ".ckpt"


# Saving ---------------------------------------------------------------------------------------------------------


def save(
    model: Any, path: str | os.PathLike[str], *, codecs: Sequence[Codec[Any]] = (), allow_pickle: bool = False
) -> None:
    """Write a model: see `replayml.module.module.Module.save`."""
    form_for(path)
    content = content_of(model, codecs, allow_pickle)
    if not is_sharded(model) or is_first_process():
        write_model_file(path, content)


def content_of(model: Any, codecs: Sequence[Codec[Any]] = (), allow_pickle: bool = False) -> Content:
    """Return what a model file of a model holds, once it is known that it would load.

    Args:
        model: The model, built or not.
        codecs: How to write values of the user's own types.
        allow_pickle: As for `Recipe.of`.

    Raises:
        RecipeError: When something has no data form.
        CheckpointError: When the model is not what its recipe makes.
    """
    is_built = model._record.built
    if is_built and model.is_external:
        raise CheckpointError(
            f"this {type(model).__name__} has become another object when it was built, and has no weights itself. "
            "Save the module that it stands in, or the state_dict() of the object"
        )
    recipe = Recipe.of(describe(model), codecs=codecs, built=is_built, allow_pickle=allow_pickle).to_json()
    if not is_built:
        require_recipe_of(model)
        return Content(recipe)
    state = _weights_of(model)
    again = Again(model)
    again.require_same(state)
    ties = {name: first for first, *others in shared(state) for name in others}
    more = {} if is_sharded(model) else kept(model, state, again.places)
    dtype = model.__dict__.get(BUILD_DTYPE, torch.get_default_dtype())
    return Content(
        recipe,
        note_state(model, recipe, state, sizes=write_sizes(sizes_of(model)), dtype=dtype, ties=ties),
        gathered({name: tensor for name, tensor in state.items() if name not in ties}) | more,
    )


def _weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the ``state_dict`` of a model by normal names."""
    state = {weights.normal_name(name): value for name, value in model.state_dict().items()}
    for name, value in state.items():
        require_dense(name, value)
    return {name: require_values(name, value) for name, value in state.items()}


# Loading --------------------------------------------------------------------------------------------------------


def load(
    path: str | os.PathLike[str],
    *,
    at: str | None = None,
    trust: Sequence[object] = (),
    rename: Mapping[str, str] | None = None,
    map_location: torch.device | str | None = None,
    weights: bool = True,
    allow_pickle: bool = False,
    limits: Limits = _LIMITS,
) -> Any:
    """Return the model of a model file, without knowing its class or its arguments.

    Its weights stay in the file until they are used, and its modes, frozen parameters, types and ties are those that
    it was saved with.

    Args:
        path: A ``.replayml`` file, a folder that `Module.save` or `Module.save_pretrained` wrote, or a checkpoint
            (``.ckpt``) of an application.
        at: Return this part of the model only, such as ``"model.backbone"`` or ``"blocks[0].layer"``.
        trust: Classes, functions and codecs of yours, as objects, that the file may name, besides replayml modules
            that the program has imported and torch's own layers.
        rename: Names in the file, and those that the same things have now.
        map_location: Where to put the weights; the CPU by default.
        weights: Whether to load the weights; without them the model is returned unbuilt.
        allow_pickle: Open values that were saved as pickles. This runs whatever code their author put into them. A
            part of the model that such a value refers to is a copy there.
        limits: How much the file may hold, and how much may come of it.

    Returns:
        The model: built, if it was when it was saved.

    Raises:
        RecipeError: When it is no model file, was changed, or is not safe to follow.
        CheckpointError: When the weights do not fit the model that the recipe makes.
        SelectionError: When there is nothing at ``at``.

    Example:
        >>> import tempfile, torch, replayml
        >>> mlp = replayml.MultiLayerPerceptron(4, [8], 2).build()
        >>> path = tempfile.mkdtemp() + "/mlp.replayml"
        >>> mlp.save(path)
        >>> x = torch.randn(3, 4)
        >>> bool((replayml.load(path)(x) == mlp(x)).all())
        True
    """
    path = Path(path)
    options: dict[str, Any] = {"trust": tuple(trust), "rename": rename, "allow_pickle": allow_pickle}
    if path.suffix == CHECKPOINT and not path.is_dir():
        model = _load_checkpoint(path, map_location, weights, options, limits)
        return model if at is None else _part(model, at)
    file = read_model_file(path, limits=limits)
    return load_file(file, at=at, map_location=map_location, weights=weights, limits=limits, **options)


def _load_checkpoint(
    path: Path, map_location: Any, with_weights: bool, options: Mapping[str, Any], limits: Limits
) -> Any:
    """Return the application of a checkpoint. Only this needs Lightning."""
    checkpoint = importlib.import_module(f"{_TRAINING}.checkpoint")
    application = importlib.import_module(f"{_TRAINING}.application").Application
    if not with_weights:
        return checkpoint.load_unbuilt(application, path, limits=limits, **options)
    return checkpoint.load(application, path, map_location=map_location, strict=None, limits=limits, **options)


def load_file(
    file: ModelFile,
    *,
    at: str | None = None,
    map_location: torch.device | str | None = None,
    weights: bool = True,
    limits: Limits = _LIMITS,
    **options: Any,
) -> Any:
    """Return the model of an opened model file; the arguments are those of `load`."""
    recipe = Recipe.from_json(file.recipe, limits=limits)
    import_own(recipe.names)
    if file.state is None or not weights:
        model = recipe.model(**options)
        return model if at is None else _part(model, at).new()
    return _Loader(file, recipe.record(**options), at, limits).model(map_location)


def import_own(names: Iterable[str]) -> None:
    """Import what of replayml a model needs: a program that imported replayml knows replayml's own classes.

    Args:
        names: The names that the model needs; they choose among modules that stand here, and give none.
    """
    for package in sorted({name.split(".")[1] for name in names if name.startswith("replayml.")} & _OWN.keys()):
        with noting(_EXTRAS[package]) if package in _EXTRAS else nullcontext():
            for module in _OWN[package]:
                importlib.import_module(f"replayml.{package}{module}")


class _Loader:
    """Loads a built model, or a part of it.

    Args:
        file: The file.
        record: The model, before it is an object.
        at: The path of the part, or None.
        limits: How much may come of it.
    """

    def __init__(self, file: ModelFile, record: CallRecord, at: str | None, limits: Limits) -> None:
        assert file.state is not None
        self._file = file
        self._record = record
        self._at = at
        self._state = file.state
        self._sizes = read_sizes(file.state.sizes)
        memory = free_memory() // 2 + file.nbytes if limits.memory is None else limits.memory
        self._limits = replace(limits, memory=memory)  # what stands in the file is mapped, not allocated

    def model(self, map_location: torch.device | str | None) -> Any:
        """Return the model with its weights."""
        device = torch.device("cpu" if map_location is None else map_location)
        model = measured(lambda: weights.skeleton(self._make), self._limits)
        prefix = f"{dotted(self._at)}." if self._at else ""
        names = {name.removeprefix(prefix): name for name in self._file.names if name.startswith(prefix)}
        more = places(model)
        found = {name: self._form(stored) for name, stored in names.items()}
        weights.require_fit(model, {name: form for name, form in found.items() if name not in more})
        require_places({name: found[name] for name in more if name in found}, model)
        if device.type != "meta":
            self._file.check()
        tensors = {stored: self._file.tensor(stored) for stored in {*map(self._stored, names.values())}}
        given = {name: tensors[self._stored(stored)] for name, stored in names.items()}
        put_back(model, {name: given.pop(name) for name in more if name in given})
        weights.assign(model, given, strict=True, make=self._make, follow_type=False)
        restore(model, self._state, prefix)
        remember_call(model, lambda: realize(self._record))
        return model.to(device) if device.type != "cpu" else model

    def _form(self, name: str) -> weights.Form:
        entry = self._file.entry(name)
        return weights.Form(entry.shape, entry.dtype)

    def _stored(self, name: str) -> str:
        return self._file.ties.get(name, name)

    def _make(self) -> Any:
        with default_dtype(self._state.dtype):
            model = built_again(realize(self._record), self._sizes)
        set_modes(model, self._state.modes)
        return model if self._at is None else _part(model, self._at)


def _part(model: Any, at: str) -> Any:
    """Return the module at a path."""
    found = walk(model, path_of(at))
    if found is None:
        names = [name for name, _ in model.named_modules() if name]
        raise SelectionError(f"the model has nothing at {at!r}.{suggestion(at, names)}")
    return found
