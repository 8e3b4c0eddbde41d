"""Deploying several modules at once.

Invariants:
    * A module that others find by its name starts at once with those below it; any other one when these are up.
    * When one fails, those that have not started are not started, and those that run are waited for. The error raised
      is that of the first failed one in their order: a child's before that of a parent which missed it.
    * Each runs in a copy of the caller's context. No thread outlives the call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, copy_context
from typing import Any, NamedTuple

__all__ = ["GATEWAY", "Job", "all_at_once", "alone", "has_gateway"]

GATEWAY = "REPLAYML_REDIS_URL"
"""The environment variable for the Redis through which services find each other: `replayml.serving.calling.gateway`."""

_TICK = 0.2
_turn: ContextVar[AbstractContextManager[Any] | None] = ContextVar("replayml_turn", default=None)


def has_gateway() -> bool:
    """Tell whether modules find one another by name, so that they can be deployed at once."""
    return bool(os.environ.get(GATEWAY))


def alone() -> AbstractContextManager[Any]:
    """Return a context in which one of the deployments that run at once is at a time.

    Making models sets what the whole program has one of: torch's global generators, and its default type.
    """
    return _turn.get() or nullcontext()


class Job(NamedTuple):
    """One deployment.

    Attributes:
        run: Deploys a module.
        module: The module.
        waits: Whether those below it must be up before.
    """

    run: Callable[[], Any]
    module: Any
    waits: bool


def all_at_once(jobs: Sequence[Job]) -> None:
    """Run deployments in threads, and return when all have ended.

    Args:
        jobs: What to run, each module after those below it.

    Raises:
        BaseException: What the first of them raised; notes tell of the others.

    Example:
        >>> done = []
        >>> all_at_once([Job(lambda: done.append(1), object(), False), Job(lambda: done.append(2), object(), False)])
        >>> sorted(done)
        [1, 2]
    """
    states = [_State() for _ in jobs]
    has_failed = threading.Event()
    by_module = {id(job.module): state for job, state in zip(jobs, states, strict=True)}
    threads = []
    token = _turn.set(threading.Lock())
    for job, state in zip(jobs, states, strict=True):
        below = [by_module[id(each)] for each in _below(job.module) if id(each) in by_module] if job.waits else []
        run = _Run(job, state, below, has_failed)
        threads.append(threading.Thread(target=copy_context().run, args=(run,), name="replayml-deploy", daemon=True))
    _turn.reset(token)
    try:
        for thread in threads:
            thread.start()
        for state in states:
            while not state.is_over.wait(_TICK):
                pass  # now and then Python gets to see whether it was interrupted
    except BaseException:
        has_failed.set()
        raise
    finally:
        for thread in threads:
            if thread.ident is not None:
                thread.join()
    errors = [state.error for state in states if state.error is not None]
    try:
        for other in errors[1:]:
            errors[0].add_note(f"another one failed as well: {type(other).__name__}: {other}")
        if errors:
            raise errors[0]
    finally:
        errors.clear()  # an error holds this frame; without a circle, what it holds goes when the error does
        states.clear()
        by_module.clear()
        threads.clear()


class _State:
    """How far a job is."""

    def __init__(self) -> None:
        self.is_over = threading.Event()
        self.error: BaseException | None = None


class _Run:
    """Runs a job in a thread."""

    def __init__(self, job: Job, state: _State, below: Sequence[_State], has_failed: threading.Event) -> None:
        self._job = job
        self._state = state
        self._below = below
        self._has_failed = has_failed

    def __call__(self) -> None:
        try:
            for state in self._below:
                state.is_over.wait()
            if not self._has_failed.is_set():
                self._job.run()
        except BaseException as error:  # noqa: BLE001 - raised by the caller
            self._state.error = error
            self._has_failed.set()
        finally:
            self._state.is_over.set()


def _below(module: Any) -> list[Any]:
    return [below for below in module.modules() if below is not module]
