"""Weights for a model whose structure has changed since they were trained: `Module.load_matching`.

    trained tensors ─► their names in the model (rename) ─► those whose shape agrees ─► copied in place ─► the report

Invariants:
    * A tensor is taken where name and shape agree, and nowhere else; everything else is in the report.
    * A tensor that stands under several names of the model is one: it takes one value, under all of its names.
    * What does not fit is found out before anything is copied: a refusal leaves the model as it was.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from replayml.core.errors import CheckpointError, NotBuiltError, suggestion
from replayml.module.paths import dotted
from replayml.recipe.files.weights import by_path, normal_name

__all__ = ["LEAST_MATCH", "MatchReport", "Mismatch", "load_matching"]

LEAST_MATCH = 0.1
"""A match of fewer weights than this, of the smaller of the two, is taken for a mistake."""

_MOST_PATHS = 20


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A tensor that was not taken because it is of another shape.

    Attributes:
        name: Its name in the model.
        trained: What it is in the trained model, such as ``"(2, 8)"``.
        model: What it is in the model.
    """

    name: str
    trained: str
    model: str

    def __str__(self) -> str:
        return f"{self.name}: {self.trained} in the trained model, {self.model} in this one"


@dataclass(frozen=True, slots=True)
class MatchReport:
    """What `Module.load_matching` took, and what it did not.

    Attributes:
        loaded: The names of the weights of the model that have the trained values now.
        mismatched: Those that the trained model has with another shape.
        missing: Those that the trained model does not have.
        unexpected: The names of trained weights that the model does not have.

    Example:
        >>> report = MatchReport(("hidden.weight", "hidden.bias"), (), ("head.weight",), ())
        >>> print(report)
        2 of 3 weights loaded
          loaded: hidden (weight, bias)
          missing: head (weight)
        >>> report.paths["missing"]
        {'head': ('weight',)}
    """

    loaded: tuple[str, ...]
    mismatched: tuple[Mismatch, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every weight of both was loaded."""
        return not (self.mismatched or self.missing or self.unexpected)

    @property
    def paths(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """The names in each group, by the path of the module that has them; ``""`` is the model itself."""
        groups = {
            "loaded": self.loaded,
            "of another shape": tuple(mismatch.name for mismatch in self.mismatched),
            "missing": self.missing,
            "unexpected": self.unexpected,
        }
        return {
            title: {path: tuple(last) for path, last in by_path(names).items()}
            for title, names in groups.items()
            if names
        }

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.mismatched) + len(self.missing)
        return "\n".join([f"{len(self.loaded)} of {total} weights loaded", *(f"  {line}" for line in self._lines())])

    def _lines(self) -> Iterator[str]:
        for title, paths in self.paths.items():
            if title == "of another shape":
                entries = [str(mismatch) for mismatch in self.mismatched]
            else:
                entries = [f"{path or 'the model itself'} ({', '.join(names)})" for path, names in paths.items()]
            rest = f" and {len(entries) - _MOST_PATHS} more" if len(entries) > _MOST_PATHS else ""
            yield f"{title}: {', '.join(entries[:_MOST_PATHS])}{rest}"


# Loading --------------------------------------------------------------------------------------------------------


def load_matching(
    model: nn.Module,
    trained: nn.Module | Mapping[str, Any],
    *,
    rename: Mapping[str, str] | None = None,
    at_least: float = LEAST_MATCH,
) -> MatchReport:
    """Take the trained weights that a model has room for.

    Args:
        model: A built model.
        trained: A built model, or its ``state_dict``.
        rename: Paths in the trained model and the paths at which the model has the same; ``""`` is the whole model.
            The longest path that fits a name counts.
        at_least: The share of the weights, of the smaller of the two, that must match; 0 allows that none does.

    Returns:
        What was taken and what was not.

    Raises:
        NotBuiltError: When one of the two has no weights yet.
        CheckpointError: When too little matches, or a renaming does not fit; the model is as it was then.

    Example:
        >>> small, large = (
        ...     nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)),
        ...     nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5)),
        ... )
        >>> print(load_matching(large, small))
        2 of 4 weights loaded
          loaded: 0 (weight, bias)
          of another shape: 1.weight: (1, 3) in the trained model, (5, 3) in this one, 1.bias: (1,) in the trained ...
        >>> torch.equal(large[0].weight, small[0].weight)
        True
    """
    _require_weights(model, "the model")
    given = _renamed(_trained_state(trained), {dotted(old): dotted(new) for old, new in (rename or {}).items()})
    own: dict[str, Any] = model.state_dict(keep_vars=True)
    names = {normal_name(name): name for name in own}
    given = {names.get(name, name): value for name, value in given.items()}
    chosen, report = _matched(model, own, given)
    _check_share(model, report, len(own), len(given), at_least)
    _load(model, chosen)
    return report


def _require_weights(model: Any, what: str) -> None:
    record = model.__dict__.get("_record")
    if record is not None and not record.built:
        raise NotBuiltError(
            f"{what}, {type(model).__name__}, has no weights yet. Build it first: "
            "model = trained.new().build(); model.load_matching(trained)"
        )


def _trained_state(trained: nn.Module | Mapping[str, Any]) -> Mapping[str, Any]:
    """Return trained values by name, without what ``torch.compile`` puts into the names."""
    if isinstance(trained, nn.Module):
        _require_weights(trained, "the trained model")
        trained = trained.state_dict()
    if not isinstance(trained, Mapping) or not all(isinstance(name, str) for name in trained):
        raise CheckpointError(
            f"load_matching takes a trained model or its state_dict, not {type(trained).__name__}. "
            "Load a file first: model.load_matching(replayml.load(path))"
        )
    if isinstance(trained.get("state_dict"), Mapping):
        raise CheckpointError(
            "this is a whole checkpoint. Its weights are one part of it: model.load_matching(checkpoint['state_dict'])"
        )
    return {normal_name(name): value for name, value in trained.items()}


def _renamed(state: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    """Return trained values by their names in the model."""
    found: dict[str, Any] = {}
    sources: dict[str, str] = {}
    used: set[str] = set()
    for name, value in state.items():
        old = max((path for path in rename if _is_below(name, path)), key=len, default=None)
        new = name
        if old is not None:
            used.add(old)
            rest = name[len(old) :].removeprefix(".")
            new = ".".join(filter(None, (rename[old], rest)))
        if new in found:
            raise CheckpointError(
                f"with this renaming {sources[new]!r} and {name!r} of the trained model are both {new!r}"
            )
        found[new], sources[new] = value, name
    for path in rename:
        if path not in used and not any(_is_below(name, path) for name in state):
            paths = {part for name in state for part in _prefixes(name)}
            raise CheckpointError(
                f"the trained model has nothing at {path!r} to rename.{suggestion(path, sorted(paths))}"
            )
    return found


def _is_below(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


# Comparing ------------------------------------------------------------------------------------------------------


def _matched(model: nn.Module, own: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], MatchReport]:
    """Return the values to take by name, and the report of taking them."""
    chosen: dict[str, Any] = {}
    mismatched: dict[str, Mismatch] = {}
    for name, value in given.items():
        if name in own:
            if _fits(value, own[name]):
                chosen[name] = value
            else:
                mismatched[name] = Mismatch(normal_name(name), _text(value), _text(own[name]))
    for group in _tied(own):
        _unite(model, group, chosen, mismatched)
    report = MatchReport(
        loaded=tuple(normal_name(name) for name in own if name in chosen),
        mismatched=tuple(mismatched[name] for name in own if name in mismatched),
        missing=tuple(normal_name(name) for name in own if name not in chosen and name not in mismatched),
        unexpected=tuple(normal_name(name) for name in given if name not in own),
    )
    return chosen, report


def _fits(value: Any, target: Any) -> bool:
    if not isinstance(value, torch.Tensor) or not isinstance(target, torch.Tensor):
        return not isinstance(value, torch.Tensor) and not isinstance(target, torch.Tensor)
    if is_lazy(value):
        return False
    return is_lazy(target) or (value.shape == target.shape and _kind(value) == _kind(target))


def _kind(tensor: torch.Tensor) -> str:
    """Return what numbers a tensor holds; within one kind a copy changes the precision only."""
    if tensor.dtype is torch.bool:
        return "bool"
    return "complex" if tensor.is_complex() else "floating point" if tensor.is_floating_point() else "integer"


def _text(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return "no tensor"
    if is_lazy(value):
        return "not initialized"
    kind = _kind(value)
    return str(tuple(value.shape)) + (f" {kind}" if kind != "floating point" else "")


def _tied(own: Mapping[str, Any]) -> list[list[str]]:
    """Return the names of each tensor that stands under several."""
    names: dict[Any, list[str]] = {}
    for name, value in own.items():
        if isinstance(value, torch.Tensor) and not is_lazy(value):
            names.setdefault(_identity(value), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _identity(tensor: torch.Tensor) -> Any:
    """Return what two tensors that are one memory have in common."""
    if tensor.layout is not torch.strided or tensor.is_meta or not tensor.numel():
        return id(tensor)
    start = tensor.untyped_storage().data_ptr()
    return (tensor.device, start, tensor.storage_offset(), tensor.shape, tensor.stride()) if start else id(tensor)


def _unite(model: nn.Module, group: list[str], chosen: dict[str, Any], mismatched: Mapping[str, Mismatch]) -> None:
    """Choose one value for a tensor that stands under several names, and take it under all of them."""
    given = [name for name in group if name in chosen]
    for other in given[1:]:
        if not _equal(chosen[given[0]], chosen[other]):
            raise CheckpointError(
                f"{given[0]!r} and {other!r} are one tensor of this {type(model).__name__}, and two different ones of "
                "the trained model. Leave one of them out: model.load_matching({name: value for name, value in "
                f"trained.state_dict().items() if name != {other!r}}})"
            )
    if given:
        chosen.update({name: chosen[given[0]] for name in group if name not in mismatched})


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one is other or one.is_meta or other.is_meta or _identity(one) == _identity(other):
        return True
    other = other.to(one.device)
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _check_share(model: nn.Module, report: MatchReport, own: int, given: int, at_least: float) -> None:
    if at_least <= 0 or (not own and not given):
        return
    if report.loaded and len(report.loaded) >= at_least * min(own, given):
        return
    raise CheckpointError(
        f"{len(report.loaded)} of the {own} weights of this {type(model).__name__} match the {given} given; these are "
        "the weights of another model. Say where they belong with rename={'path there': 'path here'}, or allow it "
        f"with at_least=0.\n{report}"
    )


# Copying --------------------------------------------------------------------------------------------------------


def _apart(chosen: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return values that stay as they are while the model changes: copies of those that are memory of the model."""
    memory = {_memory(tensor) for tensor in own.values()} - {None}
    return {
        name: value.clone() if _memory(value) in memory and _identity(value) != _identity(own[name]) else value
        for name, value in chosen.items()
    }


def _memory(tensor: Any) -> Any:
    """Return what tensors that share memory have in common; None for what has no memory of its own."""
    is_plain = isinstance(tensor, torch.Tensor) and not is_lazy(tensor) and tensor.layout is torch.strided
    if not is_plain or tensor.is_meta or not tensor.numel():
        return None
    return (tensor.device, start) if (start := tensor.untyped_storage().data_ptr()) else None


def _load(model: nn.Module, chosen: Mapping[str, Any]) -> None:
    own = model.state_dict()
    chosen = _apart(chosen, own)
    for name, value in chosen.items():
        for tensor, what in ((value, "the trained model"), (own[name], f"this {type(model).__name__}")):
            if isinstance(tensor, torch.Tensor) and not is_lazy(tensor) and tensor.is_meta:
                raise NotBuiltError(
                    f"{name!r} of {what} is on the meta device and holds no values. Build on a device that has "
                    "memory: model.build(device='cpu')"
                )
    state = OrderedDict((name, chosen[name]) for name in own if name in chosen)
    state._metadata = getattr(own, "_metadata", None)  # type: ignore[attr-defined]
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"{type(model).__name__} does not take these weights: {' '.join(str(error).split())}"
        ) from error
