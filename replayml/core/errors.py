"""Every exception that a user of replayml can meet, drawn as one tree.

    ReplaymlError
     ├── ConfigurationError (ValueError)       a setting that does not exist or cannot be taken
     │    └── SelectionError                   a selector that matches nothing
     ├── ArgumentError (TypeError)             arguments that a wrapped class does not take
     ├── AlreadyBuiltError (RuntimeError)      a change to a model whose weights exist
     ├── NotBuiltError (RuntimeError)          a use of a model whose weights do not exist yet
     ├── BuildError (RuntimeError)             a model that lacks what building needs
     ├── LifecycleError (RuntimeError)         a step of the lifecycle that cannot be taken now
     ├── ReplayError (RuntimeError)            a tape entry that can no longer be replayed
     ├── RecipeError (ValueError)              a model file, or a model, without a safe data form
     └── CheckpointError (RuntimeError)        a checkpoint that does not fit the model

Invariants:
    * Each exception is also the builtin that a user would expect, so that ``except ValueError`` works.
    * The facts are in ``args`` and the sentence is made in ``__str__``: an exception survives pickling.
    * A message gives the place, the value, the choices and the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AlreadyBuiltError",
    "ArgumentError",
    "BuildError",
    "CheckpointError",
    "ConfigurationError",
    "LifecycleError",
    "NotBuiltError",
    "RecipeError",
    "ReplayError",
    "ReplaymlError",
    "SelectionError",
    "nearest",
    "suggestion",
]


class ReplaymlError(Exception):
    """The root of every exception that replayml raises on purpose."""


class ConfigurationError(ReplaymlError, ValueError):
    """A setting that does not exist, or that the module cannot take."""


class SelectionError(ConfigurationError):
    """A selector that matches no module."""


class ArgumentError(ReplaymlError, TypeError):
    """Arguments that the signature of a wrapped class does not take."""


class AlreadyBuiltError(ReplaymlError, RuntimeError):
    """A change to the structure of a model whose weights already exist."""


class NotBuiltError(ReplaymlError, RuntimeError):
    """A use of a model whose weights do not exist yet."""


class BuildError(ReplaymlError, RuntimeError):
    """A model that lacks a value which building needs."""


class LifecycleError(ReplaymlError, RuntimeError):
    """A step of the lifecycle (training, deployment, evaluation) that cannot be taken at the moment."""


class ReplayError(ReplaymlError, RuntimeError):
    """A tape entry that can no longer be replayed.

    Args:
        number: The position of the entry on the tape, counted from 0.
        call: The call as the user would type it.
        where: ``file:line`` of the user's call, or None when it is unknown.
        reason: Why the call failed, in one sentence.
        closest: Existing paths that look like the one that the entry names.
    """

    def __init__(
        self,
        number: int,
        call: str,
        where: str | None,
        reason: str,
        closest: tuple[str, ...] = (),
    ) -> None:
        super().__init__(number, call, where, reason, closest)
        self.number = number
        self.call = call
        self.where = where
        self.reason = reason
        self.closest = closest

    def __str__(self) -> str:
        place = f" (recorded at {self.where})" if self.where else ""
        hint = f" The closest existing paths: {', '.join(self.closest)}." if self.closest else ""
        return f"tape entry {self.number}, {self.call}{place}, cannot be replayed: {self.reason}{hint}"


class RecipeError(ReplaymlError, ValueError):
    """A model file, or a model, that has no safe data form.

    Args:
        code: A stable, short, machine-readable code, such as ``"unknown-name"``.
        where: The JSON path, or the path in the model, of the fault.
        message: What is wrong and the one safe next step.
    """

    def __init__(self, code: str, where: str, message: str) -> None:
        super().__init__(code, where, message)
        self.code = code
        self.where = where
        self.message = message

    def __str__(self) -> str:
        return f"[{self.code}] at {self.where}: {self.message}"


class CheckpointError(ReplaymlError, RuntimeError):
    """A checkpoint whose weights do not fit the model."""


def nearest(name: str, choices: Iterable[str], count: int = 1) -> list[str]:
    """Return the choices that look most like ``name``, best first.

    Args:
        name: What the user typed.
        choices: What would have been right.
        count: How many to return at the most.

    Example:
        >>> nearest("kernal_size", ["in_channels", "kernel_size"])
        ['kernel_size']
    """
    return difflib.get_close_matches(name, list(choices), n=count, cutoff=0.5)


def suggestion(name: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the nearest choice, or an empty string.

    Example:
        >>> suggestion("kernal_size", ["kernel_size"])
        " Did you mean 'kernel_size'?"
    """
    found = nearest(name, choices)
    return f" Did you mean {found[0]!r}?" if found else ""
