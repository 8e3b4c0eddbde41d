"""`replayml status`: what runs at an address, or the services that the gateway lists.

Invariants:
    * It asks, and changes nothing: no request reaches a model.
    * What a service or the gateway tells is shown as text, without control characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from replayml.cli.flags import told_in_flags
from replayml.cli.report import Answer, ExitCode, UsageError, clean, lines
from replayml.module.deploying import GATEWAY
from replayml.serving.calling.client import Client
from replayml.serving.errors import UnavailableError
from replayml.serving.url import open_gateway, read_token

__all__ = ["run"]


def run(url: str | None = None, *, token_file: Path | None = None, timeout: float = 2.0) -> Answer:
    """Tell what runs.

    Args:
        url: The address of a service; None for what the gateway lists.
        token_file: A file with the token that the service wants to see.
        timeout: Seconds to wait for answers.

    Raises:
        UsageError: When there is neither an address nor a gateway, or one is none.
        ServingError: When there is no answer.
    """
    return _listing() if url is None else _service(url, token_file, timeout)


def _service(url: str, token_file: Path | None, timeout: float) -> Answer:
    with told_in_flags():
        client = Client(url, token=None if token_file is None else read_token(str(token_file)), timeout=timeout)
    try:
        document = client.get("/schema")
        state, is_ready = _readiness(client)
    finally:
        client.close()
    data = {"url": client.url, "ready": is_ready, **_told(document)}
    shown = [f"{data['title']}, version {data['version']}, at {client.url}: {state}"]
    shown += [f"takes:   {_form(each)}" for each in data["inputs"] or ["what its forward takes; no example was given"]]
    shown += [f"by name: {', '.join(data['named'])}"] if data["named"] else []
    shown += [f"returns: {_form(data['output'])}"] if data["output"] else []
    return Answer(data, lines(*shown), ExitCode.DONE if is_ready else ExitCode.FAILED)


def _readiness(client: Client) -> tuple[str, bool]:
    try:
        client.get("/readyz")
    except UnavailableError as error:
        return f"not ready ({error.code})", False
    return "ready", True


def _told(document: Any) -> dict[str, Any]:
    """Return what is to be known of the document of a service."""
    body = _at(document, "paths", "/predict", "post", "requestBody", "content", "application/json", "schema")
    answers = _at(document, "paths", "/predict", "post", "responses", "200", "content")
    inputs = _at(body, "properties", "args", "prefixItems")
    named = _at(body, "properties", "kwargs", "properties")
    is_stream = isinstance(answers, dict) and len(answers) == 1 and "text/event-stream" in answers
    result = _at(answers, "text/event-stream", "x-item") if is_stream else _at(answers, "application/json", "schema")
    version = str(_at(document, "info", "version"))
    return {
        "title": str(_at(document, "info", "title")),
        "version": int(version) if version.isdecimal() else version,
        "inputs": inputs if isinstance(inputs, list) else None,
        "named": named if isinstance(named, dict) and isinstance(inputs, list) else {},
        "output": _at(result, "properties", "result") or None,
        "streams": is_stream,
    }


def _at(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _form(schema: Any) -> str:
    """Return the form of a value in a line: ``float32[*,4]``, * for rows.

    Example:
        >>> _form({"type": "array", "x-dtype": "float32", "x-shape": [-1, 4]})
        'float32[*,4]'
        >>> _form({"type": "array", "prefixItems": [{"type": "string"}, {"x-dtype": "int64", "x-shape": []}]})
        '(string, int64[])'
    """
    if not isinstance(schema, Mapping):
        return str(schema)
    choices = schema.get("anyOf")
    if isinstance(choices, list) and choices:
        return _form(choices[0])
    shape, parts, named = schema.get("x-shape"), schema.get("prefixItems"), schema.get("properties")
    if "x-dtype" in schema and isinstance(shape, list):
        return f"{schema['x-dtype']}[{','.join('*' if size == -1 else str(size) for size in shape)}]"
    if isinstance(parts, list):
        return f"({', '.join(map(_form, parts))})"
    if isinstance(named, dict):
        return f"{{{', '.join(f'{name}: {_form(part)}' for name, part in named.items())}}}"
    return str(schema.get("type", "anything"))


def _listing() -> Answer:
    with told_in_flags():
        gateway = open_gateway()
    if gateway is None:
        raise UsageError(
            "no-gateway",
            f"give the address of a service, such as http://127.0.0.1:8000; or set {GATEWAY} to list the services of "
            "a gateway",
        )
    try:
        found = gateway.entries()
    finally:
        gateway.close()
    services = [
        {"name": name, "url": url or None, "version": version, "owner": owner, "age": age}
        for name, url, version, owner, _, age in found.entries
    ]
    data = {"gateway": gateway.place, "services": services, "unreadable": found.unreadable}
    if not services and not found.unreadable:
        return Answer(data, lines(f"{gateway.place} lists no service"))
    table = Table(box=None, pad_edge=False, header_style="")
    for title in ("name", "address", "version", "heartbeat", "owner"):
        table.add_column(title)
    for entry in found.entries:
        age = "" if entry.age is None else f"{entry.age:.0f} s ago"
        row = (entry.name, entry.url or "starting", str(entry.version or ""), age, entry.owner)
        table.add_row(*map(clean, row))
    for name in found.unreadable:
        table.add_row(clean(name), "no entry of replayml")
    return Answer(data, table)
