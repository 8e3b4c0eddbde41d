"""`replayml call`: one call of a service, with JSON in and JSON out.

Invariants:
    * The body is sent as it is written, and the answer printed as it came; nothing is opened or imported.
    * Of a stream each item is a line, printed when it comes; the last line tells how many there were.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
import typer

from replayml.cli.flags import told_in_flags
from replayml.cli.report import Answer, UsageError, lines
from replayml.serving.calling.client import Client
from replayml.serving.calling.receiving import Stream
from replayml.serving.server import read_token

__all__ = ["run"]


def run(url: str, text: str, *, token_file: Path | None = None, timeout: float = 60.0) -> Answer:
    """Call a service.

    Args:
        url: Where it is.
        text: The body, such as ``{"args": [[[1, 2]]]}``; ``-`` for the standard input.
        token_file: A file with the token that it wants to see.
        timeout: Seconds until the call fails.

    Raises:
        UsageError: When the body is no JSON, the address is none, or the file holds no token.
        ServingError: When there is no result.
    """
    body = sys.stdin.buffer.read() if text == "-" else text.encode()
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UsageError("no-json", f'--json takes JSON, such as {{"args": [[[1, 2]]]}}: {error}') from error
    with told_in_flags():
        client = Client(url, token=None if token_file is None else read_token(str(token_file)), timeout=timeout)
    try:
        answer = client.call_json(body)
        if isinstance(answer, Stream):
            items = 0
            for item in answer:
                typer.echo(orjson.dumps(item))
                items += 1
            return Answer({"items": items})
    finally:
        client.close()
    return Answer(answer if isinstance(answer, dict) else {"result": answer}, lines(orjson.dumps(answer).decode()))
