"""Sums over the bytes of weights: a check that is as fast as reading them.

The bytes are taken as little-endian 64-bit words, in pages of 4 KiB, the last one filled up with zeros. The sum of a
page is that of its words, each times an odd constant of its place, modulo 2^64; the digest is the SHA-256 of all sums.

Invariants:
    * A change within one word, such as a flipped bit, always changes the digest: an odd factor can be undone.
    * The digest does not depend on the sizes of the pieces in which the bytes come.
    * It tells damage, not intent: for what a person may have changed there is the SHA-256 beside it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Sums", "digest_of", "sha256_of"]

_WORDS = 512
_PAGE = 8 * _WORDS
_BUFFER = 256 * _PAGE
_BLOCK = 4096 * _PAGE

_WORD = np.dtype("<u8")
_FACTORS = (np.arange(_WORDS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)


def _sums(data: Any) -> Any:
    """Return the sum of each page of a buffer that consists of whole pages."""
    return np.einsum("ij,j->i", np.frombuffer(data, dtype=_WORD).reshape(-1, _WORDS), _FACTORS)


def digest_of(data: memoryview) -> str:
    r"""Return the digest of bytes that are in memory, or mapped into it.

    Example:
        >>> digest_of(memoryview(b"\x01")) == digest_of(memoryview(b"\x01\x00"))
        True
        >>> digest_of(memoryview(b"\x01")) == digest_of(memoryview(b"\x02"))
        False
    """
    whole = len(data) - len(data) % _PAGE
    blocks = [data[start : min(start + _BLOCK, whole)] for start in range(0, whole, _BLOCK)]
    if len(blocks) < 2:
        sums = [_sums(block) for block in blocks]
    else:
        with ThreadPoolExecutor(min(len(blocks), os.cpu_count() or 1, 8)) as pool:
            sums = list(pool.map(_sums, blocks))
    if whole < len(data):
        sums.append(_sums(bytes(data[whole:]).ljust(_PAGE, b"\0")))
    return _digest(sums)


def _digest(sums: list[Any]) -> str:
    found = hashlib.sha256()
    for part in sums:
        found.update(part.astype(_WORD, copy=False).tobytes())
    return found.hexdigest()


class Sums:
    r"""Writes bytes on, in pieces of any size, and keeps the sums and the SHA-256 of exactly what it wrote.

    What is in memory may change while it is written; what was written and its sums agree nevertheless.

    Args:
        write: Takes the bytes.

    Example:
        >>> sums = Sums(lambda piece: None)
        >>> sums.add(memoryview(b"\x01"))
        >>> sums.add(memoryview(b"\x02\x03"))
        >>> sums.finish() == (digest_of(memoryview(b"\x01\x02\x03")), hashlib.sha256(b"\x01\x02\x03").hexdigest())
        True
    """

    def __init__(self, write: Callable[[memoryview], object]) -> None:
        self._write = write
        self._buffer = bytearray(_BUFFER)
        self._filled = 0
        self._sums: list[Any] = []
        self._sha256 = hashlib.sha256()

    def add(self, data: memoryview) -> None:
        """Write bytes."""
        while len(data):
            count = min(len(data), _BUFFER - self._filled)
            self._buffer[self._filled : self._filled + count] = data[:count]
            self._filled += count
            data = data[count:]
            if self._filled == _BUFFER:
                self._flush()

    def _flush(self) -> None:
        piece = memoryview(self._buffer)[: self._filled]
        self._write(piece)
        self._sha256.update(piece)
        padded = -(-self._filled // _PAGE) * _PAGE
        self._buffer[self._filled : padded] = bytes(padded - self._filled)
        self._sums.append(_sums(memoryview(self._buffer)[:padded]))
        self._filled = 0

    def finish(self) -> tuple[str, str]:
        """Write what is left, and return the digest of the sums and the SHA-256, both in hex."""
        if self._filled:
            self._flush()
        return _digest(self._sums), self._sha256.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256, in hex, of the bytes of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
