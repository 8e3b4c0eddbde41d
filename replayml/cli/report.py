"""What a command answers: text for people or one JSON object, and the exit code.

Invariants:
    * A fault of a file, or of what was asked, is told in a sentence; a traceback is a fault of replayml.
    * With ``--json`` standard output holds one JSON object, an error included; in text, errors go to standard error.
    * A text that comes from a file reaches the terminal without control characters.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NoReturn

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from replayml.core.errors import RecipeError, ReplaymlError

__all__ = ["Answer", "ExitCode", "UsageError", "clean", "give", "lines"]

_WIDEST = 100_000


class ExitCode(IntEnum):
    """With what a command ends."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    EXTRA = 3
    REFUSED = 4


class UsageError(Exception):
    """Words of the user that say nothing.

    Args:
        code: What is wrong, in a word.
        message: What is wrong, and what to write instead.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command answers.

    Attributes:
        data: The answer for programs: JSON values.
        text: The answer for people.
        code: The exit code.
    """

    data: dict[str, Any]
    text: RenderableType = ""
    code: ExitCode = field(default=ExitCode.DONE)


def clean(text: object) -> str:
    r"""Return a text of which a terminal shows every character: others stand as escapes, but for the ends of lines.

    Example:
        >>> clean("a\x1b[31mb")
        'a\\x1b[31mb'
    """
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in str(text))


def lines(*texts: object) -> Text:
    """Return texts, one below the other, none of which is markup."""
    return Text("\n".join(clean(text) for text in texts))


def give(command: Callable[[], Answer], *, as_json: bool) -> NoReturn:
    """Run a command, print its answer and end with its exit code.

    Raises:
        typer.Exit: Always.
    """
    answer = _answer(command)
    is_error = "error" in answer.data
    if as_json:
        typer.echo(json.dumps({"exit_code": int(answer.code), **answer.data}))
    elif answer.text:
        console = Console(stderr=is_error, highlight=False, markup=False, emoji=False)
        if not console.is_terminal:
            console.width = _WIDEST  # what reads a pipe gets whole lines
        console.print(answer.text, soft_wrap=isinstance(answer.text, Text))
    raise typer.Exit(int(answer.code))


def _answer(command: Callable[[], Answer]) -> Answer:
    try:
        return command()
    except UsageError as error:
        return _failed({"code": error.code, "message": error.message}, ExitCode.USAGE, error.message)
    except RecipeError as error:
        told = {"code": error.code, "where": error.where, "message": error.message}
        return _failed(told, ExitCode.REFUSED, f"refused: {error}")
    except ReplaymlError as error:
        return _failed({"code": type(error).__name__, "message": str(error)}, ExitCode.FAILED, str(error))
    except ModuleNotFoundError as error:
        what = " ".join([str(error), *getattr(error, "__notes__", ())])
        return _failed({"code": type(error).__name__, "message": what}, ExitCode.EXTRA, what)
    except OSError as error:
        what = str(error) if error.filename is None else f"{error.strerror}: {error.filename}"
        return _failed({"code": type(error).__name__, "message": what}, ExitCode.FAILED, what)


def _failed(error: dict[str, str], code: ExitCode, text: str) -> Answer:
    return Answer({"error": error}, Group(Text.assemble(("Error: ", "red"), clean(text))), code)
