"""What differs between two recipes, and the calls that turn the model of one into that of the other.

Invariants:
    * Settings are compared as they are in force, path by path; tapes call by call; weights name by name.
    * Where the second recipe is the first with more calls, these calls are the answer, and the result has the
      fingerprint of the second. Else they are calls of ``configure``, and the result is equal in what is in force.
    * What these calls do not reach is listed; an empty `RecipeDiff.rest` is a promise.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from replayml.core.copying import describe
from replayml.core.errors import ReplaymlError
from replayml.core.replay import realize
from replayml.core.tape import CallRecord, TapeEntry, Where
from replayml.recipe.views.effective import Change, Comparison, apply

__all__ = ["RecipeDiff", "TapeChange", "WeightChange", "compare", "compare_weights"]

_MOST_LINES = 50


@dataclass(frozen=True, slots=True)
class TapeChange:
    """A call that is on one tape only.

    Attributes:
        is_new: It is on the second tape, not on the first.
        number: Its number there, from 0.
        call: The call as the user would type it.
        where: The line of the user's code, if it is known.
    """

    is_new: bool
    number: int
    call: str
    where: Where | None

    def __str__(self) -> str:
        line = f"  ({self.where})" if self.where else ""
        return f"{'+' if self.is_new else '-'} {self.number}: {self.call}{line}"


@dataclass(frozen=True, slots=True)
class WeightChange:
    """A weight that is not the same in both.

    Attributes:
        name: Its name.
        what: What differs, in words.
    """

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


@dataclass(frozen=True, slots=True)
class RecipeDiff:
    """What differs between two recipes. It is true where something does: ``if one.diff(other): ...``.

    Attributes:
        config: What is in force in one model and not in the other, by path.
        tape: The calls that are on one tape only.
        weights: The weights that differ, where weights were given.
        calls: The calls that turn the first model into the second, to be made in this order: see `apply`.
        rest: What these calls do not reach, in words.

    Example:
        >>> import replayml
        >>> one = replayml.MultiLayerPerceptron(4, [8], 2)
        >>> other = replayml.MultiLayerPerceptron(4, [8], 3)
        >>> print(one.recipe().diff(other.recipe()))
        3 settings differ:
          model.out_features: 2 -> 3
          model.blocks[1].out_features: 2 -> 3
          model.blocks[1].layer.out_features: 2 -> 3
        calls that turn the first into the second:
          model.configure(out_features=3)
    """

    config: tuple[Change, ...]
    tape: tuple[TapeChange, ...]
    weights: tuple[WeightChange, ...]
    calls: tuple[TapeEntry, ...]
    rest: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.config or self.tape or self.weights or self.calls or self.rest)

    def __bool__(self) -> bool:
        """Return whether anything differs: ``if one.diff(other): ...``."""
        return not self.is_empty

    @property
    def is_complete(self) -> bool:
        """Whether the calls reach everything, the values of weights aside."""
        return not self.rest

    def apply(self, model: Any) -> Any:
        """Make the calls on a model, and return it.

        Args:
            model: An unbuilt model that equals the first one, such as ``first.model()``.

        Raises:
            ReplayError: When the model is another one.
        """
        apply(model, self.calls)
        return model

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain data, which JSON can hold.

        Example:
            >>> RecipeDiff((), (), (), (), ()).to_dict()["same"]
            True
        """
        return {
            "same": self.is_empty,
            "config": [
                {"path": list(change.path), "name": change.name, "old": change.old, "new": change.new}
                for change in self.config
            ],
            "tape": [
                {
                    "new": change.is_new,
                    "number": change.number,
                    "call": change.call,
                    "where": None if change.where is None else str(change.where),
                }
                for change in self.tape
            ],
            "weights": [{"name": change.name, "what": change.what} for change in self.weights],
            "calls": [str(call) for call in self.calls],
            "complete": self.is_complete,
            "rest": list(self.rest),
        }

    def __str__(self) -> str:
        return "\n".join(self._lines()) or "no difference"

    def _lines(self) -> Iterator[str]:
        count = len(self.config)
        yield from _listed(f"{count} setting{'s differ' if count != 1 else ' differs'}:", self.config)
        yield from _listed("calls on one tape only:", self.tape)
        yield from _listed(f"weights that differ ({len(self.weights)}):", self.weights)
        yield from _listed("calls that turn the first into the second:", self.calls)
        yield from _listed("what these calls do not reach:", self.rest)


