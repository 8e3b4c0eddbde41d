"""Assertions for the tests of your own models.

    from replayml.testing import assert_golden, assert_rebuilds

    def test_my_model():
        assert_golden(MyModel(), "tests/golden/my_model.json")
        assert_rebuilds(MyModel(), torch.zeros(1, 3))

`assert_golden` notices that a model is no longer the one that you agreed on; `assert_rebuilds` notices that a model
cannot be copied, written down, pickled or built again as it is. Both need no test framework: they raise
``AssertionError``.

Invariants:
    * The model that is given is not changed.
    * A failure names the path in the model, what is there, and what was expected.
"""

from __future__ import annotations

import difflib
import functools
import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from replayml.core.errors import RecipeError
from replayml.module.building import forked_rng
from replayml.module.explain import candidates, settings_taken_by
from replayml.module.module import Module
from replayml.recipe import Codec, Recipe
from replayml.recipe.files.atomic import replace_file
from replayml.recipe.provenance import without_provenance

__all__ = ["assert_golden", "assert_rebuilds"]

_MOST_LINES = 20
_MOST_CHANGES = 100


# The golden recipe ----------------------------------------------------------------------------------------------


def assert_golden(
    model: Module | Recipe,
    path: str | Path,
    *,
    update: bool = False,
    codecs: Sequence[Codec[Any]] = (),
    trust: Sequence[object] = (),
) -> None:
    """Assert that a model is the one whose recipe is in a file.

    The file is written when it is not there; keep it under version control. It tells neither lines of code nor where
    they were.

    Args:
        model: A replayml module, built or not, or a recipe.
        path: The file, by custom ``tests/golden/NAME.json``.
        update: Write the file anew: the change is wanted.
        codecs: How to write values of types of your own.
        trust: What the recipe may use beside classes of replayml and torch, to tell what differs: see `Recipe.model`.

    Raises:
        AssertionError: When the model is another one; tells what differs, by path.

    Example:
        >>> import replayml, tempfile
        >>> from replayml.testing import assert_golden
        >>> model = replayml.MultiLayerPerceptron(4, [8], 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     assert_golden(model, f"{folder}/mlp.json")  # writes it
        ...     assert_golden(model.new(), f"{folder}/mlp.json")
        ...     assert_golden(model.configure(out_features=3), f"{folder}/mlp.json")
        Traceback (most recent call last):
            ...
        AssertionError: MultiLayerPerceptron is not the model of .../mlp.json: ...
    """
    file = Path(path)
    recipe = model if isinstance(model, Recipe) else _recipe_of(model, codecs)
    if update or not file.exists():
        text = _readable(recipe) + "\n"
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, lambda opened: _write(opened, text))
        return
    try:
        golden = Recipe.from_json(file.read_bytes())
    except RecipeError as error:
        raise AssertionError(
            f"{file} is no recipe: {error}\nTo write it anew: assert_golden(model, {str(path)!r}, update=True)"
        ) from error
    if golden == recipe:
        return
    name = "the recipe" if isinstance(model, Recipe) else type(model).__name__
    raise AssertionError(
        f"{name} is not the model of {file}:\n{_told(golden, recipe, (*codecs, *trust))}\n"
        f"If this is wanted: assert_golden(model, {str(path)!r}, update=True), once"
    )


def _write(opened: Any, text: str) -> None:
    opened.write(text.encode("ascii"))


def _readable(recipe: Recipe) -> str:
    return json.dumps(without_provenance(json.loads(recipe.to_json())), indent=1, sort_keys=True)


def _told(golden: Recipe, recipe: Recipe, trust: Sequence[object]) -> str:
    """Return what differs by path; where the golden model can no longer be made, by lines of the two texts."""
    try:
        return str(golden.diff(recipe, trust=trust))
    except Exception as error:  # noqa: BLE001 - the code of the old model may raise anything; it is told
        texts = _readable(golden).splitlines(), _readable(recipe).splitlines()
        changes = list(difflib.unified_diff(*texts, "golden", "model", lineterm="", n=2))
        rest = [f"... and {len(changes) - _MOST_CHANGES} more lines"] if len(changes) > _MOST_CHANGES else []
        why = f"(as text, since the golden model cannot be made: {type(error).__name__}: {error})"
        return "\n".join([*changes[:_MOST_CHANGES], *rest, why])


