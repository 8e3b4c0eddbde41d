"""What model files and checkpoints keep of a built model beside its weights, and what they refuse to leave out.

    save: is it what its recipe makes? ─► modes, frozen parameters, types       load: make it again ─► give these back

Invariants:
    * What would not come back is not saved: it is refused, or told in a warning where that would end a training.
    * Both kinds of files keep the same, by the same code.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from replayml.core.copying import describe
from replayml.core.errors import CheckpointError
from replayml.core.replay import realize
from replayml.module import sameness
from replayml.module.gathering import shared
from replayml.module.sameness import modules, other_modules
from replayml.module.sizes import BUILD_DTYPE, built_again, default_dtype, sizes_of
from replayml.module.unsaved import Places
from replayml.recipe.data_sets import without_data_sets
from replayml.recipe.files import weights
from replayml.recipe.files.dense import is_dense
from replayml.recipe.files.state import DEFAULT_DTYPES, State
from replayml.recipe.format import Limits
from replayml.recipe.text.metering import rehearse

__all__ = ["Again", "note_state", "require_recipe_of", "restore", "set_modes"]

_UNLIMITED = Limits(memory=2**62, tensors=2**62, modules=2**62, seconds=float("inf"))

_CHANGED = (
    "was changed after its build, and its recipe does not make it so; in the model, against its recipe: {found}. {end}"
)
_WAYS = (
    "Take the change back, make it before the build (on model.new()), or in a method that is decorated with "
    "@replayml.after_build"
)
_REFUSED = f"It would be another one when it is loaded, so it is not saved. {_WAYS}"
_TOLD = f"It is saved without that, and is another one when it is loaded. {_WAYS}"


class Again:
    """Makes a built model again, as loading would, to compare it with; what was made without memory is made once.

    Copies of it are of another model, and start anew.

    Args:
        model: The model.

    Attributes:
        is_trained: Whether that very model has been trained while the program runs.
    """

    def __init__(self, model: Any = None) -> None:
        self.is_trained = False
        self._model = model
        self._made: nn.Module | None = None
        self._places: Places | None = None
        self._told: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return Again, ()

    def is_of(self, model: Any) -> bool:
        """Tell whether it makes that very model again."""
        return self._model is model

    def make(self) -> nn.Module:
        """Return the model, made and built with its weights, or without where torch is told so."""
        model = self._model
        with default_dtype(model.__dict__.get(BUILD_DTYPE, torch.get_default_dtype())):
            result: nn.Module = built_again(realize(without_data_sets(describe(model))), sizes_of(model))
            return result

    def whole(self) -> nn.Module:
        """Return the model without its weights; where the constructor reads their values, with them."""
        if self._made is None:
            self._made = self._rehearsed()
        return weights.skeleton(self.make) if self._made is None else self._made

    def _rehearsed(self) -> nn.Module | None:
        try:
            return rehearse(self.make, _UNLIMITED).made
        except Exception as error:
            error.add_note(f"while making {type(self._model).__name__} again, as loading it would")
            raise

    def places(self) -> Places:
        """Return the tensors of the model that no ``state_dict`` has."""
        if self._places is None:
            self._places = Places.of(self.make)
        return self._places

    def require_same(
        self,
        state: Mapping[str, Any],
        *,
        partly: bool = False,
        told: Collection[str] = (),
        end: str = _REFUSED,
    ) -> None:
        """Raise when the model is not what its recipe makes.

        Args:
            state: Its ``state_dict`` by normal names.
            partly: Whether weights may be left out.
            told: What is told in a warning, once, instead: titles of `replayml.module.sameness`.
            end: How the message goes on.

        Raises:
            CheckpointError: When it is not.
        """
        remade = self.whole()
        found = _other_weights(state, remade.state_dict())
        if partly:
            found.pop("missing", None)
        found = found or other_modules(self._model, remade, self.whole_anew)
        name = type(self._model).__name__
        less = {title: found.pop(title) for title in (sameness.MORE, *told) if title in found}
        if found:
            raise CheckpointError(f"{name} {_CHANGED.format(found=weights.listed(found), end=end)}")
        new = {title: [place for place in places if self._is_new(place)] for title, places in less.items()}
        new = {title: places for title, places in new.items() if places}
        if new:
            warnings.warn(f"{name} {_CHANGED.format(found=weights.listed(new), end=_TOLD)}", UserWarning, stacklevel=2)

    def whole_anew(self) -> nn.Module:
        """Return another model like `whole`."""
        made = self._rehearsed()
        return weights.skeleton(self.make) if made is None else made

    def _is_new(self, place: str) -> bool:
        name = place.partition(" ")[0]
        is_new = name not in self._told
        self._told.add(name)
        return is_new


def _other_weights(state: Mapping[str, Any], remade: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what differs between weights, ties included."""
    expected = {weights.normal_name(name): value for name, value in remade.items()}
    found = weights.differences(weights.forms(state), weights.forms(expected))
    ours, theirs = ({frozenset(group) for group in shared(_tensors(each))} for each in (state, expected))
    for title, changed in (("made one", ours - theirs), ("no longer one", theirs - ours)):
        if changed:
            found[title] = sorted(" and ".join(sorted(group)) for group in changed)
    return found


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if _is_known(value)}


