"""The watch: what goes on and on is broken off, and nothing else notices."""

from __future__ import annotations

import gc
import math
import sys
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from replayml.recipe.text.watching import Exceeded, Watch

COLOUR: ContextVar[str] = ContextVar("colour", default="none")


def nothing() -> int:
    """Tell that nothing was made."""
    return 0


def busy(seconds: float) -> float:
    """Work for some time, as code of a user does, and return how long."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        pass
    return time.monotonic() - start


def endless() -> NoReturn:
    """Work for ever."""
    while True:
        busy(0.001)


def refusal(make: Callable[[], Any], seconds: float) -> str:
    """Return what a call is broken off with."""
    with pytest.raises(Exceeded) as caught:
        Watch(seconds, nothing).run(make)
    return f"{caught.value.flaw.code}: {caught.value.flaw.message}"


def test_what_ends_in_time_is_returned() -> None:
    """A result and an error come through, and a watch without end starts nothing."""
    assert Watch(30.0, nothing).run(lambda: 3) == 3
    assert Watch(math.inf, nothing).run(threading.active_count) == threading.active_count()
    with pytest.raises(ValueError, match="divisible"):
        Watch(30.0, nothing).run(partial(nn.GroupNorm, 3, 4))


def test_what_does_not_end_is_broken_off() -> None:
    """Code of the user has all the time, one call of torch a part of it."""
    assert refusal(endless, 0.3) == "too-slow: the dry run takes longer than 0.3 seconds. Raise Limits(seconds=)."
    assert refusal(partial(nn.RNN, 1, 1, 10**18), 3.0).startswith("too-slow: one step goes on for 0.2 seconds. Raise")


def test_code_of_the_user_has_more_time_than_a_call_of_torch() -> None:
    """What works longer than a fifteenth of the time is not broken off when somebody wrote it."""
    assert Watch(6.0, nothing).run(partial(busy, 0.8)) > 0.4
    assert Watch(6.0, nothing).run(lambda: [nn.ReLU() for _ in range(30_000)])[-1].training


def test_what_looks_on_excuses_no_call_of_torch() -> None:
    """A function of the user that runs whenever garbage is collected is not taken for the code that goes on."""

    def look_on(phase: str, facts: dict[str, int]) -> None:
        busy(0.0005)

    encoder: Any = nn.TransformerEncoder
    gc.callbacks.append(look_on)
    try:
        found = refusal(partial(encoder, nn.ReLU(), 10**9), 3.0)
    finally:
        gc.callbacks.remove(look_on)
    assert found.startswith("too-slow: one step goes on for 0.2 seconds")


def test_nothing_is_raised_afterwards() -> None:
    """Whether a call ends just before it would be broken off, or just after: what follows is left alone."""
    found: set[object] = set()
    for number in range(60):
        try:
            found.add(Watch(0.001, nothing).run(partial(busy, 0.045 + number * 0.0002)) > 0)
        except Exceeded as exceeded:
            found.add(exceeded.flaw.code)
        assert [index for index in range(1000) if index % 500 == 0] == [0, 500]
    busy(0.2)
    assert found <= {True, "too-slow"}


def test_what_swallows_the_exception_is_broken_off_again() -> None:
    """A ``try`` around everything ends no watch."""
    swallowed: list[BaseException] = []

    def stubborn() -> None:
        while len(swallowed) < 3:
            try:
                endless()
            except BaseException as error:  # noqa: BLE001 - what this test is about
                swallowed.append(error)
        endless()

    assert "takes longer than 0.1 seconds" in refusal(stubborn, 0.1)
    assert len(swallowed) == 3


class Careless(TorchFunctionMode):
    """A mode that stays when its block is broken off."""

    def __exit__(self, *error: object) -> None:
        """Leave the mode where it is."""


def test_what_was_around_the_call_is_as_before() -> None:
    """Context variables, modes of torch, the gradients and the default dtype are restored after a break."""

    def careless() -> None:
        COLOUR.set("red")
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        with Careless():
            endless()

    with torch.device("meta"):
        refusal(careless, 0.1)
        assert torch.empty(1).is_meta
    assert not torch.empty(1).is_meta
    assert COLOUR.get() == "none"
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    assert torch._C._len_torch_function_stack() == 0


def test_a_profiler_of_the_user_stays() -> None:
    """The profiler and the tracer that are set see the call, and are set afterwards."""
    seen = set()

    def profiler(frame: Any, event: str, argument: object) -> None:
        seen.add(frame.f_code.co_name)

    before = sys.getprofile(), sys.gettrace()
    sys.setprofile(profiler)
    try:
        refusal(endless, 0.1)
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(before[0])
    assert "endless" in seen
    assert sys.gettrace() is before[1]


def test_a_watch_inside_another_is_told_from_it() -> None:
    """The one whose time is over breaks off its own call, and the other goes on."""

    def patient() -> str:
        return refusal(endless, 0.1)

    assert "longer than 0.1 seconds" in Watch(30.0, nothing).run(patient)
    assert "longer than 0.2 seconds" in refusal(lambda: Watch(30.0, nothing).run(endless), 0.2)


def test_only_the_thread_that_is_watched_is_broken_off() -> None:
    """Another thread that works meanwhile does not notice."""
    found: list[float] = []
    other = threading.Thread(target=lambda: found.append(busy(0.5)))
    other.start()
    refusal(endless, 0.1)
    other.join()
    assert len(found) == 1


class Leaving:
    """Takes its time to go."""

    def __del__(self) -> None:
        busy(0.03)


def test_what_is_broken_off_in_a_finalizer_is_broken_off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that Python loses in a finalizer is raised again, and not shown; other ones are."""
    shown: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    before = sys.unraisablehook

    def go_on() -> None:
        while True:
            Leaving()
            busy(0.03)

    with pytest.raises(Exceeded):
        Watch(0.3, nothing).run(go_on)
    assert shown == []
    assert sys.unraisablehook is before
