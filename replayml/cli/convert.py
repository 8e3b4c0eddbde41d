"""`replayml convert`: an old checkpoint, which keeps its model as dill bytes, as a file that opens without unpickling.

Invariants:
    * Without the user's word that the file is trusted, it is not opened.
    * It is read in a process of its own; here nothing of it is unpickled.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from replayml.cli.report import Answer, ExitCode, lines

__all__ = ["run"]

UNTRUSTED = (
    "an old checkpoint keeps its model as a pickle, and to read one is to run what it says. {path} was not opened. "
    "Only where you trust whoever wrote it: --i-trust-this-file"
)


def run(source: Path, target: Path, *, is_trusted: bool, rename: Sequence[str] = ()) -> Answer:
    """Convert a checkpoint.

    Args:
        source: The old checkpoint.
        target: The file to write.
        is_trusted: Whether the user said that the file is trusted.
        rename: Modules that have another name now, as ``OLD=NEW``.
    """
    if not is_trusted:
        message = UNTRUSTED.format(path=source)
        return _failed("not-trusted", message, ExitCode.USAGE)
    if target.exists() and target.samefile(source):
        return _failed("same-file", "OUT is IN: the old checkpoint is not replaced. Name another file", ExitCode.USAGE)
    for renaming in rename:
        old, _, new = renaming.partition("=")
        if not (old and new):
            return _failed("bad-rename", f"{renaming!r} is no renaming. Write --rename OLD=NEW", ExitCode.USAGE)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "outcome.json"
        words = [str(source.absolute()), str(target.absolute()), str(result), *rename]
        command = [sys.executable, "-m", "replayml.cli.legacy", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not result.exists():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            return _failed("reader-failed", f"the process that read the file failed: {last[0]}", ExitCode.FAILED)
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "error" in found:
        error = found["error"]
        return Answer(found, lines(f"refused: [{error['code']}] {error['message']}"), ExitCode.REFUSED)
    outcome: Mapping[str, Any] = found["outcome"]
    code = ExitCode.DONE if outcome["has_structure"] else ExitCode.FAILED
    return Answer({**outcome, "source": str(source)}, lines(*_told(outcome)), code)


def _failed(code: str, message: str, exit_code: ExitCode) -> Answer:
    return Answer({"error": {"code": code, "message": message}}, lines(f"Error: {message}"), exit_code)


def _told(outcome: Mapping[str, Any]) -> list[str]:
    what = "the model with its weights" if outcome["has_structure"] else "the weights alone"
    told = [f"{outcome['written']}: {what} ({outcome['weights']} tensors)"]
    told += [f"The model: {outcome['model']}"] if outcome["model"] else []
    told += [f"Converted: {', '.join(outcome['converted'])}"]
    if outcome["not_converted"]:
        told += ["Not converted:", *(f"  {reason}" for reason in outcome["not_converted"])]
    if not outcome["has_structure"]:
        told.append("To use the weights: build the model, then model.load_matching(safetensors.torch.load_file(...))")
    return told
