"""Starting and stopping a service again and again, in a program that holds nothing else: ``... COUNT``."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

from replayml.serving.server import ServerModule
from tests.serving import services
from tests.serving.http import Line

__all__ = ["held"]


def held() -> tuple[Any, ...]:
    """Return what this program holds: processes, threads, open files and temporary files of services."""
    me = psutil.Process()
    folder = Path(tempfile.gettempdir())
    return (
        sorted(child.pid for child in me.children(recursive=True)),
        sorted(thread.name for thread in threading.enumerate()),
        me.num_fds(),
        sorted(path.name for path in folder.glob(f"replayml-serving-{os.getpid()}-*")),
    )


def main(count: int) -> None:
    """Compare what is held before and after, and see that the ports are free."""
    service = ServerModule(services.echo)
    service.start()
    service.stop()
    before = held()
    urls = []
    for number in range(count):
        assert service.start()(number) == number
        urls.append(service.url)
        service.stop()
    assert held() == before, (before, held())
    for url in urls:
        try:
            with Line(url):
                raise AssertionError(f"{url} is not free")
        except ConnectionError:
            pass


if __name__ == "__main__":
    main(int(sys.argv[1]))