def _recipe_of(model: Module, codecs: Sequence[Codec[Any]]) -> Recipe:
    try:
        return model.recipe(codecs=codecs)
    except RecipeError as error:
        raise AssertionError(f"{type(model).__name__} has no recipe: {error}") from error


# Rebuilding -----------------------------------------------------------------------------------------------------


class _Way(NamedTuple):
    """A way to make a model again.

    Attributes:
        title: What it is called in a failure.
        make: Makes the copy from the model.
    """

    title: str
    make: Callable[[], Any]


def assert_rebuilds(
    model: Module,
    *inputs: Any,
    seed: int = 0,
    trust: Sequence[object] = (),
    codecs: Sequence[Codec[Any]] = (),
    pickled: bool = True,
    **keywords: Any,
) -> None:
    """Assert that a model is made again as it is: by ``new()``, from its recipe, from a pickle, and by each build.

    Compared are the paths, classes and effective arguments of all modules; then, built twice with one seed, the names,
    shapes, types and values of all weights, and the outputs.

    Args:
        model: A replayml module; a built one is taken as it was before its build.
        *inputs: Example inputs: they find open sizes and give the outputs to compare. Without any, only models that
            need none can be built, and no outputs are compared.
        seed: What the weights are drawn from.
        trust: Classes, functions and codecs that the recipe may use: see `Recipe.model`.
        codecs: How the recipe writes values of types of your own.
        pickled: Whether a pickle is made as well; classes that are made inside of a function have none.
        **keywords: Example inputs by keyword.

    Raises:
        AssertionError: When a copy differs, or cannot be made; tells how it was made, and the path.

    Example:
        >>> import replayml, torch
        >>> from replayml.testing import assert_rebuilds
        >>> assert_rebuilds(replayml.MultiLayerPerceptron(None, [8], 2), torch.zeros(1, 4))
        >>> class Forgetful(replayml.Module):
        ...     made = 0
        ...
        ...     def __init__(self):
        ...         Forgetful.made += 1
        ...         self.layer = replayml.Layer(torch.nn.Linear, 2, Forgetful.made)
        >>> assert_rebuilds(Forgetful())
        Traceback (most recent call last):
            ...
        AssertionError: Forgetful made by new() is another model:
          layer.out_features: 1 expected, ... found
    """
    name = type(model).__name__
    source = model.new() if model._has_built else model
    recipe = _recipe_of(source, codecs)
    ways = [
        _Way("new()", source.new),
        _Way("its recipe", lambda: Recipe.from_json(recipe.to_json()).model((*codecs, *trust))),
    ]
    if pickled:
        ways.append(_Way("pickle", lambda: pickle.loads(pickle.dumps(source))))  # noqa: S301 - its own bytes
    expected = dict(_arguments(source))
    first: _Built | None = None
    for way in ways:
        for attempt in ("", ", built a second time with the same seed,"):
            copy = _made(name, way)
            _compare(name, way.title, expected, dict(_arguments(copy)))
            written = _recipe_of(copy, codecs)
            if written != recipe:
                raise AssertionError(
                    f"{name} made by {way.title} is another model:\n{_told(recipe, written, (*codecs, *trust))}"
                )
            built = _built(name, way, copy, inputs, keywords, seed, is_first=first is None)
            first = built if first is None else first
            _compare(name, way.title + attempt, first._asdict(), built._asdict())
    if model._has_built and first is not None:
        weights = _shapes(model.state_dict())
        _compare(name, "a new build", weights, _shapes(first.weights))


class _Built(NamedTuple):
    """What is compared of a built model.

    Attributes:
        modules: The class of each module, by path.
        weights: The tensors by name.
        output: What it returned for the example inputs.
    """

    modules: dict[str, str]
    weights: dict[str, Any]
    output: Any


def _made(name: str, way: _Way) -> Any:
    try:
        return way.make()
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{name} cannot be made again by {way.title}: {type(error).__name__}: {error}") from error


