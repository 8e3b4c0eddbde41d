"""A save that is killed, or that fails, leaves the whole old model or the whole new one; a changed file is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

import replayml
from replayml.recipe.files.atomic import replace_file
from replayml.recipe.files.reading import read_model_file, verify
from replayml.recipe.files.storing import collect_garbage
from tests.security.killed_saves import PRETRAINED, model, number_of, save

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("killed_saves.py")
FORMS = ["model.replayml", "model"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def is_own(name: str) -> bool:
    """Tell whether a file is a temporary one, or data of a save."""
    return name.startswith((".replayml-", "recipe-", "model-"))


# Killed -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_killed_at_every_line(form: str, tmp_path: Path) -> None:
    """SIGKILL at a line of a save leaves the old model or the new one, and where there was none, none or the new."""
    command = [sys.executable, str(PROGRAM), "lines", form, str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    old, none = ([number for _, number in found[start]] for start in ("old", "none"))
    assert len(old) + len(none) > 80
    assert all(killed for states in found.values() for killed, _ in states)
    switch = old.index(2)
    assert old == [1] * switch + [2] * (len(old) - switch)
    assert none == sorted(none, key=lambda number: number is not None)
    assert set(none) == {None, 2}


@pytest.mark.slow
def test_save_pretrained_killed_at_every_line(tmp_path: Path) -> None:
    """SIGKILL leaves the old model, the new one, or between its two files a folder that is refused as such."""
    command = [sys.executable, str(PROGRAM), "lines", PRETRAINED, str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    old, none = ([number for _, number in found[start]] for start in ("old", "none"))
    assert len(old) + len(none) > 60
    first, last = old.index(0), old.index(2)
    assert old == [1] * first + [0] * (last - first) + [2] * (len(old) - last)
    assert none == sorted(none, key=[None, 0, 2].index)
    assert set(none) == {None, 0, 2}


def test_a_half_of_a_pretrained_model_says_what_to_do(tmp_path: Path) -> None:
    """Between its two files a save leaves weights that load by themselves, and a folder that is saved to again."""
    folder = tmp_path / PRETRAINED
    for number in (1, 2):
        save(number, tmp_path / str(number) / PRETRAINED)
    save(1, folder)
    new = tmp_path / "2" / PRETRAINED / "model.safetensors"
    (folder / "model.safetensors").write_bytes(new.read_bytes())
    with pytest.raises(replayml.RecipeError, match=r"changed-file.*a save was cut short.*can be loaded by itself"):
        replayml.load(folder)
    assert number_of(folder / "model.safetensors") == 2
    save(2, folder)
    assert number_of(folder) == 2
    (folder / "config.json").unlink()
    with pytest.raises(replayml.RecipeError, match="missing-file"):
        replayml.load(folder)
    save(1, folder)
    assert number_of(folder) == 1


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_killed_at_any_moment(form: str, tmp_path: Path) -> None:
    """SIGKILL after any time, in the middle of writing too, leaves a whole model; what it leaves beside is removed."""
    path = tmp_path / form
    model(1).save(path)
    chance = random.Random(0)
    seen = set()
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), "loop", form, str(tmp_path), "2"], env=ENVIRONMENT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(25):
            time.sleep(chance.random() * 0.02)
            process.send_signal(signal.SIGSTOP)  # what is on disk now is what a kill would leave
            seen.add(number_of(path))
            process.send_signal(signal.SIGCONT)
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.communicate()
        seen.add(number_of(path))
    assert seen <= {1, 2}
    folder = path if path.is_dir() else tmp_path
    collect_garbage(folder, older_than=0)
    kept = set(read_model_file(path).files)
    assert {name for name in os.listdir(folder) if is_own(name)} <= kept
    assert number_of(path) == 2


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_two_writers_at_once(form: str, tmp_path: Path) -> None:
    """While two processes save to one path, whoever loads gets one of the two models, whole; one of them stays."""
    path = tmp_path / form
    model(1).save(path)
    writers = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), "loop", form, str(tmp_path), number],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in ("2", "3")
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    seen = {number_of(path) for _ in range(60)}
    assert all(writer.poll() is None for writer in writers)
    for writer in writers:
        writer.kill()
        writer.communicate()
    assert seen <= {1, 2, 3}
    assert number_of(path) in (2, 3)
    verify(path)


# Failing ----------------------------------------------------------------------------------------------------------


class FailingAt:
    """Lets one call of some functions of the operating system fail, and counts all of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int | None) -> None:
        self._at = at
        self.count = 0
        for name in ("open", "fsync", "replace", "chmod", "close"):
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self._at:
                raise OSError(28, "No space left on device")
            return function(*args, **kwargs)

        return call


