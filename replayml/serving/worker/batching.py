"""Running the model: one request after the other, or what queued while the last batch ran as one batch.

    event loop: submit ─► queue ─► thread of the model: take what fits together ─► run ─► event loop: results
                      └─► run here, where that is sure to be shorter than a few milliseconds
                call ─► steps ─► thread of the model, in turn with the queue

In a thread the model and the event loop take turns in Python, and each turn costs a wake-up: more than a small model
takes. The event loop runs a model itself only when the time that it takes depends on nothing but the number of rows,
and the last run says that it will be short.

Invariants:
    * A lone request never waits: it runs as soon as the model is free. Others wait as long as more come at once.
    * The model never runs twice at once: the event loop runs nothing while the thread has something to do.
    * The event loop never runs code of the user, which may sleep, wait or end.
    * Steps of streams take no room of requests, and each of both waits for one turn of the other at the most.
    * Requests run in the order in which they came, and only such with inputs alike but for their rows run together.
    * The rows of a batch are given back to whom they belong. When a batch raises, its requests run one by one, so
      that one that is at fault takes none with it.
    * A request that nobody waits for any more does not run.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from replayml.serving.errors import EndedError, Refusal
from replayml.serving.worker.streaming import Items

__all__ = ["Batcher", "Job", "parted"]

Inputs = tuple[Any, ...]

_SHORT = 0.005  # seconds for which the event loop may be busy with the model


class Job:
    """A request for the model.

    Attributes:
        args: The positional arguments.
        kwargs: The arguments by name.
        rows: How many rows its inputs have where it may run with others, else None.
        future: Gets the result; whoever waits for it sits in the event loop.
    """

    __slots__ = ("args", "future", "kwargs", "rows")

    def __init__(self, args: Inputs, kwargs: Mapping[str, Any], rows: int | None, future: asyncio.Future[Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.rows = rows
        self.future = future

    def is_like(self, other: Job) -> bool:
        """Tell whether the inputs are those of the other but for their rows, and there is nothing besides."""
        return (
            self.rows is not None
            and other.rows is not None
            and not (self.kwargs or other.kwargs)
            and all(
                mine.shape[1:] == its.shape[1:] and mine.dtype == its.dtype
                for mine, its in zip(self.args, other.args, strict=True)
            )
        )


class Step(Job):
    """A step of something longer, which tells by itself what came of it.

    Attributes:
        function: The step.
    """

    __slots__ = ("function",)

    def __init__(self, function: Callable[[], None], future: asyncio.Future[Any]) -> None:
        super().__init__((), {}, None, future)
        self.function = function


Results = list[tuple[Job, Any, BaseException | None]]


class Batcher:
    """Runs a function in a thread of its own, for requests that come from an event loop.

    Args:
        function: The model.
        most_rows: How many rows to run at once; 0 to run each request by itself.
        wait: Seconds to wait for more, where more than one request is there already.
        room: How many requests may wait.
        is_steady: Whether the time that it takes depends on the number of rows alone.
        observe: Is told how many requests ran at once, and how long it took.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        most_rows: int,
        wait: float,
        room: int,
        is_steady: bool,
        observe: Callable[[int, float], None],
    ) -> None:
        self._function = function
        self._most_rows = most_rows
        self._wait = wait
        self._room = room
        self._observe = observe
        self._is_steady = is_steady and not wait
        self._short = 0  # so many rows run in less than _SHORT seconds, as far as is known
        self._here: deque[Job] = deque()
        self._rows_here = 0
        self._queue: deque[Job] = deque()
        self._steps: deque[Step] = deque()
        self._is_turn_of_steps = False
        self._is_idle = False  # the thread has nothing to do; only `_hand_over` ends that
        self._changed = threading.Condition()
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._running_since: float | None = None
        self._thread = threading.Thread(target=self._serve, name="replayml-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue) + len(self._here)

    @property
    def busy_for(self) -> float:
        """For how many seconds the model has been running what it runs now."""
        since = self._running_since
        return 0.0 if since is None else time.monotonic() - since

    def submit(
        self, args: Inputs, kwargs: Mapping[str, Any], rows: int | None, *, is_alone: bool = False
    ) -> asyncio.Future[Any]:
        """Queue a request, or run it; only for the event loop.

        Args:
            args: Its positional arguments.
            kwargs: Its arguments by name.
            rows: How many rows its inputs have; None where it may not run with others.
            is_alone: Whether no other request has come that could run with it.

        Raises:
            Refusal: When too many wait already.
        """
        job = Job(args, kwargs, rows if self._most_rows else None, self._loop.create_future())
        if not self._is_idle or kwargs or self._rows_here + (rows or 1) > self._short:
            self._hand_over(job)
        elif (is_alone or not self._most_rows) and not self._here:
            self._run_at_once([job])
        else:
            if len(self._here) >= self._room:
                self._run_here()  # the model is free
            self._here.append(job)
            self._rows_here += rows or 1
            if len(self._here) == 1:
                self._loop.call_soon(self._gather, 0)
        return job.future

    def _gather(self, before: int) -> None:
        """Run what waits for it in the event loop, once a turn of the loop has brought nothing more, or enough came."""
        if len(self._here) > before and self._rows_here < self._most_rows:
            self._loop.call_soon(self._gather, len(self._here))
        else:
            self._run_here()

    def _run_here(self) -> None:
        """Run what waits for it in the event loop."""
        while jobs := self._take(self._here, min(self._most_rows, self._short)):
            self._run_at_once(jobs)
        self._rows_here = 0

    def _run_at_once(self, jobs: Sequence[Job]) -> None:
        self._deliver(self._run(jobs))

    def _deliver(self, results: Results) -> None:
        for job, result, error in results:
            if job.future.done():  # nobody waits for it
                if isinstance(result, Items):
                    self.call(result.close)
            elif error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error if isinstance(error, Exception) else EndedError(error))

    def _hand_over(self, job: Job) -> None:
        """Leave a request to the thread, and what came before it and waits here."""
        with self._changed:
            if len(self._queue) >= self._room:
                raise Refusal("busy")
            self._is_idle = False
            self._queue.extend(self._here)
            self._queue.append(job)
            self._changed.notify()
        self._here.clear()
        self._rows_here = 0

    def call(self, function: Callable[[], None]) -> None:
        """Let the thread call a function when its turn has come; only for the event loop.

        What is given here is called in order, one of it between two runs of the model. It is not refused for lack of
        room, and runs whether anybody waits for it or not.
        """
        self._run_here()  # what came before runs before
        with self._changed:
            self._is_idle = False
            self._steps.append(Step(function, self._loop.create_future()))
            self._changed.notify()

    def close(self) -> None:
        """Let the thread end when nothing waits."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended, so long at most."""
        self._thread.join(seconds)

    # In the thread of the model -----------------------------------------------------------------------------------

    def _serve(self) -> None:
        torch.set_num_threads(torch.get_num_threads())  # OpenMP keeps this by thread; a new one would take all cores
        while jobs := self._next():
            self._loop.call_soon_threadsafe(self._deliver, self._run(jobs))

    def _next(self) -> list[Job]:
        """Return the requests to run together; none when it is over."""
        with self._changed:
            while True:
                while not (self._queue or self._steps or self._is_closed):
                    self._is_idle = True
                    self._changed.wait()
                if self._steps and (self._is_turn_of_steps or not self._queue):
                    self._is_turn_of_steps = False
                    return [self._steps.popleft()]
                if not self._queue:
                    return []
                self._is_turn_of_steps = True
                if self._wait and self._most_rows and len(self._queue) > 1:
                    self._wait_for_more()
                jobs = self._take(self._queue, self._most_rows)
                if jobs:
                    return jobs

    def _wait_for_more(self) -> None:
        end = time.monotonic() + self._wait
        while sum(job.rows or 0 for job in self._queue) < self._most_rows and not self._is_closed:
            left = end - time.monotonic()
            if left <= 0:
                return
            self._changed.wait(left)

    # In either ----------------------------------------------------------------------------------------------------

    def _take(self, queue: deque[Job], most_rows: int) -> list[Job]:
        """Take the first request and what follows it that fits."""
        jobs: list[Job] = []
        rows = 0
        while queue:
            job = queue[0]
            if job.future.done():  # nobody waits for it
                queue.popleft()
                continue
            if jobs and (not job.is_like(jobs[0]) or rows + (job.rows or 0) > most_rows):
                break
            jobs.append(queue.popleft())
            rows += job.rows or 0
            if job.rows is None:
                break
        return jobs

    def _run(self, jobs: Sequence[Job]) -> Results:
        """Run requests together, and note how long it took."""
        self._running_since = started = time.monotonic()
        used = time.thread_time()  # other programs that take the processor do not make a model long
        results = self._results(jobs)
        used = time.thread_time() - used
        self._running_since = None
        self._observe(len(jobs), time.monotonic() - started)
        if self._is_steady:
            self._short = int(sum(job.rows or 1 for job in jobs) * _SHORT / max(used, 1e-6))
        return results

    def _results(self, jobs: Sequence[Job]) -> Results:
        if len(jobs) > 1:
            try:
                joined = tuple(torch.cat(values) for values in zip(*(job.args for job in jobs), strict=True))
                parts = parted(self._function(*joined), [job.rows or 0 for job in jobs])
            except Exception:  # noqa: BLE001 - whatever the model raises; each request meets its own exception below
                return [self._run_one(job) for job in jobs]
            return [(job, part, None) for job, part in zip(jobs, parts, strict=True)]
        return [self._run_one(job) for job in jobs]

    def _run_one(self, job: Job) -> tuple[Job, Any, BaseException | None]:
        try:
            if isinstance(job, Step):
                job.function()
                return job, None, None
            return job, self._function(*job.args, **job.kwargs), None
        except StopIteration as error:  # which no future takes
            return job, None, RuntimeError(f"the module raised StopIteration: {error}")
        except BaseException as error:  # noqa: BLE001 - a module that calls sys.exit() ends neither thread nor worker
            return job, None, error


def parted(result: Any, counts: Sequence[int]) -> list[Any]:
    """Return the result of a batch as the results of its requests.

    Args:
        result: A tensor, or lists, tuples and dicts of tensors; the first dimension of each counts rows.
        counts: The rows of each request.

    Raises:
        ValueError: When there is not one row of the result for each row of the inputs.

    Example:
        >>> parted({"y": torch.arange(3)}, [1, 2])
        [{'y': tensor([0])}, {'y': tensor([1, 2])}]
    """
    if isinstance(result, torch.Tensor):
        if not result.dim() or result.shape[0] != sum(counts):
            raise ValueError(f"a result of shape {tuple(result.shape)} has not one row for each of {sum(counts)} rows")
        return list(torch.split(result, list(counts)))
    if isinstance(result, (list, tuple)):
        columns = [parted(item, counts) for item in result]
        make = list if isinstance(result, list) else tuple
        return [make(column[index] for column in columns) for index in range(len(counts))]
    if isinstance(result, Mapping):
        named = {key: parted(item, counts) for key, item in result.items()}
        return [{key: parts[index] for key, parts in named.items()} for index in range(len(counts))]
    raise ValueError(f"a {type(result).__name__} has no rows")
