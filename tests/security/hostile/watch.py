"""Opens files one after another, and reports what the process did meanwhile.

    python -m tests.security.hostile.watch index.json report.json

The index is a list of ``{"path", "opener", "limits", "folder", "armed"}``; the report one of ``{"result", "events",
"growth"}``: what became of a file (``loaded``, or the code of its refusal), what the process did that opening a file
must not do, and by how many bytes its memory grew at the most.
"""

from __future__ import annotations

import codecs
import gc
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torchmetrics  # noqa: F401 - so that its names are known

import replayml
from replayml.recipe import Recipe
from replayml.training.application import Application
from tests.recipe.samples import TRUST
from tests.security.hostile import models

FORBIDDEN = (
    *(
        "import",
        "subprocess.",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.kill",
        "os.startfile",
    ),
    *(
        "socket.",
        "ctypes.",
        "pickle.find_class",
        "shutil.",
        "pty.",
        "winreg.",
        "urllib.",
        "http.",
        "ftplib.",
        "webbrowser.",
    ),
    *("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate"),
    *(
        "os.putenv",
        "os.unsetenv",
        "os.chdir",
        "exec",
        "compile",
        "code.__new__",
        "function.__new__",
        "sys.addaudithook",
    ),
)
FREE_TO_READ = ("/proc/meminfo", "/proc/self/statm")


class Watch:
    """Notes what the process does while a file is opened."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.events: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "open":
            path = args[0]
            if isinstance(path, (str, bytes, os.PathLike)) and not self._may_open(os.fsdecode(path)):
                self.events.append(f"open {os.fsdecode(path)}")
            if isinstance(args[1], str) and set(args[1]) & set("wax+"):
                self.events.append(f"write {path}")
        elif event.startswith(FORBIDDEN):
            self.events.append(f"{event} {str(args)[:100]}")

    def _may_open(self, path: str) -> bool:
        assert self.folder is not None
        return path in FREE_TO_READ or os.path.abspath(path).startswith(self.folder)


def _record(path: Path, limits: replayml.Limits) -> None:
    text = path.read_bytes()
    Recipe.from_json(text, limits=limits).record(TRUST)


def _model(path: Path, limits: replayml.Limits) -> None:
    Recipe.from_json(path.read_bytes(), limits=limits).model(TRUST)


def _load(path: Path, limits: replayml.Limits) -> None:
    replayml.load(path, limits=limits)


def _checkpoint(path: Path, limits: replayml.Limits) -> None:
    Application.load_from_checkpoint(path)


OPENERS: Mapping[str, Callable[[Path, replayml.Limits], None]] = MappingProxyType(
    {"record": _record, "model": _model, "load": _load, "checkpoint": _checkpoint}
)


def memory(key: str) -> int:
    """Return the memory of this process in bytes: ``VmRSS`` for now, ``VmHWM`` for the most since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def outcome(opener: str, path: Path, limits: replayml.Limits) -> str:
    """Return what becomes of a file: it is inspected, and then opened."""
    try:
        replayml.inspect(path, limits=limits)
    except replayml.ReplaymlError:
        pass  # the opener refuses it as well, and tells its code
    except OSError as error:
        return type(error).__name__
    try:
        OPENERS[opener](path, limits)
    except replayml.RecipeError as error:
        return error.code
    except Exception as error:  # noqa: BLE001 - whatever it is, it is reported
        return type(error).__name__
    return "loaded"


def main(index: Path, report: Path) -> None:
    """Open all files of an index."""
    for encoding in ("cp437", "latin-1"):
        codecs.lookup(encoding)  # Python loads each when it is first used, by archives and old strings
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    assert models.__name__ in sys.modules  # its classes are those that the files name
    watch = Watch()
    sys.addaudithook(watch)
    found = []
    for item in json.loads(index.read_text()):
        path, limits = Path(item["path"]), replayml.Limits(**item["limits"])
        if item["armed"]:
            gc.collect()
            gc.freeze()
            Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        modules = set(sys.modules)
        watch.folder = item["folder"] if item["armed"] else None
        result = outcome(item["opener"], path, limits)
        watch.folder = None
        events = watch.events + [f"module {name}" for name in sorted(set(sys.modules) - modules)]
        watch.events = []
        growth = memory("VmHWM") - before
        found.append({"result": result, "events": events if item["armed"] else [], "growth": growth})
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
