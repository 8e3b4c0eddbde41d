"""`serve` and `call`: the real command, in a process of its own."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import replayml
from replayml.cli.flags import in_flags
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
    assert (result.exit_code, "give --token-file" in result.stderr) == (ExitCode.USAGE, True)
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


def test_a_port_that_is_taken_is_wrong_usage(tmp_path: Path) -> None:
    """It ends the command as other values do that an option cannot have, with the address and what to do."""
    mlp().build().save(tmp_path / "model.replayml")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", tmp_path / "model.replayml", "--port", port)
    assert result.exit_code == ExitCode.USAGE
    assert f"127.0.0.1:{port} cannot be bound" in result.stderr
    assert "choose another port" in result.stderr
    assert "None" not in result.stderr


def test_what_a_service_cannot_have_is_told_in_flags(tmp_path: Path) -> None:
    """Wrong values are wrong usage, and are told with the flags of the command, not with options of Python."""
    mlp().build().save(tmp_path / "model.replayml")
    (tmp_path / "token").write_text("short")
    for words, flag in (
        (["--host", "0.0.0.0"], "--token-file"),  # noqa: S104 - refused
        (["--token-file", tmp_path / "token"], "has 5 characters"),
        (["--backend", "rya"], "Did you mean 'ray'?"),
        (["--name", "a b"], "is no name of a service"),
        (["--import", "no_such_module.of_mine"], "--import no_such_module.of_mine: No module named"),
    ):
        result = run("serve", tmp_path / "model.replayml", *words)
        assert (result.exit_code, flag in result.stderr) == (ExitCode.USAGE, True), result.stderr
        assert not re.search(r"\b[a-z_]+=", result.stderr)
    for words in (["call", "127.0.0.1:9", "--json", "{}"], ["status", "127.0.0.1:9"]):
        assert run(*words).exit_code == ExitCode.USAGE


def test_a_file_that_its_worker_refuses_ends_as_one_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class that needs ``--import`` is refused as by the commands that look at files, with that flag; then served."""
    monkeypatch.chdir(tmp_path)
    Path("shifting.py").write_text(
        "import replayml\n\n\nclass Shift(replayml.Module):\n    def forward(self, value):\n        return value + 1\n"
    )
    code = "import replayml, shifting; replayml.pipeline(shifting.Shift()).save('shift.replayml')"
    subprocess.run([sys.executable, "-c", code], check=True)
    for command in (["serve", "shift.replayml", "--port", "0"], ["explain", "shift.replayml", "0", "by"]):
        result = run(*command)
        assert (result.exit_code, "--import MODULE" in result.stderr) == (ExitCode.REFUSED, True), result.stderr
        assert "anything else that you trust is handed in" not in result.stderr
    with served("shift.replayml", "--import", "shifting") as (_, url):
        assert call(url, "--json", '{"args": [1]}')["result"] == 2


def test_options_of_python_become_flags() -> None:
    """The values of options go along."""
    assert in_flags("backend='ray' and batch=False; or name=... and replicas=.") == (
        "--backend ray and --batch 0; or --name and --replicas."
    )
