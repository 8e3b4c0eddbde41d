"""Requests a second and how long they take, beside bare FastAPI on uvicorn with the model inline.

    python -m benchmarks.serving                    replayml alone, batched and not
    python -m benchmarks.serving --fastapi PYTHON   also FastAPI, with the interpreter of an environment that has it

The model is an MLP 256 -> 1024 -> 1024 -> 10, a request one row in JSON, each side one process with one torch thread.
The client is a third process that speaks HTTP byte by byte, so that it takes as little of the machine as it can.
FastAPI's side has no limits and no checks but the types of its fields; replayml's has all of them.

The environment for FastAPI: ``pip install fastapi uvicorn httptools torch`` with the same versions of the last three
as in ``constraints.txt``, so that both parse HTTP with the same code.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

import replayml
from replayml.serving.server import ServerModule

CONNECTIONS = (1, 8, 64)
SECONDS = 3.0
ROUNDS = 3
BUDGETS = {
    ("replayml", 1): 0.9,
    ("replayml, batched", 1): 0.9,
    ("replayml, batched", 8): 2.0,
    ("replayml, batched", 64): 2.5,
}

FASTAPI = """
import sys, torch, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from torch import nn
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)).eval()
app = FastAPI()
class Inputs(BaseModel):
    args: list[list[list[float]]]
@app.post("/predict")
async def predict(inputs: Inputs):
    with torch.no_grad():
        return {"result": model(torch.tensor(inputs.args[0])).tolist()}
port = int(sys.argv[1])
uvicorn.run(app, port=port, log_level="warning", access_log=False)
"""


class Load(NamedTuple):
    """What one run of the client found."""

    rate: float
    p50: float
    p99: float


class Asker(asyncio.Protocol):
    """A connection that asks again as soon as it is answered."""

    def __init__(self, request: bytes, times: list[float], failed: Callable[[bytes], None]) -> None:
        self.request = request
        self.times = times
        self.failed = failed
        self.answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send a request."""
        self.started = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Take the answer, and ask again."""
        self.answer += data
        head, end, body = self.answer.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            self.failed(self.answer)
        self.times.append(time.perf_counter() - self.started)
        self.answer = b""
        self.ask()


async def _load(port: int, connections: int, seconds: float) -> Load:
    generator = random.Random(0)
    row = [round(generator.gauss(0, 1), 7) for _ in range(256)]
    body = json.dumps({"args": [[row]]}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    times: list[float] = []
    failures: list[bytes] = []
    loop = asyncio.get_running_loop()
    askers = [
        (await loop.create_connection(lambda: Asker(request, times, failures.append), "127.0.0.1", port))[0]
        for _ in range(connections)
    ]
    await asyncio.sleep(0.5)
    times.clear()
    started = time.perf_counter()
    await asyncio.sleep(seconds)
    taken = time.perf_counter() - started
    found = sorted(times)
    for transport in askers:
        transport.abort()
    assert not failures, failures[0]
    return Load(len(found) / taken, statistics.median(found), found[int(len(found) * 0.99)])


def load(port: int, connections: int, seconds: float = SECONDS) -> Load:
    """Ask a service from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.serving", "--load", str(port), str(connections), str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Load(*json.loads(done.stdout))


@contextmanager
def fastapi(python: str) -> Iterator[int]:
    """Run FastAPI's side, and yield its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen([python, "-c", FASTAPI, str(port)]) as process:
        try:
            while True:
                with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.05)
            yield port
        finally:
            process.kill()


@contextmanager
def ours(*, batch: bool) -> Iterator[int]:
    """Run replayml's side, and yield its port."""
    model = replayml.MultiLayerPerceptron(256, [1024, 1024], 10).build(seed=0)
    service = ServerModule(model, example=torch.zeros(1, 256), batch=batch).start()
    try:
        yield int(service.url.rpartition(":")[2])
    finally:
        service.stop()


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.partition("\n")[0])
    parser.add_argument("--fastapi", metavar="PYTHON", help="interpreter of an environment that has FastAPI")
    parser.add_argument("--load", nargs=3, metavar=("PORT", "CONNECTIONS", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        port, connections, seconds = options.load
        print(json.dumps(asyncio.run(_load(int(port), int(connections), float(seconds)))))
        return 0
    torch.set_num_threads(1)
    sides: dict[str, Callable[[], contextlib.AbstractContextManager[int]]] = {
        "replayml": lambda: ours(batch=False),
        "replayml, batched": lambda: ours(batch=True),
    }
    if options.fastapi:
        sides["FastAPI"] = lambda: fastapi(options.fastapi)
    best: dict[tuple[str, int], Load] = {}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            with side() as port:
                for connections in CONNECTIONS:
                    found = load(port, connections)
                    known = best.get((name, connections))
                    best[name, connections] = found if known is None or found.rate > known.rate else known
    return _print(best, has_fastapi="FastAPI" in sides)


def _print(best: dict[tuple[str, int], Load], *, has_fastapi: bool) -> int:
    table = Table("side", "connections", "requests/s", "p50 ms", "p99 ms", "/ FastAPI", "budget", "met")
    is_met = True
    for (name, connections), found in sorted(best.items(), key=lambda item: (item[0][1], item[0][0])):
        row = [name, str(connections), f"{found.rate:.0f}", f"{found.p50 * 1000:.2f}", f"{found.p99 * 1000:.2f}"]
        if has_fastapi:
            ratio = found.rate / best["FastAPI", connections].rate
            budget = BUDGETS.get((name, connections))
            met = budget is None or ratio >= budget
            is_met = is_met and met
            row += [f"{ratio:.2f}", "" if budget is None else f"≥ {budget:g}", "yes" if met else "NO"]
        table.add_row(*row)
    Console(width=120).print(table)
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
