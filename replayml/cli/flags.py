"""What the commands about services tell in the words of the command line: flags in the place of Python's options.

Invariants:
    * What the user asked for and no service can have is wrong usage, as an unknown option is.
    * What a file is refused for in a worker is told, and ends the command, as in the commands that open it themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from replayml.cli.opening import with_hint
from replayml.cli.report import UsageError
from replayml.core.errors import ConfigurationError, RecipeError
from replayml.serving.errors import ServingError, serving_error

__all__ = ["in_flags", "told_in_flags"]

_OPTION = re.compile(r"\b(token_file|backend|replicas|batch|name|port|host|timeout)=(?:'(\w+)'|(False)|(True|\.\.\.)?)")
_REFUSED = re.compile(r"RecipeError: \[([a-z-]+)\] at ([^:]+): (.*)", re.S)


def in_flags(text: str) -> str:
    """Return a text that names options of Python with those of the command line.

    Example:
        >>> in_flags("needs a token: give token_file=, or serve it with batch=False and backend='process'")
        'needs a token: give --token-file, or serve it with --batch 0 and --backend process'
    """

    def flag(match: re.Match[str]) -> str:
        name, value, off, _ = match.groups()
        words = [f"--{name.replace('_', '-')}", *([value] if value else ["0"] if off else [])]
        return " ".join(words)

    return _OPTION.sub(flag, text)


@contextmanager
def told_in_flags() -> Iterator[None]:
    """Tell what is wrong with what the user asked for, and with the file, as the command line does.

    Raises:
        UsageError: When no service can be as the user asked.
        RecipeError: When a worker refused the file.
        ServingError: When something else failed.
    """
    try:
        yield
    except RecipeError:
        raise
    except ConfigurationError as error:
        raise UsageError("bad-option", in_flags(str(error))) from error
    except ServingError as error:
        refused = _REFUSED.search(error.problem.text) if error.code == "start-failed" else None
        if refused is not None:
            raise with_hint(RecipeError(refused[1], refused[2], refused[3])) from error
        raise serving_error(error.problem._replace(text=in_flags(error.problem.text))) from error
