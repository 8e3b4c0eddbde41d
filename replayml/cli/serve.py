"""`replayml serve`: a model file behind HTTP, until the command is told to stop.

Invariants:
    * The file is opened in the worker, by the rules for every file: it may name what replayml, torch and the modules
      given with ``--import`` have.
    * SIGTERM and an interrupt let running requests finish; then the command ends with 0.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import torch
import typer

from replayml.cli.flags import told_in_flags
from replayml.cli.opening import open_file, read_renames, require_module
from replayml.cli.report import Answer, UsageError, lines
from replayml.serving.backend import make_backend
from replayml.serving.messages.wire import DTYPES
from replayml.serving.packing.packing import write_example
from replayml.serving.packing.spec import Spec
from replayml.serving.server import listed_url, local_url, read_token
from replayml.serving.url import open_gateway, require_name

__all__ = ["read_input", "run"]

_INPUT = re.compile(r"([a-z0-9]+)\[((?:\*|\d{1,9})?(?:,\d{1,9})*)\]")


def run(
    path: Path,
    *,
    host: str,
    port: int,
    token_file: Path | None,
    replicas: int,
    backend: str = "process",
    name: str | None = None,
    batch: int = 0,
    inputs: Sequence[str] = (),
    imports: Sequence[str] = (),
    rename: Sequence[str] = (),
) -> Answer:
    """Serve a model until the command is told to stop.

    Args:
        path: The model file.
        host: The address to listen on.
        port: The port; 0 for a free one.
        token_file: A file with the token that callers must show.
        replicas: How many processes to run.
        backend: Where they run: ``"process"``, on this machine, or ``"ray"``, on a cluster.
        name: The name of the service; where there is a gateway, it is listed there.
        batch: How many rows to run at once; 0 to run each request by itself.
        inputs: What each input looks like, such as ``float32[*,4]``; ``*`` first where it counts rows.
        imports: Modules that the file may use.
        rename: Names in the file and those of today, as ``OLD=NEW``.

    Raises:
        UsageError: When there is nothing to serve in the file, or no service can be as the options say.
        RecipeError: When it is not safe to open.
        ServingError: When it cannot be loaded.
    """
    with told_in_flags():
        require_name(name)
        token = None if token_file is None else read_token(str(token_file))
    opened = open_file(path)
    if opened.form == "recipe":
        raise UsageError("no-weights", f"{path} holds a recipe alone, which has no weights. Serve what save() wrote")
    for module in imports:
        require_module(module)
    example = [read_input(text) for text in inputs]
    if batch and not (example and all(has_rows for _, has_rows in example)):
        raise UsageError("no-rows", "--batch takes --input for each input, with * first: --input 'float32[*,4]'")
    if len({has_rows for _, has_rows in example}) > 1:
        raise UsageError("no-rows", "either all inputs have rows, *, or none has")
    spec = Spec(
        kind="model",
        place=str(path.resolve()),
        name=name or "",
        title=opened.recipe.plan.root.name.rpartition(".")[2],
        imports=tuple(imports),
        renames=read_renames(rename),
        has_rows=any(has_rows for _, has_rows in example),
        most_rows=batch,
        host=host,
        token=token,
        log="-",
    )
    with told_in_flags():
        service = make_backend(backend, spec, replicas=replicas, port=port)
        gateway, lease = open_gateway(), None
    is_over = threading.Event()

    def prepared(folder: Path, given: Spec) -> Spec:
        tensors = [tensor for tensor, _ in example]
        return replace(given, example=write_example(tensors, folder) if tensors else "")

    def end(number: int, frame: FrameType | None) -> None:
        is_over.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with told_in_flags():
            if name is not None and gateway is not None:
                lease = gateway.claim(name)
            service.start(prepared)
            if lease is not None:
                lease.publish(listed_url(spec, service), service.version)
        typer.echo(f"serving {path} at {local_url(service)}", err=True)
        is_over.wait()
        if lease is not None:
            lease.close()
        service.stop()
    finally:
        if lease is not None:
            lease.close()
        service.stop(drain=False)
        for number, handler in before.items():
            signal.signal(number, handler)
    return Answer({"file": str(path)}, lines("stopped"))


def read_input(text: str) -> tuple[torch.Tensor, bool]:
    """Return an example of an input, and whether its first dimension counts rows.

    Raises:
        UsageError: When the text says something else.

    Example:
        >>> read_input("int64[*,2]")
        (tensor([[0, 0]]), True)
    """
    match = _INPUT.fullmatch(text.replace(" ", ""))
    if match is None or match[1] not in DTYPES:
        raise UsageError("bad-input", f"{text!r} is no input. Write --input 'float32[*,4]': a dtype and a shape")
    sizes = match[2].split(",") if match[2] else []
    has_rows = sizes[:1] == ["*"]
    return torch.zeros([1 if size == "*" else int(size) for size in sizes], dtype=DTYPES[match[1]]), has_rows
