"""A real Redis, in a process of its own, that keeps nothing on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.serving.running import until

PATIENCE = 300.0
"""Seconds to wait for what takes a moment on a machine that is not busy."""

SLOW = {"start": PATIENCE, "answer": 120.0}
"""Limits of services on one that is."""


def require_redis() -> str:
    """Return where the program is; skip the test where there is none, unless everything is required."""
    found = shutil.which("redis-server")
    if found is None:
        reason = "there is no redis-server: apt-get install redis-server"
        if os.environ.get("REPLAYML_REQUIRE_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Redis:
    """A Redis that listens on a socket in a folder, so that its address is its own, also while it is gone.

    Args:
        folder: The folder; its path is short, as that of a socket must be.
    """

    def __init__(self, folder: Path) -> None:
        self._program = require_redis()
        self._folder = folder
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {"port": "0", "unixsocket": str(self._socket), "save": "", "appendonly": "no", "dir": self._folder}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen([self._program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: self.command("ping") == "PONG")

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def command(self, *words: str) -> str:
        """Send a command and return the answer."""
        line = ["redis-cli", "-s", str(self._socket), *words]
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=PATIENCE).stdout.strip()


@contextmanager
def running_redis() -> Iterator[Redis]:
    """Run a Redis while the block runs."""
    with tempfile.TemporaryDirectory(prefix="rp-") as folder:
        redis = Redis(Path(folder))
        redis.start()
        try:
            yield redis
        finally:
            redis.kill()