@pytest.mark.parametrize("form", FORMS)
def test_a_call_of_the_system_that_fails(form: str, tmp_path: Path) -> None:
    """Whichever call fails, the error is raised, a whole model is there, and no file of the failed save."""
    path = tmp_path / form
    model(1).save(path)
    new = model(2)
    with pytest.MonkeyPatch.context() as patch:
        count = FailingAt(patch, None)
        model(1).save(path)
    assert count.count > 5
    for at in range(1, count.count + 1):
        model(1).save(path)
        with pytest.MonkeyPatch.context() as patch:
            FailingAt(patch, at)
            with pytest.raises(OSError, match="No space left"):
                new.save(path)
        folder = path if path.is_dir() else tmp_path
        if number_of(path) == 2:  # what failed is to make sure that the new model lasts: the old one is kept
            collect_garbage(folder, older_than=0)
        assert number_of(path) in (1, 2)
        assert {name for name in os.listdir(folder) if is_own(name)} <= set(read_model_file(path).files)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file become larger than so many bytes."""
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old_limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)


@pytest.mark.parametrize("form", FORMS)
def test_a_disk_that_is_full_after_any_byte(form: str, tmp_path: Path) -> None:
    """A write that is cut off anywhere raises, and leaves the old model and nothing else."""
    path = tmp_path / form
    model(1).save(path)
    new = model(2)
    before = read_model_file(path).files
    size = max(before.values())
    for limit in [*range(0, size, 97), size - 1]:
        with largest_file(limit), pytest.raises(OSError, match="File too large"):
            new.save(path)
        assert number_of(path) == 1
    folder = path if path.is_dir() else tmp_path
    assert {name for name in os.listdir(folder) if is_own(name)} <= set(before)


# Changed ----------------------------------------------------------------------------------------------------------


def refused(load: Callable[[], object]) -> bool:
    """Tell whether a file is refused as one that holds something else than was written."""
    try:
        load()
    except replayml.RecipeError:
        return True
    return False


def read_all(path: Path) -> None:
    """Open a model file as loading does, and read its weights."""
    read_model_file(path).check()


@pytest.mark.parametrize("form", FORMS)
def test_every_flipped_bit_is_refused(form: str, tmp_path: Path) -> None:
    """One flipped bit anywhere in any file of a model is refused, with a RecipeError and nothing else.

    Of the weights of a folder it is one bit of each byte, since a file has the same ones.
    """
    path = tmp_path / form
    model(2).eval().save(path)
    names = read_model_file(path).files
    files = [path / name for name in names] if path.is_dir() else [path]
    for file in files:
        content = file.read_bytes()
        is_again = len(files) > 1 and file.suffix != ".json"  # weights are alike in both forms
        places = range(len(content)) if is_again else range(8 * len(content))
        with open(file, "r+b") as handle:
            for bit in (8 * place + place % 8 if is_again else place for place in places):
                _put(handle, bit // 8, content[bit // 8] ^ (1 << bit % 8))
                assert refused(lambda: read_all(path)), f"bit {bit} of {file.name}"
                _put(handle, bit // 8, content[bit // 8])
        assert file.read_bytes() == content
    assert number_of(path) == 2


def _put(handle: io.BufferedRandom, place: int, value: int) -> None:
    handle.seek(place)
    handle.write(bytes([value]))
    handle.flush()


@pytest.mark.parametrize("form", FORMS)
def test_every_truncation_is_refused(form: str, tmp_path: Path) -> None:
    """A file that ends anywhere too early, or goes on, is refused; so is one that is missing."""
    path = tmp_path / form
    model(2).save(path)
    files = [path / name for name in read_model_file(path).files] if path.is_dir() else [path]
    for file in files:
        content = file.read_bytes()
        for size in range(len(content)):
            os.truncate(file, size)
            assert refused(lambda: read_all(path)), f"{size} bytes of {file.name}"
            file.write_bytes(content)
        file.write_bytes(content + b"\n")
        assert refused(lambda: read_all(path))
        if path.is_dir():
            file.unlink()
            with pytest.raises(replayml.RecipeError, match=r"missing-file.*which is not there|not-a-model"):
                replayml.load(path)
        file.write_bytes(content)
    assert number_of(path) == 2


def test_files_of_two_models_do_not_mix(tmp_path: Path) -> None:
    """A recipe, weights or a manifest of another model, whole in themselves, are refused."""
    for number in (1, 2):
        model(number).save(tmp_path / str(number))
    one, two = (read_model_file(tmp_path / number).files for number in ("1", "2"))
    for (name, _), (other, _) in list(zip(one.items(), two.items(), strict=True)):
        content = (tmp_path / "1" / name).read_bytes()
        (tmp_path / "1" / name).write_bytes((tmp_path / "2" / other).read_bytes())
        with pytest.raises(replayml.RecipeError, match=r"missing-file|wrong-size|changed-file"):
            replayml.load(tmp_path / "1")
        (tmp_path / "1" / name).write_bytes(content)
    assert number_of(tmp_path / "1") == 1


@pytest.mark.parametrize("form", FORMS)
def test_weights_that_were_forged_fail_verification(form: str, tmp_path: Path) -> None:
    """Weights that were changed by somebody who knows the quick sums are found by verify(), which compares SHA-256."""
    path = tmp_path / form
    model(2).save(path)
    verify(path)
    name = next(name for name in read_model_file(path).files if "json" not in name)
    file = path / name if path.is_dir() else path
    content = bytearray(file.read_bytes())
    offset = 8 + int.from_bytes(content[:8], "little")
    page = memoryview(content)[offset:].cast("B")
    first, second = (int.from_bytes(page[8 * place : 8 * place + 8], "little") for place in (0, 1))
    # The second word counts three times as much as the first: 3 more there, 1 less here.
    page[:8] = ((first + 3) % 2**64).to_bytes(8, "little")
    page[8:16] = ((second - 1) % 2**64).to_bytes(8, "little")
    page.release()
    file.write_bytes(content)
    replayml.load(path)
    with pytest.raises(replayml.RecipeError, match="changed-file"):
        verify(path)


# Left over --------------------------------------------------------------------------------------------------------


def test_garbage_is_only_what_saves_have_left(tmp_path: Path) -> None:
    """Data and temporary files that no manifest names go, when they are old; files of others never do."""
    path = tmp_path / "model"
    model(1).save(path)
    kept = set(read_model_file(path).files)
    left = {"recipe-0123456789abcdef.json", "model-0123456789abcdef.safetensors", ".replayml-0123456789abcdef.tmp"}
    mine = {"notes.txt", "recipe.json", "model-final.safetensors", ".replayml.tmp"}
    for name in left | mine:
        (path / name).touch()
    assert collect_garbage(path) == []
    assert {file.name for file in collect_garbage(path, older_than=0, dry_run=True)} == left
    assert set(os.listdir(path)) == kept | left | mine
    model(2).save(path)
    assert left <= set(os.listdir(path))
    for name in left:
        os.utime(path / name, (0, 0))
    model(3).save(path)
    assert set(os.listdir(path)) == set(read_model_file(path).files) | mine
    assert number_of(path) == 3


def test_a_damaged_manifest_is_neither_overwritten_nor_cleaned(tmp_path: Path) -> None:
    """Where the manifest was changed, neither saving nor collecting garbage touches the files that may be in force."""
    path = tmp_path / "model"
    model(1).save(path)
    before = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in os.listdir(path)}
    content = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(content.replace(b'"size"', b'"Size"', 1))
    for attempt in (lambda: model(2).save(path), lambda: collect_garbage(path, older_than=0)):
        with pytest.raises(replayml.RecipeError, match="the manifest was changed"):
            attempt()
    (path / "manifest.json").write_bytes(content)
    assert {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in os.listdir(path)} == before


def test_an_interrupted_first_save_can_be_repeated(tmp_path: Path) -> None:
    """A folder that holds only what a killed first save has left is no model, and is written to."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "recipe-0123456789abcdef.json").touch()
    (path / ".replayml-0123456789abcdef.tmp").touch()
    with pytest.raises(replayml.RecipeError, match="this folder holds no model"):
        replayml.load(path)
    model(1).save(path)
    assert number_of(path) == 1


