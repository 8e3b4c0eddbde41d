"""What the tests serve as streams: generators that a worker can import."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import replayml
from tests.serving import services

_SECONDS = 60.0
_number = contextvars.ContextVar("number", default=0)


def play(name: str, *args: Any) -> Any:
    """Return the stream of some name, so that one worker serves all of them."""
    return _STREAMS[name](*args)


def values() -> Iterator[Any]:
    """Yield values of many kinds."""
    yield from (None, True, 3, 2.5, float("inf"), "text\n\n", {"a": (1, [2])}, {1: "x"}, 10**30)


def tensors() -> Iterator[torch.Tensor]:
    """Yield one tensor again and again, with other values, and some of other kinds."""
    reused = torch.zeros(3)
    for _ in range(3):
        reused += 0.1
        yield reused
    yield torch.tensor([float("nan"), -0.0])
    yield torch.ones(2, 2, dtype=torch.bfloat16) / 3
    yield torch.zeros(0, 4)


def count(stop: int) -> Iterator[int]:
    """Yield numbers."""
    yield from range(stop)


def number(value: Any) -> Any:
    """Return what came, as it is."""
    return value


def counted(stop: int) -> Iterator[int]:
    """Return an iterator that is no generator."""
    return map(int, range(stop))


def fail(items: int, name: str = "value") -> Iterator[Any]:
    """Yield numbers, and raise."""
    yield from range(items)
    errors: dict[str, BaseException] = {
        "value": ValueError("no such row"),
        "stop": replayml.ConfigurationError("there is no 'depth'"),
        "exit": SystemExit(3),
        "late": TimeoutError("the sensor is silent"),
    }
    if name in errors:
        raise errors[name]
    yield {"object": object(), "nan": float("nan")}[name]


def early(name: str) -> Iterator[Any]:
    """Raise before there is an iterator."""
    raise KeyError(name)


def gated(path: str, items: int) -> Iterator[int]:
    """Yield a number, and further ones once a file is there."""
    yield 0
    wait_for(path)
    yield from range(1, items)


def wait_for(path: str) -> None:
    """Wait for a file."""
    end = time.monotonic() + _SECONDS
    while not Path(path).exists() and time.monotonic() < end:
        time.sleep(0.01)


def paced(items: int, seconds: float) -> Iterator[int]:
    """Yield numbers with a pause before each."""
    for item in range(items):
        time.sleep(seconds)
        yield item


def endless(path: str, size: int = 0) -> Iterator[Any]:
    """Yield for ever, and write down at the end how many there were."""
    made = 0
    try:
        for made in itertools.count(1):
            yield bytes(size).decode() if size else made
    finally:
        Path(path).with_suffix(".part").write_text(str(made))
        Path(path).with_suffix(".part").rename(path)


def begun(gate: str, mark: str, ended: str) -> Iterator[int]:
    """Return a generator that has begun, once a file is there."""
    made = _telling(ended)
    next(made)
    Path(mark).touch()
    wait_for(gate)
    return made


def _telling(path: str) -> Iterator[int]:
    """Yield, and write down at the end in which thread that is."""
    try:
        yield 0
        yield 1
    finally:
        Path(path).with_suffix(".part").write_text(threading.current_thread().name)
        Path(path).with_suffix(".part").rename(path)


def modes() -> Iterator[tuple[bool, bool, int]]:
    """Yield torch's modes and a context variable, and change them in between."""
    for item in range(3):
        _number.set(_number.get() + 1)
        with torch.set_grad_enabled(item % 2 == 0), torch.inference_mode(item == 1):
            yield torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _number.get()


def modes_here() -> tuple[bool, bool, int]:
    """Return torch's modes and the context variable."""
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _number.get()


async def slowly(items: int) -> AsyncIterator[int]:
    """Yield numbers in an event loop."""
    for item in range(items):
        await asyncio.sleep(0)
        yield item


async def slowly_for_ever(path: str) -> AsyncIterator[int]:
    """Yield in an event loop for ever, and tell the end."""
    try:
        for item in itertools.count():
            await asyncio.sleep(0)
            yield item
    finally:
        await asyncio.sleep(0)
        Path(path).write_text("closed")


class Rollout(replayml.Module):
    """A module that yields one state after the other."""

    def __init__(self, steps: int = 3) -> None:
        self.steps = steps
        self.layer = replayml.Layer(torch.nn.Linear, 3, 3)

    def forward(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        for _ in range(self.steps):
            x = self.layer(x)
            yield x


_STREAMS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(values, tensors, count, number, counted, fail, early, gated, begun, paced, endless, modes, modes_here),
        *(slowly, slowly_for_ever, services.nan, services.unsendable),
    )
}


class Digits(replayml.Module):
    """A classifier of images with 8 times 8 cells."""

    def __init__(self) -> None:
        self.layers = replayml.MultiLayerPerceptron(64, [64], 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(image.flatten(1))
        return found


class Marked(replayml.Module):
    """A module whose name is no text to be trusted."""

    def forward(self, x: Any) -> Any:
        return x


Marked.__name__ = "<script>document.title='taken'</script>"
