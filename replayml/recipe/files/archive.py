"""Checkpoints: the zip archives that ``torch.save`` writes, looked at before torch reads them.

torch unpacks what an archive says is packed, so that a small file can fill the memory, and maps it as if it were not
packed, so that weights come out as noise. An archive that torch has written has neither.

Invariants:
    * Only the list of an archive's parts is read here; nothing is unpacked and nothing unpickled.
"""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

from replayml.core.errors import RecipeError

__all__ = ["check_archive"]

_MOST_PICKLE = 64 * 1024 * 1024
_STRUCTURE = "data.pkl"


def check_archive(file: Path | BinaryIO, where: str) -> None:
    """Refuse what is no archive as ``torch.save`` writes them.

    Args:
        file: A path, or an open file, which stands at its start afterwards.
        where: What a refusal calls it.

    Raises:
        RecipeError: When it is none, or has parts that are packed or too large.
        OSError: When it cannot be opened.

    Example:
        >>> import io
        >>> check_archive(io.BytesIO(b"no archive"), "net.ckpt")
        Traceback (most recent call last):
            ...
        replayml.core.errors.RecipeError: [unsafe-file] at net.ckpt: this is no checkpoint, which is a zip archive ...
    """
    if isinstance(file, Path) and not stat.S_ISREG(os.stat(file).st_mode):
        raise RecipeError("not-regular", where, "this is no regular file. Nothing was read. Name a file")
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
    except OSError:
        raise
    except Exception as error:
        raise _refusal(where, f"this is no checkpoint, which is a zip archive ({error})") from error
    for part in parts:
        if part.compress_type != zipfile.ZIP_STORED:
            raise _refusal(where, f"its part {part.filename!a} is packed, which torch.save does not do")
        if part.filename.endswith(_STRUCTURE) and part.file_size > _MOST_PICKLE:
            raise _refusal(
                where, f"its part {part.filename!a} has {part.file_size} bytes; at most {_MOST_PICKLE} are read"
            )
    if not isinstance(file, Path):
        file.seek(0)


def _refusal(where: str, reason: str) -> RecipeError:
    return RecipeError("unsafe-file", where, f"{reason}. Nothing was unpickled. Take a copy that its trainer wrote")
