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

from replayml.cli.opening import read_renames
from replayml.cli.report import Answer, ExitCode, UsageError, lines

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

    Raises:
        UsageError: When the file is not trusted, would be replaced, or a renaming is none.
    """
    if not is_trusted:
        raise UsageError("not-trusted", UNTRUSTED.format(path=source))
    if target.exists() and target.samefile(source):
        raise UsageError("same-file", "OUT is IN: the old checkpoint is not replaced. Name another file")
    renames = read_renames(rename)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "outcome.json"
        words = [
            str(source.absolute()),
            str(target.absolute()),
            str(result),
            *(f"{old}={new}" for old, new in renames.items()),
        ]
        command = [sys.executable, "-m", "replayml.cli.legacy", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not result.exists():
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            return _failed("reader-failed", f"the process that read the file failed: {last[0]}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "error" in found:
        error = found["error"]
        return Answer(found, lines(f"refused: [{error['code']}] {error['message']}"), ExitCode.REFUSED)
    outcome: Mapping[str, Any] = found["outcome"]
    code = ExitCode.DONE if outcome["has_structure"] else ExitCode.FAILED
    return Answer({**outcome, "source": str(source)}, lines(*_told(outcome)), code)


def _failed(code: str, message: str) -> Answer:
    return Answer({"error": {"code": code, "message": message}}, lines(f"Error: {message}"), ExitCode.FAILED)


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
