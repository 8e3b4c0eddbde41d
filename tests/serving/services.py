"""What the tests serve: functions and modules that a worker can import."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import replayml


def echo(*args: Any, **kwargs: Any) -> Any:
    """Return what came: the one argument, or all of them."""
    return args[0] if len(args) == 1 and not kwargs else (args, kwargs)


def scaled(value: Any, *, by: float = 2) -> Any:
    """Return a value times a number."""
    return value * by


def fail(name: str) -> None:
    """Raise an exception of some class."""
    errors: dict[str, BaseException] = {
        "value": ValueError("no such row"),
        "key": KeyError("a"),
        "os": FileNotFoundError(2, "No such file or directory"),
        "own": replayml.ConfigurationError("there is no 'depth'"),
        "recipe": replayml.RecipeError("bad-value", "model.x", "it is wrong"),
        "secret": SecretError("the password is 1234"),
        "exit": SystemExit(3),
        "stop": StopIteration(),
    }
    raise errors[name]


class SecretError(Exception):
    """An exception that no other program has."""


def sleep(seconds: float) -> str:
    """Take some time."""
    time.sleep(seconds)
    return "slept"


def mark_and_sleep(path: str, seconds: float) -> int:
    """Tell that the call has begun, and take some time."""
    Path(path).write_text("running")
    time.sleep(seconds)
    return os.getpid()


def process(*_: Any) -> int:
    """Return the process that runs this."""
    return os.getpid()


def die() -> None:
    """End the process as a crash does."""
    os._exit(9)


def nan() -> torch.Tensor:
    """Return what JSON has no form for."""
    return torch.tensor([1.0, float("nan")])


def unsendable() -> object:
    """Return what cannot be sent."""
    return object()


def modules_of_the_worker() -> list[str]:
    """Return the names of what the worker has imported."""
    return sorted(sys.modules)


class Shift(replayml.Module):
    """A module without weights."""

    def __init__(self, by: int = 1) -> None:
        self.by = by

    def forward(self, value: Any) -> Any:
        return value + self.by


class Picky(replayml.Module):
    """A module that takes rows, and refuses negative ones."""

    def __init__(self) -> None:
        self.layer = replayml.Layer(nn.Linear, 3, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if bool((x < 0).any()):
            raise ValueError("a negative row")
        return {"y": self.layer(x), "rows": torch.full((len(x),), len(x))}


def named(**kwargs: Any) -> Any:
    """Return the arguments by name."""
    return kwargs


class Named(replayml.Module):
    """A module that takes further arguments besides its input, and returns them."""

    def __init__(self) -> None:
        self.layer = replayml.Layer(nn.Linear, 3, 2)

    def forward(self, x: torch.Tensor, by: Any = 1, *, tag: Any = None) -> Any:
        return {"y": self.layer(x), "rows": len(x), "by": by, "tag": tag}


class Scaled(replayml.Module):
    """A module that takes rows and a further argument; a negative row is held until a file exists."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def forward(self, x: torch.Tensor, by: float = 1.0) -> torch.Tensor:
        if bool((x < 0).any()):
            (Path(self.folder) / "held").touch()
            while not (Path(self.folder) / "open").exists():
                time.sleep(0.01)
        return torch.cat([x * by, torch.full_like(x, len(x))], dim=1)


class Gate(replayml.Module):
    """A module that tells how many rows ran together; a negative one is held until a file exists."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x < 0).any()):
            (Path(self.folder) / "held").touch()
            while not (Path(self.folder) / "open").exists():
                time.sleep(0.01)
        return torch.cat([x, torch.full_like(x, len(x))], dim=1)


class Summed(replayml.Module):
    """A module whose output has no rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


class Unloadable(replayml.Module):
    """A module that can be made in the program, and in no worker."""

    def __init__(self) -> None:
        if sys.argv[0].endswith("worker.py"):
            raise RuntimeError("there is no such device")

    def forward(self) -> int:
        return 1


class Meeting(replayml.Module):
    """A module that is loaded in a worker only while a number of others are being loaded as well.

    Each tells that its loading has begun, and goes on when all have told so: one after the other they would wait in
    vain.
    """

    def __init__(self, folder: str, name: str, members: int = 3, step: replayml.Module | None = None) -> None:
        self.step = step
        if sys.argv[0].endswith("worker.py"):
            Path(folder, name).touch()
            end = time.monotonic() + 280
            while len(list(Path(folder).iterdir())) < members:
                if time.monotonic() > end:
                    raise RuntimeError(f"only {sorted(path.name for path in Path(folder).iterdir())} are being loaded")
                time.sleep(0.02)

    def forward(self, value: Any) -> Any:
        return value + 1 if self.step is None else self.step(value) * 2


class Router(replayml.Module):
    """A module that calls one of two others."""

    def __init__(self, inner: replayml.Module, lost: replayml.Module) -> None:
        self.inner = inner
        self.lost = lost

    def forward(self, name: str) -> Any:
        return self.lost(name) if name == "lost" else self.inner(name)
