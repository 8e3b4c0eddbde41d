"""The private folder of a running service, and what is left of those whose program was killed.

Invariants:
    * A program holds a lock in each of its folders for as long as it lives, however it ends; the system gives it back.
    * A folder is removed by its owner, or by a later program of the same user that got its lock; not while it is used.
    * What has another name, another owner or no lock is left alone; but for what was begun long ago, and never locked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from pathlib import Path

__all__ = ["ServiceFolder", "sweep"]

_NEW = "replayml-new-"
_OURS = re.compile(r"replayml-serving-\d+-[A-Za-z0-9_]+")
_LOCK = "lock"
_LONG_AGO = 3600.0


class ServiceFolder:
    """A folder that is locked by this program.

    Attributes:
        path: Where it is.

    Example:
        >>> folder = ServiceFolder()
        >>> folder.path.is_dir()
        True
        >>> folder.close()
        >>> folder.path.exists()
        False
    """

    def __init__(self) -> None:
        sweep()
        new = Path(tempfile.mkdtemp(prefix=_NEW))
        self._lock: int | None = None
        try:
            self._lock = os.open(new / _LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            # it gets the name by which others look for folders that nobody uses when it is locked, and not before
            self.path = new.rename(new.with_name(f"replayml-serving-{os.getpid()}-{new.name.removeprefix(_NEW)}"))
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            self._unlock()
            raise

    def close(self) -> None:
        """Remove the folder."""
        if self._lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            self._unlock()

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def sweep() -> None:
    """Remove the folders of services whose program was killed."""
    found: list[os.DirEntry[str]] = []
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:  # it need not be readable
        found = list(entries)
    for entry in found:
        with contextlib.suppress(OSError):  # another program removes it, or it cannot be locked here
            if _OURS.fullmatch(entry.name):
                _remove(Path(entry.path))
            elif entry.name.startswith(_NEW) and time.time() - entry.stat(follow_symlinks=False).st_mtime > _LONG_AGO:
                _remove_begun(Path(entry.path))


def _remove_begun(path: Path) -> None:
    """Remove a folder whose program was killed before it had named it."""
    try:
        _remove(path)
    except FileNotFoundError:  # it has no lock: nothing at all
        path.rmdir()


def _remove(path: Path) -> None:
    """Remove a folder if nobody uses it."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        return
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for entry in os.scandir(path):
            if entry.name != _LOCK:  # it goes last: what could not be removed is found again by it
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
        (path / _LOCK).unlink()
        path.rmdir()
    finally:
        os.close(lock)