def test_a_model_without_its_manifest_is_not_garbage(tmp_path: Path) -> None:
    """Where the manifest is missing, neither a save nor collecting garbage removes what may be a whole model."""
    path = tmp_path / "model"
    model(1).save(path)
    manifest = (path / "manifest.json").read_bytes()
    (path / "manifest.json").unlink()
    (path / ".replayml-0123456789abcdef.tmp").touch()
    for file in path.iterdir():
        os.utime(file, (0, 0))
    assert [file.name for file in collect_garbage(path)] == [".replayml-0123456789abcdef.tmp"]
    model(2).save(path)
    assert number_of(path) == 2
    (path / "manifest.json").write_bytes(manifest)
    assert number_of(path) == 1


# Permissions ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="permissions are those of POSIX")
@pytest.mark.parametrize("form", FORMS)
def test_permissions_are_kept(form: str, tmp_path: Path) -> None:
    """Every file of a model that only its owner may read stays so when another model is saved in its place."""
    path = tmp_path / form
    model(1).save(path)
    for file in path.iterdir() if path.is_dir() else [path]:
        file.chmod(0o600)
    model(2).save(path)
    assert number_of(path) == 2
    assert {file.stat().st_mode & 0o777 for file in (path.iterdir() if path.is_dir() else [path])} == {0o600}


