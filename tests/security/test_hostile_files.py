"""Hostile files: each is refused with the right code and leaves no trace; its honest twin loads.

All files are written here and opened in one process of their own, under an audit hook: see
`tests.security.hostile.watch`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security.hostile import files, recipes
from tests.security.hostile.case import Case
from tests.security.hostile.watch import Watch

CASES = [*recipes.CASES, *files.CASES]
ROOT = Path(__file__).parents[2]
MOST_GROWTH = 64 * 1024 * 1024
CATEGORIES = {"names", "methods", "spelling", "parser", "build size", "shape", "checkpoint", "safetensors", "folder"}


def reports(base: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return what became of each honest file, and of each hostile one."""
    honest: list[dict[str, Any]] = []
    hostile: list[dict[str, Any]] = []
    for number, case in enumerate(CASES):
        for kind, write, index in [("honest", case.honest, honest), ("hostile", case.hostile, hostile)]:
            folder = base / f"{number}-{kind}"
            folder.mkdir()
            path = write(folder)
            index.append(
                {
                    "path": str(path),
                    "folder": str(folder),
                    "opener": case.opener,
                    "limits": case.limits,
                    "armed": kind == "hostile",
                }
            )
    index_file, report = base / "index.json", base / "report.json"
    index_file.write_text(json.dumps([*honest, *hostile]))
    command = [sys.executable, "-m", "tests.security.hostile.watch", str(index_file), str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    return list(zip(found[: len(CASES)], found[len(CASES) :], strict=True))


def faults(case: Case, honest: dict[str, Any], hostile: dict[str, Any]) -> Iterator[str]:
    """Yield what is not as it must be."""
    if honest["result"] != "loaded":
        yield f"{case}: the honest twin does not load: {honest['result']}"
    if hostile["result"] != case.code:
        yield f"{case}: {hostile['result']} instead of {case.code}"
    if hostile["events"]:
        yield f"{case}: {hostile['events']}"
    if hostile["growth"] >= MOST_GROWTH:
        yield f"{case}: the memory grew by {hostile['growth']} bytes"


def test_hostile_files_are_refused_and_their_twins_load(tmp_path: Path) -> None:
    """The codes are right, nothing was imported, run, opened or connected to, and memory did not grow."""
    found = [
        fault
        for case, (honest, hostile) in zip(CASES, reports(tmp_path), strict=True)
        for fault in faults(case, honest, hostile)
    ]
    assert found == []
    assert not (ROOT / "hostile-was-here").exists()


def test_every_category_has_its_files() -> None:
    """There are at least 90 files, and several of each kind."""
    count = Counter(case.category for case in CASES)
    assert set(count) == CATEGORIES
    assert min(count.values()) >= 10
    assert count.total() >= 90
    assert len({str(case) for case in CASES}) == len(CASES)


EVENTS: list[tuple[str, tuple[Any, ...], bool]] = [
    ("open", ("/case/net/manifest.json", "r", 0), True),
    ("open", ("/proc/meminfo", "r", 0), True),
    ("open", (7, "r", 0), True),
    ("open", ("/case/../etc/passwd", "r", 0), False),
    ("open", ("/case/net/new", "w", 0), False),
    ("import", ("antigravity", None), False),
    ("subprocess.Popen", ("touch",), False),
    ("os.system", (b"touch",), False),
    ("socket.connect", (None, "1.1.1.1"), False),
    ("pickle.find_class", ("os", "system"), False),
    ("exec", (None,), False),
    ("os.listdir", ("/case",), True),
    ("object.__getattr__", (None, "x"), True),
]


@pytest.mark.parametrize(("event", "args", "is_free"), EVENTS, ids=[event for event, _, _ in EVENTS])
def test_the_watch_sees_what_it_must(event: str, args: tuple[Any, ...], is_free: bool) -> None:
    """The hook notes what opening a file must not do, and lets the rest pass; unarmed it notes nothing."""
    watch = Watch()
    watch(event, args)
    assert watch.events == []
    watch.folder = "/case"
    watch(event, args)
    assert (watch.events == []) == is_free
