"""The folders of services, of which each is removed by its owner, or when its owner was killed."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from replayml.serving.supervising.folders import ServiceFolder, sweep

KILLED = """
import os, signal
from replayml.serving.supervising.folders import ServiceFolder

folder = ServiceFolder()
(folder.path / "version-1-abc").mkdir()
(folder.path / "version-1-abc" / "model.replayml").write_bytes(b"weights")
(folder.path / "elsewhere").symlink_to(KEPT)
print(folder.path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are made."""
    found = tmp_path / "temporary"
    found.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(found))
    return found


def test_the_folder_of_a_killed_program_is_removed(place: Path, tmp_path: Path) -> None:
    """The next service that starts removes what a killed program left, and follows no link out of it."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine").touch()
    done = subprocess.run(
        [sys.executable, "-c", KILLED.replace("KEPT", repr(str(kept)))],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "TMPDIR": str(place)},
    )
    left = Path(done.stdout.strip())
    assert left.parent == place
    assert (left / "version-1-abc" / "model.replayml").exists()
    folder = ServiceFolder()
    assert list(place.iterdir()) == [folder.path]
    folder.close()
    assert list(place.iterdir()) == []
    assert (kept / "mine").exists()


def test_a_folder_in_use_is_left_alone(place: Path) -> None:
    """What a program that lives holds stays, however many others start; only its user can look into it."""
    first = ServiceFolder()
    (first.path / "weights").touch()
    second = ServiceFolder()
    sweep()
    assert (first.path / "weights").exists()
    assert second.path.exists()
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o700
    first.close()
    first.close()
    assert list(place.iterdir()) == [second.path]
    second.close()


def test_what_is_not_the_folder_of_a_service_is_left_alone(place: Path, tmp_path: Path) -> None:
    """Other names, files, links, folders without a lock and those of other users stay."""
    target = tmp_path / "target"
    made = [
        place / "replayml-serving-1-abc.bak",
        place / "my-replayml-serving-1-abc",
        place / "replayml-serving-1-nolock",
    ]
    for path in [*made, target]:
        path.mkdir()
    for path in [*made[:2], target]:
        (path / "lock").touch()
    (place / "replayml-serving-1-file").touch()
    (place / "replayml-serving-1-link").symlink_to(target)
    linked = place / "replayml-serving-1-linkedlock"
    linked.mkdir()
    (linked / "lock").symlink_to(target / "lock")
    if os.getuid() == 0:
        foreign = place / "replayml-serving-1-foreign"
        foreign.mkdir()
        (foreign / "lock").touch()
        os.chown(foreign, 12345, 12345)
    before = sorted(path for path in tmp_path.rglob("*"))
    sweep()
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_folders_are_swept_by_many_at_once(place: Path) -> None:
    """Programs that start at once do not get into each other's way."""
    for number in range(20):
        left = place / f"replayml-serving-1-left{number}"
        (left / "metrics").mkdir(parents=True)
        (left / "lock").touch()
    with ThreadPoolExecutor(8) as pool:
        folders = [call.result() for call in [pool.submit(ServiceFolder) for _ in range(16)]]
    assert sorted(place.iterdir()) == sorted(folder.path for folder in folders)
    for folder in folders:
        folder.close()
    assert list(place.iterdir()) == []


def test_a_folder_that_is_gone_already_is_no_fault(place: Path) -> None:
    """Whoever cleans up all temporary files does not get in the way of a service that stops."""
    folder = ServiceFolder()
    shutil.rmtree(folder.path)
    folder.close()
    assert list(place.iterdir()) == []