def _is_known(value: object) -> bool:
    return isinstance(value, torch.Tensor) and not is_lazy(value) and is_dense(value)


def require_recipe_of(model: Any) -> None:
    """Raise when an unbuilt model is not what its recipe makes.

    Raises:
        CheckpointError: When it is not.
    """
    record = without_data_sets(describe(model))

    def make() -> nn.Module:
        made: nn.Module = realize(record)
        return made

    def remade() -> nn.Module:
        made = rehearse(make, _UNLIMITED).made
        return weights.skeleton(make) if made is None else made

    try:
        expected = remade()
    except Exception as error:
        error.add_note(f"while making {type(model).__name__} again, as loading it would")
        raise
    found = _other_weights(_named(model), _named(expected))
    found = found or other_modules(model, expected, remade)
    frozen = sorted({*frozen_of(model)} ^ {*frozen_of(expected)})
    if frozen and not found:
        found["frozen, or no longer"] = frozen
    found.pop(sameness.MORE, None)
    if found:
        raise CheckpointError(
            f"{type(model).__name__} is not what its recipe makes; in the model, against its recipe: "
            f"{weights.listed(found)}. A model that is not built is saved as the calls that make it, and this change "
            "was none. Make it in its __init__, by configure(), or in a method decorated with @replayml.stateful"
        )


def _named(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of the plain modules in an unbuilt model, by name."""
    named = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {weights.normal_name(name): tensor for name, tensor in named}


# What is kept ---------------------------------------------------------------------------------------------------


def note_state(
    model: nn.Module, recipe: str, saved: Iterable[str], modes: Mapping[int, bool] | None = None, **more: Any
) -> State:
    """Return what is known of a built model beside its weights.

    Args:
        model: The model.
        recipe: The text of its recipe.
        saved: The names of its weights.
        modes: Whether modules are in training mode, by their ids, where that is not as they are at the moment.
        **more: What else the file is to tell.
    """
    return State(
        recipe=hashlib.sha256(recipe.encode()).hexdigest(),
        modes=_modes(model, modes or {}),
        frozen=frozen_of(model),
        buffers=_unsaved(model, saved),
        **more,
    )


def _modes(model: nn.Module, known: Mapping[int, bool]) -> dict[str, bool]:
    """Return whether modules are in training mode, of those that are not as the one above."""
    modes = {path: known.get(id(module), module.training) for path, module in modules(model)}
    return {path: mode for path, mode in modes.items() if not path or mode != modes[path.rpartition(".")[0]]}


def frozen_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that are not trained."""
    return tuple(
        weights.normal_name(name)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    )


def _unsaved(model: nn.Module, saved: Iterable[str]) -> dict[str, torch.dtype]:
    """Return the types of the floating point buffers that no file holds."""
    names = {weights.normal_name(name): buffer for name, buffer in model.named_buffers(remove_duplicate=False)}
    return {
        name: buffer.dtype
        for name, buffer in names.items()
        if name not in saved and str(buffer.dtype) in DEFAULT_DTYPES
    }


# What is given back ---------------------------------------------------------------------------------------------


def set_modes(model: nn.Module, modes: Mapping[str, bool]) -> None:
    """Put modules into the modes that they were saved in."""
    found = {"": modes.get("", True)}
    for path, module in modules(model):
        if path:
            found[path] = modes.get(path, found[path.rpartition(".")[0]])
        module.training = found[path]


def restore(model: nn.Module, state: State, prefix: str = "") -> None:
    """Give a model, which has its weights, what a file tells beside them.

    Args:
        model: The model, or a part of it.
        state: What the file tells.
        prefix: The path of the part, with a dot.
    """
    frozen = frozenset(state.frozen)
    for name, parameter in model.named_parameters():
        is_trained = prefix + weights.normal_name(name) not in frozen
        parameter.requires_grad_(is_trained and (parameter.is_floating_point() or parameter.is_complex()))
    for name, buffer in list(model.named_buffers(remove_duplicate=False)):
        dtype = state.buffers.get(prefix + weights.normal_name(name))
        if dtype is not None and dtype is not buffer.dtype:
            weights.put(model, name, buffer.to(dtype))