@pytest.mark.skipif(os.name == "nt", reason="permissions are those of POSIX")
@pytest.mark.parametrize("form", [*FORMS, PRETRAINED])
def test_what_is_read_only_is_replaced_and_stays_read_only(form: str, tmp_path: Path) -> None:
    """As with os.replace, the folder decides whether a file may be replaced; the mode of the file is kept."""
    path = tmp_path / form
    save(1, path)
    for file in path.iterdir() if path.is_dir() else [path]:
        file.chmod(0o400)
    save(2, path)
    assert number_of(path) == 2
    assert {file.stat().st_mode & 0o777 for file in (path.iterdir() if path.is_dir() else [path])} == {0o400}


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_folder_protects_its_files(tmp_path: Path) -> None:
    """Where the folder may not be written to, a save fails and the old model stays."""
    save(1, tmp_path / "model.replayml")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            save(2, tmp_path / "model.replayml")
    finally:
        tmp_path.chmod(0o700)
    assert number_of(tmp_path / "model.replayml") == 1


@pytest.mark.skipif(os.name == "nt", reason="permissions are those of POSIX")
def test_a_temporary_file_is_never_open_to_more(tmp_path: Path) -> None:
    """While a file is written that replaces a private one, nobody else may read what is there already."""
    path = tmp_path / "note"
    path.touch(0o600)
    seen = []

    def write(file: BinaryIO) -> None:
        seen.append(os.fstat(file.fileno()).st_mode & 0o777)
        file.write(b"new")

    replace_file(path, write)
    assert seen == [0o600]
    assert path.read_bytes() == b"new"