def _listed(title: str, items: tuple[Any, ...]) -> Iterator[str]:
    if items:
        yield title
        yield from (f"  {item}" for item in items[:_MOST_LINES])
    if len(items) > _MOST_LINES:
        yield f"  ... and {len(items) - _MOST_LINES} more"


# Comparing ----------------------------------------------------------------------------------------------------------


def compare(
    one: CallRecord,
    other: CallRecord,
    comparison: Comparison,
    identity: Callable[[CallRecord], tuple[str, list[str]]],
    weights: tuple[WeightChange, ...],
) -> RecipeDiff:
    """Return what differs between two models.

    Args:
        one: The first model, before it is an object.
        other: The second one.
        comparison: Compares models.
        identity: Returns the fingerprint of a model, and a text for its constructor call and each call on its tape.
        weights: What differs in the weights.
    """
    first, second = realize(one), realize(other)
    (old_print, old_texts), (new_print, new_texts) = identity(one), identity(other)
    if old_print == new_print:
        return RecipeDiff((), (), weights, (), ())
    config = tuple(comparison.changes(first, second))
    tape = tuple(_tape_changes(one, other, old_texts[1:], new_texts[1:]))
    calls = _further_calls(one, other, old_texts, new_texts)
    if calls is not None and _leads_to(one, calls, new_print, identity):
        return RecipeDiff(config, tape, weights, calls, ())
    calls = tuple(comparison.steps(first, second))
    rest = [str(change) for change in comparison.changes(first, second)]
    if identity(describe(first))[0] != new_print:
        rest += _other_calls(tape)
    return RecipeDiff(config, tape, weights, calls, tuple(rest))


def _tape_changes(one: CallRecord, other: CallRecord, old: list[str], new: list[str]) -> Iterator[TapeChange]:
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for tag, start, stop, new_start, new_stop in matcher.get_opcodes():
        if tag == "equal":
            continue
        for number in range(start, stop):
            yield TapeChange(False, number, str(one.tape[number]), one.tape[number].where)
        for number in range(new_start, new_stop):
            yield TapeChange(True, number, str(other.tape[number]), other.tape[number].where)


def _further_calls(one: CallRecord, other: CallRecord, old: list[str], new: list[str]) -> tuple[TapeEntry, ...] | None:
    """Return the calls that the second tape has more, if all else is equal."""
    return tuple(other.tape[len(one.tape) :]) if new[: len(old)] == old else None


def _leads_to(
    one: CallRecord,
    calls: tuple[TapeEntry, ...],
    fingerprint: str,
    identity: Callable[[CallRecord], tuple[str, list[str]]],
) -> bool:
    model = realize(one)
    try:
        apply(model, calls)
    except ReplaymlError:
        return False  # such as a call on a module that an earlier call of the whole tape has made
    return identity(describe(model))[0] == fingerprint


def _other_calls(tape: tuple[TapeChange, ...]) -> list[str]:
    """Return the calls on one tape only that change more than settings."""
    lines = []
    for change in tape:
        method = change.call.partition("(")[0].rpartition(".")[2]
        if method != "configure":
            lines.append(f"{'the second' if change.is_new else 'only the first'} has the call {change.call}")
    return lines


# Weights ------------------------------------------------------------------------------------------------------------


def compare_weights(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> tuple[WeightChange, ...]:
    """Return what differs between two ``state_dict``.

    Args:
        one: Tensors by name.
        other: Tensors by name.

    Example:
        >>> [str(change) for change in compare_weights({"w": torch.zeros(2)}, {"w": torch.ones(2), "b": torch.ones(1)})]
        ['w: other values, by up to 1', 'b: only in the second, (1,)']
    """
    changes = []
    for name in dict.fromkeys([*one, *other]):
        what = _difference(one.get(name), other.get(name))
        if what:
            changes.append(WeightChange(name, what))
    return tuple(changes)


def _difference(one: torch.Tensor | None, other: torch.Tensor | None) -> str:
    if one is None or other is None:
        found = one if other is None else other
        assert found is not None
        return f"only in the {'first' if other is None else 'second'}, {tuple(found.shape)}"
    if one.shape != other.shape:
        return f"{tuple(one.shape)} -> {tuple(other.shape)}"
    if one.dtype != other.dtype:
        return f"{one.dtype} -> {other.dtype}"
    if one.is_meta or other.is_meta or torch.equal(one, other):
        return ""
    apart = (one.detach().to("cpu", torch.complex128) - other.detach().to("cpu", torch.complex128)).abs().max()
    return f"other values, by up to {apart.item():.3g}"
