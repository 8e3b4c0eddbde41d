"""What the tests serve to meet answers that are hard to write: exceptions and results that JSON has no form for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch


class UnreadableError(ValueError):
    """An exception without a text."""

    def __str__(self) -> str:
        raise RuntimeError("there is no text")


ERRORS: dict[str, Callable[[], BaseException]] = {
    "large": lambda: ValueError(10**30),
    "endless": lambda: ValueError(10**5000),
    "surrogate": lambda: ValueError("a\ud800"),
    "unreadable": UnreadableError,
    "stop": lambda: StopIteration("here"),
    "async-stop": lambda: StopAsyncIteration("here"),
}


def fail(name: str) -> None:
    """Raise an exception of some name."""
    raise ERRORS[name]()


def result(name: str) -> Any:
    """Return a result of some name."""
    return RESULTS[name]()


def stream(kind: str, name: str) -> Iterator[Any]:
    """Yield a number, and then a result, or raise."""
    yield 1
    if kind == "fail":
        fail(name)
    yield result(name)


def play(kind: str, *args: str) -> Any:
    """Do one of these, so that one worker serves all of them."""
    return {"fail": fail, "result": result, "stream": stream}[kind](*args)


def _nested() -> list[Any]:
    value: list[Any] = []
    for _ in range(300):
        value = [value]
    return value


def _cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


RESULTS: dict[str, Callable[[], Any]] = {
    "float8": lambda: torch.zeros(2).to(torch.float8_e4m3fn),
    "surrogate": lambda: "a\ud800",
    "nested": _nested,
    "cyclic": _cyclic,
    "negative": lambda: torch.complex(torch.ones(2), torch.ones(2)).conj().imag,
}
