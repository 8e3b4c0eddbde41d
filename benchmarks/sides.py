"""The services that `benchmarks.serving` compares: the same model behind each, in a process with one torch thread.

Each other side is a script, run with the interpreter of an environment that has what it needs. It is written as its own
documentation writes it, with as little around the model as it takes.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

import replayml
from benchmarks.asking import NUMBER, answers
from replayml.serving.server import ServerModule

__all__ = ["Running", "Side", "fastapi", "lazyllm", "litserve", "ours"]

_ROW = [round(value, 7) for value in map(random.Random(0).gauss, [0] * 256, [1] * 256)]
_LONGEST_START = 120.0

_MODEL = """
import sys, torch
from torch import nn
torch.set_num_threads(1)
def made():
    return nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)).eval()
"""

_FASTAPI = f"""{_MODEL}
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
model = made()
app = FastAPI()
class Inputs(BaseModel):
    args: list[list[list[float]]]
@app.post("/predict")
async def predict(inputs: Inputs):
    with torch.no_grad():
        return {{"result": model(torch.tensor(inputs.args[0])).tolist()}}
uvicorn.run(app, port=int(sys.argv[1]), log_level="warning", access_log=False)
"""

_LITSERVE = f"""{_MODEL}
import litserve
class Service(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(1)
        self.model = made()
    def decode_request(self, request):
        return torch.tensor(request["args"][0])
    def batch(self, inputs):
        return torch.cat(inputs)
    def predict(self, x):
        with torch.no_grad():
            return self.model(x)
    def unbatch(self, output):
        return list(output.split(1))
    def encode_response(self, output):
        return {{"result": output.tolist()}}
if __name__ == "__main__":
    service = Service(max_batch_size=int(sys.argv[2]))
    server = litserve.LitServer(service, accelerator="cpu", workers_per_device=1)
    options = dict(num_api_servers=1, log_level="warning", generate_client_file=False)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), **options)
"""

_LAZYLLM = f"""{_MODEL}
import json, os, lazyllm, requests
class Service:
    def __init__(self):
        self.model = made()
    def __call__(self, rows):
        with torch.no_grad():
            return self.model(torch.tensor(rows)).tolist()
if __name__ == "__main__":
    Service.__module__ = "__main__"
    server = lazyllm.ServerModule(Service(), port=int(sys.argv[1]), launcher=lazyllm.launchers.empty(sync=False))
    server.start()
    row = json.loads(sys.argv[2])
    assert len(server([row])[0]) == 10
    headers = {{
        "Content-Type": "application/json",
        "Global-Parameters": lazyllm.globals.pickled_data,
        "Session-ID": "session-{NUMBER.decode()}",
    }}
    body = lazyllm.common.utils.obj2str((([row]), {{}}))
    asked = requests.Request("POST", server._url, headers=headers, json=body).prepare()
    lines = [f"POST {{asked.path_url}} HTTP/1.1", f"Host: 127.0.0.1:{{sys.argv[1]}}"]
    lines += [f"{{name}}: {{value}}" for name, value in asked.headers.items()]
    request = "\\r\\n".join([*lines, "", ""]).encode() + asked.body
    with open("writing", "wb") as file:
        file.write(request)
    os.replace("writing", "request")
    sys.stdin.read()
    server.stop()
"""


@dataclass(frozen=True)
class Running:
    """A service that runs.

    Attributes:
        port: Its port.
        request: What to send.
        processes: All of its processes.
        start: Seconds from its start to its first answer.
    """

    port: int
    request: bytes
    processes: list[psutil.Process]
    start: float

    def used(self) -> float:
        """Return the seconds of processor time that it has used."""
        times = [process.cpu_times() for process in self.processes]
        return float(sum(one.user + one.system for one in times))


Side = Callable[[], AbstractContextManager[Running]]


def _request(port: int) -> bytes:
    body = json.dumps({"args": [[_ROW]]}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _await_answer(port: int, request: bytes, begin: float) -> float:
    """Return how many seconds after the begin the service answered."""
    while not answers(port, request):
        assert time.perf_counter() - begin < _LONGEST_START, "the service does not start"
        time.sleep(0.01)
    return time.perf_counter() - begin


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


@contextmanager
def ours(*, batch: bool) -> Iterator[Running]:
    """Run replayml's side; its supervisor is a thread of this process."""
    model = replayml.MultiLayerPerceptron(256, [1024, 1024], 10).build(seed=0)
    begin = time.perf_counter()
    service = ServerModule(model, example=torch.zeros(1, 256), batch=batch).start()
    try:
        port = int(service.url.rpartition(":")[2])
        request = _request(port)
        start = _await_answer(port, request, begin)
        yield Running(port, request, _family(os.getpid()), start)
    finally:
        service.stop()


@contextmanager
def _script(python: str, source: str, *arguments: str) -> Iterator[tuple[int, psutil.Popen, float, Path]]:
    """Run a script, and yield its port, its process, when it began, and its folder."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "service.py"
        path.write_text(source)
        begin = time.perf_counter()
        process = psutil.Popen(
            [python, str(path), str(port), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=None if "BENCHMARK_LOG" in os.environ else subprocess.DEVNULL,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            yield port, process, begin, Path(folder)
        finally:
            family = _family(process.pid)
            for member in family:
                member.kill()
            psutil.wait_procs(family)
            process.stdin.close()


@contextmanager
def fastapi(python: str) -> Iterator[Running]:
    """Run FastAPI's side: the model inline, as its tutorial has it."""
    with _script(python, _FASTAPI) as (port, process, begin, _):
        request = _request(port)
        start = _await_answer(port, request, begin)
        yield Running(port, request, _family(process.pid), start)


@contextmanager
def litserve(python: str, *, batch: bool) -> Iterator[Running]:
    """Run LitServe's side."""
    with _script(python, _LITSERVE, "64" if batch else "1") as (port, process, begin, _):
        request = _request(port)
        start = _await_answer(port, request, begin)
        yield Running(port, request, _family(process.pid), start)


@contextmanager
def lazyllm(python: str) -> Iterator[Running]:
    """Run LazyLLM's side, which is asked with the very bytes that its own client sends."""
    with _script(python, _LAZYLLM, json.dumps(_ROW)) as (port, process, begin, folder):
        path = folder / "request"
        while not path.exists():
            assert process.poll() is None, "the service has ended"
            assert time.perf_counter() - begin < _LONGEST_START, "the service does not start"
            time.sleep(0.05)
        request = path.read_bytes()
        start = _await_answer(port, request, begin)
        yield Running(port, request, _family(process.pid), start)