def _built(
    name: str,
    way: _Way,
    copy: Any,
    inputs: tuple[Any, ...],
    keywords: Mapping[str, Any],
    seed: int,
    is_first: bool,
) -> _Built:
    """Build a copy and run it. What the first one raises is a fault of the model, or of the example."""
    try:
        with forked_rng():
            torch.manual_seed(seed)
            model = copy.build(*inputs, seed=seed, **keywords)
            output = None
            if (inputs or keywords) and isinstance(model, nn.Module):
                with torch.no_grad():
                    output = model.eval()(*inputs, **keywords)
    except Exception as error:
        if is_first:
            error.add_note(f"while building {name}, made by {way.title}, and running it with the example inputs")
            raise
        raise AssertionError(f"{name} made by {way.title} cannot be built: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        return _Built({"": _class_of(model)}, {}, output)
    modules = {path: _class_of(module) for path, module in model.named_modules(remove_duplicate=False)}
    return _Built(modules, dict(model.state_dict()), output)


def _arguments(model: Module) -> Iterator[tuple[str, Any]]:
    """Yield each module of an unbuilt tree: ``path`` and its class, ``path.name`` and the argument in force."""
    for path, module in model.named_modules(remove_duplicate=False):
        yield f"{path or 'model'} (class)", _class_of(module)
        if isinstance(module, Module) and not module._record.built:
            for name in settings_taken_by(module):
                found = candidates(module, name)
                if found:
                    yield f"{path}.{name}".removeprefix("."), found[0].value


def _class_of(module: object) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _shapes(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(tensor, "shape", None) for name, tensor in weights.items()}


# Comparing ------------------------------------------------------------------------------------------------------


def _compare(name: str, way: str, expected: Any, found: Any) -> None:
    lines = list(_differences("", expected, found))
    if lines:
        rest = [f"... and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
        listed = "".join(f"\n  {line}" for line in [*lines[:_MOST_LINES], *rest])
        raise AssertionError(f"{name} made by {way} is another model:{listed}")


def _differences(path: str, expected: Any, found: Any) -> Iterator[str]:
    """Yield what differs between two values, by path."""
    if expected is found:
        return
    place = path or "the model"
    if type(expected) is not type(found):
        yield f"{place}: {_shown(expected)} expected, {_shown(found)} found"
    elif isinstance(expected, Mapping):
        for key in [*expected, *(key for key in found if key not in expected)]:
            below = f"{path}.{key}".removeprefix(".")
            if key not in found or key not in expected:
                yield f"{below}: {'nothing' if key not in expected else _shown(expected[key])} expected, " + (
                    "nothing found" if key not in found else f"{_shown(found[key])} found"
                )
            else:
                yield from _differences(below, expected[key], found[key])
    elif isinstance(expected, (list, tuple)) and len(expected) == len(found) and type(expected) is not torch.Size:
        for index, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from _differences(f"{path}[{index}]", one, other)
    elif not _is_same(expected, found):
        yield f"{place}: {_shown(expected)} expected, {_shown(found)} found"


def _is_same(one: Any, other: Any) -> bool:
    """Compare two values of one type that hold no others which could be compared by path."""
    if isinstance(one, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
            return False
        return one.is_meta or bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, nn.Module):
        return not list(_differences("", _content(one), _content(other)))
    if isinstance(one, functools.partial):
        return not list(_differences("", one.__reduce__()[2], other.__reduce__()[2]))
    is_compared_by_identity = type(one).__eq__ is vars(object)["__eq__"]
    if is_compared_by_identity and hasattr(one, "__dict__") and not isinstance(one, (FunctionType, type)):
        return not list(_differences("", vars(one), vars(other)))
    return bool(one == other or (one != one and other != other))


def _content(module: nn.Module) -> dict[str, Any]:
    """Return what is compared of a module that is an argument."""
    if isinstance(module, Module) and not module._record.built:
        return dict(_arguments(module))
    return {
        "modules": {path: repr(below) for path, below in module.named_modules()},
        "weights": dict(module.state_dict()),
    }


def _shown(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}" + (f", {value.tolist()}" if value.numel() <= 4 else "")
    text = value.__name__ if isinstance(value, type) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
