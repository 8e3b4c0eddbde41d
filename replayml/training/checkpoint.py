"""Checkpoints: ordinary Lightning files that carry the recipe of their model.

The recipe stands as a JSON string among the hyper-parameters, with the sizes that were read off the example input.
``torch.load(weights_only=True)`` opens such a file, and every Lightning feature works with it.

Invariants:
    * Nothing is unpickled, here or in the metaclass's from-checkpoint path: a recipe that is no text is refused.
    * A model that could not be loaded is not saved.
    * Loading allocates no weight that the file gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from replayml.core.copying import describe
from replayml.core.errors import CheckpointError, RecipeError
from replayml.module.building import rebuild
from replayml.recipe import Recipe

__all__ = ["RECIPE_KEY", "add_recipe", "from_hyper_parameters", "load", "note_recipe", "require_recipe"]

RECIPE_KEY = "__from_ckpt_application"
ARGS_KEY = "__build_args"
KWARGS_KEY = "__build_kwargs"
COMPILED = "_orig_mod."


# Saving ---------------------------------------------------------------------------------------------------------


def note_recipe(app: Any) -> None:
    """Put the recipe of a built application among its hyper-parameters, where Lightning saves it."""
    try:
        text = Recipe.of(describe(app), built=True).to_json()
        sizes = _sizes_to_json(app)
    except RecipeError as error:
        app.__dict__["_recipe_fault"] = error
        return
    app.hparams.update({RECIPE_KEY: text, ARGS_KEY: [], KWARGS_KEY: {"sizes": sizes}})


def require_recipe(app: Any) -> None:
    """Raise when a checkpoint of an application could not be loaded.

    Raises:
        RecipeError: Naming the value that has no data form.
    """
    fault = app.__dict__.get("_recipe_fault")
    if fault is not None:
        fault.add_note(
            "The checkpoints of this model could not be loaded again, so none is written. "
            "Mend the value named above, or train with enable_checkpointing=False"
        )
        raise fault


def add_recipe(app: Any, checkpoint: dict[str, Any]) -> None:
    """Make sure that a checkpoint has the recipe of its application."""
    require_recipe(app)
    if app._has_built and RECIPE_KEY not in checkpoint.get("hyper_parameters", {}):
        note_recipe(app)
        require_recipe(app)
        checkpoint["hyper_parameters"] = dict(app.hparams)


def _sizes_to_json(app: Any) -> str:
    sizes = app._record.blueprint.sizes
    for path, values in sizes.items():
        for name, value in values.items():
            if not isinstance(value, (int, float, str, bool, list, tuple, type(None))):
                raise RecipeError(
                    "no-data-form",
                    ".".join((*path, name)),
                    f"the computed value {value!r} cannot be written. Return numbers, strings or tuples of them",
                )
    return json.dumps([[list(path), values] for path, values in sizes.items()])


# Loading --------------------------------------------------------------------------------------------------------


def load(
    cls: type,
    path: Any,
    *,
    map_location: Any,
    strict: bool,
    trust: tuple[object, ...],
    settings: Mapping[str, Any],
) -> Any:
    """Return the trained application of a checkpoint: see `Application.load_from_checkpoint`."""
    local = isinstance(path, (str, Path))
    content = torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=local or None)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"{path} is no Lightning checkpoint: it has no 'state_dict'")
    parameters = content.get("hyper_parameters", {})
    if RECIPE_KEY not in parameters:
        raise RecipeError(
            "no-recipe",
            "hyper_parameters",
            "the checkpoint carries no recipe. It was not written by a replayml.Application; "
            "build the model yourself and call load_state_dict(checkpoint['state_dict'])",
        )
    app = from_hyper_parameters(cls, parameters, trust=trust, settings=settings, device="meta")
    _take_weights(app, content["state_dict"], strict, lambda: from_hyper_parameters(cls, parameters, trust, settings))
    app.on_load_checkpoint(content)
    if map_location is not None and not callable(map_location) and not isinstance(map_location, dict):
        app.to(map_location)
    return app


def from_hyper_parameters(
    cls: type,
    parameters: Mapping[str, Any],
    trust: tuple[object, ...] = (),
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> Any:
    """Return the application that a checkpoint's hyper-parameters describe, built but untrained.

    Args:
        cls: The class that the caller expects, or a base of it.
        parameters: The hyper-parameters.
        trust: Classes and functions that the recipe may name, besides the registered ones.
        settings: What to change before the build.
        device: Where to make the weights.

    Raises:
        RecipeError: When the recipe is no text, or not safe to follow.
        CheckpointError: When the application is of another class.
    """
    text = parameters[RECIPE_KEY]
    if not isinstance(text, str):
        raise RecipeError(
            "not-text",
            f"hyper_parameters.{RECIPE_KEY}",
            f"the recipe must be JSON text and is {type(text).__name__}. Nothing was unpickled. "
            "A checkpoint of this kind can run code when it is opened; train the model again with this version",
        )
    record = Recipe.from_json(text).record(trust)
    if not (isinstance(record.cls, type) and issubclass(record.cls, cls)):
        raise CheckpointError(
            f"the checkpoint holds a {record.cls.__name__}, which is no {cls.__name__}. "
            f"Load it with {record.cls.__name__}.load_from_checkpoint or replayml.Application.load_from_checkpoint"
        )
    return rebuild(record, _sizes_from(parameters), device=device, settings=settings)


def _sizes_from(parameters: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    build_kwargs = parameters.get(KWARGS_KEY, {})
    text = build_kwargs.get("sizes", "[]") if isinstance(build_kwargs, dict) else None
    try:
        listed = json.loads(text) if isinstance(text, str) else None
        return {tuple(map(str, path)): dict(values) for path, values in listed}  # type: ignore[union-attr]
    except (TypeError, ValueError) as error:
        raise RecipeError(
            "bad-build-arguments", f"hyper_parameters.{KWARGS_KEY}", "the build arguments are no list of sizes"
        ) from error


def _take_weights(app: nn.Module, state: Mapping[str, Any], strict: bool, make: Any) -> None:
    """Put the tensors of a checkpoint into an application without weights."""
    given = {name.replace(COMPILED, ""): tensor for name, tensor in state.items()}
    ties = _ties(app)
    expected = app.state_dict()
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    mismatched = [
        f"{name}: {tuple(given[name].shape)} in the file, {tuple(tensor.shape)} in the model"
        for name, tensor in expected.items()
        if name in given and isinstance(tensor, torch.Tensor) and given[name].shape != tensor.shape
    ]
    if mismatched or (strict and (missing or unexpected)):
        groups = (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
        listed = "; ".join(f"{title}: {', '.join(names[:10])}" for title, names in groups if names)
        raise CheckpointError(f"the weights do not fit {type(app).__name__}: {listed}")
    app.load_state_dict(given, strict=False, assign=True)
    for first, *others in ties:
        for other in others:
            _put(app, other, app.get_parameter(first))
    left = [name for name, tensor in _named_tensors(app) if tensor.is_meta]
    if left:
        real = dict(_named_tensors(make()))
        for name in left:
            _put(app, name, real[name])


def _ties(module: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that stands under several names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _named_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    if last in owner._parameters:
        owner._parameters[last] = tensor  # type: ignore[assignment]
    else:
        owner._buffers[last] = tensor
