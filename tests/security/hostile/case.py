"""One hostile file with its honest twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Case", "text_case"]

Write = Callable[[Path], Path]


@dataclass(frozen=True, slots=True)
class Case:
    """A hostile file, an honest one that differs in little else, and how both are opened.

    Attributes:
        category: What kind of hostility it is.
        name: What it does.
        code: The code of the refusal, or the name of the exception where it is no `RecipeError`.
        hostile: Writes the hostile file into an empty folder, and returns what to open.
        honest: The same for the honest twin.
        opener: How it is opened; see `tests.security.hostile.watch`.
        limits: Limits that are not the usual ones.
    """

    category: str
    name: str
    code: str
    hostile: Write
    honest: Write
    opener: str
    limits: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.category}: {self.name}"


def text_case(
    category: str,
    name: str,
    code: str,
    hostile: str | bytes,
    honest: str | bytes,
    opener: str = "record",
    **limits: Any,
) -> Case:
    """Return the case of a recipe in a file."""
    return Case(category, name, code, _writes(hostile), _writes(honest), opener, limits)


def _writes(content: str | bytes) -> Write:
    def write(folder: Path) -> Path:
        path = folder / "recipe.json"
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path

    return write
