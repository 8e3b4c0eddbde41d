"""The command itself: help, exit codes, wrong usage, what it imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replayml.cli.main import main
from replayml.cli.report import ExitCode, clean
from tests.cli.files import mlp, run, run_json, write_checkpoint, write_recipe

COMMANDS = ["demo", "inspect", "tree", "explain", "diff", "verify", "convert", "gc", "serve", "call"]
LOOKING = [["inspect"], ["tree"], ["verify"], ["explain", "--", "", "width"]]


def in_a_process(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    command = [sys.executable, "-m", "replayml.cli.main", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


def test_the_help_names_every_command_and_the_exit_codes() -> None:
    """``--help`` lists the commands; the help of each tells the exit codes, as the main help does."""
    listed = run("--help")
    assert listed.exit_code == 0
    for command in COMMANDS:
        assert f"  {command} " in listed.stdout
        told = run(command, "--help")
        assert told.exit_code == 0
        for page in (listed.stdout, told.stdout):
            assert "0 done, 1 failed or differs, 2 wrong usage" in " ".join(page.split())


@pytest.mark.parametrize("words", [["nope"], ["tree"], ["tree", "missing.json"], ["tree", "--wrong"], []])
def test_wrong_usage_ends_with_2(words: list[str]) -> None:
    """An unknown command or option, a missing argument and a file that is not there are wrong usage."""
    result = run(*words)
    assert result.exit_code == ExitCode.USAGE
    assert "Usage" in result.stderr or "Usage" in result.stdout


def test_main_returns_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``main`` does not end the process."""
    file = write_recipe(tmp_path / "mlp.json", mlp())
    assert main(["verify", str(file)]) == ExitCode.DONE
    assert "can be opened" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "nothing.json")]) == ExitCode.USAGE


def test_the_real_command_prints_json_and_ends_with_its_code(tmp_path: Path) -> None:
    """In a process of its own: one JSON object on standard output, nothing on standard error, the exit code."""
    write_recipe(tmp_path / "mlp.json", mlp())
    done = in_a_process("tree", "mlp.json", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout)["modules"][0]["class"] == "MultiLayerPerceptron"
    (tmp_path / "bad.json").write_text("{")
    done = in_a_process("tree", "bad.json", folder=tmp_path)
    assert done.returncode == ExitCode.REFUSED
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_missing_extra_ends_with_3(tmp_path: Path) -> None:
    """Without scikit-learn the demo tells what to install."""
    code = (
        "import sys; sys.modules['sklearn'] = sys.modules['sklearn.datasets'] = None\n"
        "from replayml.cli.main import main; sys.exit(main(['demo']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == ExitCode.EXTRA, done.stderr
    assert "Install the extra: pip install" in done.stdout
    assert not list(tmp_path.iterdir())


def test_importing_replayml_imports_no_command_line(tmp_path: Path) -> None:
    """``import replayml`` loads neither typer nor the commands; the commands load Lightning only for the demo."""
    code = (
        "import sys, replayml\n"
        "print([name for name in ('typer', 'replayml.cli', 'replayml.testing') if name in sys.modules])\n"
        "import replayml.cli.main\n"
        "print([name for name in ('lightning', 'sklearn', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


# Files that are none ----------------------------------------------------------------------------------------------

BAD = {
    "empty": b"",
    "no json": b"hello",
    "half": b'{"format":"replayml.recipe","version":1',
    "pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00K\x01.",
    "gzip": b"\x1f\x8b\x08\x00",
    "zip": b"PK\x03\x04" + bytes(60),
    "newer": b'{"format":"replayml.recipe","version":99,"packages":{},"model":{}}',
    "nested": b"[" * 5000,
    "terminal": b'{"format":"replayml.recipe","version":1,"packages":{},"model":{"$call":"\\u001b[31m"},"\\u001b":1}',
    "bytes": bytes(range(256)),
}


@pytest.mark.parametrize("words", LOOKING, ids=lambda words: words[0])
@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("suffix", [".json", ".ckpt", ".replayml"])
def test_a_bad_file_is_refused_without_a_traceback(words: list[str], kind: str, suffix: str, tmp_path: Path) -> None:
    """Whatever the bytes and the ending, the answer is a refusal with a code, as text and as JSON."""
    file = tmp_path / f"bad{suffix}"
    file.write_bytes(BAD[kind])
    command, *rest = words
    result = run(command, *(["--json"] if rest else []), file, *rest)
    assert result.exit_code == ExitCode.REFUSED, result.stdout
    assert "\x1b" not in result.stdout + result.stderr
    if not rest:
        assert "refused: [" in result.stderr
        found = run_json(command, file)
        assert found["error"].keys() == {"code", "where", "message"}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the bytes of whole files, by their endings."""
    folder = tmp_path_factory.mktemp("good")
    write_recipe(folder / "model.json", mlp())
    write_checkpoint(folder / "model.ckpt")
    mlp().build(seed=0).save(folder / "model.replayml")
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


@given(
    st.sampled_from([".json", ".ckpt", ".replayml"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
    st.sampled_from(["inspect", "tree", "verify", "explain"]),
)
def test_a_damaged_file_ends_a_command_with_a_sentence(
    good: dict[str, bytes], suffix: str, changes: list[tuple[float, int]], length: float, command: str
) -> None:
    """Whatever bytes of a file are changed or missing, a command ends with an exit code and no other exception."""
    content = bytearray(good[suffix][: round(len(good[suffix]) * length)])
    for place, value in changes:
        if content:
            content[int(place * len(content))] = value
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"model{suffix}"
        file.write_bytes(content)
        result = run(command, file, *(["blocks.0.layer", "bias"] if command == "explain" else []))
    assert result.exit_code in (ExitCode.DONE, ExitCode.FAILED, ExitCode.REFUSED)


def test_clean_shows_control_characters() -> None:
    """What a terminal would take for a command stands as an escape; the ends of lines stay."""
    assert clean("a\x1b]0;title\x07\r\nb\u202e") == "a\\x1b]0;title\\x07\\r\nb\\u202e"
