"""Threads: how several tasks run at the same time, and how they wait for one another.

Invariants:
    * A task sees the context variables of its caller, and torch's gradient, inference and autocast modes, default
      device and CUDA stream; what it sets itself is seen by nobody else.
    * When a task fails, those that have not started are not started, and those that run are waited for. The error
      raised is that of the first failed task in their order, which is the one that running them in order would raise.
    * No thread outlives the call that started it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import torch

__all__ = ["Left", "Meeting", "Modes", "apart", "meet", "side_by_side"]

Task = Callable[[], Any]

_DEVICES = ("cpu", "cuda", "mps", "xpu")  # those for which torch knows an autocast mode
_meeting: ContextVar[Meeting | None] = ContextVar("replayml_meeting", default=None)


class Left(Exception):  # noqa: N818 - no error: how a task ends that another one's error makes pointless
    """Raised in a task that was not started, or that waited for others, after one of them failed."""


# What is carried into a thread ----------------------------------------------------------------------------------


class Modes:
    """What torch keeps for each thread by itself, as it is where this object is made.

    Example:
        >>> with torch.no_grad():
        ...     modes = Modes()
        >>> with modes.carried():
        ...     torch.is_grad_enabled()
        False
    """

    def __init__(self) -> None:
        self._has_gradients = torch.is_grad_enabled()
        self._is_inference = torch.is_inference_mode_enabled()
        self._autocast = [
            (device, torch.get_autocast_dtype(device)) for device in _DEVICES if torch.is_autocast_enabled(device)
        ]
        self._is_cached = torch.is_autocast_cache_enabled()
        self._device = torch.get_default_device()
        self._stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

    @contextmanager
    def carried(self) -> Iterator[None]:
        """Run the block, in whatever thread, as if it stood where this object was made."""
        with ExitStack() as stack:
            if self._is_inference:
                stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.set_grad_enabled(self._has_gradients))
            for device, dtype in self._autocast:
                stack.enter_context(torch.autocast(device, dtype=dtype, cache_enabled=self._is_cached))
            if self._device.type != "cpu":
                stack.enter_context(self._device)
            if self._stream is not None:
                stack.enter_context(torch.cuda.stream(self._stream))
            yield


# Waiting for one another ----------------------------------------------------------------------------------------


class Meeting:
    """Where tasks that run side by side wait for one another; one that has ended is not waited for.

    Args:
        members: How many tasks there are.
        has_room: Whether all of them run at the same time; if not, they cannot wait for one another.
    """

    def __init__(self, members: int, has_room: bool) -> None:
        self._members = members
        self._has_room = has_room
        self._condition = threading.Condition()
        self._waiting = 0
        self._round = 0
        self._is_over = False

    def arrive(self) -> None:
        """Wait until every other task has arrived as well, or has ended."""
        if not self._has_room:
            raise RuntimeError(
                "a barrier waits for every task, and they do not all run at the same time here. Allow as many at once "
                "as there are: _concurrent=..."
            )
        with self._condition:
            self._waiting += 1
            current = self._round
            self._open_if_complete()
            self._condition.wait_for(lambda: self._round != current or self._is_over)
            if self._round == current:
                raise Left("another branch failed")

    def leave(self) -> None:
        """Tell that a task has ended."""
        with self._condition:
            self._members -= 1
            self._open_if_complete()

    def call_off(self) -> None:
        """Release everyone who waits, because a task failed."""
        with self._condition:
            self._is_over = True
            self._condition.notify_all()

    def _open_if_complete(self) -> None:
        if self._waiting and self._waiting == self._members:
            self._waiting = 0
            self._round += 1
            self._condition.notify_all()


def meet() -> None:
    """Wait for the other tasks of the innermost call of `side_by_side`, where there is one."""
    meeting = _meeting.get()
    if meeting is not None:
        meeting.arrive()


@contextmanager
def apart() -> Iterator[None]:
    """Run the block as one for which nobody waits."""
    token = _meeting.set(None)
    try:
        yield
    finally:
        _meeting.reset(token)


_TICK = 0.2

# Running --------------------------------------------------------------------------------------------------------


def side_by_side(tasks: Sequence[Task], workers: int) -> list[Any]:
    """Run tasks at the same time, and return what they return, in their order.

    Args:
        tasks: What to call, each without arguments.
        workers: How many to run at once.

    Example:
        >>> side_by_side([lambda: 1, lambda: 2], workers=2)
        [1, 2]
    """
    meeting = Meeting(len(tasks), has_room=workers >= len(tasks))
    modes = Modes()
    failed, interrupted = threading.Event(), threading.Event()
    started = threading.Event()  # when all have a thread or a place in the queue: an interrupt finds the pool complete

    def run(task: Task) -> Any:
        _meeting.set(meeting)  # in a context of its own
        try:
            if failed.is_set():
                raise Left("another task failed before this one started")
            started.wait()
            if interrupted.is_set():
                raise Left("the call was interrupted before this one started")
            with modes.carried():
                return task()
        except BaseException:
            failed.set()
            meeting.call_off()
            raise
        finally:
            meeting.leave()

    with ThreadPoolExecutor(min(workers, len(tasks)), thread_name_prefix="replayml-flow") as pool:
        futures: list[Future[Any]] = []
        try:
            futures.extend(pool.submit(copy_context().run, run, task) for task in tasks)
            started.set()
            _wait(futures)
        except BaseException:
            failed.set()
            interrupted.set()
            raise
        finally:
            for future in futures:
                future.cancel()  # what runs goes on, and the pool waits for it
            started.set()
    try:
        return _outcomes(futures)
    finally:
        futures.clear()  # an error holds this frame; without a circle, what it holds goes when the error does


def _wait(futures: Sequence[Future[Any]]) -> None:
    """Wait for all, or for the first error; now and then Python gets to see whether it was interrupted."""
    is_over = False
    while not is_over:
        done, pending = wait(futures, timeout=_TICK, return_when=FIRST_EXCEPTION)
        is_over = not pending or any(not one.cancelled() and one.exception() is not None for one in done)


def _outcomes(futures: Sequence[Future[Any]]) -> list[Any]:
    """Return the results, or raise the first error."""
    errors = [future.exception() for future in futures if not future.cancelled()]
    real = [error for error in errors if error is not None and not isinstance(error, Left)]
    if not real:
        return [future.result() for future in futures]
    try:
        for other in real[1:]:
            real[0].add_note(f"another one failed as well: {type(other).__name__}: {other}")
        raise real[0]
    finally:
        errors.clear()
        real.clear()
