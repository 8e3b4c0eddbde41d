"""Replacing a file as a whole: what every save of replayml goes through.

    a temporary file beside the old one ─► write ─► flush, fsync ─► os.replace ─► fsync of the folder

Invariants:
    * Whoever opens the path, at any moment, finds the whole old file or the whole new one.
    * Each writer has a temporary file of its own: of two writers at once, one whole file wins.
    * What fails leaves the old file as it was, and no temporary file; what is killed may leave a temporary one.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from replayml.core.errors import RecipeError

__all__ = ["is_temporary", "mode_of", "replace_file", "sync_folder"]

_TEMPORARY = re.compile(r"\.replayml-[0-9a-f]{16}\.tmp")

# File systems that keep no order between a folder and its files answer so.
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP})


def replace_file(
    path: str | os.PathLike[str],
    write: Callable[[BinaryIO], object],
    check: Callable[[Path], object] | None = None,
    mode: int | None = None,
) -> None:
    """Put a new file in the place of an old one, or where there was none.

    A link is followed; the permissions of an old file are kept, and a new one has those that are given, or else those
    that the process gives. At no moment does it have more.

    As with ``os.replace``, what counts is whether the folder may be written to: a file that is read-only (mode 0400) is
    replaced, and the new one is read-only as well. To protect files, make their folder read-only.

    Args:
        path: The file.
        write: Writes the content to an open file, in which it may move about.
        check: Looks at what was written, before it takes the place of the old file, and raises if that is not right.
        mode: The permissions where there is no old file.

    Raises:
        RecipeError: When something else than a file stands there.
        OSError: When the file cannot be written; the old one is there as before.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> replace_file(path, lambda file: file.write(b"kept"))
        >>> path.read_bytes()
        b'kept'
    """
    target = Path(os.path.realpath(path))
    old = mode_of(target)
    mode = mode if old is None else old
    temporary = target.with_name(f".replayml-{secrets.token_hex(8)}.tmp")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o666 if mode is None else mode & 0o777), "wb") as file:
            write(file)
            file.flush()
            if mode is not None:
                os.chmod(temporary, mode)
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def mode_of(path: Path) -> int | None:
    """Return the permissions of the file that stands at a path, or None where there is none.

    Raises:
        RecipeError: When something else than a file stands there.
    """
    try:
        found = path.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found):
        kind = "a folder" if stat.S_ISDIR(found) else "no regular file"
        raise RecipeError("not-regular", str(path), f"this is {kind}, which is not replaced by a file. Name a file")
    return stat.S_IMODE(found)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last, where the system can."""
    if os.name == "nt":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def is_temporary(name: str) -> bool:
    """Tell whether a name is one that `replace_file` gives to its temporary files.

    Example:
        >>> is_temporary(".replayml-0123456789abcdef.tmp"), is_temporary("notes.tmp")
        (True, False)
    """
    return _TEMPORARY.fullmatch(name) is not None
