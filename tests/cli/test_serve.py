"""`serve` and `call`: the real command, in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import replayml
from replayml.cli.report import ExitCode
from tests.cli.files import mlp, run, write_recipe


@contextmanager
def served(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run ``replayml serve`` and yield the process and the URL that it tells."""
    command = [sys.executable, "-m", "replayml.cli.main", "serve", *map(str, words), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            assert "serving" in line, line + process.stderr.read()
            yield process, line.split()[-1]
        finally:
            process.kill()


def call(*words: object) -> Any:
    """Run ``replayml call`` and return what it prints."""
    return json.loads(run("call", *words).stdout)


def test_a_saved_model_is_served_and_called(tmp_path: Path) -> None:
    """A file is served as it was saved; SIGTERM ends the command with 0, and says each request in its log."""
    model = replayml.MultiLayerPerceptron(2, [3], 1).build(seed=0)
    model.save(tmp_path / "model.replayml")
    with served(tmp_path / "model.replayml", "--input", "float32[*,2]", "--batch", 8) as (process, url):
        found = call(url, "--json", '{"args": [[[1, 2]]]}')
        assert found["exit_code"] == ExitCode.DONE
        assert torch.equal(torch.tensor(found["result"]), model(torch.tensor([[1.0, 2.0]])))
        refused = call(url, "--json", '{"args": []}')
        assert refused["exit_code"] == ExitCode.FAILED
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0
    assert '"path":"/predict","status":200' in log
    assert "stopped" not in log


def test_what_cannot_be_served_is_told(tmp_path: Path) -> None:
    """A recipe without weights, a foreign host without token, and a body that is no JSON are told in a sentence."""
    recipe = write_recipe(tmp_path / "mlp.json", mlp())
    result = run("serve", recipe)
    assert (result.exit_code, "holds a recipe alone" in result.stderr) == (ExitCode.USAGE, True)
    assert run("serve", recipe.with_name("m"), "--input", "x").exit_code == ExitCode.USAGE
    mlp().build().save(tmp_path / "model.replayml")
    result = run("serve", tmp_path / "model.replayml", "--host", "0.0.0.0")  # noqa: S104 - refused
    assert (result.exit_code, "needs a token" in result.stderr) == (ExitCode.FAILED, True)
    for words in (["--input", "float99[2]"], ["--batch", "4"], ["--input", "float32[2]", "--batch", "4"]):
        assert run("serve", tmp_path / "model.replayml", *words).exit_code == ExitCode.USAGE
    assert call("http://127.0.0.1:9", "--json", "{")["error"]["code"] == "no-json"
    assert call("http://127.0.0.1:9", "--json", "{}", "--timeout", "0.1")["error"]["code"] == "UnavailableError"


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"{}"])
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes) -> None:
    """What is no model file starts nothing."""
    path = tmp_path / "model.replayml"
    path.write_bytes(data)
    assert run("serve", path).exit_code == ExitCode.REFUSED
