"""A watch over code that is run for a recipe: it breaks off what goes on and on.

A constructor of torch that is told to copy a layer a billion times makes no tensor that could be counted, and looks
at no limit. So a second thread looks at the clock, and raises an exception in the thread that is watched.

Three rules, looked at some twenty times a second:

    * Nothing takes longer than ``seconds``, whoever wrote it.
    * One call of torch, one entry of a tape, and what replayml does between two tensors or modules, has a fifteenth of
      that on the processor: 2 seconds of 30. Code of the user, what it calls, and imports are not looked at so closely.
    * Nor does one of these fill `_IDLE_BYTES` of memory. This is looked at after half a second on the processor, where
      the system tells how much memory the process has.

Invariants:
    * No signal handler is touched, and no profiler or tracer but the user's own, which is put back when it is lost in a
      break. While a profiler that is written in Python runs, the code is the user's.
    * Nothing is raised once `Watch.run` has returned; a watch inside another is told from it.
    * Between two operations of Python is where code is broken off, as Ctrl-C would. A single operation is not: a list
      of as many elements as a number says must be refused before.
    * What the thread had around it (modes of torch, the default dtype, ...) is as before after a break; context
      variables are the call's own.
"""

from __future__ import annotations

import _thread
import ctypes
import math
import os
import sys
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import _C

from replayml.core.replay import Replayer
from replayml.recipe.faults import Flaw

__all__ = ["Exceeded", "Watch", "too_slow"]

T = TypeVar("T")

_TICK = 0.05
_IDLE_PART = 15
_IDLE_BYTES = 48 * 1024 * 1024
_IDLE_BEFORE_BYTES = 0.5
_IDLE_USUAL = 2.0  # the part that is left by default; more time means more memory
_LONGEST_STEP = 0.25  # a collection of garbage is one operation, however long it takes
_SET_EXCEPTION = ctypes.pythonapi["PyThreadState_SetAsyncExc"]  # found once: nothing is looked up in a library later
_MEMORY_OF_PROCESS = Path("/proc/self/statm")

_LIBRARIES = frozenset({"torch", "torchmetrics"})
_NO_ONES_CODE = _LIBRARIES | sys.stdlib_module_names | {"lightning", "numpy", "pydantic", "replayml"}
_DECORATORS = "torch.utils._contextlib"  # around functions of the user, such as `torch.no_grad`
_IMPORTING = frozenset({"importlib._bootstrap", "_frozen_importlib"})


class Exceeded(BaseException):
    """Raised through the constructors of a user, none of which catches it, when a limit is reached."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(flaw)
        self.flaw = flaw


class _Stopped(BaseException):
    """Raised in the thread that is watched."""


class Watch:
    """Watches one call, which it makes.

    Args:
        seconds: How long the call may take.
        count: Tells how much was made so far.

    Example:
        >>> Watch(30.0, lambda: 0).run(lambda: 3)
        3
    """

    def __init__(self, seconds: float, count: Callable[[], int]) -> None:
        self._seconds = seconds
        self._count = count
        self._thread = _thread.get_ident()
        self._around = _Surroundings()
        self._looking = (
            _thread.RLock()
        )  # held to look and to raise, and to end; the end may be broken off and made again
        self._asleep = _thread.allocate_lock()  # let go of to wake the other thread
        self._is_over = False
        self._flaw: Flaw | None = None
        self._hook = _Hook()
        self._progress = _Progress(seconds, _clock_of(self._thread))

    def run(self, make: Callable[[], T]) -> T:
        """Return what ``make`` returns.

        Raises:
            Exceeded: When it was broken off. Errors of ``make`` are raised as they are.
        """
        if math.isinf(self._seconds):
            return make()
        self._asleep.acquire()
        try:
            try:
                _thread.start_new_thread(self._watch, ())
                return copy_context().run(make)
            finally:
                self._end()
        except _Stopped:
            self._end()  # the first may have been broken off as well; the next exception is some time away
            if self._flaw is None:
                raise  # by the watch around this one
            self._around.restore()
            raise Exceeded(self._flaw) from None
        finally:
            self._end()

    def _end(self) -> None:
        """End the watch; what was raised before is raised in here at the latest, as there are calls after the lock."""
        with self._looking:
            is_first = not self._is_over
            self._is_over = True
            self._hook.remove()
            self._progress.forget()
        if is_first:
            self._asleep.release()

    # In the other thread ------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look at the call until it has ended."""
        while not self._is_over:
            self._asleep.acquire(timeout=_TICK)
            if self._looking.acquire(timeout=_TICK):
                try:
                    self._look()
                finally:
                    self._looking.release()

    def _look(self) -> None:
        """Look at the call; once it is to be broken off, break it off each time."""
        step = None if self._is_over else self._step()
        if step is None:
            return
        has_worked = self._progress.look(self._count(), step)
        if self._flaw is None:
            self._flaw, has_worked = self._progress.flaw(), True
        if self._flaw is not None and (self._progress.is_late() or (has_worked and not step.is_called_back)):
            self._hook.install()
            _SET_EXCEPTION(ctypes.c_ulong(self._thread), ctypes.py_object(_Stopped))

    def _step(self) -> _Step | None:
        """Return what the thread is doing, or None when it has left the call."""
        frame, entry, call = sys._current_frames().get(self._thread), None, None
        is_importing = is_theirs = is_called_back = False
        while frame is not None and frame.f_code is not Watch.run.__code__:
            name = str(frame.f_globals.get("__name__"))
            package = name.partition(".")[0]
            is_importing = is_importing or name in _IMPORTING
            if frame.f_code is Replayer.replay.__code__:
                entry = frame
            if package in _LIBRARIES and name != _DECORATORS:
                call, is_called_back, is_theirs = frame, is_called_back or is_theirs, False
            is_theirs = is_theirs or package not in _NO_ONES_CODE
            frame = frame.f_back
        return None if frame is None else _Step(entry, call, is_importing or is_theirs, is_called_back)


