"""Opening what must be a regular file: no folder, no pipe, no device, whatever a path says.

Invariants:
    * Nothing is read of what is no regular file, and opening a pipe does not wait for its other end.
    * No more is read than the size that a file tells: what the system makes up while it is read tells none.
    * What was opened stays the same file, also when another one takes its place meanwhile.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replayml.core.errors import RecipeError

__all__ = ["map_file", "read_file"]

# How systems answer where a socket, or a device that is not there, is opened, and where what is no file is mapped.
_NO_FILE = frozenset({errno.ENODEV, errno.ENXIO})


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """Give the descriptor of a file and its size in bytes."""
    if "\0" in str(path):
        raise RecipeError("bad-path", ascii(str(path)), "this is no path. Nothing was read. Name a file")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise _no_file(path, "no regular file") from error
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise _no_file(path, kind)
        yield descriptor, found.st_size
    finally:
        os.close(descriptor)


def _no_file(path: Path, kind: str) -> RecipeError:
    return RecipeError("not-regular", str(path), f"this is {kind}. Nothing was read. Name a file")


def read_file(path: Path, limit: int) -> bytes:
    """Return the bytes of a small file.

    Args:
        path: The file.
        limit: How many bytes it may have.

    Raises:
        RecipeError: When it is larger, or no regular file.
        OSError: When it cannot be opened.
    """
    with _opened(path) as (descriptor, size):
        if size > limit:
            raise RecipeError("too-large", str(path), f"the file has {size} bytes; at most {limit} are read")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(size)


def map_file(path: Path) -> mmap.mmap:
    """Return a file as memory that is read when it is used; writing to the memory changes no file.

    Raises:
        RecipeError: When it is empty, or no regular file.
        OSError: When it cannot be opened.
    """
    with _opened(path) as (descriptor, size):
        if not size:
            raise RecipeError("wrong-size", str(path), "the file is empty. Take a whole copy of it")
        try:
            return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
        except OSError as error:
            if error.errno in _NO_FILE:
                raise _no_file(path, "no file whose bytes the system holds") from error
            raise
