"""A program that is killed while it saves, at every line of the code that saves, and tells what is on disk then.

FORM is a name to save to; to "pretrained" the model is saved by save_pretrained.

python killed_saves.py lines FORM FOLDER     a child is killed at each line; prints what each left
python killed_saves.py loop FORM FOLDER N    saves model N for ever, to be killed from outside
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import replayml
from replayml.recipe.files import atomic, container, manifest, storing, sums

torch.set_num_threads(1)

# A child is killed at each line of the first, which change what is on disk, and at some of the others.
_ON_DISK = {module.__file__ for module in (atomic, manifest, storing)}
_WATCHED = _ON_DISK | {module.__file__ for module in (container, sums)}
_SOME = 7

PRETRAINED = "pretrained"


def model(number: int, width: int = 3) -> Any:
    """Return a model that tells which one it is, in its recipe and in all of its weights."""
    built = replayml.Sequential(replayml.Layer(nn.Linear, width, width + number)).build()
    for parameter in built.parameters():
        nn.init.constant_(parameter, number)
    return built


def save(number: int, path: Path, width: int = 3) -> None:
    """Save a model in the form that the name of the path tells."""
    if path.name.endswith(PRETRAINED):
        model(number, width).save_pretrained(path)
    else:
        model(number, width).save(path)


def number_of(path: Path) -> int | None:
    """Return which model a path holds, all of it; None for none, and 0 for a half of one, which is refused as such."""
    try:
        found = replayml.load(path)
    except FileNotFoundError:
        return None
    except replayml.RecipeError as error:
        if path.name.endswith(PRETRAINED) and error.code in ("changed-file", "missing-file"):
            return 0
        if error.code != "not-a-model":
            raise
        return None
    values = {float(end) for parameter in found.parameters() for end in parameter.detach().aminmax()}
    number = found[0].out_features - found[0].in_features
    assert values == {float(number)}, values
    return int(number)


class _KilledAt:
    """A trace function that kills the process at a line, and notes the files of the lines up to it."""

    def __init__(self, line: int | None) -> None:
        self.line = line
        self.files: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in _WATCHED:
            return None
        if event == "line":
            if len(self.files) == self.line:
                os.kill(os.getpid(), signal.SIGKILL)
            self.files.append(frame.f_code.co_filename)
        return self


def _save_traced(number: int, path: Path, line: int | None) -> list[int]:
    """Save a model, and return the lines at which to kill a save like this one."""
    trace = _KilledAt(line)
    sys.settrace(trace)
    try:
        save(number, path)
    finally:
        sys.settrace(None)
    return [line for line, file in enumerate(trace.files) if file in _ON_DISK or line % _SOME == 0]


def _lines(form: str, folder: Path) -> None:
    """Kill a save at each line, over an older model and where there is none."""
    over = folder / f"old-{form}"
    save(1, over)
    moments = {"old": _save_traced(2, over, None), "none": _save_traced(2, folder / f"first-{form}", None)}
    found: dict[str, list[Any]] = {"old": [], "none": []}
    state: int | None = 2
    for start, states in found.items():
        for line in moments[start][:: 1 if start == "old" else 4]:
            path = over if start == "old" else folder / f"none-{line}-{form}"
            if start == "old" and state != 1:
                save(1, path)
            child = os.fork()
            if child == 0:
                _save_traced(2, path, line)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            state = number_of(path)
            states.append((os.WIFSIGNALED(status), state))
    print(json.dumps(found))


def _loop(form: str, folder: Path, number: int) -> None:
    """Save for ever; the file is large enough to be killed in the middle of it."""
    saved = model(number, width=200)
    print("ready", flush=True)
    while True:
        saved.save(folder / form)


if __name__ == "__main__":
    if sys.argv[1] == "lines":
        _lines(sys.argv[2], Path(sys.argv[3]))
    else:
        _loop(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