class _Hook:
    """Takes the place of ``sys.unraisablehook`` while code is broken off.

    An exception that comes up in a finalizer, or in what is called when an object goes, is lost: Python shows it there.
    The thread is broken off again a little later.
    """

    def __init__(self) -> None:
        self._before: Callable[[Any], object] | None = None

    def install(self) -> None:
        """Take the place."""
        if self._before is None:
            self._before = sys.unraisablehook
            sys.unraisablehook = self

    def remove(self) -> None:
        """Give the place back, unless somebody else has it now."""
        if self._before is not None and sys.unraisablehook is self:
            sys.unraisablehook = self._before

    def __call__(self, lost: Any) -> None:
        """Show what was lost, as before, unless it is ours."""
        if lost.exc_type is not _Stopped and self._before is not None:
            self._before(lost)


@dataclass(frozen=True, slots=True)
class _Step:
    """What a thread is doing: frames, since another one could stand at the same address later.

    Attributes:
        entry: The outermost entry of a tape that is being replayed.
        call: The outermost call of a library.
        is_excused: Code runs that may take its time: the user's, what that calls, or an import.
        is_called_back: Code of the user runs inside a call of a library. It may be what collects garbage, where an
            exception would be shown and lost.
    """

    entry: FrameType | None = None
    call: FrameType | None = None
    is_excused: bool = False
    is_called_back: bool = False

    def has_ended(self, now: _Step, has_made: bool) -> bool:
        """Tell whether a later step is another one: another entry, or another call by which something was made."""
        if now.is_excused or now.entry is not self.entry:
            return True
        return has_made and (now.call is None or now.call is not self.call)


class _Progress:
    """What a call has used, and what came of it.

    Args:
        seconds: How long it may take.
        clock: What its thread has had of the processor.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._start = time.monotonic()
        self._now = clock()
        self._count = -1
        self._step = _Step(is_excused=True)
        self._idle = 0.0
        self._memory = 0  # known from the first look on
        self._more = 0

    def look(self, count: int, step: _Step) -> bool:
        """Note how much was made, and by what, and tell whether the thread has gone on since the last time."""
        now = self._clock()
        worked, self._now = now - self._now, now
        memory = _memory()
        if self._step.has_ended(step, has_made=count != self._count):
            self._count, self._step, self._idle, self._memory = count, step, 0.0, memory
        else:
            self._idle += min(worked, _LONGEST_STEP)
        self._more = memory - self._memory
        return worked > _TICK / 5

    def forget(self) -> None:
        """Let go of frames, and so of all that stands in them."""
        self._step = _Step(is_excused=True)

    def is_late(self) -> bool:
        """Tell whether all of the time is over."""
        return time.monotonic() - self._start > self._seconds

    def flaw(self) -> Flaw | None:
        """Return what it has done too much of."""
        if self.is_late():
            return too_slow(self._seconds)
        part = self._seconds / _IDLE_PART
        if self._idle > part:
            what = f"one step goes on for {part:.3g} seconds. Raise Limits(seconds=), of which this is a part."
            return Flaw("too-slow", what)
        if self._more > _IDLE_BYTES * max(1.0, part / _IDLE_USUAL) and self._idle > min(_IDLE_BEFORE_BYTES, part):
            what = (
                f"one step goes on and has filled {self._more} bytes. Raise Limits(seconds=), and more is let through."
            )
            return Flaw("too-much-memory", what)
        return None


def too_slow(seconds: float) -> Flaw:
    """Return what is said of a call that takes too long."""
    return Flaw("too-slow", f"the dry run takes longer than {seconds} seconds. Raise Limits(seconds=).")


def _clock_of(thread: int) -> Callable[[], float]:
    """Return the clock of what a thread has had of the processor, or of the wall where the system has none."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    number = time.pthread_getcpuclockid(thread)
    return lambda: time.clock_gettime(number)


def _memory() -> int:
    """Return the bytes of memory that the process has, or 0 where the system does not tell."""
    if not _MEMORY_OF_PROCESS.exists():
        return 0
    return int(_MEMORY_OF_PROCESS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Surroundings:
    """What a block may leave changed around its thread when it is broken off in the middle of an ``__exit__``."""

    def __init__(self) -> None:
        self._modes = [_C._get_function_stack_at(index) for index in range(_C._len_torch_function_stack())]
        self._has_gradients = torch.is_grad_enabled()
        self._dtype = torch.get_default_dtype()
        self._profiler, self._tracer = sys.getprofile(), sys.gettrace()

    def restore(self) -> None:
        """Put everything back."""
        while _C._len_torch_function_stack():
            _C._pop_torch_function_stack()
        for mode in self._modes:
            _C._push_on_torch_function_stack(mode)
        torch.set_grad_enabled(self._has_gradients)
        torch.set_default_dtype(self._dtype)
        if sys.getprofile() is None:  # Python takes one away in which an exception was raised
            sys.setprofile(self._profiler)
        if sys.gettrace() is None:
            sys.settrace(self._tracer)
